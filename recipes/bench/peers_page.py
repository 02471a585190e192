"""What is said of the runs of :mod:`.peers`: tables, a picture, and the raw numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from .intervals import interval, iqm
from .peers_picture import plot
from .peers_plan import METHODS, SEEDS, WORLDS, cells, why_not
from .peers_runs import best_rate, ends, runs_of, shares, tried, tuning
from .published import refuse_to_lose_rows, where_they_ran, write_results
from .training_runs import (
    first_at,
    in_last_third,
    last_third,
    ms_a_vector_step,
    reached,
    result,
    shares_of,
)

DOCS = Path("docs/benchmarks")
REACH = 0.9  # of what the best method has in the last third
PACKAGES = ("torch", "torchrl", "numpy")
NOT_YET = "not run yet"
LEARNERS = [name for name, method in METHODS.items() if method.learns]


def in_the_end(world: str, method: str) -> np.ndarray:
    """Shares in the last third of the evaluations, (seeds, 1)."""
    found = shares(world, runs_of(world, method))
    return in_last_third(found) if found.size else np.empty((0, 1))


def share_cell(world: str, method: str) -> str:
    """Interquartile mean of the seeds' shares in the last third, and its interval."""
    reason = why_not(world, method)
    if reason is not None:
        return f"n/a ({reason})"
    found = in_the_end(world, method)
    if not len(found):
        return NOT_YET
    if method == "oracle":  # it draws nothing
        return f"{found[0, 0]:.3f}"
    some = "" if len(found) == len(SEEDS) else f"; {len(found)} of {len(SEEDS)} seeds"
    return interval(iqm, found, digits=3) + some


def overview() -> str:
    """A row a method, a column a world, and all the worlds together in which all the structured methods
    run."""
    together = [world for world in WORLDS if WORLDS[world].codec is not None]
    lines = [
        f"| method | {' | '.join(WORLDS)} | the {len(together)} with digits |",
        "|---" * (len(WORLDS) + 2) + "|",
    ]
    for name, method in METHODS.items():
        cells = [share_cell(world, name) for world in WORLDS]
        lines.append(f"| {method.title} | {' | '.join(cells)} | {over_worlds(name, together)} |")
    return "\n".join(lines)


def over_worlds(method: str, worlds: list[str]) -> str:
    """Interquartile mean over seeds and worlds, the seeds drawn anew world by world."""
    if method == "oracle" or any(why_not(world, method) for world in worlds):
        return "n/a"
    found = [in_the_end(world, method) for world in worlds]
    if any(len(scores) != len(SEEDS) for scores in found):
        return NOT_YET
    return interval(iqm, np.concatenate(found, axis=1), digits=3)


def asked_in(world: str) -> float:
    """The share to be reached: `REACH` of the best interquartile mean; inf before any has run."""
    best = [iqm(found)[0] for m in LEARNERS if len(found := in_the_end(world, m))]
    return REACH * max(best, default=np.inf)


def world_table(world: str) -> str:
    """A row a method."""
    asked = asked_in(world)
    goal = f"{asked:.3f}" if np.isfinite(asked) else "90% of the best"
    columns = [
        "method",
        "seeds",
        "return: IQM [95% interval]",
        "share",
        "worst seed",
        "worst checkpoint",
        "share at the end",
        "return in training",
        f"steps to {goal}",
        "CPU s to it",
        "wall s to it",
        "CPU ms a vector step",
        "CPU s a run",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, method in METHODS.items():
        reason = why_not(world, name)
        if reason is not None:
            lines.append(f"| {method.title} | does not apply: {reason} |" + " |" * (len(columns) - 2))
            continue
        runs = runs_of(world, name)
        scores = shares(world, runs)
        if not scores.size:
            lines.append(f"| {method.title} | {NOT_YET} |" + " |" * (len(columns) - 2))
            continue
        cells = [
            method.title,
            str(len(runs)),
            interval(iqm, in_last_third(shares_of(runs, 0.0, 1.0)), digits=3),
            share_cell(world, name),
            f"{in_last_third(scores).min():.3f}",
        ]
        if method.learns:
            cells += [
                f"{scores[:, -last_third(scores.shape[1]) :].min():.3f}",
                f"{iqm(scores[:, -1:])[0]:.3f}",
                f"{iqm(in_last_third(shares_of(runs, 0.0, 1.0, 'training')))[0]:.3f}",
                reached(first_at(runs, scores, asked, "steps"), ",.0f"),
                reached(first_at(runs, scores, asked, "cpu_s"), ".1f"),
                reached(first_at(runs, scores, asked, "wall_s"), ".1f"),
                f"{np.median([ms_a_vector_step(run) for run in runs]):.1f}",
                f"{np.median([run['cpu_s'] for run in runs]):.0f}",
            ]
        else:
            cells += [""] * (len(columns) - len(cells))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def about(world: str) -> str:
    """What a world's table is read with."""
    task, scale = WORLDS[world], ends(world)
    dynamics = task.make(1, 0).dynamics
    known = "optimal" if dynamics.exact else "the best policy known, not proved optimal"
    text = (
        f"{dynamics.n:,} actions ({dynamics.structure}), {task.steps:,} steps of {task.num_envs} "
        f"environments side by side, {task.updates} update of {task.batch} after each step of all."
    )
    if scale is not None:
        text += f"\nShare 0 is {scale[0]:.3f}, uniform ids, and 1 is {scale[1]:.3f}, the oracle: {known}."
    return text


def settings_table() -> str:
    """What each method was given."""
    lines = ["| method | in | settings beside the defaults of its file |", "|---|---|---|"]
    for method in METHODS.values():
        for world, settings in method.settings.items():
            said = ", ".join(f"{name} {value}" for name, value in settings.items())
            lines.append(f"| {method.title} | {world or 'all worlds'} | {said} |")
    return "\n".join(lines)


def rates_table() -> str:
    """What the learning rates were chosen by."""
    lines = [
        "| world | method | learning rates: greedy return, mean over the last third | chosen |",
        "|---|---|---|---|",
    ]
    for world, method in cells(learns=True):
        rate, like = best_rate(world, method), METHODS[method].rate_of
        said = ", ".join(
            f"{lr:.3g}: {NOT_YET if score is None else f'{score:.3f}'}"
            for lr, score in tried(world, method).items()
        )
        said = f"that of {METHODS[like].title}" if like else said
        lines.append(
            f"| {world} | {METHODS[method].title} | {said} | {NOT_YET if rate is None else f'{rate:.3g}'} |"
        )
    return "\n".join(lines)


def tasks_table() -> str:
    """The budget of each world."""
    names = (
        "steps",
        "num_envs",
        "batch",
        "updates",
        "buffer",
        "warm_up",
        "gamma",
        "eps_steps",
        "eps_end",
        "hidden",
    )
    lines = [f"| world | ids are | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for world, task in WORLDS.items():
        values = (f"{getattr(task, name):,}" for name in names)
        lines.append(f"| {world} | {task.codec or 'names'} | {' | '.join(values)} |")
    return "\n".join(lines)


def every_run() -> list[dict[str, Any]]:
    """All that has ended, with today's settings."""
    return [run for world in WORLDS for method in METHODS for run in runs_of(world, method)]


def write_csv(path: Path) -> None:
    """Every evaluation of every run."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["world", "method", "seed", "steps", "updates", "greedy", "share", "length", "training"]
            + ["wall_s", "cpu_s"]
        )
        for world in WORLDS:
            for method in METHODS:
                runs = runs_of(world, method)
                scores = shares(world, runs) if ends(world) is not None else None
                for i, run in enumerate(runs):
                    for j, at in enumerate(run["records"]):
                        share = None if scores is None else scores[i, j]
                        numbers = [at["greedy"], share, at["length"], at["training"]]
                        cells = ["" if x is None else f"{x:.6g}" for x in numbers]
                        clocks = [f"{at['wall_s']:.2f}", f"{at['cpu_s']:.2f}"]
                        writer.writerow(
                            [world, method, run["seed"], at["steps"], at["updates"], *cells, *clocks]
                        )


def report() -> None:
    """Put together what there is.

    Raises:
        SystemExit: fewer runs are here than the page was made of, so that writing it would lose some.
    """
    runs = every_run()
    refuse_to_lose_rows(DOCS / "peers.csv", sum(len(run["records"]) for run in runs))
    tables = [
        overview(),
        *(f"## {world}\n\n{about(world)}\n\n{world_table(world)}" for world in WORLDS),
        f"## Settings\n\n{tasks_table()}\n\n{settings_table()}\n\n{rates_table()}",
        where_they_ran([*runs, *(run for job in tuning() if (run := result(job)) is not None)], PACKAGES),
    ]
    write_results(DOCS / "peers.md", "\n\n".join(tables))
    write_csv(DOCS / "peers.csv")
    plot(DOCS / "peers.png")
    print("\n\n".join(tables))
