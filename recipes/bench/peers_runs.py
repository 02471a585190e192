"""The runs of :mod:`.peers`: how one is made, and what those that have ended amount to."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..baselines.loop import Record
from ..run_folder import where_it_ran
from .peers_plan import METHODS, SEEDS, TRIAL_SEED, WORLDS, Job, Rates, cells, rates_of

#: what a method has in a world: its runs, by seed
Runs = list[dict[str, Any]]


def run(job: Job, device: str = "cpu") -> bool:
    """Make one run, unless that was done or another process is at it; whether it was made."""
    job.file.parent.mkdir(parents=True, exist_ok=True)
    with alone(job.file.with_suffix(".lock")) as mine:
        if not mine or result(job) is not None:
            return False
        wall, cpu = time.perf_counter(), time.process_time()
        method, task = METHODS[job.method], WORLDS[job.world]
        records = method.train(task, job.seed, device, **job.arguments)
        found = {
            "world": job.world,
            "method": job.method,
            "seed": job.seed,
            "lr": job.lr,
            "records": [dataclasses.asdict(record) for record in records],
            **(about_random(job) if job.method == "random" else {}),
            "settings": as_json(job.settings),
            "wall_s": time.perf_counter() - wall,  # with the evaluations
            "cpu_s": time.process_time() - cpu,
            "device": device,
            **where_it_ran(),
        }
        partial = job.file.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        os.replace(partial, job.file)
    rate = "" if job.lr is None else f" lr {job.lr:g};"
    print(f"{job.world}; {job.method};{rate} seed {job.seed}: {in_words(records[-1])}", flush=True)
    return True


def about_random(job: Job) -> dict[str, Any]:
    """The expected return of uniform ids: exact where the world knows it, else of 10,000 episodes."""
    task = WORLDS[job.world]
    return {"random": float(task.make(1, 0).dynamics.random_value())}


def in_words(last: Record) -> str:
    """What a run came to."""
    return f"return {last.greedy:.3f} after {last.steps:,} steps, {last.cpu_s:.0f} s"


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Whether no other process is in here with the same file. The system lets go of it if this one dies."""
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def as_json(x: Any) -> Any:
    """As it will be read again."""
    return json.loads(json.dumps(x))


def result(job: Job) -> dict[str, Any] | None:
    """What a run came to; None if it has not ended, or was made with other settings than today's."""
    if not job.file.exists():
        return None
    found = json.loads(job.file.read_text())
    if found["settings"] == as_json(job.settings):
        return found
    print(f"{job.file} was run with other settings, and is left out")
    return None


def late(run: dict[str, Any]) -> float:
    """What a rate is chosen by: the mean greedy return over the last third of the evaluations."""
    returns = [at["greedy"] for at in run["records"]]
    return float(np.mean(returns[-max(1, len(returns) // 3) :]))


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
    if scale is None or not runs:
        return np.empty((0, 0))
    low, high = scale
    return np.array([[(at["greedy"] - low) / (high - low) for at in run["records"]] for run in runs])


def first_at(runs: Runs, scores: np.ndarray, asked: float, what: str) -> np.ndarray:
    """Where each seed is first at ``asked``: its ``what`` ("steps", "cpu_s", "wall_s"), inf if never."""
    return np.array(
        [
            next((at[what] for at, score in zip(run["records"], row, strict=True) if score >= asked), np.inf)
            for run, row in zip(runs, scores, strict=True)
        ]
    )
