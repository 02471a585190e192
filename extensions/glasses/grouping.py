"""Where groups of a sequence end, and sequences with something inserted there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def group_ends(n: int, every: int, side: str = "left", keep_last: bool = True) -> list[int]:
    """Behind how many of n elements each full group ends, ascending.

    Args:
        n: elements.
        every: elements in a group.
        side: from where groups are counted: "left", or "right" as in thousands, where the last one is full.
        keep_last: without the end of the sequence itself.

    Raises:
        ValueError: ``every`` less than 1, an unknown side.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if side not in ("left", "right"):
        raise ValueError(f'side must be "left" or "right", got {side!r}')
    first = every if side == "left" else n % every or every
    ends = list(range(first, n + 1, every))
    return ends[:-1] if keep_last and ends and ends[-1] == n else ends


def insert(x: Tensor, ends: Sequence[int], piece: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """A sequence with the same piece at several places.

    Args:
        x: n along ``dim``.
        ends: behind how many elements a piece comes, ascending, from 0 to n, each once.
        piece: one element, which fits each of x.
        dim: of the sequence.

    Returns:
        n + len(ends) along ``dim``, and where each old element is in it, (n,).
    """
    n = x.shape[dim]
    starts = torch.zeros(n + 1, dtype=torch.long)
    starts[list(ends)] = 1
    old_to_new = (torch.arange(n) + starts.cumsum(0)[:n]).to(x.device)
    shape = list(x.shape)
    shape[dim] = n + len(ends)
    return piece.to(x).expand(shape).clone().index_copy(dim, old_to_new, x), old_to_new
