"""Whole episodes, and the flat layout that offline learning reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
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
