"""Separators in a sequence, so that no run of one token is long."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..grouping import group_ends, insert
from .payload import Inserted, default_elements, element_spans, insert_behind, refuse_inside

Spans = Sequence[tuple[int, int]]


def dilute_ids(
    ids: Sequence[int] | Tensor,
    every: int = 3,
    *,
    sep_id: int,
    span: tuple[int, int] | None = None,
    side: str = "left",
    keep_last: bool = True,
) -> tuple[Tensor, Tensor]:
    """Token ids with a separator after each ``every`` of them (Barbero et al., section 6).

    Args:
        ids: (n,) or (B, n).
        every: tokens in a group.
        sep_id: the separator.
        span: tokens of the sequence, from and up to; all if None.
        side: from where groups are counted: "left", or "right" as in thousands.
        keep_last: no separator behind the last token of the span, which so stays the last.

    Returns:
        The new ids, (m,) or (B, m), and where each old token is in them, (n,).

    Raises:
        ValueError: a span outside of the ids, no tokens in a group, an unknown side.
    """
    ids = torch.as_tensor(ids)
    n = ids.shape[-1]
    start, stop = span or (0, n)
    if not 0 <= start <= stop <= n:
        raise ValueError(f"span must be inside of the {n} tokens, got {span}")
    ends = [start + end for end in group_ends(stop - start, every, side, keep_last)]
    return insert(ids, ends, torch.tensor(sep_id))


@dataclass(frozen=True)
class DilutedText(Inserted):
    """A text with separators; ``pieces`` are their places, and ``inverse()`` is the text before.

    Attributes:
        ids: tokens of the new text.
        max_run_before, max_run_after: longest run of one token in the sequence.
        faults: how the tokenizer undoes it, in words.
    """

    ids: tuple[int, ...]
    max_run_before: int
    max_run_after: int
    faults: tuple[str, ...]


def dilute_text(
    text: str,
    every: int = 3,
    sep: str = ",",
    *,
    tokenizer: Any,
    span: tuple[int, int] | None = None,
    elements: Sequence[str] | None = None,
    side: str = "left",
) -> DilutedText:
    """A text with a separator after each ``every`` elements of its sequence, and what that is in tokens.

    Warns where the tokenizer undoes it: it merges the separator with elements, it has one token for several
    elements, or the longest run of one token is no shorter than before.

    Args:
        text: holds the sequence.
        every: elements in a group.
        sep: what is put directly behind an element, with white space of its own where it needs some.
        tokenizer: a fast one of transformers.
        span: characters of the sequence, from and up to; all if None.
        elements: of the sequence; if None its words where white space is between them, else its characters.
        side: from where groups are counted: "left", or "right" as in thousands.

    Raises:
        ValueError: the sequence holds the separator; elements that are not in it; a slow tokenizer, which
            does not say what its tokens stand for.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not say which characters its tokens stand for: "
            "load a fast tokenizer, or use dilute_ids"
        )
    span = span or (0, len(text))
    sequence = text[span[0] : span[1]]
    elements = default_elements(sequence) if elements is None else elements
    refuse_inside(sep, sequence, elements)
    new = insert_behind(text, span, elements, dict.fromkeys(group_ends(len(elements), every, side), sep))
    ids, tokens = _tokens(tokenizer, new.text)
    old_ids, old_tokens = _tokens(tokenizer, text)
    before, after = _longest_run(old_ids, old_tokens, span), _longest_run(ids, tokens, new.span)
    faults = (
        *_groups(text, old_tokens, element_spans(text, span, elements)),
        *_merges(new, tokens, element_spans(new.text, new.span, elements)),
        *_long_runs(before, after),
    )
    for fault in faults:
        warnings.warn(fault, stacklevel=2)
    return DilutedText(
        new.text,
        new.span,
        new.pieces,
        ids=tuple(ids),
        max_run_before=before,
        max_run_after=after,
        faults=faults,
    )


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], Spans]:
    """Ids, and the characters each stands for; none of special tokens."""
    found = tokenizer(text, return_offsets_mapping=True)
    return found["input_ids"], found["offset_mapping"]


def _longest_run(ids: Sequence[int], tokens: Spans, span: tuple[int, int]) -> int:
    inside = [
        token
        for token, (start, stop) in zip(ids, tokens, strict=True)
        if max(start, span[0]) < min(stop, span[1])
    ]
    return max((len(list(run)) for _, run in groupby(inside)), default=0)


def _owners(text: str, parts: Spans) -> list[set[int]]:
    """Of each character, the number of the part that it belongs to, if any."""
    owners: list[set[int]] = [set() for _ in text]
    for number, part in enumerate(parts):
        for place in range(*part):
            owners[place].add(number)
    return owners


def _groups(text: str, tokens: Spans, elements: Spans) -> list[str]:
    """Whether a token is several elements: the first that is."""
    owners = _owners(text, elements)
    for start, stop in tokens:
        held = len(set().union(*owners[start:stop]))
        if held > 1:
            return [
                f"the tokenizer groups elements: {text[start:stop]!r} is one token of {held}, but `every` "
                "counts elements: put white space between them, or set `every` to that number"
            ]
    return []


def _merges(diluted: Inserted, tokens: Spans, elements: Spans) -> list[str]:
    """Whether a separator is one token with an element: the first that is."""
    text = diluted.text
    of_element = _owners(text, elements)
    of_mark = _owners(text, [_without_space(text, piece) for piece in diluted.pieces])
    for start, stop in tokens:
        if any(of_mark[start:stop]) and any(of_element[start:stop]):
            return [
                f"the tokenizer merges the separator with elements: {text[start:stop]!r} is one token: put "
                'white space around it, as in sep=" , ", or choose another'
            ]
    return []


def _long_runs(before: int, after: int) -> list[str]:
    """Whether runs of one token are as long as they were."""
    if not after >= before > 1:
        return []
    return [
        f"the longest run of one token is {after}, no shorter than the {before} before: choose a smaller "
        "`every`, or a separator that is a token"
    ]


def _without_space(text: str, piece: tuple[int, int]) -> tuple[int, int]:
    """The mark itself, all of it where it is white space alone."""
    inner = text[slice(*piece)]
    if not inner.strip():
        return piece
    return piece[0] + len(inner) - len(inner.lstrip()), piece[1] - len(inner) + len(inner.rstrip())
