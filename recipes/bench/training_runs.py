"""Runs of the methods in ``recipes.baselines`` that a benchmark keeps, a JSON file each."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..baselines.loop import Record
from ..run_folder import where_it_ran

#: what a method has in a world: its runs, by seed
Runs = list[dict[str, Any]]


class Kept(Protocol):
    """What has a file, which is of its settings or left out."""

    @property
    def file(self) -> Path:
        """Where its result is."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that it depends on: a run with other settings is not this one."""


class Job(Kept, Protocol):
    """One run that a benchmark asks for. Its ``str`` says which one."""

    @property
    def names(self) -> dict[str, Any]:
        """What its result is told from others by: the world, who learned, the seed."""

    def train(self, device: str) -> list[Record]:
        """Make it."""

    def facts(self) -> dict[str, Any]:
        """What else is to be kept with it."""


def command_line(doc: str | None, worlds: list[str], methods: list[str]) -> argparse.ArgumentParser:
    """What a plan's command takes: which of its worlds and methods, where, and whether to report."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=worlds, metavar="NAME", default=worlds)
    parser.add_argument("--methods", nargs="+", choices=methods, metavar="NAME", default=methods)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    parser.add_argument("--no-report", action="store_true", help="leave the page as it is")
    return parser


def quietly_on_one_thread() -> None:
    """As all runs of a plan are made."""
    torch.set_num_threads(1)
    logging.getLogger("torchrl").setLevel(logging.WARNING)


def run(job: Job, device: str = "cpu") -> bool:
    """Make one run, unless that was done or another process is at it; whether it was made."""
    job.file.parent.mkdir(parents=True, exist_ok=True)
    with alone(job.file.with_suffix(".lock")) as mine:
        if not mine or result(job) is not None:
            return False
        wall, cpu = time.perf_counter(), time.process_time()
        records = job.train(device)
        found = {
            **job.names,
            "records": [dataclasses.asdict(record) for record in records],
            **job.facts(),
            "settings": as_json(job.settings),
            "wall_s": time.perf_counter() - wall,  # with the evaluations
            "cpu_s": time.process_time() - cpu,
            "device": device,
            **where_it_ran(),
        }
        keep(job.file, found)
    print(f"{job}: {in_words(records[-1])}", flush=True)
    return True


def keep(file: Path, found: dict[str, Any]) -> None:
    """Write what a run came to, whole or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    os.replace(partial, file)


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


def result(job: Kept) -> dict[str, Any] | None:
    """What a run came to; None if it has not ended, or was made with other settings than today's."""
    if not job.file.exists():
        return None
    found = json.loads(job.file.read_text())
    if found["settings"] == as_json(job.settings):
        return found
    print(f"{job.file} was run with other settings, and is left out")
    return None


def late(run: dict[str, Any]) -> float:
    """The mean greedy return over the last third of the evaluations."""
    returns = [at["greedy"] for at in run["records"]]
    return float(np.mean(returns[-last_third(len(returns)) :]))


def last_third(evaluations: int) -> int:
    """How many of them that is."""
    return max(1, evaluations // 3)


def in_last_third(scores: np.ndarray) -> np.ndarray:
    """Mean of each seed over the last third of its checkpoints, those without a score left out: (seeds, 1) of
    (seeds, checkpoints)."""
    return np.nanmean(scores[:, -last_third(scores.shape[1]) :], axis=1, keepdims=True)


def shares_of(runs: Runs, low: float, high: float, what: str = "greedy") -> np.ndarray:
    """Returns as shares of the way from ``low`` to ``high``: (seeds, checkpoints).

    Args:
        what: ``"greedy"``, or ``"training"``, which is nan where no episode had ended.
    """
    if not runs:
        return np.empty((0, 0))
    returns = np.array([[at[what] for at in run["records"]] for run in runs], dtype=float)
    return (returns - low) / (high - low)


def first_at(runs: Runs, scores: np.ndarray, asked: float, what: str) -> np.ndarray:
    """Where each seed is first at ``asked``: its ``what`` ("steps", "cpu_s", "wall_s"), inf if never."""
    return np.array(
        [
            next((at[what] for at, score in zip(run["records"], row, strict=True) if score >= asked), np.inf)
            for run, row in zip(runs, scores, strict=True)
        ]
    )


def reached(first: np.ndarray, form: str = ",.0f") -> str:
    """The median over the seeds of `first_at`, and how many got there if not all."""
    got, middle = int(np.isfinite(first).sum()), np.sort(first)[len(first) // 2]
    said = format(middle, form) if np.isfinite(middle) else "never"
    return said if got == len(first) else f"{said} ({got} of {len(first)})"


def ms_a_vector_step(run: dict[str, Any]) -> float:
    """CPU time of a step of all environments, acting and the updates after it included, of a run whole."""
    last = run["records"][-1]
    return float(1000 * last["cpu_s"] * run["settings"]["task"]["num_envs"] / last["steps"])
