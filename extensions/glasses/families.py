"""Families of pairs of sequences, one pair for each length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .grouping import group_ends, insert


class PairFamily(Protocol):
    """Pairs of sequences at each length."""

    @property
    def name(self) -> str: ...

    def pairs(self, length: int) -> tuple[Any, Any]:
        """Both sides as batches of the model's adapter, such as token ids (P, n) and (P, n')."""
        ...


@dataclass(frozen=True)
class Ones:
    """n and n + 1 times the same token behind a prefix: 'how many ones?'.

    Without a prefix all tokens are alike, attention returns the same vector whatever its weights, and the gap
    is 0 at every length, but for the rounding of sums.

    Args:
        one: the repeated token.
        prefix: ids in front, (p,) or (P, p), such as a prompt or the beginning of a sequence.
        more: what the second sequence has more.
    """

    one: int
    prefix: Sequence[int] | Tensor = ()
    more: int = 1
    name: str = "ones"

    def pairs(self, length: int) -> tuple[Tensor, Tensor]:
        """(P, p + length) and (P, p + length + more)."""
        prefix = _rows(self.prefix)
        a, b = (torch.full((len(prefix), n), self.one) for n in (length, length + self.more))
        return torch.cat((prefix, a), 1), torch.cat((prefix, b), 1)


@dataclass(frozen=True)
class RepeatLast:
    """The first n tokens of given sequences, and the same with the last one repeated (theorem 4.2).

    Args:
        ids: (P, N), N at least the longest length.
        prefix: ids in front, (p,) or (P, p).
    """

    ids: Tensor
    prefix: Sequence[int] | Tensor = ()
    name: str = "repeat_last"

    def pairs(self, length: int) -> tuple[Tensor, Tensor]:
        """(P, p + length) and (P, p + length + 1)."""
        if length > self.ids.shape[1]:
            raise ValueError(f"length {length} is more than the {self.ids.shape[1]} tokens that were given")
        prefix = _rows(self.prefix).expand(len(self.ids), -1)
        a = torch.cat((prefix, self.ids[:, :length]), 1)
        return a, torch.cat((a, a[:, -1:]), 1)


@dataclass(frozen=True)
class RandomThenRepeat:
    """n - 1 random tokens and one that is the same in all; once, and repeated.

    Args:
        vocabulary: ids to draw from.
        last: the token that is repeated.
        draws: P, how many sequences.
        seed: of the draw; a longer sequence begins as the shorter one does.
        prefix: ids in front, (p,).
    """

    vocabulary: Sequence[int]
    last: int
    draws: int = 8
    seed: int = 0
    prefix: Sequence[int] | Tensor = ()
    name: str = "random_then_repeat"

    def pairs(self, length: int) -> tuple[Tensor, Tensor]:
        """(P, p + length) and (P, p + length + 1)."""
        rows = []
        for draw in range(self.draws):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
            picks = torch.randint(len(self.vocabulary), (length - 1,), generator=generator)
            rows.append(torch.tensor(list(self.vocabulary))[picks])
        ids = torch.cat((torch.stack(rows), torch.full((self.draws, 1), self.last)), 1)
        return RepeatLast(ids, self.prefix).pairs(length)


@dataclass(frozen=True)
class Separated:
    """n and n + 1 ones with a separator after each k of them.

    Counted from the left, the two sides differ in how many ones follow the last separator, which a model sees
    near at hand: their gap says nothing of the whole count. Two controls take that away: ``side="right"``, as
    in thousands, where the last group is always full, and ``phase_matched``, n against n + k.

    Args:
        one, separator: ids.
        every: k.
        side: from where groups are counted, "left" or "right".
        phase_matched: the second sequence has k more ones, not one.
        prefix: ids in front, (p,) or (P, p).
    """

    one: int
    separator: int
    every: int = 3
    side: str = "left"
    phase_matched: bool = False
    prefix: Sequence[int] | Tensor = ()

    def __post_init__(self) -> None:
        group_ends(0, self.every, self.side)  # refuses what is no grouping

    @property
    def name(self) -> str:
        """Such as ``separated_3_left_matched``."""
        return f"separated_{self.every}_{self.side}" + ("_matched" if self.phase_matched else "")

    def pairs(self, length: int) -> tuple[Tensor, Tensor]:
        """The lengths count ones alone."""
        prefix = _rows(self.prefix)
        more = self.every if self.phase_matched else 1
        a, b = (self._grouped(n).expand(len(prefix), -1) for n in (length, length + more))
        return torch.cat((prefix, a), 1), torch.cat((prefix, b), 1)

    def _grouped(self, n: int) -> Tensor:
        ids = torch.full((n,), self.one)
        return insert(ids, group_ends(n, self.every, self.side), torch.tensor(self.separator))[0]


def _rows(prefix: Sequence[int] | Tensor) -> Tensor:
    """(P, p)"""
    ids = torch.as_tensor(prefix, dtype=torch.long)
    return ids if ids.ndim == 2 else ids[None]
