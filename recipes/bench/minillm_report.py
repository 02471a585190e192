"""What is said of the runs of :mod:`.minillm`: tables, a picture, and the file of raw numbers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .kept_runs import Runs
from .minillm_plan import ABLATIONS, LONG, METHODS, RATES, Job
from .published import filled, refuse_to_lose_rows

DOCS = Path("docs/benchmarks")
COMMAND = "python -m recipes.bench.minillm"

Parts = dict[str, dict[str, Runs]]

#: score -> its column, its digits
COLUMNS: dict[str, tuple[str, int]] = {
    "reverse_kl": ("KL(q ‖ p)", 3),
    "valid": ("right", 3),
    "rouge_l": ("Rouge-L", 1),
    "forward_kl": ("KL(p ‖ q)", 3),
    "true_forward_kl": ("KL(truth ‖ q)", 3),
    "distinct_valid": ("different right answers of 8", 2),
    "distinct_4": ("Dist-4", 3),
    "exposure": ("ExAccErr, %", 1),
    "choice_ece": ("ECE", 3),
    "text_loss": ("loss on plain text", 2),
    "mean_length": ("length", 2),
}
#: what differences are told of, and whether more is better
COMPARED = {
    "reverse_kl": -1,
    "valid": 1,
    "rouge_l": 1,
    "forward_kl": -1,
    "distinct_valid": 1,
    "text_loss": -1,
}


def value(scores: dict[str, Any], name: str) -> float:
    """A score as one number: of ExAccErr, that at the longest answers."""
    if name == "exposure":
        known = [x for x in scores[name] if x is not None]
        return known[-1] if known else float("nan")
    return float(scores[name])


def of(runs: Runs, name: str, who: str = "student") -> np.ndarray:
    """A score under each seed, (seeds,)."""
    return np.array(
        [value(run["scores"][who], name) for _, run in sorted(runs.items()) if who in run["scores"]]
    )


def with_error(values: Sequence[float] | np.ndarray, digits: int, sign: str = "") -> str:
    """Mean and its standard error over seeds."""
    x = np.asarray(values, float)
    if not len(x) or np.isnan(x).any():
        return "-"
    mean = f"{x.mean():{sign}.{digits}f}"
    return mean if len(x) == 1 else f"{mean} ± {x.std(ddof=1) / np.sqrt(len(x)):.{digits}f}"


def scores_table(rows: list[tuple[str, Runs, str]]) -> str:
    """A row each of (title, runs, whose scores)."""
    lines = [
        "| | seeds | updates | " + " | ".join(title for title, _ in COLUMNS.values()) + " | CPU s |",
        "|---|---|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for title, runs, who in rows:
        found = {seed: run for seed, run in runs.items() if who in run["scores"]}
        if not found:
            lines.append(f"| {title} | not run yet | |" + " |" * (len(COLUMNS) + 1))
            continue
        student = who == "student"
        updates = f"{next(iter(found.values()))['updates']:,}" if student else ""
        seconds = with_error([run["cpu_s"] for run in found.values()], 0) if student else ""
        cells = [with_error(of(found, name, who), digits) for name, (_, digits) in COLUMNS.items()]
        lines.append(f"| {title} | {len(found)} | {updates} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


def differences_table(rows: list[tuple[str, Runs, Runs]]) -> str:
    """A row each of (title, runs, those they are set beside), seed by seed."""
    lines = [
        "| | seeds | " + " | ".join(COLUMNS[name][0] for name in COMPARED) + " |",
        "|---|---|" + "---|" * len(COMPARED),
    ]
    for title, runs, others in rows:
        seeds = sorted(runs.keys() & others.keys())
        cells = []
        for name, sign in COMPARED.items():
            gap = of({s: runs[s] for s in seeds}, name) - of({s: others[s] for s in seeds}, name)
            cells.append(f"{with_error(gap, COLUMNS[name][1], '+')}{verdict(gap * sign)}")
        lines.append(f"| {title} | {len(seeds) or 'not run yet'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(better_by: np.ndarray) -> str:
    """Whether paired differences are beyond two standard errors."""
    if len(better_by) < 2:
        return ""
    error = better_by.std(ddof=1) / np.sqrt(len(better_by))
    if abs(better_by.mean()) <= 2 * error:
        return ""
    return " (better)" if better_by.mean() > 0 else " (worse)"


def tables(parts: Parts) -> dict[str, str]:
    """Every table of the page, by the name of its place there."""
    updates, time, ablated = parts["updates"], parts["time"], parts["ablation"]
    first = updates.get("sft", {})
    given = [("teacher", first, "teacher"), ("warm start, which all begin with", first, "warm_start")]
    methods = [(way.title, updates.get(name, {}), "student") for name, way in METHODS.items()]
    full = updates.get("minillm", {})
    at_equal_time = {**time, "minillm": full} if time else {}
    return {
        "updates": scores_table([*given, *methods]),
        "differences": differences_table(
            [(f"{METHODS[ours].title}, against {METHODS[name].title}, {how}",
              updates.get(ours, {}), runs.get(name, {}))
             for ours, how, runs in (("minillm", "equal updates", updates),
                                     ("minillm", "equal CPU time", time),
                                     ("minillm-modern", "equal updates", updates))
             for name in METHODS if name != ours]
        ),
        "time": scores_table(
            [(way.title, at_equal_time.get(name, {}), "student") for name, way in METHODS.items()]
        ),
        "long": scores_table(
            [(METHODS[name].title, parts["long"].get(name, {}), "student") for name in LONG]
        ),
        "long differences": differences_table(
            [(f"{METHODS[LONG[-1]].title}, against {METHODS[name].title}",
              parts["long"].get(LONG[-1], {}), parts["long"].get(name, {})) for name in LONG[:-1]]
        ),
        "ablation": scores_table([("MiniLLM", full, "student"),
                                  *((name, ablated.get(name, {}), "student") for name in ABLATIONS)]),
        "ablation differences": differences_table(
            [(f"{name}, against MiniLLM", ablated.get(name, {}), full) for name in ABLATIONS]
        ),
        "tasks": tasks_table(updates),
        "tuning": tuning_table(parts["tuning"]),
    }  # fmt: skip


def tasks_table(updates: dict[str, Runs]) -> str:
    """The share of right answers by task."""
    first = updates.get("sft", {})
    rows = [("teacher", first, "teacher"), ("warm start", first, "warm_start")]
    rows += [(way.title, updates.get(name, {}), "student") for name, way in METHODS.items()]
    tasks = sorted(
        {
            t
            for runs in updates.values()
            for r in runs.values()
            for t in r["scores"]["student"]["valid_by_task"]
        }
    )
    lines = ["| | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for title, runs, who in rows:
        scores = [run["scores"][who]["valid_by_task"] for run in runs.values() if who in run["scores"]]
        lines.append(
            f"| {title} | " + " | ".join(with_error([s[t] for s in scores], 2) for t in tasks) + " |"
        )
    return "\n".join(lines)


def tuning_table(runs: dict[str, Runs]) -> str:
    """Reverse KL of each method with each rate, on prompts for validation; the lowest is bold."""
    lines = ["| | " + " | ".join(f"{rate:g}" for rate in RATES) + " |", "|---|" + "---|" * len(RATES)]
    for name, way in METHODS.items():
        found = [of(runs.get(f"{name}-{rate:g}", {}), "reverse_kl") for rate in RATES]
        known = [float(x[0]) for x in found if len(x)]
        cells = ["not run yet" if not len(x) else f"{x[0]:.3f}" for x in found]
        cells = [
            f"**{c}**" if len(x) and x[0] == min(known) else c for c, x in zip(cells, found, strict=True)
        ]
        lines.append(f"| {way.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(path: Path, updates: dict[str, Runs]) -> None:
    """Right answers and diversity against the reverse KL; error along answers; right answers against cost."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    marked: list[tuple[str, Runs, str]] = [(METHODS[m].title, runs, "student") for m, runs in updates.items()]
    if "sft" in updates:
        marked.append(("warm start", updates["sft"], "warm_start"))
    for i, (title, runs, who) in enumerate(marked):
        x = of(runs, "reverse_kl", who)
        for ax, name in ((axes[0], "valid"), (axes[1], "forward_kl")):
            ax.plot(x, of(runs, name, who), "o", color=f"C{i}", label=title, alpha=0.8)
        curves = [run["scores"][who]["exposure"] for run in runs.values() if who in run["scores"]]
        mean = np.nanmean(np.array(curves, float), 0)
        axes[2].plot(range(1, len(mean) + 1), mean, color=f"C{i}", label=title)
    titles = (
        "share of right answers",
        "KL(teacher ‖ student), nats an answer",
        "excess accumulated error, %",
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
        ax.set_xlabel("KL(student ‖ teacher), nats an answer")
        ax.grid(alpha=0.3)
    axes[2].set_xlabel("tokens of an answer")
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_csv(path: Path, parts: Parts, jobs: dict[str, list[Job]]) -> None:
    """A row a run, and one a model that was there before."""
    columns = [name for name in COLUMNS if name != "exposure"]
    errors = ["reverse_kl_se", "forward_kl_se", "true_forward_kl_se"]
    lines: list[list[Any]] = [
        ["part", "run", "method", "who", "seed", "updates", *columns, *errors, "exposure", "ended", "cpu_s",
         "wall_s", "commit", "overrides"]
    ]  # fmt: skip
    for part, found in parts.items():
        for job in jobs[part]:
            run = found.get(job.name, {}).get(job.seed)
            for who, scores in (run["scores"] if run else {}).items():
                numbers = [f"{scores[name]:.6g}" for name in columns + errors]
                curve = " ".join("" if x is None else f"{x:g}" for x in scores["exposure"])
                about = [part, job.name, METHODS[job.way].method, who, job.seed, run["updates"]]  # type: ignore[index]
                rest = [f"{scores['ended']:.6g}", run["cpu_s"], run["wall_s"], run["commit"]]  # type: ignore[index]
                lines.append([*about, *numbers, curve, *rest, " ".join(job.overrides)])
    refuse_to_lose_rows(path, len(lines) - 1)
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def report(parts: Parts, jobs: dict[str, list[Job]]) -> None:
    """Write the table of all runs, the picture and the tables of the page."""
    write_csv(DOCS / "minillm.csv", parts, jobs)
    if parts["updates"]:
        plot(DOCS / "minillm.png", parts["updates"])
    page = DOCS / "minillm.md"
    page.write_text(filled(page.read_text(), tables(parts)))
    print(f"{page} is up to date")
