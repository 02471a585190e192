"""Whole episodes of a world at once: how the figures of random and oracle policies are measured."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .world import State, World

Policy = Callable[[State], Any]


def uniform_policy(world: World, seed: int = 0) -> Policy:
    """A policy of uniformly random ids."""
    rng = np.random.default_rng(seed)
    return lambda state: rng.integers(world.n, size=state["t"].shape)


def rollout(world: World, policy: Policy, episodes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Play ``episodes`` episodes side by side, with numpy.

    Args: world: the world. policy: actions ``(episodes,)`` for a state of arrays ``(episodes,)``, such as
        ``world.optimal_action``. episodes: how many. seed: which ones.

    Returns:
        undiscounted returns (float64) and lengths (int64), ``(episodes,)`` each.
    """
    state = world.reset(np.random.default_rng(seed).integers(2**62, size=episodes))
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    alive = np.ones(episodes, dtype=bool)
    for _ in range(world.horizon):
        state, rewards, terminated = world.step(state, policy(state))
        returns += np.where(alive, rewards, 0.0)
        lengths += alive
        alive &= ~terminated
        if not alive.any():
            break
    return returns, lengths
