"""The stochastic maximum: over a few candidate actions instead of all n (Fourati et al., ICML 2024, eq.
4-5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: q(states, ids) -> values: ids (B, C) or, shared by all states, (C,); values (B, C)
QFunction = Callable[[Any, Tensor], Tensor]


class Maximum(NamedTuple):
    """The best of each state's candidates."""

    value: Tensor  # (B,)
    action: Tensor  # (B,) int64
    column: Tensor  # (B,) int64, which candidate it was


def maximise(q: QFunction, states: Any, *candidates: Tensor, valid: Tensor | None = None) -> Maximum:
    """The best candidate of each state and its value.

    Args:
        q: any callable from (states, ids) to values (B, C).
        states: whatever ``q`` takes as its first argument, for B states.
        candidates: one or more sets of ids, int64, each (B, C) or shared (C,). A shared set is passed on as
            it is, so that ``q`` may score it with one matrix product.
        valid: (B, total number of candidates) bool; False takes a candidate out.

    Of equal values the first candidate wins. A state all of whose candidates are invalid has value -inf.

    Raises:
        ValueError: if there is no candidate at all.
    """
    if sum(ids.shape[-1] for ids in candidates) == 0:
        raise ValueError("the candidate set is empty: a maximum over no action is not defined")
    sets = [ids for ids in candidates if ids.shape[-1]]
    if len(sets) > 1 and all(ids.ndim == 1 or len(ids) == 1 for ids in sets):
        sets = [torch.cat([ids.reshape(-1) for ids in sets])]  # (C,): all are shared, so one call scores them
    values = [q(states, ids) for ids in sets]
    value = values[0] if len(values) == 1 else torch.cat(values, 1)  # (B, C)
    if valid is not None:
        value = value.masked_fill(~valid, float("-inf"))
    best, column = value.max(dim=1)
    if len(sets) == 1 and sets[0].ndim == 1:
        return Maximum(best, sets[0][column], column)
    ids = torch.cat([s.expand(len(best), -1) for s in sets], 1) if len(sets) > 1 else sets[0]
    return Maximum(best, ids.gather(1, column.unsqueeze(1)).squeeze(1), column)


def stoch_max(q: QFunction, states: Any, *candidates: Tensor) -> Tensor:
    """max over the candidates of q(states, .): (B,). See :func:`maximise`."""
    return maximise(q, states, *candidates).value


def stoch_argmax(q: QFunction, states: Any, *candidates: Tensor) -> Tensor:
    """arg max over the candidates of q(states, .): (B,) int64. See :func:`maximise`."""
    return maximise(q, states, *candidates).action


def exact_maximise(q: QFunction, states: Any, n: int, device: Any = None, chunk: int = 1 << 16) -> Maximum:
    """The maximum over all n ids, ``chunk`` at a time: O(n) time, O(B * chunk) memory.

    Equal values go to the lowest id, as ``torch.argmax`` does.
    """
    best: Maximum | None = None
    for first in range(0, n, chunk):
        ids = torch.arange(first, min(first + chunk, n), device=device)
        part = maximise(q, states, ids)
        part = part._replace(column=part.action)
        best = part if best is None else better(best, part)
    if best is None:
        raise ValueError("the candidate set is empty: a maximum over no action is not defined")
    return best


def maximise_in_chunks(q: QFunction, states: Any, ids: Tensor, chunk: int) -> Maximum:
    """The maximum over one long set of ids, (B, C) or shared (C,), ``chunk`` at a time. ``column`` is the
    action.
    """
    best: Maximum | None = None
    for part_ids in ids.split(max(1, chunk), dim=-1):
        part = maximise(q, states, part_ids)
        part = part._replace(column=part.action)
        best = part if best is None else better(best, part)
    assert best is not None  # a split has at least one part
    return best


def better(a: Maximum, b: Maximum) -> Maximum:
    """The larger of two maxima, state by state; ``a`` where they are equal."""
    take_b = b.value > a.value
    return Maximum(*(torch.where(take_b, y, x) for x, y in zip(a, b, strict=True)))
