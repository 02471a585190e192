"""The runs of :mod:`.qdpo`: how one is made, and what those that have ended amount to."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from ..qdpo import train
from ..run_folder import RunFolder
from .qdpo_plan import METHODS, Job, all_overrides

#: seed -> what the run came to
Runs = dict[int, dict[str, Any]]


@lru_cache
def _compose(*overrides: str) -> DictConfig:
    with initialize_config_module("recipes.conf.qdpo", version_base="1.3"):
        return compose("qdpo", overrides=list(overrides))


def has_settings_of(job: Job) -> bool:
    """Whether what is in the job's folder was run with today's settings."""
    written = job.folder / "config.yaml"
    today = OmegaConf.to_container(_compose(*all_overrides(job)), resolve=True)
    return written.exists() and OmegaConf.to_container(OmegaConf.load(written)) == today


def run(job: Job) -> None:
    """Train to the end, going on with what there is; what has ended stays."""
    result = job.folder / "result.json"
    if not has_settings_of(job):
        if result.exists():
            print(f"{job.folder} was run with other settings: delete it to run it anew")
            return
        shutil.rmtree(job.folder, ignore_errors=True)
    if result.exists():
        return
    with _log(job.folder / "log"):
        found = train(_compose(*all_overrides(job)), RunFolder(job.folder))
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    scores = found["scores"]["trained"]
    print(
        f"{job.part}, {job.name}, seed {job.seed}: agreement {scores['agreement']:.3f}, "
        f"KL {scores['forward_kl']:.5f}, {found['cpu_s']:.0f} s",
        flush=True,
    )


@contextlib.contextmanager
def _log(file: Path) -> Iterator[None]:
    """Into a file what a run prints."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(file, "a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


def ended(jobs: Iterable[Job]) -> dict[str, Runs]:
    """What there is of some jobs: name -> seed -> result."""
    runs: dict[str, Runs] = {}
    for job in jobs:
        if (job.folder / "result.json").exists() and has_settings_of(job):
            runs.setdefault(job.name, {})[job.seed] = json.loads((job.folder / "result.json").read_text())
    return runs


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
