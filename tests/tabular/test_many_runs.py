"""A learner among many is the learner alone, seed by seed, in all kinds of environments."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from extensions.tabular import (
    DoubleQLearning,
    QLearning,
    Sarsa,
    StochDoubleQ,
    StochQ,
    StochSarsa,
    TabularMDP,
    VisitCount,
)

ALL = [QLearning, DoubleQLearning, Sarsa, StochQ, StochDoubleQ, StochSarsa]
MODES = list(AutoresetMode)


def frozen_lakes(count, mode, **kwargs):
    return SyncVectorEnv([lambda: gym.make("FrozenLake-v1", **kwargs)] * count, autoreset_mode=mode)


@pytest.mark.parametrize("cls", ALL)
def test_a_run_in_a_batch_of_a_hundred_is_the_run_alone(cls, mdp, transitions):
    together = cls(mdp(100), VisitCount(0.8), seed=40, record_interval=100).learn(200)
    for i in (0, 1, 57, 99):
        alone = cls(mdp(1), VisitCount(0.8), seed=40 + i, record_interval=100).learn(200)
        np.testing.assert_array_equal(alone.q_values()[0], together.q_values()[i])
        for one, all_of_them in zip(alone.records.rows, together.records.rows, strict=True):
            for name in one.keys() - {"time/total_timesteps"}:
                np.testing.assert_array_equal(one[name][0], all_of_them[name][i])


def test_runs_of_different_seeds_differ(mdp):
    q = StochQ(mdp(20), seed=0).learn(100).q_values().reshape(20, -1)
    assert len({row.tobytes() for row in q}) == 20


@pytest.mark.parametrize("eval_candidates", [5, 1000])
def test_a_run_among_many_predicts_from_a_sparse_table_what_it_predicts_alone(eval_candidates, mdp):
    # ids that were never met are best
    options = {"table": "sparse", "eval_candidates": eval_candidates, "initial_value": 1e6}
    together = StochQ(mdp(3, n=400), seed=40, **options).learn(200)
    states = np.arange(4)
    several, _ = together.predict(np.tile(states, (3, 1)))
    for i in range(3):
        alone = StochQ(mdp(1, n=400), seed=40 + i, **options).learn(200)
        np.testing.assert_array_equal(alone.predict(states)[0], several[i])
    assert (eval_candidates == 1000) or len({tuple(row) for row in several.tolist()}) == 3


def test_an_agent_and_its_environment_draw_other_numbers(mdp):
    env = mdp(3)
    agent = StochQ(env, seed=40).learn(1)
    of_agent, of_env = agent._draws._steps.uniform(0, 50, 4), env._random.uniform(0, 50, 4)
    assert not bool((of_agent == of_env).any())
    related = torch.corrcoef(torch.stack([of_agent.flatten(), of_env.flatten()]))[0, 1]
    assert abs(float(related)) < 5 / 600**0.5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cls", [StochQ, StochSarsa])
def test_a_run_in_a_vector_environment_is_the_run_alone(cls, mode):
    together = cls(frozen_lakes(3, mode, max_episode_steps=9), seed=10).learn(150)
    for i in range(3):
        alone = cls(frozen_lakes(1, mode, max_episode_steps=9), seed=10 + i).learn(150)
        np.testing.assert_array_equal(alone.q_values()[0], together.q_values()[i])


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("cls", ALL)
def test_a_vector_environment_of_one_is_the_environment(cls, mode):
    plain = cls(gym.make("FrozenLake-v1", max_episode_steps=9), seed=3).learn(200)
    vector = cls(frozen_lakes(1, mode, max_episode_steps=9), seed=3).learn(200)
    np.testing.assert_array_equal(vector.q_values(), plain.q_values())


@pytest.mark.parametrize("mode", MODES)
def test_what_is_learned_from_is_what_happened(mode, transitions):
    """All transitions are possible, those that end do so where they should, and resets are not among them."""
    pays = {"reward_schedule": (1.0, -1.0, -0.125)}
    envs = frozen_lakes(3, mode, max_episode_steps=6, **pays)
    agent = QLearning(envs, 0.5, 0.9, seed=0, exploration_final_eps=1.0).learn(400, callback=transitions)
    listed = gym.make("FrozenLake-v1", **pays).unwrapped.P
    happened = transitions["happened"]
    assert happened.all() == (mode != AutoresetMode.NEXT_STEP)
    q, elapsed = np.zeros((3, 16, 4)), np.zeros(3, dtype=int)
    for t, run in np.argwhere(happened):
        s, a, r, reached, ended, cut, then = (
            transitions[x][t, run]
            for x in ("s", "a", "reward", "next_state", "terminated", "truncated", "state")
        )
        assert any((reached, r, ended) == outcome[1:] for outcome in listed[s][a])
        elapsed[run] += 1
        assert cut == (elapsed[run] == 6)
        if ended or cut:
            elapsed[run] = 0
            assert mode == AutoresetMode.NEXT_STEP or then == 0
        else:
            assert then == reached
        q[run, s, a] += 0.5 * (r + (0 if ended else 0.9 * q[run, reached].max()) - q[run, s, a])
    assert q.any()
    np.testing.assert_allclose(agent.q_values(), q, rtol=1e-12)


def test_a_step_that_only_resets_enters_no_memory_and_no_sparse_table(many_actions):
    envs = SyncVectorEnv([lambda: many_actions(5000)] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    agent = StochQ(envs, seed=0, table="sparse", exploration_initial_eps=0.0, exploration_final_eps=0.0)
    seen = [set(), set()]

    def watch(local, _):
        for i in torch.nonzero(local["step"].happened).flatten().tolist():
            seen[i].add((local["state"][i].item(), local["action"][i].item()))

    agent.learn(200, callback=watch)
    assert agent._table.entries == sum(len(pairs) for pairs in seen)
    recalled = agent._memory.recall(torch.arange(20))
    assert bool((recalled[[9, 19]] == -1).all())  # state 9 is terminal: nothing is ever done there


def test_epsilon_and_ties_are_each_runs_own(mdp, transitions):
    StochQ(mdp(50), seed=0, exploration_final_eps=0.5).learn(30, callback=transitions)
    assert (np.array([len(set(row)) for row in transitions["a"]]) > 3).all()


def test_many_copies_of_a_toy_text_run_at_once():
    env = TabularMDP.from_gymnasium("FrozenLake-v1", n_runs=100)
    agent = QLearning(env, 0.1, seed=0, exploration_fraction=0.5, record_interval=1000).learn(4000)
    assert float(agent.records.rows[-1]["rollout/ep_rew_mean"].mean()) > 0.1  # random play: 0.014
