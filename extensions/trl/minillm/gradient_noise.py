"""Variance, signal and their ratio of gradients of single answers."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from os import PathLike

from torch import Tensor


@dataclass(frozen=True)
class GradientNoise:
    """
    The noise in the gradient of one answer. Squared lengths in the units of the gradient.

    Args:
        variance: trace of the covariance of one answer's gradient, of a prompt drawn at random: the sum
            of the next two.
        within: its part that comes from the answers to one prompt.
        between: its part that comes from prompts. Debiased, so it may be below 0 where there is little.
        signal: squared length of the mean gradient. Debiased, so it may be below 0 where noise hides it.
        snr: signal / (variance / N), of the mean over all N answers.
        ess: effective sample size of the importance weights over their number, in (0, 1]: of the tokens'
            weights, or of the answers' if weights are products; 1 without weights.
        by_position: trace of the covariance of what each position adds, within prompts; empty if not known.
            The positions' parts are correlated and do not add up to ``within``.
    """

    variance: float
    within: float
    between: float
    signal: float
    snr: float
    ess: float = 1.0
    by_position: tuple[float, ...] = ()

    @property
    def relative(self) -> float:
        """variance / signal, the number of answers that makes them equal. Infinite without a signal."""
        return self.variance / self.signal if self.signal > 0 else float("inf")


@dataclass(frozen=True)
class GradientReport:
    """The noise of several estimators on the same answers; printed, a table."""

    noise: dict[str, GradientNoise]
    prompts: int
    answers_per_prompt: int

    def as_dict(self) -> list[dict[str, object]]:
        """A dictionary an estimator, as JSON takes them."""
        return [{"estimator": name, **asdict(row)} for name, row in self.noise.items()]

    def to_csv(self, path: str | PathLike[str]) -> None:
        """A row an estimator; positions as ``by_position_0`` and so on."""
        rows: list[dict[str, object]] = []
        for row in self.as_dict():
            positions = row.pop("by_position")
            assert isinstance(positions, tuple)
            rows.append({**row, **{f"by_position_{t}": x for t, x in enumerate(positions)}})
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def __str__(self) -> str:
        width = max(len("estimator"), *map(len, self.noise))
        numbers = [field.name for field in fields(GradientNoise) if field.name != "by_position"]
        head = ["estimator".ljust(width), *(name.rjust(10) for name in numbers)]
        lines = [f"{self.prompts} prompts, {self.answers_per_prompt} answers each", "  ".join(head)]
        for name, row in self.noise.items():
            cells = (f"{getattr(row, number):10.3g}" for number in numbers)
            lines.append("  ".join([name.ljust(width), *cells]))
        return "\n".join(lines)


def gradient_noise(gradients: Tensor, ess: float = 1.0) -> GradientNoise:
    """
    Variance, signal and their ratio of gradients of single answers.

    Prompts count as drawn at random, and answers as drawn anew for each; a single prompt counts as the only
    one there is.

    Args:
        gradients: (P, M, D) of M answers to each of P prompts, M >= 2; or (M, D) of one prompt.
        ess: reported as it is.

    Raises:
        ValueError: there are fewer than two answers to a prompt.
    """
    if gradients.ndim == 2:
        gradients = gradients[None]
    p, m, _ = gradients.shape
    if m < 2:
        raise ValueError(f"A variance needs at least 2 answers to each prompt, got {m}.")
    gradients = gradients.double()
    means = gradients.mean(1)  # (P, D)
    within = gradients.var(1).sum(-1).mean().item()
    # The means of M answers vary by the prompts' own variance and by a share of the answers'.
    of_means = means.var(0).sum().item() if p > 1 else within / m
    between = of_means - within / m
    variance = within + between
    signal = means.mean(0).square().sum().item() - of_means / p
    snr = signal * p * m / variance if variance > 0 else float("inf")
    return GradientNoise(variance, within, between, signal, snr, ess)
