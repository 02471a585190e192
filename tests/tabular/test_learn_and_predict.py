"""Learning and predicting in Stable-Baselines3's manner."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from extensions.tabular import QLearning, StochDoubleQ, StochQ, StochSarsa, VisitCount


def test_learn_goes_on_or_begins_anew(mdp):
    agent = StochQ(mdp(2), seed=0)
    assert agent.learn(30) is agent
    assert agent.num_timesteps == 30
    assert agent.learn(20, reset_num_timesteps=False).num_timesteps == 50
    assert agent.learn(20).num_timesteps == 20


def test_a_callback_sees_each_step_and_may_stop(mdp):
    agent = StochQ(mdp(2), seed=0)
    seen = []

    def callback(local, globals_):
        assert local["self"] is agent
        seen.append(local["step"].reward.shape)
        return len(seen) < 7

    agent.learn(30, callback=callback)
    assert agent.num_timesteps == len(seen) == 7
    assert set(seen) == {(2,)}


def test_a_progress_bar_changes_nothing(mdp):
    a, b = (StochQ(mdp(2), seed=0).learn(30, progress_bar=shown) for shown in (True, False))
    np.testing.assert_array_equal(a.q_values(), b.q_values())


def test_two_seeded_runs_are_equal_and_torchs_generator_has_no_part_in_it(mdp):
    torch.manual_seed(0)
    a = StochQ(mdp(2), seed=3).learn(50)
    torch.manual_seed(1)
    b = StochQ(mdp(2), seed=3).learn(50)
    np.testing.assert_array_equal(a.q_values(), b.q_values())


def test_schedules_go_by_progress(mdp):
    rates, epsilons = [], []
    agent = QLearning(mdp(1), lambda remaining: remaining, exploration_fraction=0.5, seed=0)

    def callback(local, _):
        rates.append(agent._rate)
        epsilons.append(agent.exploration_rate)

    agent.learn(10, callback=callback)
    np.testing.assert_allclose(rates, 1 - np.arange(10) / 10)
    np.testing.assert_allclose(epsilons, [1, 0.81, 0.62, 0.43, 0.24, *[0.05] * 5])


def test_greedy_prediction_is_the_maximum_of_the_table_the_first_of_equals():
    agent = StochQ("FrozenLake-v1", VisitCount(), seed=0, exploration_final_eps=1.0).learn(3000)
    q = agent.q_values()[0]
    actions, state = agent.predict(np.arange(16).reshape(4, 4), state="passed through")
    np.testing.assert_array_equal(actions, q.argmax(1).reshape(4, 4))
    assert state == "passed through"
    action, _ = agent.predict(14)
    gym.make("FrozenLake-v1").unwrapped.P[14][action]  # a number, not an array of one
    assert action == q[14].argmax()


def test_a_double_method_predicts_by_the_sum_of_its_tables(mdp):
    agent = StochDoubleQ(mdp(3), seed=0).learn(500)
    states = np.array([[0, 1], [2, 3], [3, 0]])
    total = agent.q_values(0) + agent.q_values(1)
    expected = [[total[i, s].argmax() for s in row] for i, row in enumerate(states)]
    np.testing.assert_array_equal(agent.predict(states)[0], expected)
    s, a = [0, 1, 2], [5, 4, 3]
    np.testing.assert_allclose(agent.q_value(s, a), total[[0, 1, 2], s, a] / 2)
    np.testing.assert_allclose(agent.q_values(), total / 2)


def test_predictions_change_nothing(mdp):
    quiet, asked = StochSarsa(mdp(2), seed=0), StochSarsa(mdp(2), seed=0)

    def ask(*_):
        asked.predict([0, 1])
        asked.predict([0, 1], deterministic=False)

    quiet.learn(100)
    asked.learn(100, callback=ask)
    np.testing.assert_array_equal(quiet.q_values(), asked.q_values())


def test_stochastic_prediction_acts_as_in_training():
    agent = StochQ("FrozenLake-v1", seed=0)
    agent._table.values[0, :, 1] = 1.0
    agent.exploration_rate = 0.4
    actions, _ = agent.predict(np.zeros((100, 100), dtype=int), deterministic=False)
    # 2 of 4 candidates have action 1 half of the time; else the two left over are level
    expected = 0.6 * np.array([1 / 6, 1 / 2, 1 / 6, 1 / 6]) + 0.4 / 4
    np.testing.assert_allclose(np.bincount(actions.ravel()) / 1e4, expected, atol=0.02)


def test_greedy_prediction_of_a_sparse_table_looks_at_the_memory_and_always_the_same_ids(many_actions):
    agent = StochQ(many_actions(10**9), 0.5, seed=0, exploration_final_eps=0.5).learn(500)
    states = np.arange(9)
    first, _ = agent.predict(states)
    np.testing.assert_array_equal(agent.predict(states)[0], first)
    known = agent._memory.recall(torch.arange(9))
    best = [max(agent.q_value(s, a)[0] for a in known[s].tolist() if a >= 0) for s in states]
    np.testing.assert_array_equal([agent.q_value(s, a)[0] for s, a in zip(states, first, strict=True)], best)


def test_records_are_what_happened(mdp, transitions):
    agent = StochQ(mdp(3), seed=0, record_interval=50).learn(150, callback=transitions)
    assert [row["time/total_timesteps"] for row in agent.records.rows] == [50, 100, 150]
    np.testing.assert_allclose(
        agent.records.rows[1]["rollout/rew_mean"], transitions["reward"][50:100].mean(0), rtol=1e-12
    )
    done, total, ended = transitions["terminated"] | transitions["truncated"], np.zeros(3), [[], [], []]
    for t in range(50):
        total += transitions["reward"][t]
        for i in np.flatnonzero(done[t]):
            ended[i].append(total[i])
            total[i] = 0
    np.testing.assert_allclose(
        agent.records.rows[0]["rollout/ep_rew_mean"], [np.mean(x) for x in ended], rtol=1e-9
    )
    assert bool((agent.records.rows[2]["train/beta"] >= 0).all())
    assert bool((agent.records.rows[2]["train/omega"] <= 1).all())


def test_omega_and_beta_are_those_of_the_candidates(mdp):
    agent = StochQ(mdp(200), seed=0, candidates=3, memory=0, record_interval=50, learning_rate=1e-9)
    torch.manual_seed(0)
    values = torch.rand(200 * 5, 12).double()
    agent._table.values[0] = values
    agent.learn(50)
    row = agent.records.rows[0]
    # iid uniform values: the maximum of k is k / (k + 1) on average
    assert float(row["train/beta"].mean()) == pytest.approx(1 / 4 - 1 / 13, abs=0.01)
    top = values.sort(1, descending=True).values
    ratio = sum(float((top[:, j] / top[:, 0]).mean()) * chance(j, 3, 12) for j in range(10))
    assert float(row["train/omega"].mean()) == pytest.approx(ratio, abs=0.01)


def chance(rank, k, n):
    """That the best of k distinct ids of n is the one of this rank."""
    from math import comb

    return comb(n - 1 - rank, k - 1) / comb(n, k)


@pytest.mark.parametrize("ends", [(True, False), (False, True)])
def test_sarsas_shortfalls_are_those_of_the_actions_that_it_executes(ends, scripted):
    env = scripted([(0.0, 2, *ends)], actions=2)  # all is done in state 0
    options = {"candidates": 1, "memory": 0, "exploration_initial_eps": 0.0, "exploration_final_eps": 0.0}
    agent = StochSarsa(env, 1e-12, seed=0, record_interval=100, **options)
    agent._table.values[0, 0] = torch.tensor([1.0, 2.0])
    agent._table.values[0, 2] = torch.tensor([1.0, 100.0])
    agent.learn(100)
    betas = [2 - (1.0, 2.0)[a] for a in env.actions]
    assert 30 < sum(betas) < 70
    assert agent.records.rows[0]["train/beta"].item() == pytest.approx(np.mean(betas), abs=1e-9)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("cls", [StochQ, StochSarsa])
def test_shortfalls_are_those_of_steps_that_do_more_than_reset(cls, mode, scripted, transitions):
    """All is done in state 0, every second step ends an episode, and one candidate is looked at."""
    script = [(0.0, 0, False, False), (0.0, 2, True, False)]
    envs = SyncVectorEnv([lambda: scripted(script, actions=2)] * 2, autoreset_mode=mode)
    options = {"candidates": 1, "memory": 0, "exploration_initial_eps": 0.0, "exploration_final_eps": 0.0}
    agent = cls(envs, 1e-12, seed=0, record_interval=150, **options)
    agent._table.values[0] = torch.tensor([[1.0, 2.0], [0, 0], [1.0, 100.0], [0, 0]]).repeat(2, 1)
    agent.learn(150, callback=transitions)
    row = agent.records.rows[0]
    for run in range(2):
        betas = 1.0 - transitions["a"][transitions["happened"][:, run], run]
        assert 0.3 < betas.mean() < 0.7
        assert row["train/beta"][run].item() == pytest.approx(betas.mean(), abs=1e-9)
        assert row["train/omega"][run].item() == pytest.approx(1 - betas.mean() / 2, abs=1e-9)


def test_exact_agents_record_no_shortfall(mdp):
    agent = QLearning(mdp(2), seed=0, record_interval=10).learn(20)
    assert agent.records.rows[0].keys() == {"time/total_timesteps", "rollout/rew_mean", "rollout/ep_rew_mean"}
