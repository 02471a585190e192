"""Runs of a recipe that a benchmark keeps: whether they are of today's settings, and what they came to."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

#: seed -> what the run came to
Runs = dict[int, dict[str, Any]]


def has_settings(folder: Path, cfg: DictConfig) -> bool:
    """Whether what is in the folder was run with these settings."""
    written = folder / "config.yaml"
    today = OmegaConf.to_container(cfg, resolve=True)
    return written.exists() and OmegaConf.to_container(OmegaConf.load(written)) == today


def is_left_to_run(folder: Path, cfg: DictConfig) -> bool:
    """Whether a run has not ended; the remains of one with other settings are deleted, its result is not."""
    ended = (folder / "result.json").exists()
    if not has_settings(folder, cfg):
        if ended:
            print(f"{folder} was run with other settings: delete it to run it anew")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return not ended


@contextlib.contextmanager
def printing_into(file: Path) -> Iterator[None]:
    """Into a file what a run prints."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(file, "a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


def results(jobs: Iterable[Any], settings: Callable[[Any], DictConfig]) -> dict[str, Runs]:
    """Of the jobs that have ended, with today's settings: name -> seed -> result."""
    runs: dict[str, Runs] = {}
    for job in jobs:
        result = job.folder / "result.json"
        if result.exists() and has_settings(job.folder, settings(job)):
            runs.setdefault(job.name, {})[job.seed] = json.loads(result.read_text())
    return runs
