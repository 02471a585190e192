"""One clear error that names the fix."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv

from extensions.tabular import DoubleQLearning, QLearning, Sarsa, StochQ, VisitCount

STATES, ACTIONS = gym.spaces.Discrete(4), gym.spaces.Discrete(3)


@pytest.mark.parametrize(
    ("name", "space", "message"),
    [
        ("observation_space", gym.spaces.Box(0, 1, (2,)), "observation space must be Discrete.*TransformObs"),
        ("action_space", gym.spaces.Box(0, 1, (2,)), "action space must be Discrete.*TransformAction"),
        ("action_space", gym.spaces.MultiDiscrete([2, 3]), "action space must be Discrete"),
        ("observation_space", gym.spaces.Discrete(4, start=1), "observation space must start at 0"),
        ("action_space", gym.spaces.Discrete(3, start=-1), "action space must start at 0.*TransformAction"),
    ],
)
def test_other_spaces_are_refused(name, space, message, scripted):
    env = scripted([(0.0, 1, False, False)])
    setattr(env, name, space)
    with pytest.raises(ValueError, match=message):
        StochQ(env)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate must lie in \(0, 1\]"),
        ({"learning_rate": 1.5}, r"learning_rate must lie in \(0, 1\]"),
        ({"learning_rate": float("nan")}, r"learning_rate must lie in \(0, 1\]"),
        ({"gamma": 1.1}, r"gamma must be a number in \[0, 1\]"),
        ({"gamma": float("nan")}, "gamma must be"),
        ({"gamma": "0.9"}, "gamma must be"),
        ({"exploration_fraction": -0.1}, "exploration_fraction must be"),
        ({"exploration_initial_eps": 2}, "exploration_initial_eps must be"),
        ({"exploration_final_eps": None}, "exploration_final_eps must be"),
        ({"gamma": True}, "gamma must be"),
        ({"initial_value": float("nan")}, "initial_value must be a finite number; got nan"),
        ({"initial_value": -float("inf")}, "initial_value must be a finite number"),
        ({"initial_value": "high"}, "initial_value must be a finite number"),
        ({"candidates": 0}, 'candidates must be "log", "all" or a whole number, at least 1'),
        ({"candidates": "some"}, "candidates must be"),
        ({"candidates": 2.5}, "candidates must be"),
        ({"memory": -1}, 'memory must be "log" or a whole number, at least 0'),
        ({"memory": "all"}, "memory must be"),
        ({"memory": True}, "memory must be"),
        ({"eval_candidates": 0}, "^eval_candidates must be a whole number, at least 1"),
        ({"schedule_timesteps": 0}, "schedule_timesteps must be"),
        ({"record_interval": -1}, "record_interval must be"),
        ({"table": "hashed"}, 'table must be "auto", "dense" or "sparse"'),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StochQ("FrozenLake-v1", **arguments)


def test_arguments_of_other_kinds_are_refused():
    with pytest.raises(TypeError, match="VisitCount"):
        StochQ("FrozenLake-v1", learning_rate="slow")
    with pytest.raises(TypeError, match="seed must be a whole number"):
        StochQ("FrozenLake-v1", seed=0.5)
    with pytest.raises(TypeError, match="seed must be a whole number"):
        StochQ("FrozenLake-v1", seed=np.bool_(True))
    with pytest.raises(TypeError, match="unexpected keyword argument 'alpha'"):
        StochQ("FrozenLake-v1", alpha=0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'candidates'"):
        QLearning("FrozenLake-v1", candidates=2)
    with pytest.raises(TypeError, match="env must be an id of gymnasium"):
        StochQ(42)
    with pytest.raises(TypeError, match="callback must be a function"):
        StochQ("FrozenLake-v1").learn(1, callback=["no function"])
    with pytest.raises(ValueError, match=r"power=0"):
        VisitCount(0)
    with pytest.raises(ValueError, match=r"power=high"):
        VisitCount("high")


def test_a_schedule_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"learning_rate\(1\) returned 2.0"):
        StochQ("FrozenLake-v1", lambda remaining: 2.0 * remaining).learn(5)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused_before_it_is_learned_from(reward, scripted):
    script = [(1.0, 1, False, False), (reward, 2, False, False)]
    agent = StochQ(scripted(script), seed=0)
    with pytest.raises(ValueError, match="Environment 0 returned a reward of"):
        agent.learn(5)
    assert np.isfinite(agent.q_values()).all()
    envs = SyncVectorEnv([lambda: scripted([(1.0, 1, False, False)]), lambda: scripted(script)])
    with pytest.raises(ValueError, match="Environment 1 returned a reward of"):
        StochQ(envs, seed=0).learn(5)


@pytest.mark.parametrize(("state", "message"), [(7, r"must lie in \[0, 4\)"), (1.5, "must be whole numbers")])
def test_a_state_outside_the_space_is_refused(state, message, scripted):
    with pytest.raises(ValueError, match=message):
        StochQ(scripted([(0.0, state, False, False)]), seed=0, table="sparse").learn(5)
    with pytest.raises(ValueError, match=message):
        StochQ(scripted([(0.0, 1, False, False)]), seed=0).predict(state)


def test_observations_that_are_not_one_row_a_learner_are_refused(mdp):
    agent = StochQ(mdp(3), seed=0)
    with pytest.raises(ValueError, match="one row a learner"):
        agent.predict([0, 1])
    with pytest.raises(ValueError, match="one row a learner"):
        agent.predict(0)


@pytest.mark.parametrize(
    ("cls", "instead"), [(QLearning, "StochQ"), (DoubleQLearning, "StochDoubleQ"), (Sarsa, "StochSarsa")]
)
def test_exact_maxima_over_very_many_actions_are_refused(cls, instead, many_actions):
    with pytest.raises(ValueError, match=f"all 1,000,000,000 actions.*use {instead}$"):
        cls(many_actions(10**9))


def test_what_cannot_be_exact_says_so(many_actions):
    with pytest.raises(ValueError, match='use StochQ with candidates="log"'):
        StochQ(many_actions(10**9), candidates="all")
    with pytest.raises(ValueError, match="sparse table cannot read at once: use StochQ"):
        QLearning("FrozenLake-v1", table="sparse")
    with pytest.raises(ValueError, match="no array of all its values"):
        StochQ(many_actions(10**9)).q_values()


@pytest.mark.parametrize("n", [2**53 + 1, 2**61])
def test_more_actions_than_can_be_drawn_are_refused(n, many_actions):
    with pytest.raises(ValueError, match=r"more than the 2\^53 that can be drawn: number fewer"):
        StochQ(many_actions(n))
    assert StochQ(many_actions(2**53), seed=0).learn(3).num_timesteps == 3


def test_an_environment_of_another_size_is_refused(mdp):
    agent = StochQ(mdp(3), seed=0)
    with pytest.raises(ValueError, match="has 2 runs, 5 states and 12 actions, and the agent was made for 3"):
        agent.set_env(mdp(2))
    with pytest.raises(ValueError, match="give both one device"):
        StochQ(mdp(1), device=torch.device("meta"))
