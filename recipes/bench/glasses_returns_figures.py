"""The figures on the page of :mod:`.glasses_returns`, as text."""

from __future__ import annotations

from functools import cache

import numpy as np

from envs.return_dial import best_action

from .glasses_returns_plan import COLLECTED, CONTEXTS, HELD_OUT, HORIZON, MEASURED, Arm
from .glasses_returns_runs import HELD_OUT_SEED, Found, by_seed, episodes_of, values
from .intervals import interval, iqm, rank_correlation


def point(found: list[float], digits: int = 3) -> str:
    """Interquartile mean over seeds."""
    if not found:
        return "not run yet"
    return f"{iqm(np.array(found))[0]:.{digits}f}" if None not in found else "none"


def cell(found: list[float], digits: int = 3) -> str:
    """The same with its interval."""
    if not found:
        return "not run yet"
    return _interval(tuple(found), digits) if np.isfinite(found).all() else "undefined"


@cache
def _interval(found: tuple[float, ...], digits: int) -> str:
    return interval(iqm, np.array(found)[:, None], digits=digits)


def exponents(runs: Found, arm: Arm, data: str, when: str, name: str) -> list[float]:
    """The slope of log(value) against log(K) over all K, of each seed that has them all; NaN if one is 0."""
    by_context = [by_seed(runs, arm, data, k, when, name) for k in CONTEXTS]
    having_all = set.intersection(*map(set, by_context))
    found = np.array([[at[seed] for at in by_context] for seed in sorted(having_all)])  # (seeds, K)
    return [
        float(np.polyfit(np.log(CONTEXTS), np.log(seed), 1)[0]) if seed.all() else np.nan for seed in found
    ]


def prediction(runs: Found, arm: Arm, data: str, name: str, error: str, within: bool) -> str:
    """Rank correlation of sensitivity and error over seeds and contexts, or over seeds of one context."""
    x, y, context = [], [], []
    for k in CONTEXTS:
        found = values(runs, arm, data, k, "trained", name)
        x += found
        y += values(runs, arm, data, k, error)
        context += [k] * len(found)
    return _correlation(tuple(x), tuple(y), tuple(context) if within else None) if x else "not run yet"


@cache
def _correlation(x: tuple[float, ...], y: tuple[float, ...], groups: tuple[int, ...] | None) -> str:
    rho, low, high = rank_correlation(x, y, groups)
    return f"{rho:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(rho) else "undefined"


def best_shift() -> float:
    """What one std of the return does to the best action where sensitivities are measured."""
    to_go = (
        episodes_of(COLLECTED, HELD_OUT, HELD_OUT_SEED)["return_to_go"][:, MEASURED, 0].double().numpy()
        * HORIZON
    )
    up, down = (best_action(to_go + s * to_go.std(ddof=1), HORIZON - MEASURED) for s in (1, -1))
    return float(np.mean(np.abs(up - down)) / 2)
