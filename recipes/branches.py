"""Laws of texts as trees that are unfolded as one walks: sampling, probabilities, all texts there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

#: ways to go on: (probability, what is said, what comes then); probabilities sum to 1
Branches = list[tuple[float, str, Callable[[], "Branches"] | None]]


def zipf(options: tuple[str, ...], without: tuple[str, ...] = ()) -> list[tuple[float, str]]:
    """Options in order with weights 1, 1/2, 1/3, ...; those left over keep theirs, relative to each other."""
    weighted = [(1 / (1 + i), option) for i, option in enumerate(options) if option not in without]
    total = sum(weight for weight, _ in weighted)
    return [(weight / total, option) for weight, option in weighted]


def say(text: str, then: Callable[[], Branches] | None = None) -> Branches:
    """The only way to go on."""
    return [(1.0, text, then)]


def sample(branches: Branches, generator: np.random.Generator) -> str:
    """A random text."""
    said: list[str] = []
    while True:
        cumulative = np.cumsum([p for p, _, _ in branches])
        chosen = min(int(np.searchsorted(cumulative, generator.random(), "right")), len(branches) - 1)
        _, text, then = branches[chosen]
        said += text.split()
        if then is None:
            return " ".join(said)
        branches = then()


def probability(branches: Branches, rest: list[str]) -> float:
    """Of saying just ``rest`` from here on: summed over all ways, since different ones may say the same."""
    total = 0.0
    for p, text, then in branches:
        said = text.split()
        if rest[: len(said)] == said:
            left = rest[len(said) :]
            total += p * (probability(then(), left) if then else float(not left))
    return total


def _walk(branches: Branches, p: float, said: tuple[str, ...]) -> Iterator[tuple[float, tuple[str, ...]]]:
    for q, text, then in branches:
        so_far = (*said, *text.split())
        if then is None:
            yield p * q, so_far
        else:
            yield from _walk(then(), p * q, so_far)


def enumerate_texts(branches: Branches) -> dict[str, float]:
    """All texts and their probabilities."""
    found: dict[str, float] = {}
    for p, said in _walk(branches, 1.0, ()):
        found[" ".join(said)] = found.get(" ".join(said), 0.0) + p
    return found
