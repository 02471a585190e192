"""The runs of :mod:`.ademamix_rl` that have ended, and which settings they choose."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from .ademamix_rl_plan import ADAM_TRIALS, ADEMAMIX_TRIALS, UNTUNED, Setting, Task

RUNS = Path("runs/ademamix_rl")
#: All trials have the first seed; those with the greatest area there have the others too.
TUNING_SEEDS = (1000, 1001, 1002)
FINALISTS = 3
EPISODES, EVAL_SEED = 10, 12345

ADAM, ADEMAMIX = "Adam, tuned", "AdEMAMix, tuned"
EMPTIED = "AdEMAMix, tuned, emptied nine times"
ADAM_AS_IT_COMES, PAPERS, NO_WARMUPS = UNTUNED
#: the order of the runs: what matters most is there first
PASSES = (ADAM, ADEMAMIX), (ADAM_AS_IT_COMES, PAPERS), (EMPTIED,), (NO_WARMUPS,)
ROWS = (ADAM, ADEMAMIX, EMPTIED, ADAM_AS_IT_COMES, PAPERS, NO_WARMUPS)
#: like with like: what was tuned is compared with Adam tuned, what was not with Adam not tuned
AGAINST = {
    ADEMAMIX: ADAM,
    EMPTIED: ADAM,
    ADAM_AS_IT_COMES: ADAM,
    PAPERS: ADAM_AS_IT_COMES,
    NO_WARMUPS: ADAM_AS_IT_COMES,
}


def file_of(task: Task, setting: Setting, seed: int) -> Path:
    """Where a run's result is."""
    return RUNS / task.name.replace(", ", "-") / setting.name / f"seed{seed}.json"


def settings_of(task: Task, setting: Setting) -> dict[str, Any]:
    """All that a run depends on but its seed: a run with other settings is not this one."""
    whole = {
        "task": task.settings(),
        "setting": dataclasses.asdict(setting),
        "optimizer": setting.optimizer(task)[1],
        "episodes": EPISODES,
    }
    return json.loads(json.dumps(whole))  # lists for tuples, as they come back from a file


def result(task: Task, setting: Setting, seed: int) -> dict[str, Any] | None:
    """What a run came to; None if it has not ended, or was made with other settings than today's."""
    file = file_of(task, setting, seed)
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    if found["settings"] == settings_of(task, setting):
        return found
    print(f"{file} was run with other settings, and is left out")
    return None


def results(task: Task, setting: Setting) -> list[dict[str, Any]]:
    """The runs of a comparison that have ended, by seed."""
    seeds = sorted(int(f.stem[4:]) for f in file_of(task, setting, 0).parent.glob("seed*.json"))
    found = [result(task, setting, seed) for seed in seeds if seed < min(TUNING_SEEDS)]
    return [r for r in found if r is not None]


def final(found: dict[str, Any]) -> float:
    """The return of the last evaluation."""
    return found["evaluations"][-1]["return"]


def area(found: dict[str, Any]) -> float:
    """The mean return over the equally spaced evaluations: the area under the learning curve."""
    return float(np.mean([e["return"] for e in found["evaluations"]]))


def finalists(task: Task, trials: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """The trials that are worth further seeds; none while a first run is missing."""
    return _ranked(task, trials, TUNING_SEEDS[:1])[:FINALISTS]


def best(task: Task, trials: tuple[Setting, ...]) -> Setting | None:
    """The finalist with the greatest mean area over the tuning seeds; None while a run is missing."""
    return next(iter(_ranked(task, finalists(task, trials), TUNING_SEEDS)), None)


def _ranked(task: Task, trials: tuple[Setting, ...], seeds: tuple[int, ...]) -> tuple[Setting, ...]:
    found = [[result(task, setting, seed) for seed in seeds] for setting in trials]
    if any(r is None for runs in found for r in runs):
        return ()
    means = {s: np.mean([area(r) for r in runs if r]) for s, runs in zip(trials, found, strict=True)}
    return tuple(sorted(trials, key=lambda setting: -means[setting]))  # the earlier one if they are equal


def compared(task: Task) -> dict[str, Setting]:
    """The settings of the comparison by the names of their rows; those to be tuned once that was done."""
    adam, ademamix = best(task, ADAM_TRIALS), best(task, ADEMAMIX_TRIALS)
    rows = dict(UNTUNED)
    if adam is not None:
        rows[ADAM] = adam
    if ademamix is not None:
        rows[ADEMAMIX] = ademamix
        rows[EMPTIED] = dataclasses.replace(ademamix, reset=True)
    return {name: rows[name] for name in ROWS if name in rows}
