"""Worlds to learn in."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from extensions.tabular import TabularMDP


class Scripted(gym.Env):
    """Plays a list of (reward, state reached, terminated, truncated), whatever is done; starts in state 0.

    When it is at the end it begins again. Remembers the actions.
    """

    def __init__(self, script, states=4, actions=3):
        self.observation_space = gym.spaces.Discrete(states)
        self.action_space = gym.spaces.Discrete(actions)
        self.script, self.at, self.actions = script, 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        self.actions.append(int(action))
        reward, state, terminated, truncated = self.script[self.at % len(self.script)]
        self.at += 1
        return state, reward, terminated, truncated, {}


class ManyActions(gym.Env):
    """A walk over ten states with n actions: the reward is a function of the action's last digits."""

    def __init__(self, n, states=10):
        self.observation_space, self.action_space = gym.spaces.Discrete(states), gym.spaces.Discrete(n)
        self.state = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.state = (self.state + 1 + action % 3) % int(self.observation_space.n)
        return self.state, (action % 7) / 7, self.state == 9, False, {}


def random_mdp(n_runs, states=5, n=12, seed=0, device="cpu", **kwargs):
    """Rewards with noise; the last state is terminal, and episodes are cut short."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(states, n, states, generator=generator, dtype=torch.float64) ** 3
    rewards = torch.randn(states, n, generator=generator, dtype=torch.float64)
    options = {
        "reward_std": 0.5,
        "terminal": torch.arange(states) == states - 1,
        "initial": torch.full((states,), 1 / states, dtype=torch.float64),
        "max_episode_steps": 7,
    }
    options.update(kwargs)
    return TabularMDP(p / p.sum(-1, keepdim=True), rewards, n_runs=n_runs, device=device, **options)


@pytest.fixture
def scripted():
    return Scripted


@pytest.fixture
def many_actions():
    return ManyActions


@pytest.fixture
def mdp():
    return random_mdp


@pytest.fixture
def transitions():
    """A callback that keeps what happened, as numpy arrays by name, each (steps, R)."""

    class Recorder:
        def __init__(self):
            self.rows = []

        def __call__(self, local, _):
            kept = {"s": local["state"], "a": local["action"], **local["step"]._asdict()}
            self.rows.append({name: x.cpu().numpy().copy() for name, x in kept.items()})

        def __getitem__(self, name):
            return np.array([row[name] for row in self.rows])

    return Recorder()
