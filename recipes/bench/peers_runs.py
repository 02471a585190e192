"""What the runs of :mod:`.peers` that have ended amount to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from .peers_plan import FACTOR, METHODS, MOST_RATES, SEEDS, TRIAL_SEED, Job, Rates, cells
from .training_runs import Runs, late, result, shares_of


def tried(world: str, method: str) -> dict[float, float | None]:
    """Learning rates, and the mean greedy return of the last third with each on the trial seed; None where
    that has not run. While the best is the lowest or the highest, one more is tried beyond it."""
    lr = METHODS[method].settings_in(world)["lr"]
    scores = {rate: _trial(world, method, rate) for rate in (lr, FACTOR * lr)}
    while None not in scores.values() and len(scores) < MOST_RATES:
        best = _best(scores)
        if min(scores) < best < max(scores):
            break
        beyond = best / FACTOR if best == min(scores) else best * FACTOR
        scores[beyond] = _trial(world, method, beyond)
    return dict(sorted(scores.items()))


def _trial(world: str, method: str, lr: float) -> float | None:
    run = result(Job(world, method, TRIAL_SEED, lr))
    return None if run is None else late(run)


def _best(scores: Mapping[float, float | None]) -> float:
    """Of equals the lowest."""
    known = {lr: score for lr, score in sorted(scores.items()) if score is not None}
    return max(known, key=lambda lr: known[lr])


def tuning() -> Iterator[Job]:
    """Each method with each rate, on a seed that is not reported. What is tried last depends on what came of
    the others: those are to be run before the next is asked for."""
    for world, method in cells(learns=True):
        if METHODS[method].rate_of is None:
            asked: set[float] = set()
            while new := tried(world, method).keys() - asked:
                yield from (Job(world, method, TRIAL_SEED, lr) for lr in sorted(new))
                asked |= new


def best_rate(world: str, method: str) -> float | None:
    """The rate of a method in a world, once all were tried."""
    scores = tried(world, METHODS[method].rate_of or method)
    return None if None in scores.values() else _best(scores)


def best_rates() -> Rates:
    """Those that are known."""
    found = {cell: best_rate(*cell) for cell in cells(learns=True)}
    return {cell: rate for cell, rate in found.items() if rate is not None}


def runs_of(world: str, method: str) -> Runs:
    """What the seeds came to that have ended, at the rate that was chosen; none before that was."""
    rate = best_rate(world, method) if METHODS[method].learns else None
    if METHODS[method].learns and rate is None:
        return []
    found = (result(Job(world, method, seed, rate)) for seed in SEEDS)
    return [run for run in found if run is not None]


def ends(world: str) -> tuple[float, float] | None:
    """The two ends of a world's scale: the expected return of random ids, and the oracle's on the episodes
    of the evaluation. None until both have run."""
    random, oracle = runs_of(world, "random"), runs_of(world, "oracle")
    if not random or not oracle:
        return None
    return random[0]["random"], oracle[0]["records"][-1]["greedy"]


def shares(world: str, runs: Runs) -> np.ndarray:
    """Greedy returns as shares of the way from random to the oracle: (seeds, checkpoints)."""
    scale = ends(world)
    return np.empty((0, 0)) if scale is None else shares_of(runs, *scale)
