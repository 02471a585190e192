"""
Signs that a student is winning its reward without answering.

A falling reverse KL is no proof of health: a student may also get there by short, empty or repetitive
answers, or by copying the prompt. These numbers are logged with every rollout, and a warning says so
early.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import variance
from typing import Any

WORST = {  # share of answers, or repeated share of an answer, beyond which a warning is due
    "empty_ratio": 0.2,
    "short_ratio": 0.5,
    "repetition": 0.5,
    "prompt_echo": 0.5,
}
SHORT = 3  # tokens, the end of sequence not counted
DRIFT = 0.5  # relative change of the mean length since the first rollout
SURE = 3.0  # standard errors that the mean length must have changed by as well
SETTLE = 5  # last rollouts that are averaged: where training is


def degeneration(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    n: int = 4,
    endings: Iterable[int] = (),
) -> dict[str, float]:
    """
    How degenerate a batch of answers looks, all in [0, 1] but for the length and its error.

    Args:
        prompts, answers: token ids without padding.
        n: length of the n-grams that are compared.
        endings: tokens that end an answer and do not count.

    Returns:
        ``empty_ratio``: answers without a token; ``short_ratio``: of fewer than 3; ``repetition``: share of
        an answer's n-grams that it has said before, averaged; ``prompt_echo``: share of them that are in
        its prompt, averaged; ``mean_length``, and ``length_error``, the square of its standard error.
    """
    ends = set(endings)
    bodies = [[token for token in answer if token not in ends] for answer in answers]
    lengths = [len(body) for body in bodies]
    repetition, echo = [], []
    for prompt, body in zip(prompts, bodies, strict=True):
        grams = _ngrams(body, n)
        if grams:
            known = set(_ngrams(prompt, n))
            repetition.append(1.0 - len(set(grams)) / len(grams))
            echo.append(sum(gram in known for gram in grams) / len(grams))
    return {
        "empty_ratio": _mean([len(body) == 0 for body in bodies]),
        "short_ratio": _mean([len(body) < SHORT for body in bodies]),
        "repetition": _mean(repetition),
        "prompt_echo": _mean(echo),
        "mean_length": _mean(lengths),
        "length_error": variance(lengths) / len(lengths) if len(lengths) > 1 else _mean(lengths) ** 2,
    }


class DegenerationGuard:
    """
    Compares the last rollouts with the first and with fixed bounds; names each sign of decay once.

    The first rollout alone is what they are measured against: it comes from the student as it was before
    training, and the next may be decayed already.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] | None = None
        self.last: list[dict[str, float]] = []
        self.warned: set[str] = set()

    def look(self, signs: dict[str, float]) -> tuple[dict[str, float], list[str]]:
        """
        Args:
            signs: of :func:`degeneration`, of the answers of all processes.

        Returns:
            what to log, with ``length_drift`` (relative to the mean length of the first rollout) for the
            mean length; and warnings that have not been given before.
        """
        start = self.first = self.first or signs
        self.last = [*self.last, signs][-SETTLE:]
        now = {name: _mean([seen[name] for seen in self.last]) for name in signs}
        change = now["mean_length"] - start["mean_length"]
        drift = now["mean_length"] / max(start["mean_length"], 1.0) - 1.0
        # the first rollout's lengths may be alike by chance, and the last ones' because they have collapsed
        error = max(start["length_error"], now["length_error"]) + now["length_error"] / len(self.last)
        logged = {name: signs[name] for name in WORST} | {"length_drift": drift}
        warnings = []
        for name, worst in WORST.items():
            # data may be short or repetitive by nature: what counts is that it has become so
            if now[name] > max(worst, 1.5 * start[name]) and name not in self.warned:
                self.warned.add(name)
                warnings.append(
                    f"{name} of the student's answers has risen to {now[name]:.2f} (from {start[name]:.2f})"
                )
        changed = abs(drift) > DRIFT and abs(change) > SURE * error**0.5
        if changed and "length_drift" not in self.warned:
            self.warned.add("length_drift")
            how = "shorter" if drift < 0 else "longer"
            warnings.append(f"answers have become {abs(drift):.0%} {how} since training began")
        return logged, warnings

    def state(self) -> dict[str, Any]:
        """What a resumed run must know, as plain dictionaries and lists."""
        return {"first": self.first, "last": self.last, "warned": sorted(self.warned)}

    def restore(self, state: dict[str, Any]) -> None:
        self.first, self.last = state["first"], list(state["last"])
        self.warned = set(state["warned"])


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
