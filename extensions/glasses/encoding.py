"""Questions as token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tasks import Item, Task


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text as the tokenizer begins it, but without an end of sequence.

    Raises:
        ValueError: there is no tokenizer.
    """
    if tokenizer is None:
        raise ValueError("items are text: give the tokenizer, as in HFCausalLM(model, tokenizer)")
    ids = list(tokenizer(text)["input_ids"])
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def split(tokenizer: Any, item: Item) -> tuple[list[int], int]:
    """Ids of prompt, lead and answer, and where the answer's begin; raises what `answer_items` does."""
    question = encode(tokenizer, item.prompt + item.lead)
    ids = encode(tokenizer, item.prompt + item.lead + item.answer)
    same = (a == b for a, b in zip(question, ids, strict=False))
    start = next((i for i, equal in enumerate(same) if not equal), min(len(question), len(ids)))
    if start == len(ids):
        raise ValueError(
            f"the answer {item.answer!r} adds no token behind the lead {item.lead!r}: give one that does"
        )
    if not start:
        raise ValueError(
            f"the tokenizer merges the answer {item.answer!r} with the whole prompt, so nothing is left to "
            "read: give the items a lead, or a tokenizer that begins with a BOS token"
        )
    return ids, start


def differing(ids: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """From and up to which token of ``ids`` two sequences differ: behind what they begin alike, and before
    what they end alike.

    Raises:
        ValueError: they do not.
    """
    if list(ids) == list(other):
        raise ValueError("the two items of a minimal pair have the same tokens")
    shorter = min(len(ids), len(other))
    start = next((i for i in range(shorter) if ids[i] != other[i]), shorter)
    back = next((i for i in range(shorter - start) if ids[-1 - i] != other[-1 - i]), shorter - start)
    return start, max(start + 1, len(ids) - back)


@dataclass(frozen=True)
class MinimalPairs:
    """Minimal pairs of a task as a `PairFamily`: token ids up to where the answer begins.

    Args:
        tokenizer: of transformers.
        task: whose pairs.
        size: P, or a function from length to it.
    """

    tokenizer: Any
    task: Task
    size: int | Callable[[int], int]

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    def pairs(self, length: int) -> tuple[list[Tensor], list[Tensor]]:
        """P sequences (n,) on either side, which need not be of one length; each pair once."""
        a, b = (
            [torch.tensor(ids[:start]) for ids, start in side]
            for side in zip(*self._split(length), strict=True)
        )
        return a, b

    def first_tokens_differ(self, length: int) -> list[bool]:
        """Of each of the pairs, whether the answers differ in their first token already."""
        return [one[0][one[1]] != other[0][other[1]] for one, other in self._split(length)]

    def _split(self, length: int) -> list[tuple[tuple[list[int], int], tuple[list[int], int]]]:
        size = self.size if isinstance(self.size, int) else self.size(length)
        found: dict[Any, Any] = {}
        for item in self.task.items(length, size):
            one, other = (split(self.tokenizer, side) for side in self.task.minimal_pair(item))
            found.setdefault((tuple(one[0]), tuple(other[0])), (one, other))
        return list(found.values())
