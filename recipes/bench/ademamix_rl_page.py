"""What is said of the runs of :mod:`.ademamix_rl`: tables, a picture, and the files of raw numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import trim_mean

from .ademamix_rl_plan import ADAM_TRIALS, ADEMAMIX_TRIALS, TASKS, Setting, Task
from .ademamix_rl_runs import (
    ADAM,
    ADEMAMIX,
    AGAINST,
    ROWS,
    TUNING_SEEDS,
    area,
    best,
    compared,
    final,
    finalists,
    result,
    results,
    settings_of,
)
from .intervals import estimate, interval, iqm
from .published import refuse_to_lose_rows, where_they_ran, write_results

DOCS = Path("docs/benchmarks")
COMMAND = "python -m recipes.bench.ademamix_rl"
PACKAGES = ("torch", "stable_baselines3", "gymnasium", "numpy")
MEASURES: tuple[Callable[[dict[str, Any]], float], ...] = (final, area)

#: what a row of a task has: the runs, by seed
Runs = dict[str, list[dict[str, Any]]]


def better(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The probability that a run of ``x`` beats one of ``y``, each (seeds, tasks), as rliable defines it."""
    wins = x[:, None] > y[None]  # (seeds of x, seeds of y, tasks)
    ties = x[:, None] == y[None]
    return np.array([(wins + 0.5 * ties).mean()])


def rows_of(task: Task) -> Runs:
    """The rows of a task's comparison of which there are runs."""
    found = {name: results(task, setting) for name, setting in compared(task).items()}
    return {name: runs for name, runs in found.items() if runs}


def column(runs: list[dict[str, Any]], measure: Callable[[dict[str, Any]], float]) -> np.ndarray:
    """A measure of each run, (seeds, 1)."""
    return np.array([[measure(r)] for r in runs])


def in_words(setting: Setting, task: Task) -> str:
    """The hyper-parameters of a setting."""
    lr = f"lr {task.lr * setting.factor:.3g}"
    if setting.beta3 is None:
        return f"{lr}, beta1 {setting.beta1:g}"
    return f"{lr}, alpha {setting.alpha:g}, beta3 {setting.beta3:g}"


def task_table(task: Task, rows: Runs) -> str:
    """A row an optimizer, under a heading."""
    heading = f"### {task.name}\n\n{task.steps:,} steps, {task.updates:,} updates."
    not_yet = f"not run yet: `{COMMAND} --only '{task.name}'`"
    if not rows:
        return f"{heading} N{not_yet[1:]}"
    lines = [
        f"{heading}\n",
        "| optimizer | settings | seeds | return at the end | worst seed | P(better than Adam) "
        "| mean return on the way | P(better than Adam) | CPU s a run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    settings = compared(task)
    for name in ROWS:
        if name not in rows:
            lines.append(f"| {name} | {not_yet} |" + " |" * 7)
            continue
        runs = rows[name]
        cells = [name, in_words(settings[name], task), str(len(runs))]
        for measure in MEASURES:
            scores = column(runs, measure)
            cells.append(interval(iqm, scores))
            if measure is final:
                cells.append(f"{scores.min():.1f}")
            adam = rows.get(AGAINST.get(name, ""))
            cells.append(interval(better, scores, column(adam, measure), digits=2) if adam else "")
        cells.append(f"{np.median([r['cpu_s'] for r in runs]):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(found: dict[Task, Runs]) -> str:
    """All tasks together, on as many seeds as each has; returns as shares of what a task allows."""
    lines = [
        "| optimizer | tasks | seeds | at the end: IQM of the share | P(better than Adam) "
        "| on the way: IQM of the share | P(better than Adam) |",
        "|---|---|---|---|---|---|---|",
    ]
    tasks = [task for task in found if task.returns is not None]
    for name in ROWS:
        adam = AGAINST.get(name, name)
        having = [t for t in tasks if name in found[t] and adam in found[t]]
        seeds = min((len(found[t][row]) for t in having for row in (name, adam)), default=0)
        if not seeds:
            lines.append(f"| {name} | not run yet |" + " |" * 5)
            continue
        cells = [name, str(len(having)), str(seeds)]
        for measure in MEASURES:
            mine, adams = (shares(found, having, row, measure, seeds) for row in (name, adam))
            cells.append(interval(iqm, mine, digits=3))
            cells.append("" if name == adam else interval(better, mine, adams, digits=2))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shares(
    found: dict[Task, Runs],
    tasks: list[Task],
    row: str,
    measure: Callable[[dict[str, Any]], float],
    seeds: int,
) -> np.ndarray:
    """A measure as a share of what each task allows, (seeds, tasks)."""
    return np.array([[t.share(measure(r)) for r in found[t][row][:seeds]] for t in tasks]).T


def tuning_table() -> str:
    """What the tuning saw of those that it tried further, the best first."""
    of = f"mean return on the way, seed {TUNING_SEEDS[0]} / all {len(TUNING_SEEDS)} seeds"
    lines = [
        f"| task | optimizer | tried | kept ({of}) |",
        "|---|---|---|---|",
    ]
    for task in TASKS:
        for name, trials in ((ADAM, ADAM_TRIALS), (ADEMAMIX, ADEMAMIX_TRIALS)):
            chosen = best(task, trials)
            if chosen is None:
                continue
            kept = []
            for setting in finalists(task, trials):
                areas = [area(r) for seed in TUNING_SEEDS if (r := result(task, setting, seed))]
                text = f"{in_words(setting, task)} ({areas[0]:.0f} / {np.mean(areas):.0f})"
                kept.append(f"**{text}**" if setting == chosen else text)
            lines.append(f"| {task.name} | {name.split(',')[0]} | {len(trials)} | {'; '.join(kept)} |")
    return "\n".join(lines)


def effects_table() -> str:
    """The mean area of all trials with each value of a hyper-parameter, on the seed that all have."""
    lines = ["| task | optimizer | lr | others |", "|---|---|---|---|"]
    for task in TASKS:
        for name, trials in ((ADAM, ADAM_TRIALS), (ADEMAMIX, ADEMAMIX_TRIALS)):
            areas = {s: area(r) for s in trials if (r := result(task, s, TUNING_SEEDS[0]))}
            if len(areas) < len(trials):
                continue
            cells = []
            for field in ("factor", "beta1") if name == ADAM else ("factor", "alpha", "beta3"):
                values = sorted({getattr(s, field) for s in trials})
                means = [np.mean([a for s, a in areas.items() if getattr(s, field) == v]) for v in values]
                shown = [v * task.lr if field == "factor" else v for v in values]
                pairs = ", ".join(f"{v:.3g}: {mean:.0f}" for v, mean in zip(shown, means, strict=True))
                cells.append(pairs if field == "factor" else f"{field} {pairs}")
            lines.append(f"| {task.name} | {name.split(',')[0]} | {cells[0]} | {'; '.join(cells[1:])} |")
    return "\n".join(lines)


def all_runs() -> list[tuple[Task, str, Setting, dict[str, Any]]]:
    """(task, ``tuning`` or ``comparison``, setting, result) of every run that counts."""
    every = []
    for task in TASKS:
        for setting in (*ADAM_TRIALS, *ADEMAMIX_TRIALS):
            found = [result(task, setting, seed) for seed in TUNING_SEEDS]
            every += [(task, "tuning", setting, r) for r in found if r is not None]
        settings = {setting.name: setting for setting in compared(task).values()}  # two rows may be the same
        for setting in settings.values():
            every += [(task, "comparison", setting, r) for r in results(task, setting)]
    return every


def write_raw() -> None:
    """Every run a row of a CSV, and all settings as JSON."""
    runs = all_runs()
    with open(DOCS / "ademamix_rl.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "phase", "setting", "seed", "final", "area", "updates", "cpu_s", "returns"])
        for task, phase, setting, r in runs:
            returns = " ".join(f"{e['return']:g}" for e in r["evaluations"])
            figures = [f"{final(r):g}", f"{area(r):g}", r["updates"], f"{r['cpu_s']:.1f}", returns]
            writer.writerow([task.name, phase, setting.name, r["seed"], *figures])
    whole = {
        task.name: {
            **task.settings(),
            "steps_of_the_evaluations": next(
                ([e["step"] for e in r["evaluations"]] for t, *_, r in runs if t == task), None
            ),
            "compared": {name: setting.name for name, setting in compared(task).items()},
            "optimizers": {
                s.name: {
                    "class": s.optimizer(task)[0].__name__,
                    "lr": task.lr * s.factor,
                    **settings_of(task, s)["optimizer"],
                }
                for s in dict.fromkeys((*ADAM_TRIALS, *ADEMAMIX_TRIALS, *compared(task).values()))
            },
        }
        for task in TASKS
    }
    (DOCS / "ademamix_rl.json").write_text(json.dumps(whole, indent=1) + "\n")


def plot(found: dict[Task, Runs]) -> None:
    """A panel a task: the interquartile mean over seeds at every evaluation, with its interval."""
    shown = [task for task in found if found[task]]
    if not shown:
        return
    rows = (len(shown) + 1) // 2
    figure, grid = plt.subplots(rows, 2, figsize=(11, 3.6 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.axis("off")
    for axes, task in zip(grid.flat, shown, strict=False):
        for i, name in enumerate(ROWS):
            if name not in found[task]:
                continue
            runs = found[task][name]
            steps = [e["step"] for e in runs[0]["evaluations"]]
            curves = np.array([[e["return"] for e in r["evaluations"]] for r in runs])  # (seeds, evaluations)
            middle, (low, high) = estimate(lambda x: trim_mean(x, 0.25, axis=0), curves)
            tuned = name in (ADAM, ADEMAMIX)
            axes.plot(steps, middle, color=f"C{i}", linewidth=2.5 if tuned else 1.2, label=name)
            if tuned:
                axes.fill_between(steps, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
        axes.set_title(task.name, fontsize=10)
        axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k")
        axes.set_xlabel("environment steps")
        axes.set_ylabel("return, interquartile mean")
        axes.grid(alpha=0.3)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(DOCS / "ademamix_rl.png", dpi=100)
    plt.close(figure)


def report() -> None:
    """Put together what there is.

    Raises:
        SystemExit: fewer runs are here than the page was made of, so that writing it would lose some.
    """
    refuse_to_lose_rows(DOCS / "ademamix_rl.csv", len(all_runs()))
    found = {task: rows_of(task) for task in TASKS}
    tables = [
        "### All together\n\n" + summary(found),
        *(task_table(task, rows) for task, rows in found.items()),
        "### What the tuning chose\n\n" + tuning_table(),
        "### What mattered in it\n\nMean return on the way, over all trials with a value, on seed "
        f"{TUNING_SEEDS[0]}.\n\n" + effects_table(),
        where_they_ran([r for *_, r in all_runs()], PACKAGES),
    ]
    write_results(DOCS / "ademamix_rl.md", "\n\n".join(tables))
    write_raw()
    plot(found)
    print("\n\n".join(tables))
