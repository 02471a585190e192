"""The update rules, by hand and against plain loops."""

import numpy as np
import pytest
import torch

from extensions.tabular import (
    DoubleQLearning,
    QLearning,
    Sarsa,
    StochDoubleQ,
    StochQ,
    StochSarsa,
    VisitCount,
)

EXACT = [QLearning, DoubleQLearning, Sarsa]
STOCHASTIC = [StochQ, StochDoubleQ, StochSarsa]
GREEDY = {"exploration_initial_eps": 0.0, "exploration_final_eps": 0.0}


def with_table(agent, values):
    """The agent with values (tables, S, n) in its only run."""
    agent._table.values[:] = torch.tensor(values).double()
    return agent


Q = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [9.0, 8.0, 7.0], [0.0, 0.0, 0.0]]
#: what comes of the step, and what Q(0, 2) = 3 moves to by half: reward 1, gamma 0.5, max Q(2, .) = 9
ENDS = {
    (False, False): 0.5 * 3 + 0.5 * 5.5,
    (True, False): 0.5 * 3 + 0.5 * 1,
    (False, True): 0.5 * 3 + 0.5 * 5.5,
}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("cls", [QLearning, StochQ, Sarsa, StochSarsa])
def test_one_step_by_hand(cls, ends, scripted):
    options = {} if cls in EXACT else {"candidates": 3}
    agent = cls(scripted([(1.0, 2, *ends)]), 0.5, 0.5, seed=0, **GREEDY, **options)
    with_table(agent, [Q]).learn(1)
    expected = np.array(Q)
    expected[0, 2] = ENDS[ends]
    np.testing.assert_array_equal(agent.q_values()[0], expected)


@pytest.mark.parametrize(("seed", "side"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_one_step_of_a_double_method_by_hand(seed, side, scripted, monkeypatch):
    agent = DoubleQLearning(scripted([(1.0, 2, False, False)]), 0.5, 0.5, seed=seed, **GREEDY)
    a, b = np.array(Q), np.array([[5.0, 0, 0], [0, 0, 0], [1.0, 2.0, 4.0], [0, 0, 0]])
    with_table(agent, np.stack([a, b]).tolist())
    drawn = agent._draws.next
    monkeypatch.setattr(agent._draws, "next", lambda: drawn()._replace(side=torch.tensor([0.9 - 0.8 * side])))
    agent.learn(1)
    # A + B is [6, 2, 3] in state 0. A selects 0 in state 2, where B has 1; B selects 2, where A has 7.
    if side == 0:
        a[0, 0] = 0.5 * 1 + 0.5 * (1 + 0.5 * 1)
    else:
        b[0, 0] = 0.5 * 5 + 0.5 * (1 + 0.5 * 7)
    np.testing.assert_array_equal(agent.q_values(0)[0], a)
    np.testing.assert_array_equal(agent.q_values(1)[0], b)


@pytest.mark.parametrize("cls", [StochQ, StochDoubleQ])
def test_the_candidates_bootstrapped_from_are_others_than_those_acted_on(cls, scripted, monkeypatch):
    agent = cls(scripted([(1.0, 2, False, False)]), 0.5, 0.5, candidates=1, memory=0, seed=0, **GREEDY)
    with_table(agent, [Q] * agent.n_tables)
    drawn = agent._draws.next

    def next_draw():
        draw = drawn()
        act, other = (
            choice._replace(ids=torch.tensor([[a]])) for choice, a in ((draw.act, 1), (draw.other, 2))
        )
        return draw._replace(act=act, other=other, side=torch.tensor([0.9]))

    monkeypatch.setattr(agent._draws, "next", next_draw)
    agent.learn(1)
    expected = np.array(Q)
    expected[0, 1] = 0.5 * 2 + 0.5 * (1 + 0.5 * 7)  # Q(2, 2) = 7, and Q(2, 1) = 8
    np.testing.assert_array_equal(agent.q_values(0)[0], expected)


def test_both_tables_of_a_double_method_are_updated_half_of_the_time(mdp):
    agent = DoubleQLearning(mdp(1), VisitCount(1.0), seed=0).learn(1000)
    visits = agent._table.values[2:].sum((1, 2))
    assert float(visits.sum()) == 1000
    assert 430 < float(visits[0]) < 570


def test_sarsa_bootstraps_from_the_action_that_it_executes_next(scripted):
    script = [(0.5, 1, False, False), (0.25, 2, False, True), (0.5, 1, False, False), (1.0, 3, True, False)]
    env = scripted(script, actions=5)
    options = {"seed": 4, "exploration_final_eps": 0.5, "exploration_fraction": 0.0}
    states = []
    agent = StochSarsa(env, 0.5, 0.9, **options)
    agent.learn(301, callback=lambda local, _: states.append(local["state"].item()))
    q = np.zeros((4, 5))
    for t in range(300):
        reward, reached, terminated, truncated = script[t % 4]
        # the values of state 2 stay 0: it is where episodes are cut short, and nothing is ever done there
        follows = 0.0 if terminated or truncated else q[reached, env.actions[t + 1]]
        q[states[t], env.actions[t]] += 0.5 * (reward + 0.9 * follows - q[states[t], env.actions[t]])
    assert set(states) == {0, 1}
    again = StochSarsa(scripted(script, actions=5), 0.5, 0.9, **options).learn(300)
    np.testing.assert_allclose(again.q_values()[0], q, rtol=1e-12)


@pytest.mark.parametrize("rate", [0.1, VisitCount(0.8), lambda remaining: 0.5 * remaining])
def test_q_learning_is_ten_lines_of_numpy(rate, mdp, transitions):
    agent = QLearning(mdp(2, max_episode_steps=4), rate, 0.9, seed=0).learn(400, callback=transitions)
    assert transitions["terminated"].any()
    assert transitions["truncated"].any()
    for run in range(2):
        q, visits = np.zeros((5, 12)), np.zeros((5, 12))
        for t in range(400):
            s, a, r, reached, ended = (
                transitions[x][t, run] for x in ("s", "a", "reward", "next_state", "terminated")
            )
            visits[s, a] += 1
            alpha = visits[s, a] ** -0.8 if isinstance(rate, VisitCount) else rate
            alpha = rate(1 - t / 400) if callable(rate) else alpha
            target = r if ended else r + 0.9 * q[reached].max()
            q[s, a] += alpha * (target - q[s, a])
        np.testing.assert_allclose(agent.q_values()[run], q, rtol=1e-12, atol=1e-14)


def test_exploited_actions_are_maxima_of_the_candidates_and_the_others_uniform(mdp):
    agent = StochQ(mdp(4), seed=0, exploration_final_eps=0.3, exploration_fraction=0.0)
    checked, explored = 0, []
    act = agent._act

    def checking(rows, choice):
        nonlocal checked
        ids = torch.cat([choice.ids, agent._memory.recall(rows)], 1)
        values = agent._table.values[0][rows].clone()
        chosen = act(rows, choice)
        action, exploited = chosen.action, chosen.exploited
        for i in range(4):
            pool = [x for x in ids[i].tolist() if x >= 0]
            if exploited[i]:
                assert action[i] in pool
                assert values[i, action[i]] == values[i, pool].max()
                checked += 1
            else:
                explored.append(int(action[i]))
        return chosen

    agent._act = checking
    agent.learn(1000)
    assert 0.65 < checked / 4000 < 0.75
    counts = np.bincount(explored, minlength=12)
    assert (counts > 60).all()
    assert (counts < 140).all()


def test_a_memory_is_of_actions_exploited_in_that_state(mdp, transitions):
    agent = StochQ(mdp(2), seed=1, memory=3, exploration_final_eps=0.5, exploration_fraction=0.0)
    exploits = []
    act = agent._act
    agent._act = lambda *args: (exploits.append(act(*args)), exploits[-1])[1]
    agent.learn(300, callback=transitions)
    lists = {}
    for t in range(300):
        for run in range(2):
            key, a = (run, transitions["s"][t, run]), exploits[t].action[run].item()
            if exploits[t].exploited[run]:
                lists[key] = [a, *(b for b in lists.get(key, []) if b != a)][:3]
    known = agent._memory.recall(torch.arange(10)).reshape(2, 5, 3)
    for run, s in np.ndindex(2, 5):
        expected = lists.get((run, s), [])
        assert known[run, s].tolist() == expected + [-1] * (3 - len(expected))


@pytest.mark.parametrize(("stochastic", "exact"), zip(STOCHASTIC, EXACT, strict=True))
@pytest.mark.parametrize("rate", [0.1, VisitCount(0.7)])
def test_over_all_actions_each_collapses_to_its_exact_counterpart(stochastic, exact, rate, mdp):
    for all_of_them in ("all", 12):
        ours = stochastic(mdp(3), rate, seed=7, candidates=all_of_them).learn(300)
        theirs = exact(mdp(3), rate, seed=7).learn(300)
        assert torch.equal(ours._table.values, theirs._table.values)


@pytest.mark.parametrize("cls", STOCHASTIC)
@pytest.mark.parametrize("rate", [0.1, VisitCount(0.7)])
def test_a_sparse_table_learns_what_a_dense_one_learns(cls, rate, mdp):
    dense, sparse = (
        cls(mdp(3), rate, seed=7, table=table, initial_value=0.25).learn(200) for table in ("dense", "sparse")
    )
    every = torch.arange(15)
    ids = torch.arange(12).expand(15, -1)
    assert torch.equal(sparse._table.read(every, ids), dense._table.read_all(every))
    assert torch.equal(sparse._memory.recall(every), dense._memory.recall(every))


@pytest.mark.parametrize("cls", EXACT + STOCHASTIC)
def test_every_table_and_run_moves(cls, mdp):
    agent = cls(mdp(3), seed=0).learn(200)
    changed = (agent._table.values.reshape(cls.n_tables, 3, -1) != 0).sum(-1)
    assert bool((changed > 8).all())


def test_the_limit_with_one_candidate_is_the_value_of_random_play(mdp):
    world = mdp(20, max_episode_steps=None, reward_std=0.1)
    agent = StochQ(world, VisitCount(0.8), 0.7, candidates=1, memory=0, exploration_final_eps=1.0, seed=0)
    agent.learn(6000)
    live = (~world.terminal).double()
    q = torch.zeros(5, 12, dtype=torch.float64)
    for _ in range(200):
        q = world.rewards.mean(-1) + 0.7 * world.transitions @ (live * q.mean(1))
    found = agent.q_values().mean(0)[:4]
    np.testing.assert_allclose(found, q[:4], atol=0.05)


def test_with_a_memory_the_values_come_to_the_optimum_and_without_one_they_stay_below(mdp):
    q = torch.zeros(5, 12, dtype=torch.float64)
    for _ in range(300):
        world = mdp(1)
        q = world.rewards.mean(-1) + 0.7 * world.transitions @ ((~world.terminal).double() * q.amax(1))
    error, options = {}, {"exploration_final_eps": 0.5, "seed": 0}
    for memory in ("log", 0):
        world = mdp(20, max_episode_steps=None, reward_std=0.1)
        agent = StochQ(world, VisitCount(0.8), 0.7, memory=memory, **options).learn(4000)
        error[memory] = float((q[:4].numpy() - agent.q_values()[:, :4]).mean())
    assert abs(error["log"]) < 0.1
    assert error[0] > 0.2


@pytest.mark.parametrize("ends", [(True, False), (False, True)])
@pytest.mark.parametrize("cls", [Sarsa, StochSarsa])
def test_sarsa_begins_an_episode_with_an_action_for_its_first_state(cls, ends, scripted):
    env = scripted([(0.0, 2, *ends)])
    options = {} if cls is Sarsa else {"candidates": 3}
    agent = with_table(
        cls(env, 1e-9, seed=0, **GREEDY, **options), [[[0, 9.0, 0], [0] * 3, [0, 0, 9.0], [0] * 3]]
    )
    agent.learn(5)
    assert env.actions == [1] * 5
