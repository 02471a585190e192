"""Interquartile means, ratios of medians and rank correlations, with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from rliable import library
from scipy.stats import rankdata, trim_mean

REPS = 2000  # of the bootstrap


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over seeds and tasks; ``scores``: (seeds, tasks)."""
    return np.array([trim_mean(scores, 0.25, axis=None)])


def interval(func: Callable[..., np.ndarray], *scores: np.ndarray, digits: int = 1) -> str:
    """A point estimate with its 95% stratified bootstrap interval, the same at every call."""
    point, (low, high) = estimate(func, *scores)
    return f"{point[0]:.{digits}f} [{low[0]:.{digits}f}, {high[0]:.{digits}f}]"


def estimate(func: Callable[..., np.ndarray], *scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A point estimate and the two ends of its interval."""
    before = np.random.get_state()
    np.random.seed(0)  # rliable 1.2.0 draws from numpy's global generator, whatever random_state it is given
    try:
        points, intervals = library.get_interval_estimates(
            {"": scores[0] if len(scores) == 1 else list(scores)}, func, reps=REPS
        )
    finally:
        np.random.set_state(before)
    return points[""], intervals[""]


def ratio_of_medians(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """The median of ``x`` over that of ``y``, and a 95% bootstrap interval of it. Numbers may be infinite;
    infinite over infinite is not a number.
    """
    draw = np.random.default_rng(0)
    with np.errstate(invalid="ignore"):
        medians = [np.median(draw.choice(np.array(times), (REPS, len(times))), axis=1) for times in (x, y)]
        low, high = np.quantile(medians[0] / medians[1], (0.025, 0.975), method="inverted_cdf")
        return float(np.divide(np.median(x), np.median(y))), float(low), float(high)


def rank_correlation(
    x: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None
) -> tuple[float, float, float]:
    """Spearman's rank correlation and its 95% bootstrap interval; NaN if either side has but one value.

    Args:
        x, y: (n,), in pairs.
        groups: (n,), of each pair; ranks are taken within each group then, and pairs drawn within each, so
            that what differs between groups counts for nothing.
    """
    x, y = np.asarray(x), np.asarray(y)
    groups = np.zeros(len(x)) if groups is None else np.asarray(groups)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]

    def correlation(drawn: list[np.ndarray]) -> float:
        a, b = (np.concatenate([rankdata(v[rows]) - (len(rows) + 1) / 2 for rows in drawn]) for v in (x, y))
        spread = np.sqrt((a @ a) * (b @ b))
        return float(a @ b / spread) if spread else np.nan

    draw = np.random.default_rng(0)
    found = [correlation([draw.choice(rows, len(rows)) for rows in members]) for _ in range(REPS)]
    if np.isnan(found).all():
        return np.nan, np.nan, np.nan
    low, high = np.nanquantile(found, (0.025, 0.975))
    return correlation(members), float(low), float(high)
