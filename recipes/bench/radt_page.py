"""What is said of the runs of :mod:`.radt`: tables, a picture, and the raw numbers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .intervals import interval, iqm
from .published import refuse_to_lose_rows, where_they_ran, write_results
from .radt_plan import ROWS, TRIALS, TUNING_SEED, WIDER, Row

DOCS = Path("docs/benchmarks")
COMMAND = "python -m recipes.bench.radt"
PACKAGES = ("torch", "torchrl", "gymnasium", "mujoco", "numpy")
CHECKPOINTS = ("last", "selected")
NAMES = {"radt": "RADT", "dt": "DT (TorchRL)"}
SEEDS = range(TUNING_SEED)

#: what a row has: its runs, by seed
Runs = list[dict[str, Any]]


def runs_of(row: Row) -> Runs:
    """The runs of a row that have ended."""
    return [found for seed in SEEDS if (found := row.result(seed)) is not None]


def figure(name: str, checkpoint: str, where: str = "in_range") -> Callable[[dict[str, Any]], float]:
    """A figure of a run's test, in units of the data's range."""
    return lambda run: run[checkpoint]["normalised"][where][name]


def scores(runs: Runs, measure: Callable[[dict[str, Any]], float]) -> np.ndarray:
    """(seeds, 1); NaN where a figure is undefined, as a correlation is if all returns are equal."""
    return np.array([[measure(run)] for run in runs], float)


def label(row: Row) -> str:
    """What a table calls a row under its environment."""
    more = ["as many parameters as RADT"] if row.more == WIDER else list(row.more)
    return ", ".join([NAMES[row.actor], *more, *(["the paper's size"] if row.size == "paper" else [])])


def table(env: str, found: dict[Row, Runs]) -> str:
    """A row an actor and checkpoint, under a heading."""
    rows = [row for row in found if row.env == env]
    low, high = next((run["range"] for row in rows for run in found[row]), (None, None))
    heading = f"### {env.replace('_', ' ')}"
    if low is not None:
        heading += f"\n\nReturns of the data: 5th percentile {low:.0f}, 95th {high:.0f}."
    lines = [
        heading + "\n",
        "| actor | parameters | checkpoint | seeds | error of the mean | worst seed | error of an episode "
        "| slope | Spearman | error beyond the data | CPU min a run |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        runs, name = found[row], label(row)
        if not runs:
            lines.append(f"| {name} | not run yet: `{COMMAND} --only '{row.name}'` |" + " |" * 9)
            continue
        for checkpoint in CHECKPOINTS:
            error = scores(runs, figure("error_of_mean", checkpoint))
            cells = [
                name,
                f"{runs[0]['parameters']:,}",
                checkpoint,
                str(len(runs)),
                interval(iqm, error, digits=3),
                f"{error.max():.3f}",
                *(
                    interval(iqm, scores(runs, figure(measure, checkpoint)), digits=3)
                    for measure in ("mean_error", "slope", "spearman")
                ),
                interval(iqm, scores(runs, figure("error_of_mean", checkpoint, "out_of_range")), digits=3),
                f"{np.median([run['cpu_s'] for run in runs]) / 60:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison(found: dict[Row, Runs]) -> str:
    """RADT's error as a share of DT's: means over seeds, which is what the claim is about."""
    lines = [
        "| environment | checkpoint | RADT, mean error | DT, mean error | RADT / DT |",
        "|---|---|---|---|---|",
    ]
    for env in dict.fromkeys(row.env for row in ROWS):
        both = [found.get(Row(env, a, lr), []) for a, lr in lr_of(env)]
        if not all(both):
            continue
        for checkpoint in CHECKPOINTS:
            radt, dt = (float(scores(runs, figure("error_of_mean", checkpoint)).mean()) for runs in both)
            lines.append(f"| {env} | {checkpoint} | {radt:.3f} | {dt:.3f} | {radt / dt:.2f} |")
    return "\n".join(lines)


def lr_of(env: str) -> list[tuple[str, str]]:
    """The actors of the comparison, RADT first, with their learning rates."""
    return [(row.actor, row.lr) for row in ROWS if row.env == env and row.size == "cpu" and not row.more]


def tuning_table() -> str:
    """What the learning rates were chosen by."""
    lines = ["| actor | learning rate | error of the mean, last checkpoint |", "|---|---|---|"]
    for row in TRIALS:
        run = row.result(TUNING_SEED)
        shown = "not run yet" if run is None else f"{figure('error_of_mean', 'last')(run):.3f}"
        lines.append(f"| {NAMES[row.actor]} | {row.lr} | {shown} |")
    return "\n".join(lines)


def plot(found: dict[Row, Runs]) -> None:
    """A panel an environment: mean returns against targets, a line a seed, last checkpoint."""
    envs = [
        env for env in dict.fromkeys(row.env for row in ROWS) if any(found[r] for r in found if r.env == env)
    ]
    if not envs:
        return
    canvas, panels = plt.subplots(
        1, len(envs), figsize=(5 * len(envs), 4.4), layout="constrained", squeeze=False
    )
    for ax, env in zip(panels.flat, envs, strict=True):
        for color, (actor, lr) in zip(("C0", "C1"), lr_of(env), strict=True):
            for i, run in enumerate(found[Row(env, actor, lr)]):
                test = run["last"]
                means = [float(np.mean(row)) for row in test["returns"]]
                label = NAMES[actor] if i == 0 else None
                ax.plot(test["targets"], means, color=color, marker="o", markersize=3, alpha=0.7, label=label)
                if i == 0 and actor == "radt":
                    ax.plot(test["targets"], test["targets"], color="grey", linestyle="--", label="as asked")
                    ax.axvspan(*run["range"], color="grey", alpha=0.12)
        ax.set_title(env.replace("_", " "))
        ax.set_xlabel("return asked for")
        ax.grid(alpha=0.3)
    panels.flat[0].set_ylabel("mean return, a line a seed")
    panels.flat[0].legend(fontsize="small")
    canvas.savefig(DOCS / "radt.png", dpi=110)
    plt.close(canvas)


def report() -> None:
    """Put together what there is.

    Raises:
        SystemExit: fewer runs are here than the page was made of, so that writing it would lose some.
    """
    found = {row: runs_of(row) for row in ROWS}
    every = [(row, run) for row in found for run in found[row]]
    lines = [
        [row.name, run["seed"], checkpoint, i, target, " ".join(f"{x:g}" for x in returns)]
        for row, run in every
        for checkpoint in CHECKPOINTS
        for i, (target, returns) in enumerate(
            zip(run[checkpoint]["targets"], run[checkpoint]["returns"], strict=True)
        )
    ]
    refuse_to_lose_rows(DOCS / "radt.csv", len(lines))
    tables = [
        "### RADT beside DT\n\n" + comparison(found),
        *(table(env, found) for env in dict.fromkeys(row.env for row in ROWS)),
        f"### The learning rates\n\nhopper, seed {TUNING_SEED}.\n\n" + tuning_table(),
        where_they_ran([run for _, run in every], PACKAGES, "before the tests"),
    ]
    write_results(DOCS / "radt.md", "\n\n".join(tables))
    with open(DOCS / "radt.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "seed", "checkpoint", "number", "target", "returns"])
        writer.writerows(lines)
    plot(found)
    print("\n\n".join(tables))
