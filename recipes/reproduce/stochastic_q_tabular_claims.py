"""What the page about stochastic Q-learning in tables says in numbers, from the rows of its CSV."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..bench.intervals import estimate, interval, iqm

#: sampled and exact methods that differ in their maxima only
PAIRS = (("StochQ", "Q"), ("StochDoubleQ", "DoubleQ"), ("StochSarsa", "Sarsa"))
Rows = list[dict[str, Any]]  # of the CSV


def scores_of(rows: Rows, part: str, name: str, score: str) -> np.ndarray:
    """A score of each seed, (seeds,), NaN where it has none."""
    found = [row[score] for row in rows if (row["part"], row["name"]) == (part, name)]
    if not found:
        raise KeyError(f"There is no {part}, {name}")
    return np.array([np.nan if x == "" else x for x in found], dtype=float)


def mean_of_seeds(points: Any) -> np.ndarray:
    """(points, seeds) to (points,), without the seeds that have nothing there; NaN where none has."""
    x = np.array(points, dtype=float)
    there = np.isfinite(x)
    many = there.sum(1)
    return np.where(many > 0, np.where(there, x, 0).sum(1) / np.maximum(many, 1), np.nan)


def of_seeds(values: Any, digits: int) -> str:
    """Interquartile mean over seeds and its interval; and over how many seeds, where some have no score."""
    scores = np.array(values, dtype=float)[:, None]
    there = scores[np.isfinite(scores).all(1)]
    if not len(there):
        return "no episode ended"
    some = "" if len(there) == len(scores) else f"; {len(there)} of {len(scores)} seeds"
    if np.ptp(there) < 10.0 ** -(digits + 2):
        return f"{round(there.mean(), digits) + 0.0:.{digits}f}{some}"  # + 0.0: no -0.000
    return interval(iqm, there, digits=digits) + some


def difference_of_iqms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return iqm(a) - iqm(b)


def difference(rows: Rows, part: str, pair: tuple[str, str], score: str, digits: int) -> str:
    """By how much the first of a pair is higher, with the interval of that; "" if seeds have no score."""
    first, second = (scores_of(rows, part, name, score)[:, None] for name in pair)
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        return ""
    return interval(difference_of_iqms, first, second, digits=digits)


def verdict(rows: Rows, part: str, pair: tuple[str, str], score: str) -> str:
    """ "is ahead of" or "is behind" where the interval of the difference excludes 0."""
    first, second = (scores_of(rows, part, name, score)[:, None] for name in pair)
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        return "cannot be compared with"
    _, (low, high) = estimate(difference_of_iqms, first, second)
    if low[0] > 0:
        return "is ahead of"
    return "is behind" if high[0] < 0 else "cannot be told from"


def listed(names: tuple[str, ...]) -> str:
    """A, B and C."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def comparison(rows: Rows, part: str, score: str) -> str:
    """The verdicts on all pairs, equal ones together."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for pair in PAIRS:
        groups.setdefault(verdict(rows, part, pair, score), []).append(pair)
    said = []
    for words, pairs in groups.items():
        sampled, exact = (listed(names) for names in zip(*pairs, strict=True))
        said.append(f"{sampled} {words if len(pairs) == 1 else words.replace('is ', 'are ')} {exact}")
    return "; ".join(said)


def filled(text: str, rows: Rows) -> str:
    """The text with its braces filled.

    - ``{part/name/score/digits}`` is the interquartile mean over seeds;
    - ``{part/?/score}`` is which sampled methods are ahead of their exact ones, or behind.
    """

    def value(match: re.Match[str]) -> str:
        part, name, score, *digits = match[1].replace("\n", " ").split("/")
        if name == "?":
            return comparison(rows, part, score)
        scores = scores_of(rows, part, name, score)
        return f"{iqm(scores[np.isfinite(scores)])[0]:.{int(digits[0])}f}"

    return re.sub(r"\{(.+?)\}", value, text, flags=re.DOTALL)
