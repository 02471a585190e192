"""The networks of the methods, and how targets follow them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def trunk(obs_dim: int, hidden: int) -> nn.Sequential:
    """What all methods see a state through: (B, obs_dim) -> (B, hidden)."""
    return nn.Sequential(nn.Linear(obs_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())


def zero_at_first(layer: nn.Linear) -> nn.Linear:
    """``layer`` with zeros for weights: no action begins with an advantage, which a maximum would find."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class PointCritic(nn.Module):
    """Q(s, x) of points x of a box: the function of ``extensions.stochmax.FeatureHead``, but of any point, so
    that it can be differentiated by it."""

    def __init__(self, obs_dim: int, dims: int, hidden: int) -> None:
        super().__init__()
        self.trunk = trunk(obs_dim, hidden)
        self.value = nn.Linear(hidden, 1)
        self.state = nn.Linear(hidden, hidden)
        self.action = nn.Sequential(nn.Linear(dims, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.fuse = nn.Linear(hidden, hidden)
        self.out = zero_at_first(nn.Linear(hidden, 1, bias=False))

    def forward(self, observation: Tensor, points: Tensor) -> Tensor:
        """Values of one point a state, (B, d) -> (B, 1), or of k, (B, k, d) -> (B, k, 1)."""
        state = self.trunk(observation)  # (B, h)
        if points.ndim > state.ndim:
            state = state.unsqueeze(1)  # (B, 1, h)
        h = F.relu(self.state(state) + self.action(points))
        return self.value(state) + self.out(F.relu(self.fuse(h)))


class Branches(nn.Module):
    """Dueling branches: Q_d(s, c) = V(s) + A_d(s, c) - mean over c of A_d(s, .), for each digit d.

    Args:
        obs_dim: of the observation. sizes: values of each digit. hidden: width.
    """

    legal: Tensor  # (d, m) bool: which of the m columns are values of the digit

    def __init__(self, obs_dim: int, sizes: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.trunk = trunk(obs_dim, hidden)
        self.value = nn.Linear(hidden, 1)
        self.shape = (len(sizes), max(sizes))
        self.advantage = zero_at_first(nn.Linear(hidden, self.shape[0] * self.shape[1]))
        columns = torch.arange(max(sizes))
        self.register_buffer("legal", columns < torch.tensor(sizes).unsqueeze(1), persistent=False)

    def forward(self, observation: Tensor) -> Tensor:
        """(B, obs_dim) -> (B, d, m), -inf where a digit has fewer than m values."""
        h = self.trunk(observation)
        advantage = self.advantage(h).unflatten(-1, self.shape) * self.legal  # (B, d, m)
        mean = advantage.sum(-1, keepdim=True) / self.legal.sum(-1, keepdim=True)
        values = self.value(h).unsqueeze(-1) + advantage - mean
        return values.masked_fill(~self.legal, float("-inf"))


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Move the parameters of ``target`` by ``tau`` towards those of ``online``."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)
