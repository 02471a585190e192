"""What the runs of :mod:`.peers` that have ended amount to."""

from __future__ import annotations

import numpy as np

from .peers_plan import METHODS, SEEDS, TRIAL_SEED, Job, Rates, cells, rates_of
from .training_runs import Runs, late, result, shares_of


def best_rates() -> Rates:
    """The better rate of each method in each world, of those where all were tried; of equals the lower."""
    best = {}
    for cell in cells(learns=True):
        tried = {lr: result(Job(*cell, TRIAL_SEED, lr)) for lr in rates_of(*cell)}
        scores = {lr: late(run) for lr, run in tried.items() if run is not None}
        if len(scores) == len(tried):
            best[cell] = max(scores, key=lambda lr: scores[lr])
    return best


def runs_of(world: str, method: str) -> Runs:
    """What the seeds came to that have ended, at the rate that was chosen; none before that was."""
    rate = best_rates().get((world, method))
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
