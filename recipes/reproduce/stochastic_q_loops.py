"""The maximum as the authors' code takes it, a forward for each candidate, beside the same in one batch.

It is here to be measured, by :mod:`.stochastic_q_time`, and to show what a published speed-up is made of.
Nothing in the library works like this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extensions.stochmax import BoxBins

from .stochastic_q_control_plan import authors_batch

GAMMA = 0.99
#: transitions; no more are needed, since what is in it hardly changes the time of a step
REPLAY = 128
#: rows of a batch that are computed at a time, which bounds memory
ROWS = 1 << 16

#: (network, states (B, d), actions (C, a) shared by all) -> value (B,) and which candidate it was (B,)
Maximum = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


class ActionIn(nn.Module):
    """Q(s, a) of states (B, d) and actions (B, a), concatenated: two ReLU layers; returns (B,)."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(obs_dim + action_dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        return self.layers(torch.cat([states, actions], 1)).squeeze(1)


def compared_in_python(q: nn.Module, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """A forward for each candidate, and for each candidate a comparison for each state, in Python."""
    best = torch.full((len(states),), -math.inf)
    which = torch.zeros(len(states), dtype=torch.int64)
    for c in range(len(actions)):
        values = q(states, actions[c].expand(len(states), -1))  # (B,)
        for b in range(len(states)):
            if values[b] > best[b]:
                best[b], which[b] = values[b].item(), c
    return best, which


def compared_in_torch(q: nn.Module, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """A forward for each candidate, and one comparison for all the states."""
    best = torch.full((len(states),), -math.inf)
    which = torch.zeros(len(states), dtype=torch.int64)
    for c in range(len(actions)):
        values = q(states, actions[c].expand(len(states), -1))  # (B,)
        better = values > best
        best = torch.where(better, values, best)
        which[better] = c
    return best, which


def in_batch(q: nn.Module, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """All states with all candidates at once, in chunks of `ROWS`."""
    count = len(states)
    values = [
        q(
            states.repeat_interleave(len(some), 0),  # (B * c, d)
            some.repeat(count, 1),  # (B * c, a)
        ).view(count, len(some))
        for some in actions.split(max(1, ROWS // count))
    ]
    best, which = torch.cat(values, 1).max(1)
    return best, which


@dataclass
class Batch:
    """Transitions: states (B, d), ids (B,), rewards (B,), next states (B, d), ends (B,) as 0 or 1."""

    obs: Tensor
    ids: Tensor
    rewards: Tensor
    next_obs: Tensor
    ends: Tensor


class Agent:
    """An agent with the authors' network, replay of random transitions, and one way to take a maximum.

    Args:
        levels: of each control. obs_dim: width of an observation.
        maximum: the way.
        sampled: whether over R, log2 n uniform ids, and M, a minibatch's ids, each once; else over all n.
        same: whether the whole replay has one action, as that of an agent which has settled on it.
    """

    def __init__(
        self, levels: Sequence[int], obs_dim: int, maximum: Maximum, sampled: bool, same: bool = False
    ) -> None:
        self.codec = BoxBins([-1.0] * len(levels), [1.0] * len(levels), levels)
        self.maximum, self.sampled, self.n = maximum, sampled, self.codec.n
        self.k = authors_batch(self.n) // 2
        self.q = ActionIn(obs_dim, len(levels))
        self.optimizer = torch.optim.Adam(self.q.parameters(), 1e-3)
        ids = torch.zeros(REPLAY, dtype=torch.int64) if same else torch.randint(self.n, (REPLAY,))
        obs, next_obs = torch.randn(2, REPLAY, obs_dim)
        self.replay = Batch(obs, ids, torch.randn(REPLAY), next_obs, torch.zeros(REPLAY))
        self.all = None if sampled else self.codec.features(torch.randperm(self.n))  # (n, a)

    def sample(self, count: int) -> Batch:
        """Transitions of the replay, each once."""
        at = torch.randperm(REPLAY)[:count]
        return Batch(*(x[at] for x in vars(self.replay).values()))

    def candidates(self, memory: Tensor) -> Tensor:
        """What is maximised over, as controls (C, a); ``memory``: ids of a minibatch.

        In random order, all n too: along a control Q often rises all the way, and then a loop would find each
        candidate better than the one before, and take longer.
        """
        if self.all is not None:
            return self.all
        ids = torch.unique(torch.cat([torch.randint(self.n, (self.k,)), memory]))
        return self.codec.features(ids[torch.randperm(len(ids))])

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The best candidate's controls (a,) in a state (d,)."""
        actions = self.candidates(self.sample(2 * self.k).ids)
        return actions[self.maximum(self.q, obs.unsqueeze(0), actions)[1][0]]

    @torch.no_grad()
    def targets(self, batch: Batch, actions: Tensor) -> Tensor:
        """What Q is led to (B,), over the candidates (C, a). The target network is the online one, as it is
        in the authors' code, which copies it after every step."""
        return batch.rewards + GAMMA * (1 - batch.ends) * self.maximum(self.q, batch.next_obs, actions)[0]

    def update(self, count: int) -> None:
        """One step of the optimizer, on ``count`` transitions."""
        batch = self.sample(count)
        targets = self.targets(batch, self.candidates(batch.ids))
        loss = F.mse_loss(self.q(batch.obs, self.codec.features(batch.ids)), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
