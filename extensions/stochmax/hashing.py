"""Keys of observations, and the bijection of 64 bits that makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def hash_observations(obs: Any) -> Tensor:
    """A 64-bit key of each of B observations (a tensor or a dict of tensors): (B,) int64 on the CPU.

    Equal bits give equal keys, in any process.
    """
    if isinstance(obs, dict):
        keys = [hash_observations(obs[name]) for name in sorted(obs)]
        return _mix(torch.stack(keys, 1))
    flat = obs.detach().cpu().reshape(len(obs), -1)
    if flat.dtype.is_floating_point:
        flat = (flat.to(torch.float32) + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal 0.0
    return _mix(flat.long())


def _mix(words: Tensor) -> Tensor:
    """(B, w) int64 -> (B,): each word scrambled at its place, summed (arithmetic wraps around)."""
    place = torch.arange(1, words.shape[1] + 1) * -0x61C8864680B583EB  # 2**64 / golden ratio, as an int64
    return scramble(scramble(words + place).sum(1))


def scramble(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: a bijection of int64 (any shape) in which every bit moves all others."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47  # the masks make the shifts logical
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & ((1 << 33) - 1))
