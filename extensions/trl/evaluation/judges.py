"""Which of two answers is better: judges, and a comparison that shows each pair to them in both orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: A judge takes prompts (strings or conversations), a first answer to each and a second. It returns a number
#: for each: +1 if the first answer is better, -1 if the second is, 0 for a tie.
#:
#: A language model makes one in a few lines::
#:
#:     def judge(prompts, first, second):
#:         verdicts = []
#:         for prompt, a, b in zip(prompts, first, second):
#:             reply = client.chat.completions.create(model=MODEL, messages=[
#:                 {"role": "user", "content": QUESTION.format(prompt=prompt, a=a, b=b)}
#:             ]).choices[0].message.content
#:             verdicts.append({"[[A]]": 1, "[[B]]": -1}.get(reply[-5:], 0))
#:         return verdicts
Judge = Callable[[Sequence[Any], Sequence[str], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class ScoreJudge:
    """A judge that gives each answer a score of its own and prefers the higher one.

    Args:
        score: of a prompt and an answer; higher is better.
        margin: scores that differ by no more than this are a tie.

    Raises:
        ValueError: ``margin`` is negative or, when it judges, a score is NaN.
    """

    score: Callable[[Any, str], float]
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise ValueError(f"margin must be at least 0, got {self.margin}")

    def __call__(self, prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]) -> list[float]:
        return [self._judge(*pair) for pair in zip(prompts, first, second, strict=True)]

    def _judge(self, prompt: Any, first: str, second: str) -> float:
        gap = self.score(prompt, first) - self.score(prompt, second)
        if math.isnan(gap):
            raise ValueError(f"The score of {first!r} or of {second!r} is NaN: give every answer a number.")
        return 0.0 if abs(gap) <= self.margin else math.copysign(1.0, gap)


@dataclass(frozen=True)
class Verdict:
    """How one set of answers did against another. Shares are in 0 ... 1 and of all pairs, unless they say so.

    ``low`` and ``high`` are the ends of the 95% bootstrap interval of ``win_rate`` over prompts.
    """

    win: float
    tie: float
    lose: float
    win_rate: float  #: a tie is half a win; 0.5 between equals
    low: float
    high: float
    position_bias: float  #: share of the judged pairs on which the two orders disagree; NaN if there are none
    pairs: int
    judged: int  #: pairs of different answers; equal answers are ties, which no judge has to say
    outcomes: list[float] = field(repr=False)  #: of each pair: 1, 0.5 or 0


def compare(
    judge: Judge,
    prompts: Sequence[Any],
    answers: Sequence[str],
    other_answers: Sequence[str],
    *,
    seed: int,
    resamples: int = 10_000,
) -> Verdict:
    """Judge answers against others, each pair in both orders.

    A judge may prefer the answer that it reads first. An answer wins only if it is preferred in both
    orders, and loses only if the other one is; all else is a tie.

    Args:
        judge: see :data:`Judge`. It is called once for each order, with the pairs whose answers differ.
        prompts: of N pairs.
        answers: those whose wins are counted.
        other_answers: those they are compared with.
        seed: of the bootstrap.
        resamples: of the bootstrap, over prompts.

    Raises:
        ValueError: no prompts, not as many answers, or a judge that returns another number of verdicts or
            one that is no number.
    """
    if not len(prompts):
        raise ValueError("There are no prompts, and so nothing to judge.")
    if not len(prompts) == len(answers) == len(other_answers):
        raise ValueError(
            f"There are {len(prompts)} prompts, {len(answers)} answers and {len(other_answers)} others; "
            "there must be as many of each."
        )
    differ = [i for i in range(len(prompts)) if answers[i] != other_answers[i]]
    asked, ours, theirs = ([values[i] for i in differ] for values in (prompts, answers, other_answers))
    shown_first = _preferences(judge, asked, ours, theirs)
    shown_second = [-sign for sign in _preferences(judge, asked, theirs, ours)]

    outcomes = [0.5] * len(prompts)
    for i, one, other in zip(differ, shown_first, shown_second, strict=True):
        if one == other:
            outcomes[i] = (1 + one) / 2
    disagreements = sum(one != other for one, other in zip(shown_first, shown_second, strict=True))
    win, tie, lose = shares = [outcomes.count(value) / len(outcomes) for value in (1.0, 0.5, 0.0)]
    low, high = _interval(shares, len(outcomes), seed, resamples)
    return Verdict(
        win=win,
        tie=tie,
        lose=lose,
        win_rate=win + tie / 2,
        low=low,
        high=high,
        position_bias=disagreements / len(differ) if differ else math.nan,
        pairs=len(outcomes),
        judged=len(differ),
        outcomes=outcomes,
    )


def _preferences(
    judge: Judge, prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]
) -> list[int]:
    """Signs of the judge's verdicts: 1, 0 or -1."""
    if not prompts:
        return []
    found = judge(prompts, first, second)
    if not isinstance(found, Iterable):
        raise TypeError(
            f"The judge returned {found!r}; it must return a number for each of the pairs it is given."
        )
    verdicts = list(found)
    if len(verdicts) != len(prompts):
        raise ValueError(
            f"The judge was given {len(prompts)} pairs and returned {len(verdicts)} verdicts; it must return "
            "one for each, in their order."
        )
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        try:
            known = not math.isnan(verdict)
        except TypeError:
            known = False
        if not known:
            raise ValueError(
                f"The judge's verdict on the prompt {prompt!r} is {verdict!r}; it must be +1 (the first "
                "answer is better), -1 (the second) or 0 (a tie, also where it cannot tell)."
            )
    return [int(verdict > 0) - int(verdict < 0) for verdict in verdicts]


def _interval(shares: Sequence[float], pairs: int, seed: int, resamples: int) -> tuple[float, float]:
    """Percentile bootstrap of the win rate: resampled pairs are counts of wins, ties and losses."""
    counts = np.random.default_rng(seed).multinomial(pairs, shares, size=resamples)  # (resamples, 3)
    low, high = np.quantile(counts @ np.array([1.0, 0.5, 0.0]) / pairs, [0.025, 0.975])
    return float(low), float(high)
