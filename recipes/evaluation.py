"""What a policy is worth: whole episodes, side by side, and the lines to judge it against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

EVAL_SEED = 1_000_000  # the same episodes for every run
#: episodes of random play in a world whose environments step as one; elsewhere as many as of an evaluation
RANDOM_EPISODES = 2_000


@dataclass
class Score:
    """Means over episodes: undiscounted return, and steps."""

    mean_return: float
    mean_length: float


def play(envs: gym.vector.VectorEnv, act: Callable[[Any], Any], seed: int) -> Score:
    """Play one episode in each of ``envs``, from starts given by ``seed``; ``act`` maps observations to
    actions.
    """
    observations, _ = envs.reset(seed=seed)
    returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs)
    alive = np.ones(envs.num_envs, dtype=bool)
    while alive.any():
        observations, rewards, terminated, truncated, _ = envs.step(act(observations))
        returns += np.where(alive, rewards, 0.0)  # those that are over go on with their next episode
        lengths += alive
        alive &= ~(terminated | truncated)
    return Score(float(returns.mean()), float(lengths.mean()))


def optimum(envs: gym.vector.VectorEnv, seed: int) -> Score | None:
    """The oracle's score on the episodes of ``play(envs, ..., seed)``; None where there is no oracle."""
    world = getattr(envs, "dynamics", None)
    if world is None:
        return None
    return play(envs, lambda _: world.optimal_action(envs.state), seed)  # type: ignore[attr-defined]


def random_return(env_id: str, kwargs: dict[str, Any], episodes: int, seed: int) -> float:
    """The mean return of uniformly random actions, exact where the world knows it, else over ``episodes``."""
    world = getattr(gym.make(env_id, **kwargs).unwrapped, "dynamics", None)
    exact = None if world is None else world.random_return()
    if exact is not None:
        return exact
    envs = gym.make_vec(env_id, num_envs=episodes if world is None else RANDOM_EPISODES, **kwargs)
    envs.action_space.seed(seed)
    mean_return = play(envs, lambda _: envs.action_space.sample(), seed).mean_return
    envs.close()
    return mean_return
