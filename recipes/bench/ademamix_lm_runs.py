"""The runs of :mod:`.ademamix_lm` that have ended: which settings they choose, and what they amount to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from .. import ademamix_lm  # noqa: F401 (registers the settings' types)
from .ademamix_lm_plan import LENGTHS, Job, Scale, Setting, ablations, beyond_jobs, compared, trials, tune

RUNS = Path("runs/ademamix_lm_bench")
REPS = 10_000  # of the bootstrap
NAMES = {"adamw": "AdamW", "ademamix": "AdEMAMix"}

#: the runs that have ended: name -> seed -> what it came to
Runs = dict[str, dict[int, dict[str, Any]]]


def folder_of(job: Job) -> Path:
    """Where a run is."""
    return RUNS / job.scale.name / job.part / job.name / f"seed{job.seed}"


@lru_cache
def settings_of(job: Job) -> DictConfig:
    """The settings that the recipe runs with."""
    with initialize_config_module("recipes.conf", version_base="1.3"):
        return compose("ademamix_lm", overrides=[*job.overrides, f"seed={job.seed}"])


@lru_cache
def _as_written(job: Job) -> Any:
    return OmegaConf.to_container(settings_of(job), resolve=True)


def has_settings_of(job: Job) -> bool:
    """Whether what is in the job's folder was run with today's settings."""
    written = folder_of(job) / "config.yaml"
    return written.exists() and OmegaConf.to_container(OmegaConf.load(written)) == _as_written(job)


def result(job: Job) -> dict[str, Any] | None:
    """What a run came to; None if it has not ended, or was made with other settings than today's."""
    folder = folder_of(job)
    if not (folder / "result.json").exists():
        return None
    if has_settings_of(job):
        return json.loads((folder / "result.json").read_text())
    print(f"{folder} was run with other settings, and is left out: delete it to run it anew")
    return None


def loss_of(job: Job) -> float | None:
    """The loss that a run came to, infinite where it diverged; None if it has not ended."""
    found = result(job)
    if found is None:
        return None
    return math.inf if found["loss"] is None else found["loss"]


def tuned(scale: Scale) -> dict[str, Setting] | None:
    """The best settings of either optimizer; None if the tuning is not done."""
    best = {optimizer: tune(scale, optimizer, loss_of)[1] for optimizer in ("adamw", "ademamix")}
    if None in best.values():
        return None
    return best  # type: ignore[return-value]


def jobs(scale: Scale) -> list[Job]:
    """Everything at a scale, as far as it can be known by now."""
    found = []
    for optimizer in NAMES:
        for setting, _ in tune(scale, optimizer, loss_of)[0]:
            found += trials(scale, optimizer, setting)
    best = tuned(scale)
    if best is None:
        return found
    return [*found, *compared(scale, best), *ablations(scale, best), *beyond_jobs(scale, best)]


def ended(jobs: Iterable[Job]) -> Runs:
    """What there is of some jobs."""
    runs: Runs = {}
    for job in jobs:
        found = result(job)
        if found is not None:
            runs.setdefault(job.name, {})[job.seed] = found
    return runs


def excess(found: dict[str, Any]) -> float:
    """How far a run's last loss is above the source's own; infinite if it diverged."""
    return math.inf if found["excess"] is None else found["excess"]


def length_to_reach(loss: float, lengths: np.ndarray, losses: np.ndarray) -> float:
    """The length at which whole runs come to a loss, between neighbours linear in its logarithm.

    Args:
        loss: to reach.
        lengths: (L,) ascending.
        losses: (L,), of whole runs of these lengths.

    Returns:
        0 if the shortest is better, infinity if none is as good.
    """
    good = np.flatnonzero(losses <= loss)
    if not len(good):
        return math.inf
    i = int(good[0])
    if i == 0:
        return 0.0
    share = (losses[i - 1] - loss) / (losses[i - 1] - losses[i])
    return float(np.exp((1 - share) * np.log(lengths[i - 1]) + share * np.log(lengths[i])))


def tokens_ratio(adamw: np.ndarray, ademamix: np.ndarray) -> tuple[float, float, float]:
    """AdamW's tokens to the loss of AdEMAMix, over AdEMAMix's: the estimate and its 95% interval.

    Seeds are drawn with replacement, for all runs of a seed together: they have the same first weights and
    the same first batches.

    Args:
        adamw: (seeds, lengths) last losses.
        ademamix: (seeds,) last losses.
    """
    lengths, seeds = np.array(LENGTHS), len(ademamix)

    def ratio(drawn: np.ndarray) -> float:
        return length_to_reach(ademamix[drawn].mean(), lengths, adamw[drawn].mean(0))

    draws = np.random.default_rng(0).integers(seeds, size=(REPS, seeds))
    # Some may be 0 or infinite, between which one cannot interpolate.
    low, high = np.percentile([ratio(drawn) for drawn in draws], (2.5, 97.5), method="inverted_cdf")
    return ratio(np.arange(seeds)), float(low), float(high)


def step_ms(found: dict[str, Any]) -> float:
    """Milliseconds of a training step: of the processor where that did the work, else by the clock."""
    seconds = found["train_cpu_s"] if found["device"] == "cpu" else found["wall_s"]
    return 1000 * seconds / found["steps"]


def forgetting(runs: Runs, optimizer: str) -> np.ndarray | None:
    """How much lower the loss on the probe is for having seen it, (seeds, looks); None if nothing was run."""
    seen, never = runs.get(f"{optimizer}-injected", {}), runs.get(f"{optimizer}-1T", {})
    seeds = sorted(seen.keys() & never.keys())
    if not seeds:
        return None
    losses = [[np.array([loss for _, loss in r[s]["probe"]]) for s in seeds] for r in (never, seen)]
    return np.array(losses[0]) - np.array(losses[1])
