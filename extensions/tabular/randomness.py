"""Uniform numbers that are a function of (seed, stream, step, column).

Each run has a seed of its own, so what a run draws depends neither on how many runs are beside it nor on the
device, and there is no state to save but the number of steps made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..stochmax.hashing import scramble
from ..stochmax.sources import DISTINCT_BELOW

#: ids that uniform numbers of 53 bits can tell apart
DRAWN_UP_TO = 1 << 53

#: odd numbers near 2**64 / golden ratio and such, as int64: steps and columns far apart in every bit
_STEP, _COLUMN, _STREAM = -0x61C8864680B583EB, -0x3D4D51C2D82B14B1, -0x2545F4914F6CDD1D


class Stream:
    """One stream of uniform numbers for each of R runs.

    Args:
        seeds: (R,) int64.
        stream: streams of different numbers are independent.
        device: where the numbers are made.
    """

    def __init__(self, seeds: Tensor, stream: int, device: torch.device) -> None:
        # twice, so that neither seeds nor streams that follow each other are related
        self._keys = scramble(scramble(seeds.to(device)) + _wrap(stream * _STREAM))  # (R,)

    def uniform(self, first: int, steps: int, columns: int) -> Tensor:
        """Numbers of [0, 1) for the steps ``first``, ``first + 1``, ...: (steps, R, columns) float64."""
        device = self._keys.device
        step = torch.arange(first, first + steps, device=device) * _STEP
        column = torch.arange(1, columns + 1, device=device) * _COLUMN
        words = scramble(scramble(step[:, None] + self._keys)[..., None] + column)
        return ((words >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def integers(u: Tensor, n: int) -> Tensor:
    """Uniform ids of [0, n), int64, from uniform numbers, shape for shape.

    n is at most 2^53, above which some ids would never come. The chance of an id is 1 / n within 2^-53: to a
    billionth for n up to 9 million, and for n near 2^53 some ids have twice the chance of others.
    """
    return (u * n).long()  # u is at most 1 - 2^-53, so the product never rounds to n


def normal(u: Tensor) -> Tensor:
    """Standard normal numbers (...) from two uniform ones each (..., 2)."""
    return (-2 * torch.log1p(-u[..., 0])).sqrt() * torch.cos(2 * torch.pi * u[..., 1])


def candidates(u: Tensor, n: int) -> Tensor:
    """R: k of n ids, from k uniform numbers each, (..., k) to (..., k) int64.

    Distinct up to n = 256, each subset equally likely, though not each order of it; above, with replacement.
    """
    k = u.shape[-1]
    if n > DISTINCT_BELOW:
        return integers(u, n)
    # Floyd's algorithm: the j-th id is one of the first n - k + j + 1, or the last of these if it was taken
    ids = torch.empty(u.shape, dtype=torch.int64, device=u.device)
    for j in range(k):
        drawn = integers(u[..., j], n - k + j + 1)
        taken = (ids[..., :j] == drawn[..., None]).any(-1)
        ids[..., j] = torch.where(taken, n - k + j, drawn)
    return ids


def _wrap(x: int) -> int:
    """The int64 with the same lowest 64 bits."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)
