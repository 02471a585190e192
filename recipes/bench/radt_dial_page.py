"""What is said of the runs of :mod:`.radt_dial`: tables, a picture, and the raw numbers."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from . import radt_dial_plan as plan
from .intervals import interval, iqm
from .published import refuse_to_lose_rows, where_they_ran, write_results
from .radt_dial_picture import plot
from .radt_dial_plan import (
    ALL_ARMS,
    ASKED,
    COMPARED,
    DATA,
    DISTRACTED,
    DT,
    FACTORS,
    NORM_ARMS,
    NORMS,
    PLACEMENTS,
    RADT,
    Arm,
    Job,
    Rates,
)
from .radt_dial_runs import Runs, best_rates, ended, errors, runs_of

DOCS = Path("docs/benchmarks")
RATES = sorted((1.0, *FACTORS))  # as multiples of RADT's
PACKAGES = ("torch", "torchrl", "gymnasium", "numpy", "transformers")
LOST = 0.01  # error on a target that stays, as a share of T


def cell(runs: Runs, name: str, digits: int = 3) -> str:
    """Interquartile mean and interval."""
    found = errors(runs, name)
    if not len(found):
        return "not run yet"
    lost = int(np.isinf(found).sum())
    if lost:
        return f"{lost} of {len(found)} diverged"
    return interval(iqm, found, digits=digits)


def updates_until(runs: Runs, error: float) -> str:
    """The updates by which half of the seeds are below an error after the turn, as far as was looked."""
    first = [next((at["step"] for at in run["curve"] if at["flipped"] < error), np.inf) for run in runs]
    median = np.sort(first)[len(first) // 2] if first else np.inf
    return f"{median:g}" if np.isfinite(median) else "never"


def comparison_table(rates: Rates) -> str:
    """RADT and DT, every seed."""
    lines = [
        "| data | actor | parameters | learning rate | target stays: error / T | target turned over: error / "
        "(T / 2) | each seed | worst seed "
        f"| updates until {ASKED} | CPU s a run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for data in DATA:
        for arm, name in COMPARED.items():
            runs = runs_of(arm, data, rates)
            if not runs:
                lines.append(f"| {data} | {name} | not run yet |" + " |" * 7)
                continue
            turned = errors(runs, "flipped")
            cells = [
                data,
                name,
                f"{runs[0]['parameters']:,}",
                f"{runs[0]['lr']:g}",
                cell(runs, "plain", 4),
                cell(runs, "flipped"),
                ", ".join(f"{x:.3f}" for x in turned[:, 0]),
                f"**{turned.max():.3f}**",
                updates_until(runs, ASKED),
                f"{np.median([run['cpu_s'] for run in runs]):.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def arms_table(arms: dict[Arm, str], rates: Rates) -> str:
    """A row an arm, by the names of their rows."""
    lines = [
        f"| what | target stays: error / T | target turned over: error / (T / 2) | worst seed | seeds above "
        f"{ASKED} |",
        "|---|---|---|---|---|",
    ]
    for arm, name in arms.items():
        runs = runs_of(arm, DISTRACTED, rates)
        turned = errors(runs, "flipped")
        worst = f"{turned.max():.3f} | {int((turned > ASKED).sum())} of {len(runs)}" if runs else " | "
        lines.append(f"| {name} | {cell(runs, 'plain', 4)} | {cell(runs, 'flipped')} | {worst} |")
    return "\n".join(lines)


def norm_cells(rates: Rates) -> dict[tuple[str, str, float], Runs]:
    """(norm, placement, multiple of the learning rate) -> runs."""
    names = [(norm, placement) for placement in PLACEMENTS for norm in NORMS.values()]
    cells = {}
    for factor in RATES:
        # the first is RADT itself, which has run under that name
        arms = (RADT, *NORM_ARMS[1:]) if factor == 1 else NORM_ARMS
        for name, arm in zip(names, arms, strict=True):
            cells[*name, factor] = runs_of(dataclasses.replace(arm, factor=factor), DISTRACTED, rates)
    return cells


def norms_table(name: str, limit: float, cells: dict[tuple[str, str, float], Runs]) -> str:
    """An error by norm, placement and learning rate, with the seeds that diverged or exceed ``limit``."""
    lines = [
        f"| norm | placement | {' | '.join(f'rate x {factor:.3g}' for factor in RATES)} |",
        "|---|---|" + "---|" * len(RATES),
    ]
    for placement in PLACEMENTS:
        for norm in NORMS.values():
            row = [norm, placement]
            for factor in RATES:
                runs = cells[norm, placement, factor]
                wrong = int((errors(runs, name) > limit).sum())
                row.append(cell(runs, name) + (f"; {wrong} of {len(runs)}" if runs else ""))
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def norms(rates: Rates) -> str:
    """What hangs on the norms: both errors."""
    cells = norm_cells(rates)
    limit = 2 * min(
        (float(errors(runs, "flipped").mean()) for runs in cells.values() if runs), default=np.inf
    )
    return (
        f"{DISTRACTED}. After the turn, with the number of seeds that diverged or exceed twice the mean of "
        f"the best cell, {limit:.3f}:\n\n{norms_table('flipped', limit, cells)}\n\n"
        f"Target stays, with the number of seeds that diverged or miss it by more than {LOST} T, which is "
        f"about DT's error on these data:\n\n{norms_table('plain', LOST, cells)}"
    )


def tuning_table() -> str:
    """What the rates were chosen by, and the error after the turn, which had no part in it."""
    found = {(job.arm.title, job.data, job.lr): run for job, run in ended(plan.tuning())}
    lines = [
        f"| data | actor | {' | '.join(f'{lr:g}' for lr in plan.RATES)} |",
        "|---|---|" + "---|" * len(plan.RATES),
    ]
    for data in DATA:
        for title in plan.TUNED:
            row = []
            for lr in plan.RATES:
                run = found.get((title, data, lr))
                if run is None:
                    row.append("")
                elif run["plain"] is None:
                    row.append("diverged")
                else:
                    row.append(f"{run['plain']:.4f} ({run['flipped']:.3f})")
            if any(row):
                lines.append(f"| {data} | {title} | {' | '.join(row)} |")
    return "\n".join(lines)


def every_run(rates: Rates) -> list[tuple[str, Job, dict[str, Any]]]:
    """(part, job, result) of every run that has ended."""
    parts = {
        "tuning": plan.tuning(),
        "comparison": plan.comparison(rates),
        "ablation": plan.ablation(rates),
        "stability": plan.stability(rates),
        "long": plan.long(rates),
    }
    return [(part, job, found) for part, jobs in parts.items() for job, found in ended(jobs)]


def report() -> None:
    """Put together what there is.

    Raises:
        SystemExit: fewer runs are here than the page was made of, so that writing it would lose some.
    """
    rates = best_rates()
    every = every_run(rates)
    refuse_to_lose_rows(DOCS / "radt_dial.csv", len(every))
    long = {plan.longer(arm): f"{COMPARED[arm]}, 4 x the updates" for arm in (RADT, DT)}
    tables = [
        "### RADT beside DT\n\n" + comparison_table(rates),
        f"### RADT without its parts\n\n{DISTRACTED}.\n\n" + arms_table(ALL_ARMS, rates),
        "### Norms and learning rates\n\n" + norms(rates),
        f"### Four times the updates\n\n{DISTRACTED}.\n\n" + arms_table(long, rates),
        f"### The learning rates\n\nSeed {plan.TUNING_SEED}; target stays (turned over).\n\n"
        + tuning_table(),
        where_they_ran([found for *_, found in every], PACKAGES),
    ]
    write_results(DOCS / "radt_dial.md", "\n\n".join(tables))
    with open(DOCS / "radt_dial.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                "part",
                "data",
                "arm",
                "lr",
                "seed",
                "plain",
                "flipped",
                "loss",
                "parameters",
                "cpu_s",
                "on the way",
            ]
        )
        for part, job, run in every:
            found = ("" if run[name] is None else f"{run[name]:.6g}" for name in ("plain", "flipped", "loss"))
            way = " ".join(f"{at['step']}:{at['flipped']:.4g}" for at in run["curve"])
            of_job = [part, job.data, job.arm.title, f"{job.lr:g}", job.seed]
            writer.writerow([*of_job, *found, run["parameters"], f"{run['cpu_s']:.1f}", way])
    plot(DOCS / "radt_dial.png", rates)
    print("\n\n".join(tables))
