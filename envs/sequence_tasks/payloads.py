"""Sequences drawn at random, and their answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .config import COPYING, TaskConfig

WORDS = ("tree", "road", "blue", "house", "slow", "bird", "stone", "green", "river", "cloud")


@dataclass(frozen=True)
class Payload:
    """A sequence, and what is asked of it.

    Attributes:
        elements: what it is made of.
        query: what the question names: a position from 1 on, a key, or what is counted; else empty.
        target: the one element that bears the answer; None where all do.
    """

    elements: tuple[str, ...]
    query: str
    target: int | None


def classes(config: TaskConfig) -> int:
    """Of how many answers one can be chosen; 1 where the length or chance decides."""
    if config.kind in (*COPYING, "kv_recall"):
        return len(config.alphabet)
    return 2 if config.kind == "parity" else 1


def draw(
    config: TaskConfig, length: int, answer: int, rng: np.random.Generator, depth: float | None = None
) -> Payload:
    """A sequence of this length with the ``answer``-th of the answers that `classes` counts.

    Args:
        depth: of the key that is asked for, from 0, the first pair, to 1, the last; None draws it.
    """
    if config.kind in COPYING:
        return _one_among_equals(config, length, config.alphabet[answer], rng)
    if config.kind == "kv_recall":
        return _pairs(config, length, config.alphabet[answer], rng, depth)
    if config.kind in ("count_ones", "sum_ones"):
        return Payload((config.counted,) * length, config.counted, None)
    return _mixture(config, length, answer, rng)


def _one_among_equals(config: TaskConfig, length: int, value: str, rng: np.random.Generator) -> Payload:
    """``value`` at one place, and a run of the last symbol, or all symbols in turn, at the others."""
    drawn, phase = int(rng.integers(length)), int(rng.integers(len(config.alphabet)))
    if config.interleave:
        elements = [config.alphabet[(i + phase) % len(config.alphabet)] for i in range(length)]
    else:
        elements = [config.counted] * length
    target = {"copy_first": 0, "copy_last": length - 1}.get(config.kind, drawn)
    elements[target] = value
    return Payload(tuple(elements), str(target + 1) if config.kind == "copy_nth" else "", target)


def _pairs(
    config: TaskConfig, length: int, value: str, rng: np.random.Generator, depth: float | None
) -> Payload:
    """Pairs ``key:value`` of different keys; the one that is asked for has ``value``."""
    keys = [f"k{i}" for i in rng.permutation(max(100, 2 * length))[:length]]
    values = [config.alphabet[i] for i in rng.integers(len(config.alphabet), size=length)]
    drawn = int(rng.integers(length))
    target = drawn if depth is None else round(depth * (length - 1))
    values[target] = value
    pairs = tuple(f"{key}:{value}" for key, value in zip(keys, values, strict=True))
    return Payload(pairs, keys[target], target)


def _mixture(config: TaskConfig, length: int, answer: int, rng: np.random.Generator) -> Payload:
    """What is counted with chance p at each place, and others."""
    others = WORDS if config.kind == "count_word" else config.alphabet[:-1]
    counted = rng.random(length) < config.p
    other = rng.integers(len(others), size=length)
    elements = [config.counted if is_one else others[i] for is_one, i in zip(counted, other, strict=True)]
    if config.kind == "parity" and int(counted.sum()) % 2 != answer:
        place = int(rng.integers(length))
        elements[place] = _exchanged(config, elements[place])
    return Payload(tuple(elements), config.counted, None)


def _exchanged(config: TaskConfig, element: str) -> str:
    """An element that is not counted for one that is, and the other way round."""
    other = WORDS[0] if config.kind == "count_word" else config.alphabet[0]
    return other if element == config.counted else config.counted


def answer_of(config: TaskConfig, payload: Payload) -> str:
    """What is to be answered."""
    if payload.target is not None:
        return payload.elements[payload.target][-1]  # of a pair, the value
    count = sum(element == config.counted for element in payload.elements)
    return str(count % 2 if config.kind == "parity" else count)


def changed(config: TaskConfig, payload: Payload, rng: np.random.Generator) -> Payload:
    """The sequence with another answer and one element changed, or with one more where all are equal."""
    elements = list(payload.elements)
    if config.kind in ("count_ones", "sum_ones"):
        return Payload((*elements, config.counted), payload.query, None)
    if payload.target is None:
        place = int(rng.integers(len(elements)))
        elements[place] = _exchanged(config, elements[place])
    else:
        element = elements[payload.target]
        after = (config.alphabet.index(element[-1]) + 1) % len(config.alphabet)
        elements[payload.target] = element[:-1] + config.alphabet[after]
    return Payload(tuple(elements), payload.query, payload.target)
