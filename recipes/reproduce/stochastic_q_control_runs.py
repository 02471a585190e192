"""The runs of :mod:`.stochastic_q_control` that have ended, and what they amount to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .stochastic_q_control_plan import SEEDS, Job

#: what a method has in a world: its runs, by seed
Runs = list[dict[str, Any]]


def result(job: Job, runs: Path) -> dict[str, Any] | None:
    """What a run came to; None if it has not ended, or was made with other settings than today's."""
    file = job.file(runs)
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    if found["settings"] == job.settings:
        return found
    print(f"{file} was run with other settings, and is left out")
    return None


def runs_of(tier: str, world: str, method: str, runs: Path) -> Runs:
    """What the seeds came to that have ended."""
    found = (result(Job(tier, world, method, seed), runs) for seed in SEEDS)
    return [run for run in found if run is not None]
