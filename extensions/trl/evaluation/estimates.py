"""Means and ratios over prompts; answers to one prompt count together in their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate and its standard error, NaN if there was a single prompt."""

    value: float
    standard_error: float


def mean_over(values: Tensor) -> Estimate:
    """Mean of one value of each prompt, (P,); NaN without any."""
    value, error = clustered_mean(values[:, None])
    return Estimate(value.item(), error.item())


def ratio_over(numerator: Tensor, denominator: Tensor) -> Estimate:
    """Ratio of two totals over prompts, of which each adds one value to both, (P,); NaN if the lower is 0."""
    value, error = clustered_ratio(numerator[:, None], denominator[:, None])
    return Estimate(value.item(), error.item())


def clustered_mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over prompts and its standard error, with the prompts as a sample of those there might be.

    Args:
        values: (P, S, ...), S answers to each of P prompts.

    Returns:
        Mean and standard error, (...). Answers to one prompt are no independent draws, so that the error
        comes from the spread of the prompts' own means.
    """
    of_prompts = values.mean(1)  # (P, ...)
    return of_prompts.mean(0), _standard_error(of_prompts)


def clustered_ratio(numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """Ratio of two means over prompts, and its standard error to first order (the delta method).

    Args:
        numerator: (P, S, ...), S answers to each of P prompts.
        denominator: the same of another S answers or of the same, to the same prompts.

    Returns:
        Ratio and standard error, (...); NaN where the denominator's mean is zero.
    """
    above, below = numerator.mean(1), denominator.mean(1)  # (P, ...)
    ratio = above.mean(0) / below.mean(0)
    return ratio, _standard_error((above - ratio * below) / below.mean(0))


def _standard_error(of_prompts: Tensor) -> Tensor:
    """Standard error of the mean of (P, ...) values."""
    n = len(of_prompts)
    if n < 2:
        return of_prompts.new_full(of_prompts.shape[1:], math.nan)
    return of_prompts.std(0, correction=1) / math.sqrt(n)
