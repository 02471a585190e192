"""Questions with their answers: the same ones for the same configuration, on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice

import numpy as np

from .config import TaskConfig
from .oracles import oracle
from .payloads import Payload, answer_of, changed, classes, draw
from .prompts import lead_of, prompt_of


@dataclass(frozen=True)
class SequenceItem:
    """One question about a sequence.

    Attributes:
        prompt: what the model is given.
        payload_span: the characters of the prompt that hold the sequence and its separators, from and up to.
        payload: the sequence's elements, without separators.
        lead: what an answer begins with, before the answer itself, as the prompt demands.
        answer: what it must then say.
        length: elements of the sequence.
        kind: one of ``KINDS``.
        id: a name that tells the item from all others of its configuration.
        seed: what the sequence was drawn with.
        query: what the question names: a position from 1 on, a key, or what is counted; else empty.
        target: which element bears the answer, from 0 on; None where all do.
        config: what the item was made by.
    """

    prompt: str
    payload_span: tuple[int, int]
    payload: tuple[str, ...]
    lead: str
    answer: str
    length: int
    kind: str
    id: str
    seed: int
    query: str
    target: int | None
    config: TaskConfig = field(repr=False)


def generate(config: TaskConfig, size: int) -> list[SequenceItem]:
    """The first ``size`` of the `endless` items.

    Raises:
        ValueError: ``size`` is negative.
    """
    if size < 0:
        raise ValueError(f"size must be at least 0, got {size}")
    return list(islice(endless(config), size))


def endless(config: TaskConfig) -> Iterator[SequenceItem]:
    """Items without end.

    Every length comes once before any comes again, in an order drawn anew each round. Where an answer can be
    chosen (copying, parity, recall), each comes as often as the others, over a round to within one, and at
    each length in turn.
    """
    lengths = config.length_values
    first = _generator(_seed(config, "first answers", *lengths)).permutation(len(lengths))
    for round_ in count():
        for i in _generator(_seed(config, "order", round_, *lengths)).permutation(len(lengths)):
            yield make_item(config, lengths[i], round_, int(first[i]) + round_)


def make_item(
    config: TaskConfig, length: int, index: int, answer: int, depth: float | None = None
) -> SequenceItem:
    """The ``index``-th item of a length.

    Args:
        answer: of the answers that can be chosen, which, taken modulo their number.
        depth: of the key that is asked for, from 0, the first pair, to 1, the last; None draws it.
    """
    answer %= classes(config)
    seed = _seed(config, "item", length, index, answer)
    payload = draw(config, length, answer, _generator(seed), depth)
    place = "" if depth is None else f"-{depth:g}"
    return _checked(config, payload, seed, f"{config.kind}-{length}-{index}{place}")


def minimal_pair(item: SequenceItem) -> tuple[SequenceItem, SequenceItem]:
    """The item, and one with another answer that differs from it in a single element.

    ``count_ones`` and ``sum_ones``: one more element at the end, and so a sequence that is longer by one.
    Copying and recall: the element that bears the answer has the next symbol of the alphabet. Others: one
    element, drawn by the item's seed, is exchanged for one that is counted, or for one that is not.
    """
    payload = Payload(item.payload, item.query, item.target)
    other = changed(item.config, payload, _generator(_seed(item.config, "pair", item.seed)))
    return item, _checked(item.config, other, item.seed, f"{item.id}-pair")


def _checked(config: TaskConfig, payload: Payload, seed: int, id: str) -> SequenceItem:
    """The item of a sequence, after its answer was found a second time in its prompt."""
    prompt, span = prompt_of(config, payload.elements, payload.query)
    item = SequenceItem(
        prompt=prompt,
        payload_span=span,
        payload=payload.elements,
        lead=lead_of(config),
        answer=answer_of(config, payload),
        length=len(payload.elements),
        kind=config.kind,
        id=id,
        seed=seed,
        query=payload.query,
        target=payload.target,
        config=config,
    )
    found = oracle(item)
    if found != item.answer:
        raise RuntimeError(f"The generator says {item.answer!r} and the oracle {found!r} to {item.prompt!r}")
    return item


def _seed(config: TaskConfig, *parts: str | int) -> int:
    """63 bits of a hash of what the sequences depend on, and of ``parts``."""
    content = (config.kind, config.p, config.alphabet, config.interleave, config.seed)
    digest = hashlib.blake2b(json.dumps([*content, *parts]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
