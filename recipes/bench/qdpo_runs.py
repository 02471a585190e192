"""The runs of :mod:`.qdpo`: how one is made, and what those that have ended amount to."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import lru_cache

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from ..qdpo import train
from ..run_folder import RunFolder
from .kept_runs import Runs, is_left_to_run, printing_into, results
from .qdpo_plan import METHODS, Job, all_overrides


@lru_cache
def _compose(*overrides: str) -> DictConfig:
    with initialize_config_module("recipes.conf.qdpo", version_base="1.3"):
        return compose("qdpo", overrides=list(overrides))


def _settings(job: Job) -> DictConfig:
    return _compose(*all_overrides(job))


def run(job: Job) -> None:
    """Train to the end, going on with what there is; what has ended stays."""
    if not is_left_to_run(job.folder, _settings(job)):
        return
    with printing_into(job.folder / "log"):
        found = train(_settings(job), RunFolder(job.folder))
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    scores = found["scores"]["trained"]
    print(
        f"{job.part}, {job.name}, seed {job.seed}: agreement {scores['agreement']:.3f}, "
        f"KL {scores['forward_kl']:.5f}, {found['cpu_s']:.0f} s",
        flush=True,
    )


def ended(jobs: Iterable[Job]) -> dict[str, Runs]:
    """What there is of some jobs: name -> seed -> result."""
    return results(jobs, _settings)


def best_rates(tuning: dict[str, Runs]) -> dict[str, float]:
    """
    For each method the rate of the highest agreement on the prompts for validation, once all were tried.

    Of equals, that of the lower KL(full precision || policy).
    """
    rates = {}
    for method, way in METHODS.items():
        tried = {
            rate: (run["scores"]["trained"]["agreement"], -run["scores"]["trained"]["forward_kl"])
            for rate in way.rates
            for run in tuning.get(f"{method}-{rate:g}", {}).values()
        }
        if tried and set(tried) == set(way.rates):
            rates[method] = max(tried, key=tried.__getitem__)
    return rates
