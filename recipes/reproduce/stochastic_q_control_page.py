"""What is said of the runs of :mod:`.stochastic_q_control`: tables, a picture, and the raw numbers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from ..bench.action_scaling_page import table
from ..bench.intervals import estimate, interval, iqm
from ..bench.published import filled, refuse_to_lose_rows, where_they_ran
from .stochastic_q_control_plan import COMMON, METHODS, SEEDS, WORLDS, cells
from .stochastic_q_control_runs import Runs, runs_of

NAME = "stochastic_q_deep"
TIERS = {"A": "a short run", "B": "a long run, with SB3's continuous agents"}
PACKAGES = ("torch", "stable_baselines3", "gymnasium", "mujoco", "numpy")
NOT_YET = "not run yet"
#: like with like: the sampled maximum and the exact one
PAIRS = (("stoch_dqn", "dqn"), ("stoch_ddqn", "ddqn"), ("stoch_dqn_one_step", "dqn_one_step"))
ENOUGH = len(SEEDS)  # of 3 the interquartile mean is the mean, and its interval far too narrow
#: what is compared of a run
MEASURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "greedy return at the end": lambda run: run["evaluations"][-1]["greedy"],
    "mean of the evaluations": lambda run: float(np.mean([at["greedy"] for at in run["evaluations"]])),
    "best of them": lambda run: max(at["greedy"] for at in run["evaluations"]),
}


def of_seeds(values: list[float]) -> str:
    """Interquartile mean over seeds, and its interval; of few seeds each."""
    if len(values) < ENOUGH:
        return ", ".join(f"{value:.1f}" for value in values)
    return interval(iqm, np.array(values)[:, None])


def row(method: str, found: Runs) -> list[str]:
    """What a method came to in a world."""
    title = METHODS[method].title
    if not found:
        return [title, NOT_YET, *[""] * 6]
    last = [run["evaluations"][-1] for run in found]
    played = [at["training"] for at in last if at["training"] is not None]
    some = "" if len(found) == len(SEEDS) else f"{len(found)} of {len(SEEDS)} seeds"
    said = [
        title,
        some or str(len(found)),
        *(of_seeds([measure(run) for run in found]) for measure in MEASURES.values()),
        of_seeds(played) if played else "no episode ended",
    ]
    if METHODS[method].algorithm is None:
        return [*said[:3], "", "", said[5], "", ""]
    cpu = float(np.median([at["cpu_s"] for at in last]))
    return [*said, f"{cpu:.0f}", f"{1e3 * cpu / last[0]['step']:.1f}"]


HEAD = [
    "method",
    "seeds",
    *MEASURES,
    "return while learning, at the end",
    "CPU s of training",
    "ms a step",
]


def tier_tables(tier: str, runs: Path) -> str:
    """A table a world; a line where nothing has run yet."""
    text = [f"### Tier {tier}: {TIERS[tier]}"]
    for world, about in WORLDS.items():
        found = {name: runs_of(tier, world, name, runs) for where, name in cells(tier) if where == world}
        budget = about.budgets[tier]
        every = "step" if about.train_freq == 1 else f"{about.train_freq} steps"
        played = "one episode" if budget.episodes == 1 else f"{budget.episodes} episodes"
        said = (
            f"**{world}**: {budget.steps:,} steps, an update of {about.batch} transitions every {every}; "
            f"{played} to evaluate every {budget.eval_every:,}"
        )
        if not any(found.values()):
            text.append(f"{said}: {NOT_YET}.")
            continue
        text += [f"{said}.", table(HEAD, [row(name, some) for name, some in found.items()])]
    return "\n\n".join([*text, differences_table(tier, runs)]).strip()


def differences_table(tier: str, runs: Path) -> str:
    """Sampled less exact, where `ENOUGH` seeds of both have ended; nothing where they have not."""
    lines = []
    for world in WORLDS:
        for sampled, exact in PAIRS:
            both = [runs_of(tier, world, name, runs) for name in (sampled, exact)]
            if min(map(len, both)) < ENOUGH:
                continue
            cells = [f"{METHODS[sampled].title} less {METHODS[exact].title}", world]
            for measure in MEASURES.values():
                scores = [np.array([measure(run) for run in found])[:, None] for found in both]
                cells.append(difference(*scores))
            cpu = [np.median([run["evaluations"][-1]["cpu_s"] for run in found]) for found in both]
            lines.append([*cells, f"{cpu[1] / cpu[0]:.1f}"])
    if not lines:
        return ""
    return table(["", "world", *MEASURES, "CPU time of training, exact / sampled"], lines)


def difference(sampled: np.ndarray, exact: np.ndarray) -> str:
    """Of the interquartile means of (seeds, 1) each, with its interval and what it says."""

    def less(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return iqm(a) - iqm(b)

    point, (low, high) = estimate(less, sampled, exact)
    said = "higher" if low[0] > 0 else "lower" if high[0] < 0 else "not told apart"
    return f"{point[0]:.1f} [{low[0]:.1f}, {high[0]:.1f}]: {said}"


def settings_table() -> str:
    """What each method is given beside what all are."""
    lines = [["all but the continuous ones", in_words(COMMON)]]
    for method in METHODS.values():
        if method.algorithm is not None:
            said = in_words(method.settings) or "SB3's own"
            replay = "; a replay of 4 log2 n, updates from 2 log2 n steps on" if method.authors else ""
            lines.append([f"{method.title}: `{method.algorithm}`", said + replay])
    return table(["method", "settings"], lines)


def in_words(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{name}={value!r}`" for name, value in settings.items())


def every_run(runs: Path) -> list[tuple[str, str, str, dict[str, Any]]]:
    """All that has ended, with today's settings: (tier, world, method, run)."""
    return [
        (tier, world, method, run)
        for tier in TIERS
        for world, method in cells(tier)
        for run in runs_of(tier, world, method, runs)
    ]


def write_csv(path: Path, runs: Path) -> None:
    """Every evaluation of every run."""
    rows = [
        [tier, world, method, run["seed"], at["step"]]
        + ["" if at[key] is None else f"{at[key]:.6g}" for key in ("greedy", "training", "cpu_s", "wall_s")]
        for tier, world, method, run in every_run(runs)
        for at in run["evaluations"]
    ]
    refuse_to_lose_rows(path, len(rows))
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["tier", "world", "method", "seed", "step", "greedy", "training", "cpu_s", "wall_s"])
        writer.writerows(rows)


def draw(path: Path, runs: Path, tier: str = "A") -> None:
    """A column a world: greedy return against steps, and against the CPU time of training."""
    figure, grid = plt.subplots(2, len(WORLDS), figsize=(5 * len(WORLDS), 7.5), layout="constrained")
    for column, world in zip(grid.T, WORLDS, strict=True):
        for color, (name, method) in enumerate(METHODS.items()):
            found = runs_of(tier, world, name, runs)
            if method.algorithm is None or not found:
                continue
            scores = np.array([[at["greedy"] for at in run["evaluations"]] for run in found])
            middle = [iqm(scores[:, [i]])[0] for i in range(scores.shape[1])]
            for axis, what in zip(column, ("step", "cpu_s"), strict=True):
                x = np.array([[at[what] for at in run["evaluations"]] for run in found])
                axis.plot(x.T, scores.T, color=f"C{color}", alpha=0.2, linewidth=1)
                axis.plot(np.median(x, axis=0), middle, color=f"C{color}", linewidth=2, label=method.title)
        column[0].set(title=world, xlabel="steps")
        column[1].set(xlabel="CPU s of training")
        for axis in column:
            axis.set_ylabel("greedy return")
            axis.grid(alpha=0.3)
    handles = {
        label: line
        for axis in grid.flat
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def report(runs: Path, folder: Path) -> None:
    """Put what there is on the page.

    Raises:
        SystemExit: fewer runs are here than the page was made of, so that writing it would lose some.
    """
    write_csv(folder / f"{NAME}.csv", runs)
    text = [
        where_they_ran([run for *_, run in every_run(runs)], PACKAGES, "with the evaluations"),
        *(tier_tables(tier, runs) for tier in TIERS),
        "### Settings",
        settings_table(),
    ]
    page = folder / f"{NAME}.md"
    page.write_text(filled(page.read_text(), {"control": "\n\n".join(text)}))
    draw(folder / f"{NAME}.png", runs)
