"""Episodes as they were lived, and the flat layout that offline learning reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from tensordict import TensorDict


class Episode(NamedTuple):
    """A whole episode of T steps, in the environment's own units.

    ``observation`` (T+1, ...) ends with the state that the last step led to; ``action`` (T, ...),
    ``reward`` (T,). An episode that did not terminate was truncated.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: bool


class EpisodeRecorder(VecEnvWrapper):
    """Keeps every whole episode of the environments below it; those still open at the end are dropped.

    It belongs below ``VecNormalize`` and sees what is executed: raw observations and rewards, and actions
    that SB3 has clipped already.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.episodes: list[Episode] = []
        self._steps: list[list[tuple[np.ndarray, np.ndarray, float]]] = [[] for _ in range(venv.num_envs)]

    def reset(self) -> VecEnvObs:
        self._observations = self.venv.reset()
        self._steps = [[] for _ in range(self.num_envs)]
        return self._observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions.copy()
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        before = self._observations
        self._observations, rewards, dones, infos = self.venv.step_wait()
        for i, steps in enumerate(self._steps):
            steps.append((before[i], self._actions[i], rewards[i]))
            if dones[i]:
                truncated = infos[i].get("TimeLimit.truncated", False)
                self.episodes.append(_episode(steps, infos[i]["terminal_observation"], not truncated))
                self._steps[i] = []
        return self._observations, rewards, dones, infos


def _episode(
    steps: list[tuple[np.ndarray, np.ndarray, float]], last: np.ndarray, terminated: bool
) -> Episode:
    observations, actions, rewards = zip(*steps, strict=True)
    return Episode(
        observation=np.stack([*observations, last]).astype(np.float32),
        action=np.stack(actions).astype(np.float32),
        reward=np.array(rewards, np.float32),
        terminated=terminated,
    )


def flatten(episodes: list[Episode]) -> TensorDict:
    """Episodes one after another, as one TensorDict of N transitions.

    ``observation`` (N, ...), ``action`` (N, ...), ``episode`` (N,), and under ``next``: ``observation``
    (N, ...), ``reward``, ``terminated``, ``truncated`` and ``done`` (N, 1).
    """
    lengths = torch.tensor([len(episode.reward) for episode in episodes])
    last = torch.zeros(int(lengths.sum()), 1, dtype=torch.bool)
    last[lengths.cumsum(0) - 1] = True
    ended = torch.tensor([episode.terminated for episode in episodes]).repeat_interleave(lengths)[:, None]
    return TensorDict(
        {
            "observation": _join([episode.observation[:-1] for episode in episodes]),
            "action": _join([episode.action for episode in episodes]),
            "episode": torch.arange(len(episodes)).repeat_interleave(lengths),
            "next": {
                "observation": _join([episode.observation[1:] for episode in episodes]),
                "reward": _join([episode.reward for episode in episodes])[:, None],
                "terminated": last & ended,
                "truncated": last & ~ended,
                "done": last,
            },
        },
        batch_size=[len(last)],
    )


def _join(arrays: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def returns_of(data: TensorDict) -> torch.Tensor:
    """The undiscounted return of each episode, summed in float64: (E,)."""
    _, episode = torch.unique_consecutive(data["episode"], return_inverse=True)
    rewards = data["next", "reward"].squeeze(-1).double()
    return torch.zeros(int(episode[-1]) + 1, dtype=torch.float64).index_add_(0, episode, rewards)


def spread_evenly(
    returns: np.ndarray, lengths: np.ndarray, bins: int, max_episodes: int, max_transitions: int, seed: int
) -> np.ndarray:
    """Choose episodes whose returns spread as evenly as there are episodes to choose from.

    The range of the returns is cut into equal bins. Each in turn gives one of its episodes, drawn without
    replacement, until one limit is reached or none is left.

    Args:
        returns, lengths: of the episodes: (E,).
        bins: how many.
        max_episodes, max_transitions: at most so many of each are chosen.
        seed: of the draw.

    Returns:
        The indices of the chosen episodes, ascending.
    """
    edges = np.linspace(returns.min(), returns.max(), bins + 1)[1:-1]
    bin_of = np.digitize(returns, edges)
    order = np.random.default_rng(seed).permutation(len(returns))
    # An episode's turn is its place among those of its bin; within a turn the bins are gone through.
    turn = np.empty(len(returns), np.int64)
    for b in range(bins):
        members = order[bin_of[order] == b]
        turn[members] = np.arange(len(members))
    queue = np.lexsort((bin_of, turn))[:max_episodes]
    return np.sort(queue[np.cumsum(lengths[queue]) <= max_transitions])
