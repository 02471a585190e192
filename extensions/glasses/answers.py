"""What a language model answers to items, and by how much."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .adapters import HFCausalLM, check_language_model
from .batches import at_once
from .encoding import split
from .precision import has_overflowed
from .results import Result
from .tasks import Item


@dataclasses.dataclass(frozen=True)
class Answers(Result):
    """Answers to P items.

    Attributes:
        right: whether greedy decoding says the tokens of the answer, (P,) bool; what it says behind them is
            not looked at.
        margin: logit of the answer's token less the largest other one, the least of its tokens, (P,). Where
            logits overflow or are NaN the answer is wrong, its margin minus infinity, and nothing is said.
        said: what greedy decoding says, to the end of the answer or to the first wrong token.
        tokens: of prompt and lead, (P,).
    """

    right: Tensor
    margin: Tensor
    said: tuple[str, ...]
    tokens: Tensor


@torch.no_grad()
def answer_items(
    model: HFCausalLM, items: Sequence[Item], *, dtype: str | None = None, chunk: int = 32
) -> Answers:
    """Ask a model, all tokens of an answer in one forward.

    The model reads prompt, lead and answer; each token of the answer must be the likeliest one behind those
    before it. Sequences in one forward have as many tokens each, so there is no padding that could change a
    result.

    The answer's tokens are those from which on the tokens of prompt, lead and answer differ from those of
    prompt and lead. Where a tokenizer merges over that border, as "is: " and "7" to "is", ":", " 7", the
    merged token is the answer's.

    Args:
        model: with its tokenizer, in eval mode.
        items: P questions.
        dtype: the model is run in it, as in `representation_gap`; its own if None.
        chunk: sequences in one forward.

    Raises:
        ValueError: no tokenizer, no items, an answer that is empty or merged with all before it, train mode.
    """
    check_language_model(model)
    if not items:
        raise ValueError("there are no items to answer")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 sequence, got {chunk}")
    asked = [split(model.tokenizer, item) for item in items]
    right = torch.zeros(len(items), dtype=torch.bool)
    margin = torch.zeros(len(items), dtype=torch.float64)
    said = [""] * len(items)
    with contextlib.nullcontext() if dtype is None else model.running_in(dtype):
        for places in _of_one_length(asked, chunk):
            for place, logits in zip(places, _logits(model, [asked[p] for p in places], dtype), strict=True):
                if bool(has_overflowed(logits).any()):
                    margin[place] = -torch.inf
                    continue
                ids, start = asked[place]
                target = torch.tensor(ids[start:])
                margin[place] = _margins(logits, target).min()
                likeliest = logits.argmax(-1)
                wrong = (likeliest != target).nonzero()[:, 0].tolist()
                right[place] = not wrong
                end = wrong[0] + 1 if wrong else len(target)
                said[place] = model.tokenizer.decode(likeliest[:end].tolist()).strip()
    return Answers(right, margin, tuple(said), torch.tensor([start for _, start in asked]))


def _of_one_length(asked: Sequence[tuple[list[int], int]], chunk: int) -> Iterator[list[int]]:
    """Places of items with as many tokens, as many at once as go into one forward."""
    by_length: dict[int, list[int]] = {}
    for place, (ids, _) in enumerate(asked):
        by_length.setdefault(len(ids), []).append(place)
    for tokens, places in by_length.items():
        size = at_once(chunk, tokens)
        for start in range(0, len(places), size):
            yield places[start : start + size]


def _logits(model: HFCausalLM, asked: Sequence[tuple[list[int], int]], dtype: str | None) -> Sequence[Tensor]:
    """Of each token of the answers, (A, V) float64 for each item."""
    emb = model.embed(torch.tensor([ids for ids, _ in asked]))
    emb = emb if dtype is None else model.cast(emb, dtype)
    _, final = model.read(emb, None, [])
    # of the token before each of an answer's, (A, d)
    before = [final[row, start - 1 : -1] for row, (_, start) in enumerate(asked)]
    return model.readout(torch.cat(before)).double().cpu().split([len(x) for x in before])


def _margins(logits: Tensor, target: Tensor) -> Tensor:
    """(A, V), (A,) -> (A,)"""
    answer = F.one_hot(target, logits.shape[-1]).bool()
    return logits[answer] - logits.masked_fill(answer, -torch.inf).amax(-1)
