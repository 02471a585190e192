"""Batches in parts, and tokens by their place among the real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Tokens in one forward: more of them are not faster, and their activations take memory.
TOKENS = 4096


def at_once(chunk: int, tokens: int) -> int:
    """How many sequences of so many tokens go into one forward: at most ``chunk``, at least one."""
    return max(1, min(chunk, TOKENS // tokens))


def count(batch: Any) -> int:
    """Sequences in a batch."""
    if isinstance(batch, Mapping):
        return len(next(iter(batch.values())))
    return len(batch)


def in_pairs(batch_a: Any, batch_b: Any, size: int) -> Iterator[tuple[Any, Any]]:
    """Two batches side by side, in parts of at most ``size`` sequences and, of more than one, `TOKENS`
    tokens.

    Args:
        batch_a, batch_b: tensors, mappings or tensordicts of tensors, (B, ...) each; or lists of sequences
            (n,), which need not be of one length: neighbours go together while both lengths stay as they are.
        size: at least 1.

    Raises:
        ValueError: another number of sequences on the two sides, or none; something else than sequences;
            entries of a mapping that are not all of as many.
    """
    if size < 1:
        raise ValueError(f"chunk must be at least 1 sequence, got {size}")
    for batch in (batch_a, batch_b):
        _check(batch)
    if not count(batch_a) and not count(batch_b):
        raise ValueError("the batch is empty: give at least one sequence")
    if count(batch_a) != count(batch_b):
        raise ValueError(
            f"pairs need as many sequences on both sides, got {count(batch_a)} and {count(batch_b)}"
        )
    start = 0
    while start < count(batch_a):
        most = at_once(size, max(_tokens(x, start) for x in (batch_a, batch_b)))
        end = start + 1
        while end < min(count(batch_a), start + most) and all(
            _fits(x, start, end) for x in (batch_a, batch_b)
        ):
            end += 1
        yield _part(batch_a, start, end), _part(batch_b, start, end)
        start = end


def of_one_size(batch: Any, size: int) -> Iterator[tuple[Any, int]]:
    """A batch in parts of one size, since the rounding of a matrix product depends on how many rows it has.

    Args:
        batch: as of `in_pairs`, but no list.
        size: of sequences in a part, at most; fewer if they are long (`at_once`).

    Yields:
        A part, and how many sequences at its end are new: the last part has some of the one before it.
    """
    total = count(batch)
    size = min(total, at_once(size, _tokens(batch, 0)))
    for start in range(0, total, size):
        end = min(start + size, total)
        yield _part(batch, end - size, end), end - start


def _check(batch: Any) -> None:
    """Whether it is what `in_pairs` takes."""
    if isinstance(batch, Mapping):
        sizes = {key: len(value) if getattr(value, "ndim", 1) else 0 for key, value in batch.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"all entries of a batch must be of as many sequences, got {sizes}: expand what is given "
                "once for all"
            )
    elif isinstance(batch, str) or any(
        isinstance(x, str) or not getattr(x, "ndim", hasattr(x, "__len__")) for x in batch
    ):
        raise ValueError("give sequences of ids or vectors, (B, n, ...), or a list of such: [ids] for one")


def _tokens(batch: Any, place: int) -> int:
    """Of a sequence, or steps of an episode."""
    if isinstance(batch, Mapping):
        batch = next(iter(batch.values()))
    return max(1, len(batch[place]))


def _fits(batch: Any, start: int, end: int) -> bool:
    return not isinstance(batch, (list, tuple)) or len(batch[start]) == len(batch[end])


def _part(batch: Any, start: int, end: int) -> Any:
    if isinstance(batch, (list, tuple)):
        return torch.stack([torch.as_tensor(sequence) for sequence in batch[start:end]])
    if isinstance(batch, Mapping):
        return {key: value[start:end] for key, value in batch.items()}
    return batch[start:end]


def place_of(position: int, tokens: int, mask: Tensor | None) -> Tensor | int:
    """Where the token of a position among real tokens is: an index, or with ``mask`` one a sequence, (B,).

    Args:
        position: from the first real token, or negative, from behind the last.
        tokens: n.
        mask: (B, n) bool, True for real tokens; all are if None.

    Raises:
        ValueError: a sequence has no such token.
    """
    if mask is None:
        if not -tokens <= position < tokens:
            raise ValueError(f"position {position} is outside of a sequence of {tokens} tokens")
        return position % tokens
    real = mask.sum(1)
    if bool((real < (position + 1 if position >= 0 else -position)).any()):
        raise ValueError(f"position {position} is outside of a sequence of {int(real.min())} real tokens")
    wanted = torch.full_like(real, position + 1) if position >= 0 else real + position + 1  # 1 is the first
    return ((mask.cumsum(1) == wanted[:, None]) & mask).int().argmax(1)
