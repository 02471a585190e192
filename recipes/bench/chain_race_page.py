"""What is said of the runs of :mod:`.chain_race`: tables, and the file of raw numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from .chain_race_runs import AGENTS, EVERY, SHARE, Job, settings
from .intervals import ratio_of_medians
from .kept_runs import Runs, results
from .published import refuse_to_lose_rows, where_they_ran, write_results

DOCS = Path("docs/benchmarks")
PACKAGES = ("torch", "stable_baselines3", "torchrl", "numpy")
#: ratios of times that are told: of these runs to those
RATIOS = (
    ("SB3", "TorchRL"),
    ("SB3", "TorchRL, in a hurry"),
    ("SB3, in a hurry", "TorchRL, in a hurry"),
)
ASKED = 5.0
SEEDS = 100  # those that are looked for
CLOCKS = {"wall_s": "wall", "cpu_s": "CPU"}


def reached(run: dict[str, Any], looks: int, of: str) -> float:
    """``of`` (a clock, or ``"step"``) at the first of ``looks`` looks in a row that found a good policy;
    infinite if there were none.
    """
    good = [e["share"] >= SHARE for e in run["evaluations"]]
    for i in range(len(good) - looks + 1):
        if all(good[i : i + looks]):
            return run["evaluations"][i][of]
    return float("inf")


def _number(x: float, digits: int = 1) -> str:
    return "never" if np.isinf(x) else "unknown" if np.isnan(x) else f"{x:,.{digits}f}"


def times_table(runs: dict[str, Runs]) -> str:
    """A row an agent and clock: when each seed was there."""
    lines = [
        f"| agent | seeds | {SHARE} of the optimum at: steps, median | clock | s, median | s, every seed "
        "| s until it also stays for a look, median | every seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in AGENTS:
        found = [run for _, run in sorted(runs.get(name, {}).items())]
        if not found:
            lines.append(f"| {name} | not run yet |" + " |" * 6)
            continue
        steps = np.median([reached(run, 1, "step") for run in found])
        for clock, called in CLOCKS.items():
            cells = []
            for looks in (1, 2):
                times = [reached(run, looks, clock) for run in found]
                cells += [_number(float(np.median(times))), ", ".join(map(_number, times))]
            lines.append(
                f"| {name} | {len(found)} | {_number(float(steps), 0)} | {called} | "
                + " | ".join(cells)
                + " |"
            )
    return "\n".join(lines)


def ratios_table(runs: dict[str, Runs]) -> str:
    """A row a pair of agents and clock: how many times faster the second is."""
    lines = [
        "| time of | over that of | clock | ratio of medians [95% interval] | until it also stays | aim, "
        "wall time | |",
        "|---|---|---|---|---|---|---|",
    ]
    for slow, fast in RATIOS:
        if not (runs.get(slow) and runs.get(fast)):
            lines.append(f"| {slow} | {fast} | not run yet |" + " |" * 4)
            continue
        for clock, called in CLOCKS.items():
            cells, asked = [], ["", ""]
            for looks in (1, 2):
                times = [[reached(run, looks, clock) for run in runs[name].values()] for name in (slow, fast)]
                middle, low, high = ratio_of_medians(*times)
                cells.append(f"{_number(middle)} [{_number(low)}, {_number(high)}]")
                if looks == 1 and clock == "wall_s" and slow == "SB3":
                    asked = [f">= {ASKED:g}", "pass" if middle >= ASKED else "**falls short**"]
            lines.append(f"| {slow} | {fast} | {called} | " + " | ".join([*cells, *asked]) + " |")
    return "\n".join(lines)


def write_csv(file: Path, runs: dict[str, Runs]) -> None:
    """Every look of every run."""
    fields = ["step", "share", "wall_s", "cpu_s"]
    rows = [
        [name, seed, *(f"{e[field]:.6g}" for field in fields)]
        for name in AGENTS
        for seed, run in sorted(runs.get(name, {}).items())
        for e in run["evaluations"]
    ]
    refuse_to_lose_rows(file, len(rows))
    with open(file, "w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["agent", "seed", *fields])
        writer.writerows(rows)


def report() -> None:
    """Put together what there is."""
    jobs = [Job(name, seed) for name in AGENTS for seed in range(SEEDS)]
    runs = results((job for job in jobs if job.folder.exists()), settings)
    write_csv(DOCS / "chain_race.csv", runs)
    ran = where_they_ran(
        [run for by_seed in runs.values() for run in by_seed.values()], PACKAGES, "on the clock"
    )
    text = [times_table(runs), ratios_table(runs), f"A look every {EVERY:,} steps. {ran}"]
    write_results(DOCS / "chain_race.md", "\n\n".join(text))
    print("\n\n".join(text))
