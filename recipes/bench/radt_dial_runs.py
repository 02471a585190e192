"""The runs of :mod:`.radt_dial`: how one is made, and what those that have ended amount to."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs.return_dial import flip
from extensions.torchrl import evaluate_targets

from ..conf.radt_schema import register
from ..data.return_dial import behaviour
from ..gym_batch import GymBatch
from ..radt import DIAL
from ..radt_run import Run
from ..run_folder import RunFolder, where_it_ran
from .radt_dial_plan import DATA, EPISODES, HORIZON, RATES, Arm, Job, Rates, arms_on, tuning

#: 1, 2 .. T - 1, and episodes for each
TARGETS, EACH = torch.arange(1, HORIZON, dtype=torch.float64), 2
EVAL_SEED = 2_000_000

ERRORS = ("plain", "flipped")
#: what an arm has: its runs, by seed
Runs = list[dict[str, Any]]


def play(
    policy: Callable[[TensorDictBase], TensorDictBase],
    distractors: int,
    observation_norm: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Any]:
    """How closely a policy follows targets that stay, and one that is turned over in the middle.

    Args:
        policy, observation_norm: as in :func:`extensions.torchrl.evaluate_targets`.
        distractors: of the environment.

    Returns:
        ``plain``: the mean of |target - return| / T. ``flipped``: that of |new target - what the second half
        brought| / (T / 2), where the new target is the complement, at t = T / 2, of what was left to collect.
        ``asked`` and ``brought``: in those second halves, of every episode.
    """
    env = GymBatch(DIAL, len(TARGETS) * EACH, horizon=HORIZON, distractors=distractors)
    half, asked = HORIZON // 2, torch.empty(0)

    def turn(to_go: Tensor, step: int) -> Tensor:
        nonlocal asked
        asked = flip(to_go, HORIZON - step).double().flatten()
        return flip(to_go, HORIZON - step)

    def error(retarget: Any) -> Tensor:
        """Return - target of each episode, (n,)."""
        env.set_seed(EVAL_SEED)
        alignment = evaluate_targets(
            env,
            policy,
            TARGETS,
            EACH,
            max_steps=HORIZON,
            observation_norm=observation_norm,
            retarget=retarget,
        )
        return (alignment.returns - alignment.goals).flatten()

    plain = error(None)
    flipped = error((half, turn))
    env.close()
    return {
        "plain": float(plain.abs().mean()) / HORIZON,
        "flipped": float(flipped.abs().mean()) / half,
        "asked": [round(x, 4) for x in asked.tolist()],
        "brought": [round(x, 4) for x in (asked + flipped).tolist()],
    }


class WatchedRun(Run):
    """A run that plays the dial whenever it looks how far it is; nothing is selected by that.

    Attributes:
        curve: (step, what :func:`play` found), the first at step 0.
    """

    def __init__(self, cfg: DictConfig, data: TensorDict, folder: RunFolder) -> None:
        self.curve: list[tuple[int, dict[str, Any]]] = []
        super().__init__(cfg, data, folder)

    def _look_and_save(self, training: float | None, wall: float, cpu: float) -> None:
        super()._look_and_save(training, wall, cpu)
        distractors, norm = self.cfg.env.kwargs.distractors, (self.windows.mean, self.windows.std)
        self.curve.append((self.step, play(self.policy, distractors, norm)))


def train(job: Job) -> dict[str, Any]:
    """One run, as ``python -m recipes.radt`` makes it, and what it came to: the errors of :func:`play`, None
    if it diverged."""
    data = DATA[job.data]
    episodes = behaviour(EPISODES, data.noise, HORIZON, data.distractors, job.seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = WatchedRun(_compose(*job.overrides), episodes, RunFolder(Path(folder)))
        try:
            run.to_the_end()
            found = run.curve[-1][1]
        except ValueError as diverged:  # the loss, or the actions, are no finite numbers
            found = {"plain": None, "flipped": None, "diverged": str(diverged)}
        run.events.close()
    return {
        **found,
        "curve": [{"step": step, **{name: played[name] for name in ERRORS}} for step, played in run.curve],
        "loss": run.progress["evaluations"][-1]["loss"],
        "parameters": sum(p.numel() for p in run.actor.parameters()),
    }


@lru_cache
def _compose(*overrides: str) -> DictConfig:
    register()
    with initialize_config_module("recipes.conf", version_base="1.3"):
        return compose("radt", overrides=list(overrides))


def settings_of(job: Job) -> dict[str, Any]:
    """All that a run depends on: a run with other settings is not this one."""
    about = {"data": dataclasses.asdict(DATA[job.data]), "episodes": EPISODES, "targets": TARGETS.tolist()}
    return {**about, "each": EACH, "overrides": list(job.overrides)}


def run(job: Job) -> None:
    """Train and play once, unless that was done."""
    if result(job) is not None:
        return
    wall, cpu = time.perf_counter(), time.process_time()
    found = {
        **train(job),
        "arm": job.arm.title,
        "seed": job.seed,
        "lr": job.lr,
        "settings": settings_of(job),
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        **where_it_ran(),
    }
    job.file.parent.mkdir(parents=True, exist_ok=True)
    partial = job.file.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    os.replace(partial, job.file)
    errors = ", ".join("diverged" if found[e] is None else f"{e} {found[e]:.4f}" for e in ERRORS)
    print(
        f"{job.data}; {job.arm.title}; lr {job.lr:g}; seed {job.seed}: {errors}; {found['cpu_s']:.0f} s",
        flush=True,
    )


def result(job: Job) -> dict[str, Any] | None:
    """What a run came to; None if it has not ended, or was made with other settings than today's."""
    if not job.file.exists():
        return None
    found = json.loads(job.file.read_text())
    if found["settings"] == settings_of(job):
        return found
    print(f"{job.file} was run with other settings, and is left out")
    return None


def ended(jobs: Iterable[Job]) -> list[tuple[Job, dict[str, Any]]]:
    """The jobs that have ended, with what they came to."""
    return [(job, found) for job in jobs if (found := result(job)) is not None]


def best_rates() -> Rates:
    """For each that was tuned, and each data, the rate with the lowest error on targets that stay; of those
    of which all rates were tried."""
    tried: dict[tuple[str, str], dict[float, float]] = {}
    for job, found in ended(tuning()):
        error = np.inf if found["plain"] is None else found["plain"]
        tried.setdefault((job.arm.title, job.data), {})[job.lr] = error
    return {
        key: min(errors, key=errors.__getitem__) for key, errors in tried.items() if set(errors) == set(RATES)
    }


def runs_of(arm: Arm, data: str, rates: Rates) -> Runs:
    """The runs of an arm, at its rate, that have ended."""
    return [found for _, found in ended(arms_on(data, (arm,), rates))]


def errors(runs: Runs, name: str) -> np.ndarray:
    """(seeds, 1); infinite where a run diverged."""
    return np.array([np.inf if run[name] is None else run[name] for run in runs]).reshape(-1, 1)
