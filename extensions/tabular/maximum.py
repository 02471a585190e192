"""The best of each run's candidates, with equal chances for equal values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Chosen(NamedTuple):
    """What R learners do next. All (R,)."""

    action: Tensor  # int64
    exploited: Tensor  # bool, rather than explored
    value: Tensor  # float64, the stochastic maximum
    top: Tensor  # float64, the maximum over all actions; NaN where it is not looked for


def best(values: Tensor, tie: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The maximum over candidates and where it is.

    Args:
        values: (N, C); -inf takes a candidate out.
        tie: (N,) of [0, 1): of m equal maxima the one at ``floor(tie * m)`` is taken, in order of columns.
        ids: (N, C), what the columns are of, if some may be of the same, which then counts once.

    Returns:
        The maxima (N,), and their columns (N,) int64.
    """
    top = values.max(1, keepdim=True).values
    ties = values == top
    if ids is not None:
        ties &= ~(ids[:, :, None] == ids[:, None]).tril(-1).any(2)  # (N, C, C): those that came before
    rank = ties.cumsum(1)
    wanted = (tie[:, None] * rank[:, -1:]).long() + 1
    return top.squeeze(1), torch.searchsorted(rank, wanted).squeeze(1)
