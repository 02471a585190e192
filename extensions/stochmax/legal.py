"""Legal actions, where not all n are: lists, and masks of n only where n is small.

A state in which an episode ended may have none. Where it is bootstrapped from, its maximum is multiplied by
zero, and must be finite for that: any action stands in. All other states need one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .actions import ActionCodec
from .looking import may_look
from .sources import Query


class LegalActions:
    """The ids that are legal in a state, given as lists and never as a mask of n.

    Args:
        legal: a list of ids legal in every state; or a callable from observations (B, ...) to int64 ids (B,
            L), padded with -1 where a state has fewer than L; all -1 only where an episode ended.
        codec: the actions.
    """

    def __init__(self, legal: Sequence[int] | Tensor | Callable[[Any], Any], codec: ActionCodec) -> None:
        self.codec = codec
        self.function = legal if callable(legal) else None
        self.everywhere: Tensor | None = None  # (L,) rising
        self._copies: dict[torch.device, Tensor] = {}  # of it, on the devices it was asked for
        if not callable(legal):
            if len(legal) == 0:
                raise ValueError("legal_actions is empty: give at least one id, or None if all are legal")
            self.everywhere = torch.unique(codec.check_ids(legal))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copies": {}}  # to open where there is no such device

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
        if self.function is None:
            return self._everywhere_on(query.device)
        ids, _ = self._lists(query)
        return torch.where(ids < 0, ids[:, :1], ids)

    def contains(self, query: Query, ids: Tensor) -> Tensor:
        """(B, C) -> (B, C) bool."""
        legal, _ = self._lists(query)
        legal = legal.flip(1).contiguous()  # (B or 1, L), rising
        legal = legal.expand(len(ids), -1).contiguous() if len(legal) > 1 else legal[0]
        place = torch.searchsorted(legal, ids.contiguous()).clamp(max=legal.shape[-1] - 1)
        return (legal.gather(1, place) if legal.ndim > 1 else legal[place]) == ids

    def _everywhere_on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = self.everywhere.to(device)  # type: ignore[union-attr]
        return self._copies[device]

    def _lists(self, query: Query) -> tuple[Tensor, Tensor]:
        """Legal ids (B or 1, L), the legal ones first, and how many each state has (B or 1,)."""
        if self.function is None:
            ids = self._everywhere_on(query.device).flip(0).unsqueeze(0)
            return ids, torch.full((1,), ids.shape[1], device=query.device)
        ids = torch.as_tensor(self.function(query.obs), device=query.device)
        if ids.ndim != 2 or len(ids) != query.batch or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(
                "legal_actions must return integer ids (B, L), not a mask, for "
                f"B={query.batch} observations; got {ids.dtype} {tuple(ids.shape)}"
            )
        ids = ids.long().sort(dim=1, descending=True).values  # -1 padding goes last
        if ids.shape[1] == 0:
            ids = F.pad(ids, (0, 1), value=-1)
        if query.terminal is not None:
            ids[:, 0] = torch.where(query.terminal, ids[:, 0].clamp(min=0), ids[:, 0])
        count = (ids >= 0).sum(1)
        if not may_look(ids):
            return ids, count
        wrong = (count == 0) | (ids[:, 0] >= self.codec.n)
        if bool(wrong.any()):
            raise ValueError(
                f"legal_actions returned no id, or one above {self.codec.n - 1}, for state "
                f"{int(wrong.int().argmax())} of the batch; every state needs at least one legal id, but for "
                "those in which an episode terminated"
            )
        return ids, count


#: actions up to which a mask of n is taken
MASKED_UP_TO = 10_000


class LegalMask:
    """The legal ids as a host's mask of n, which each query brings along: for small n.

    Args:
        codec: the actions.

    Raises:
        ValueError: more actions than 10,000, where a mask of n a state is the dearest thing there is.
    """

    def __init__(self, codec: ActionCodec) -> None:
        if codec.n > MASKED_UP_TO:
            raise ValueError(
                f"A mask of n is taken up to n = {MASKED_UP_TO:,}, and there are {codec.n:,} actions. Give "
                "legal_actions instead: a list of ids, or a function from observations to ids (B, L), padded "
                "with -1."
            )
        self.codec = codec

    def draw(self, query: Query, k: int) -> Tensor:
        """k legal ids a state, uniformly, with replacement: (B, k)."""
        return torch.multinomial(self._mask(query).float(), k, replacement=True)

    def all(self, query: Query) -> Tensor:
        """Every legal id: (B, n), with one of the legal ones in the places of the others."""
        mask = self._mask(query)
        ids = torch.arange(self.codec.n, device=query.device)
        return torch.where(mask, ids, mask.int().argmax(1, keepdim=True))

    def contains(self, query: Query, ids: Tensor) -> Tensor:
        """(B, C) -> (B, C) bool."""
        return self._mask(query).gather(1, ids)

    def _mask(self, query: Query) -> Tensor:
        mask = query.mask
        if mask is None or mask.shape != (query.batch, self.codec.n) or mask.dtype != torch.bool:
            found = "none" if mask is None else f"{mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"expected a bool mask ({query.batch}, {self.codec.n}), got {found}")
        if query.terminal is not None:
            mask = mask | (query.terminal & ~mask.any(1)).unsqueeze(1)
        if may_look(mask) and not bool(mask.any(1).all()):
            raise ValueError(
                "the mask of a state leaves no action; every state needs at least one legal action, but for "
                "those in which an episode terminated"
            )
        return mask
