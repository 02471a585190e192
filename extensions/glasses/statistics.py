"""Intervals of accuracies, and the length at which something fails."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .results import Result


def wilson(successes: Tensor | int, trials: Tensor | int, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Interval of a share of successes (Wilson, 1927), which is never empty, not even at 0 or all successes.

    Args:
        successes: of so many trials, any shape.
        trials: at least 1, a number or of the shape of ``successes``.
        level: how often such an interval holds the true share.

    Returns:
        Lower and upper ends, float64, of the shape of ``successes``, from 0 to 1.
    """
    trials = torch.as_tensor(trials, dtype=torch.float64)
    if bool((trials < 1).any()):
        raise ValueError(f"an interval needs at least 1 trial, got {trials.min():g}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    share = torch.as_tensor(successes).double() / trials
    z = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)).item()
    middle = share + z**2 / (2 * trials)
    half = z * (share * (1 - share) / trials + z**2 / (4 * trials**2)).sqrt()
    low, high = ((middle + side * half) / (1 + z**2 / trials) for side in (-1, 1))
    return low.clamp(min=0), high.clamp(max=1)


@dataclasses.dataclass(frozen=True)
class CriticalLength(Result):
    """The length from which on something fails at all that were tested.

    Attributes:
        length: ``inf`` if there is none.
        censored: no tested length is long enough ("right"), or the shortest is already too long ("left");
            else "no".
    """

    length: float
    censored: str


def critical_length(lengths: Sequence[int], below: Sequence[bool]) -> CriticalLength:
    """The first of ascending lengths from which on all are ``below``."""
    first = len(below)
    while first and below[first - 1]:
        first -= 1
    if first == len(below):
        return CriticalLength(math.inf, "right")
    return CriticalLength(float(lengths[first]), "no" if first else "left")


def half_length(lengths: Sequence[int], accuracy: Sequence[float] | Tensor, chance: float) -> CriticalLength:
    """n50, the length from which on accuracy is less than half above chance, (1 + chance) / 2.

    Between the last length that passes and the first that fails, accuracy is taken for linear in the log of
    length.

    Args:
        lengths: N of them, ascending.
        accuracy: at each, from 0 to 1.
        chance: of a model that knows nothing, at least 0 and less than 1.

    Raises:
        ValueError: they are not so.
    """
    if not 0 <= chance < 1:
        raise ValueError(f"chance must be at least 0 and less than 1, got {chance}")
    if not lengths or list(lengths) != sorted(set(lengths)) or len(lengths) != len(accuracy):
        raise ValueError(
            f"n50 needs ascending lengths and an accuracy for each, got {len(accuracy)} for {list(lengths)}"
        )
    values, half = [float(x) for x in accuracy], (1 + chance) / 2
    found = critical_length(lengths, [value < half for value in values])
    if found.censored != "no":
        return found
    fails = list(lengths).index(int(found.length))
    x, y = lengths[fails - 1 : fails + 1], values[fails - 1 : fails + 1]
    part = (y[0] - half) / (y[0] - y[1])
    return CriticalLength(x[0] * (x[1] / x[0]) ** part, "no")


@dataclasses.dataclass(frozen=True)
class MeanRatio(Result):
    """A geometric mean of ratios.

    Attributes:
        value: NaN of none.
        low, high: 95% bootstrap interval; NaN of fewer than `LEAST_RATIOS`.
        count: how many.
    """

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{self.low:.2g}, {self.high:.2g}]"
        return f"x{self.value:.2g}{interval}"


LEAST_RATIOS = 4
RESAMPLES = 1_000


def mean_ratio(ratios: Tensor) -> MeanRatio:
    """Geometric mean of those that are positive and finite.

    Args:
        ratios: any shape.
    """
    logs = ratios[torch.isfinite(ratios) & (ratios > 0)].double().log()
    if not len(logs):
        return MeanRatio(math.nan, math.nan, math.nan, 0)
    low = high = math.nan
    if len(logs) >= LEAST_RATIOS:
        drawn = torch.randint(len(logs), (RESAMPLES, len(logs)), generator=torch.Generator().manual_seed(0))
        means = logs.cpu()[drawn].mean(1).exp()
        low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return MeanRatio(logs.mean().exp().item(), low, high, len(logs))


def sign_test(wins: int, losses: int) -> float:
    """How often a fair coin is at least as one-sided as ``wins`` against ``losses``: a p-value; 1 of none."""
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)
