"""The runs of :mod:`.minillm`: how one is made, and what those that have ended amount to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from ..distill_run import Run
from ..minillm import train
from ..run_folder import RunFolder
from .kept_runs import Runs, is_left_to_run, printing_into, results
from .minillm_plan import (
    METHODS,
    RATES,
    RUNS,
    SEEDS,
    Job,
    all_overrides,
    student_folder,
    teacher_folder,
)


@lru_cache
def _compose(*overrides: str) -> DictConfig:
    with initialize_config_module("recipes.conf", version_base="1.3"):
        return compose("minillm", overrides=list(overrides))


def make_models(seed: int) -> None:
    """The teacher, and what the student of a seed begins with, where they are not there yet."""
    if not (teacher_folder() / "teacher").exists():
        with printing_into(teacher_folder() / "log"):
            Run(_compose("seed=0", "device=cpu"), RunFolder(teacher_folder())).teacher()
    if not (student_folder(seed) / "sft").exists():
        with printing_into(student_folder(seed) / "log"):
            Run(_compose(f"seed={seed}", "device=cpu"), RunFolder(student_folder(seed))).warm_start()


def _settings(job: Job) -> DictConfig:
    return _compose(*all_overrides(job))


def run(job: Job) -> None:
    """Train to the end, going on with what there is; what has ended stays."""
    if not is_left_to_run(job.folder, _settings(job)):
        return
    make_models(job.seed)
    with printing_into(job.folder / "log"):
        found = train(_settings(job), RunFolder(job.folder))
    scores = found["scores"]["student"]
    print(
        f"{job.part}, {job.name}, seed {job.seed}: reverse KL {scores['reverse_kl']:.3f}, "
        f"right {scores['valid']:.3f}, {found['cpu_s']:.0f} s",
        flush=True,
    )


def ended(jobs: Iterable[Job]) -> dict[str, Runs]:
    """What there is of some jobs: name -> seed -> result."""
    return results(jobs, _settings)


def best_rates(tuning: dict[str, Runs]) -> dict[str, float]:
    """
    For each way the rate of the lowest reverse KL on the prompts for validation, once all were tried.

    What diverged is not the lowest; a way of which all runs did has none.
    """
    rates = {}
    for way in METHODS:
        tried = {
            rate: run["scores"]["student"]["reverse_kl"]
            for rate in RATES
            for run in tuning.get(f"{way}-{rate:g}", {}).values()
        }
        finite = {rate: kl for rate, kl in tried.items() if np.isfinite(kl)}
        if set(tried) == set(RATES) and finite:
            rates[way] = min(finite, key=finite.__getitem__)
    return rates


def updates_in_equal_time(runs: dict[str, Runs]) -> dict[str, int]:
    """How many updates of each method take the CPU time of MiniLLM's; empty until all have run.

    Written down at the first look, so that runs made later do not change what was run.
    """
    file = RUNS / "equal_time.json"
    if file.exists():
        return json.loads(file.read_text())
    if set(runs) != set(METHODS) or any(set(found) != set(SEEDS) for found in runs.values()):
        return {}
    cost = {name: float(np.median([r["cpu_s"] for r in found.values()])) for name, found in runs.items()}
    n = next(iter(runs["minillm"].values()))["updates"]
    updates = {name: max(1, round(n * cost["minillm"] / cost[name])) for name in METHODS}
    file.write_text(json.dumps(updates) + "\n")
    return updates
