"""What is made of the runs of MiniLLM's comparison."""

import math

from recipes.bench.minillm_plan import METHODS, RATES
from recipes.bench.minillm_runs import best_rates


def test_the_best_rate_is_finite_and_of_a_way_of_which_all_were_tried():
    def runs(way, losses):
        scores = [{0: {"scores": {"student": {"reverse_kl": kl}}}} for kl in losses]
        return {f"{way}-{rate:g}": run for rate, run in zip(RATES, scores, strict=False)}

    diverged, finite, untried, lost, *_ = METHODS
    falling = [1.0 / (i + 1) for i in range(len(RATES))]
    tuning = {
        **runs(diverged, [math.nan, *falling[1:-1], math.nan]),
        **runs(finite, falling),
        **runs(untried, falling[:-1]),
        **runs(lost, [math.nan] * len(RATES)),
    }
    assert best_rates(tuning) == {diverged: RATES[-2], finite: RATES[-1]}
