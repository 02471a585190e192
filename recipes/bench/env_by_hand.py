"""ScatterChain's step by hand in torch: what one source for every backend is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.dynamics.feistel import ROUNDS
from envs.dynamics.scatter_chain import TRAP_REWARD, ScatterChain

_KEYS: dict[tuple[ScatterChain, torch.device], Tensor] = {}
MASK, GOLDEN = 0xFFFFFFFF, 0x9E3779B9


def mix(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & MASK
    return x ^ (x >> 15)


def _permutation_keys(world: ScatterChain, device: torch.device) -> Tensor:
    """The key of each level's permutation, ``(levels,)``: they depend on nothing that changes."""
    if (world, device) not in _KEYS:
        layout = torch.full((world.levels,), world.layout, device=device)
        h = mix(((layout & MASK) + GOLDEN) & MASK)
        h = mix(((layout >> 32) + h) & MASK)
        _KEYS[world, device] = mix(((torch.arange(world.levels, device=device) + GOLDEN) & MASK) ^ h)
    return _KEYS[world, device]


def step(world: ScatterChain, level: Tensor, t: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Next level, next t and reward of a world of one context, without slips, whose n is a square."""
    side = round(world.n**0.5)
    key = _permutation_keys(world, level.device)[level]
    # In float64 the quotient is exact and, for torch, quicker than an integer division.
    left = ((action.to(torch.float64) + 0.5) * (1.0 / side)).to(torch.int64)
    right = action - left * side
    for i, constant in enumerate(ROUNDS):
        if i % 2 == 0:
            left = left + ((mix(((right ^ key) + constant) & MASK) * side) >> 32)
            left = torch.where(left >= side, left - side, left)
        else:
            right = right + ((mix(((left ^ key) + constant) & MASK) * side) >> 32)
            right = torch.where(right >= side, right - side, right)
    rank = left * side + right

    kt, ka = world.bounds
    top = level == world.levels - 1
    trap, stay = rank < kt, rank >= ka
    place = torch.where(top, (rank - ka).clamp_min(0), rank).to(torch.float64)
    share = torch.where(top, 1.0, (level + 1).to(torch.float64) * (0.5 / world.levels))
    pay = share * torch.pow(1.0 - place / (world.n - 1), world.kappa)
    reward = torch.where(trap, TRAP_REWARD, torch.where(stay, pay, 0.0))
    climbed = torch.where(~stay & ~top, level + 1, level)
    return torch.where(trap, 0, climbed), t + 1, reward
