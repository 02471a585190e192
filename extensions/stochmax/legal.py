"""Legal actions, where not all n are: lists, never a mask of n."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .actions import ActionCodec
from .sources import Query


class LegalActions:
    """The ids that are legal in a state, given as lists and never as a mask of n.

    Args:
        legal: a list of ids legal in every state; or a callable from observations (B, ...) to int64 ids (B,
            L), padded with -1 where a state has fewer than L.
        codec: the actions.
    """

    def __init__(self, legal: Sequence[int] | Tensor | Callable[[Any], Any], codec: ActionCodec) -> None:
        self.codec = codec
        self.function = legal if callable(legal) else None
        self.everywhere: Tensor | None = None  # (L,)
        if not callable(legal):
            if len(legal) == 0:
                raise ValueError("legal_actions is empty: give at least one id, or None if all are legal")
            self.everywhere = torch.unique(codec.check_ids(legal))

    def draw(self, query: Query, k: int) -> Tensor:
        """k legal ids a state, uniformly, with replacement: (B, k)."""
        legal, count = self._lists(query)
        u = torch.rand(query.batch, k, dtype=torch.float64, device=query.device)
        pick = (u * count.unsqueeze(1)).long()
        return legal.expand(query.batch, -1).gather(1, pick)

    def all(self, query: Query) -> Tensor:
        """Every legal id: (L,) if all states share them, else (B, L), shorter lists filled up with one of
        their own.
        """
        if self.everywhere is not None:
            return self.everywhere.to(query.device)
        ids, _ = self._lists(query)
        return torch.where(ids < 0, ids[:, :1], ids)

    def contains(self, query: Query, ids: Tensor) -> Tensor:
        """(B, C) -> (B, C) bool."""
        legal, _ = self._lists(query)
        if self.everywhere is not None:
            return torch.isin(ids, legal[0])
        return (ids.unsqueeze(2) == legal.unsqueeze(1)).any(2)

    def _lists(self, query: Query) -> tuple[Tensor, Tensor]:
        """Legal ids (B or 1, L), the legal ones first, and how many each state has (B or 1,)."""
        if self.function is None:
            ids = self.everywhere.to(query.device).unsqueeze(0)  # type: ignore[union-attr]
            return ids, torch.full((1,), ids.shape[1], device=query.device)
        ids = torch.as_tensor(self.function(query.obs), device=query.device)
        if ids.ndim != 2 or len(ids) != query.batch or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(
                "legal_actions must return integer ids (B, L), not a mask, for "
                f"B={query.batch} observations; got {ids.dtype} {tuple(ids.shape)}"
            )
        ids = ids.long().sort(dim=1, descending=True).values  # -1 padding goes last
        count = (ids >= 0).sum(1)
        wrong = (count == 0) if ids.shape[1] == 0 else (count == 0) | (ids[:, 0] >= self.codec.n)
        if bool(wrong.any()):
            raise ValueError(
                f"legal_actions returned no id, or one above {self.codec.n - 1}, for state "
                f"{int(wrong.int().argmax())} of the batch; every state needs at least one legal id"
            )
        return ids, count
