"""Questions about sequences of digits, as tokens, for `glasses_trained`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: a sequence begins with BOS and ends with the question, where the answer is read
BOS, ZERO, ONE, SEPARATOR, QUESTION = range(5)
VOCABULARY = 5
EVERY = 3  # digits between separators
TASKS = ("copy_first", "copy_last", "count")
LAYOUTS = ("plain", "left", "right", "filler")


@dataclass(frozen=True)
class Batch:
    """B sequences, padded behind their end, which a causal model does not see.

    Attributes:
        ids: (B, tokens).
        question: the index of the question in each, (B,).
        bearer: that of the digit which bears the answer, (B,); of the first digit in counting, where all do.
        answer: (B,).
    """

    ids: Tensor
    question: Tensor
    bearer: Tensor
    answer: Tensor


def digits_of(task: str, lengths: Tensor, answers: Tensor, generator: torch.Generator) -> Tensor:
    """0s and 1s, (B, longest); what is behind a sequence's length means nothing.

    To copy, all digits are 1 but the one that is asked for, which is the answer (Barbero et al., section 3).
    To count, as many as the answer says are 1, anywhere.

    Args:
        lengths: digits of each sequence, (B,).
        answers: the digit, or the number of ones, at most the length; (B,).
        generator: of where the ones are.
    """
    longest = int(lengths.max())
    if task == "count":
        return (_ranks(_inside(lengths, longest), generator) < answers[:, None]).long()
    digits = torch.ones(len(lengths), longest, dtype=torch.long)
    asked = torch.zeros_like(lengths) if task == "copy_first" else lengths - 1
    return digits.scatter(1, asked[:, None], answers[:, None])


def separated(layout: str, lengths: Tensor, generator: torch.Generator) -> Tensor:
    """Whether a separator is before each digit, (B, longest): (length - 1) // 3 of them in a sequence.

    Args:
        layout: "plain", none; "left", groups of three from the left; "right", from the right, as in
            thousands; "filler", anywhere between digits.
        lengths: digits of each sequence, (B,).
        generator: of where filler is.
    """
    longest = int(lengths.max())
    i = torch.arange(longest)
    between = _inside(lengths, longest) & (i > 0)
    if layout == "plain":
        return torch.zeros_like(between)
    if layout == "left":
        return between & (i % EVERY == 0)
    if layout == "right":
        return between & ((lengths[:, None] - i) % EVERY == 0)
    return _ranks(between, generator) < ((lengths - 1) // EVERY)[:, None]


def encode(
    digits: Tensor, lengths: Tensor, separators: Tensor, tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Digits with their separators as tokens.

    Args:
        digits, separators: (B, longest), as of `digits_of` and `separated`.
        lengths: (B,).
        tokens: to which length sequences are padded; the longest one's own if None.

    Returns:
        ids, (B, tokens), and the index of each digit and, behind the last, of the question, (B, longest + 1).
    """
    inside = _inside(lengths, digits.shape[1])
    n_separators = (separators & inside).sum(1)
    end = 1 + lengths + n_separators
    size = int(end.max()) + 1 if tokens is None else tokens
    place = 1 + torch.arange(digits.shape[1]) + separators.cumsum(1)  # (B, longest)
    nowhere = torch.tensor(size)
    ids = torch.full((len(digits), size + 1), BOS)
    ids.scatter_(1, torch.where(inside & separators, place - 1, nowhere), SEPARATOR)
    ids.scatter_(1, torch.where(inside, place, nowhere), ZERO + digits)
    ids.scatter_(1, end[:, None], QUESTION)
    index = torch.cat((place, end[:, None]), 1).scatter(1, lengths[:, None], end[:, None])
    return ids[:, :size], index


def ask(
    task: str,
    layout: str,
    lengths: Tensor,
    answers: Tensor,
    generator: torch.Generator,
    tokens: int | None = None,
) -> Batch:
    """Questions with these answers about sequences of these lengths, (B,) both."""
    digits = digits_of(task, lengths, answers, generator)
    ids, index = encode(digits, lengths, separated(layout, lengths, generator), tokens)
    rows = torch.arange(len(lengths))
    bearer = index[rows, lengths - 1] if task == "copy_last" else index[:, 0]
    return Batch(ids, index[rows, lengths], bearer, answers)


def ones(layout: str, length: int, more: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two sequences of ones, the second with some more, as tokens (tokens,) each.

    Filler stays where it is, and the further ones come behind all of it; the other layouts are laid out anew.
    """
    filler = separated(layout, torch.tensor([length]), generator)
    found = []
    for n in (length, length + more):
        lengths = torch.tensor([n])
        if layout == "filler":
            separators = F.pad(filler, (0, n - length))
        else:
            separators = separated(layout, lengths, generator)
        found.append(encode(torch.ones(1, n, dtype=torch.long), lengths, separators)[0][0])
    return found[0], found[1]


def tokens_of(layout: str, digits: int) -> int:
    """How many tokens a sequence takes, BOS and question included."""
    return digits + 2 + (0 if layout == "plain" else (digits - 1) // EVERY)


def _inside(lengths: Tensor, longest: int) -> Tensor:
    """(B, longest), True for digits of the sequence."""
    return torch.arange(longest) < lengths[:, None]


def _ranks(allowed: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of the allowed places of each row, from 0; the others come behind them. (B, n)"""
    keys = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, 2.0)
    return keys.argsort(1).argsort(1)
