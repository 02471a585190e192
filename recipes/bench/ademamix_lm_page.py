"""What is said of the runs of :mod:`.ademamix_lm`: tables, a picture, and the files of raw numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .ademamix_lm_plan import (
    ABLATIONS,
    INJECTED,
    LENGTHS,
    SCALES,
    TUNING_SEEDS,
    Scale,
    Setting,
    ablations,
    beyond,
    compared,
    trials,
    tune,
)
from .ademamix_lm_runs import (
    NAMES,
    Runs,
    ended,
    excess,
    forgetting,
    jobs,
    loss_of,
    result,
    step_ms,
    tokens_ratio,
    tuned,
)
from .published import refuse_to_lose_rows, write_results

DOCS = Path("docs/benchmarks")
COMMAND = "python -m recipes.bench.ademamix_lm"


def _ratio(x: float, step: float = 1.0) -> str:
    """A ratio of tokens; of times, given the ratio of those of a step. A bound where there is no more."""
    if x == 0:
        return f"<{LENGTHS[0] / step:.3g}"
    return f">{LENGTHS[-1] / step:.3g}" if math.isinf(x) else f"{x / step:.2f}"


def _mean(values: Iterable[float], digits: int = 4) -> str:
    """Mean and standard deviation over seeds."""
    x = np.array(list(values))
    if np.isinf(x).any():
        return f"diverged on {np.isinf(x).sum()} of {len(x)}"
    return f"{x.mean():.{digits}f} ± {x.std(ddof=1) if len(x) > 1 else 0:.{digits}f}"


def scales_table() -> str:
    """A row a scale: tokens, CPU time and wall time to the same loss."""
    lines = [
        "| scale | T, steps | seeds | AdEMAMix at T | AdamW at T | tokens that AdamW needs / AdEMAMix's "
        "[95%] | time of a step, AdEMAMix / AdamW | time that AdamW needs / AdEMAMix's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scale in SCALES.values():
        best = tuned(scale)
        runs = {} if best is None else ended(compared(scale, best))
        wanted = ["ademamix-1T", *(f"adamw-{length:g}T" for length in LENGTHS)]
        seeds = sorted(set.intersection(*(set(runs.get(name, {})) for name in wanted)))
        if not seeds:
            command = f"`{COMMAND} --scale {scale.name}`"
            lines.append(
                f"| {scale.name}: {scale.about} | {scale.steps:,} | not run yet: {command} | | | | | |"
            )
            continue
        slow = np.array([excess(runs["ademamix-1T"][s]) for s in seeds])
        plain = np.array([[excess(runs[f"adamw-{x:g}T"][s]) for x in LENGTHS] for s in seeds])
        point, low, high = tokens_ratio(plain, slow)
        step = np.median([step_ms(runs["ademamix-1T"][s]) / step_ms(runs["adamw-1T"][s]) for s in seeds])
        lines.append(
            f"| {scale.name}: {scale.about} | {scale.steps:,} | {len(seeds)} | {_mean(slow)} "
            f"| {_mean(plain[:, LENGTHS.index(1.0)])} | {_ratio(point)} [{_ratio(low)}, {_ratio(high)}] "
            f"| {step:.2f} | {_ratio(point, step)} |"
        )
    return "\n".join(lines)


def lengths_table(runs: Runs) -> str:
    """A row a length: the last losses of either optimizer."""
    lines = ["| run | seeds | excess loss | each seed | CPU s a run |", "|---|---|---|---|---|"]
    for name in ("ademamix-1T", *(f"adamw-{length:g}T" for length in LENGTHS)):
        found = [run for _, run in sorted(runs.get(name, {}).items())]
        if not found:
            lines.append(f"| {_title(name)} | not run yet | | | |")
            continue
        each = ", ".join(f"{excess(run):.4f}" for run in found)
        cpu = np.median([run["cpu_s"] for run in found])
        lines.append(f"| {_title(name)} | {len(found)} | {_mean(map(excess, found))} | {each} | {cpu:.1f} |")
    return "\n".join(lines)


def _title(name: str) -> str:
    optimizer, length = name.split("-")
    return f"{NAMES[optimizer]}, {length.replace('T', ' T')}"


def tuning_table(scale: Scale) -> str:
    """A row a trial, in the order of the rounds."""
    lines = ["| optimizer | tried | mean excess loss |", "|---|---|---|"]
    for optimizer in NAMES:
        tried, best = tune(scale, optimizer, loss_of)
        for setting, _ in tried:
            mark = "**" if setting == best else ""
            lines.append(_trial(scale, optimizer, setting, "tuning", mark))
    return "\n".join(lines)


def beyond_table(scale: Scale, best: dict[str, Setting] | None) -> str:
    """A row a setting beyond the ends of what was tried."""
    lines = ["| optimizer | setting | mean excess loss |", "|---|---|---|"]
    for optimizer, chosen in (best or {}).items():
        lines.append(_trial(scale, optimizer, chosen, "tuning", "**"))
        lines += [_trial(scale, optimizer, setting, "beyond") for setting in beyond(chosen)]
    return "\n".join(lines)


def _trial(scale: Scale, optimizer: str, setting: Setting, part: str, mark: str = "") -> str:
    found = [result(job) for job in trials(scale, optimizer, setting, part)]
    text = ", ".join(f"{key} {value:g}" for key, value in setting.items())
    losses = [excess(run) for run in found if run is not None]
    mean = f"{np.mean(losses):.4f}" if losses else "not run yet"
    return f"| {NAMES[optimizer]} | {mark}{text}{mark} | {mark}{mean}{mark} |"


def ablations_table(runs: Runs) -> str:
    """A row an ablation: how much worse it is than what it is set beside, seed by seed."""
    lines = [
        "| ablation | set beside | excess loss | worse by, each seed | in the paper | as in the paper |",
        "|---|---|---|---|---|---|",
    ]
    for ablation in ABLATIONS:
        found, others = runs.get(ablation.name, {}), runs.get(ablation.than, {})
        seeds = sorted(found.keys() & others.keys())
        if not seeds:
            lines.append(
                f"| {ablation.name} | {_title(ablation.than)} | not run yet | | {ablation.paper} | |"
            )
            continue
        worse = [excess(found[s]) - excess(others[s]) for s in seeds]
        lines.append(
            f"| {ablation.name} | {_title(ablation.than)} | {_mean(excess(found[s]) for s in seeds)} "
            f"| {', '.join(f'{x:+.4f}' for x in worse)} | {ablation.paper} | {agrees(ablation.sign, worse)} |"
        )
    return "\n".join(lines)


def agrees(sign: int, worse: list[float]) -> str:
    """Whether the differences have the paper's sign on every seed, on none, or on some."""
    right = [x * sign > 0 for x in worse]
    if sign == 0:
        mixed = min(worse) < 0 < max(worse)
        return "yes: better on some seeds, worse on others" if mixed else "no: " + _side(worse)
    if all(right):
        return "yes"
    return "no" if not any(right) else f"on {sum(right)} of {len(right)} seeds"


def _side(worse: list[float]) -> str:
    return "worse on every seed" if min(worse) > 0 else "better on every seed"


def forgetting_table(scale: Scale, runs: Runs) -> str:
    """A row an optimizer: what the batch brought, and what is left of it."""
    lines = [
        "| optimizer | seeds | right after | the most | reached after, steps | half of it left after, steps "
        "| at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for optimizer, title in NAMES.items():
        gained = forgetting(runs, optimizer)
        if gained is None:
            lines.append(f"| {title} | not run yet | | | | | |")
            continue
        every = scale.steps / gained.shape[1]
        first = round(INJECTED * gained.shape[1]) - 1  # the look right after the step
        mean = gained.mean(0)
        top = int(mean.argmax())
        half = next((i for i in range(top, len(mean)) if mean[i] <= mean[top] / 2), None)
        lines.append(
            f"| {title} | {len(gained)} | {_mean(gained[:, first])} | {_mean(gained.max(1))} "
            f"| {(top - first) * every:.0f} | {'-' if half is None else f'{(half - first) * every:.0f}'} "
            f"| {_mean(gained[:, -1])} |"
        )
    return "\n".join(lines)


def write_csv(scales: dict[str, Scale]) -> None:
    """Every run, and what became of the probe in those that looked."""
    header = ["scale", "part", "run", "seed", "steps", "tokens", "excess", "floor", "diverged_at", "cpu_s"]
    header += ["train_cpu_s", "wall_s", "commit", "overrides"]
    with (
        open(DOCS / "ademamix_lm.csv", "w", newline="") as runs,
        open(DOCS / "ademamix_lm_probe.csv", "w", newline="") as probes,
    ):
        table, looks = (csv.writer(file, lineterminator="\n") for file in (runs, probes))
        table.writerow(header)
        looks.writerow(["scale", "run", "seed", "step", "loss"])
        for scale in scales.values():
            for job in jobs(scale):
                found = result(job)
                if found is None:
                    continue
                cells = [found[key] for key in header[4:-1]]
                cells = ["" if x is None else f"{x:.6g}" if isinstance(x, float) else x for x in cells]
                table.writerow([scale.name, job.part, job.name, job.seed, *cells, " ".join(job.overrides)])
                for step, loss in found["probe"]:
                    looks.writerow(
                        [scale.name, job.name, job.seed, step, "" if loss is None else f"{loss:.6f}"]
                    )


def plot(scale: Scale, runs: Runs) -> None:
    """Last losses against length, the way there, and what became of the probe."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for i, optimizer in enumerate(NAMES):
        points = [
            (length, excess(run))
            for length in (LENGTHS if optimizer == "adamw" else (1.0,))
            for run in runs.get(f"{optimizer}-{length:g}T", {}).values()
        ]
        if points:
            left.scatter(*zip(*points, strict=True), s=12, color=f"C{i}", label=NAMES[optimizer])
        for run in runs.get(f"{optimizer}-1T", {}).values():
            curve = [(e["step"], e["loss"] - run["floor"]) for e in run["evaluations"][1:] if e["loss"]]
            middle.plot(*zip(*curve, strict=True), color=f"C{i}", alpha=0.5)
        gained = forgetting(runs, optimizer)
        if gained is not None:
            steps = (np.arange(gained.shape[1]) + 1) * scale.steps / gained.shape[1]
            right.plot(steps, gained.T, color=f"C{i}", alpha=0.25, linewidth=1)
            right.plot(steps, gained.mean(0), color=f"C{i}", label=NAMES[optimizer])
    means = [
        (length, np.mean([excess(run) for run in found.values()]))
        for length in LENGTHS
        if (found := runs.get(f"adamw-{length:g}T"))
    ]
    if means:
        left.plot(*zip(*means, strict=True), color="C0", alpha=0.5)
    left.set_xscale("log")
    left.set_xticks(LENGTHS, [f"{x:g} T" for x in LENGTHS])
    left.minorticks_off()
    left.set_xlabel("length of the whole run")
    middle.set_xlabel("steps, of runs of T")
    for axes in (left, middle):
        axes.set_ylabel("excess loss, nats a token")
    middle.set_yscale("log")
    right.set_xlim(left=INJECTED * scale.steps * 0.95)
    right.set_xlabel("steps")
    right.set_ylabel("loss on the probe, lower by")
    right.axhline(0, color="grey", linewidth=0.8)
    for axes, title in zip(
        (left, middle, right), ("Last losses", "On the way", "A batch seen once"), strict=True
    ):
        axes.set_title(title)
        axes.grid(alpha=0.3)
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(DOCS / "ademamix_lm.png", dpi=100)
    plt.close(figure)


def tables() -> str:
    """All tables; those after the first are of the first scale."""
    scale = next(iter(SCALES.values()))
    best = tuned(scale)
    runs = {} if best is None else ended([*compared(scale, best), *ablations(scale, best)])
    found = [r for r in map(result, jobs(scale)) if r is not None]
    cpu = sum(r["cpu_s"] for r in found) / 60
    sections = [
        scales_table(),
        f"### {scale.name}: whole runs\n\n{lengths_table(runs)}",
        f"### {scale.name}: ablations\n\n{ablations_table(runs)}",
        f"### {scale.name}: a batch seen once\n\n{forgetting_table(scale, runs)}",
        f"### {scale.name}: tuning\n\nEach on {len(TUNING_SEEDS)} seeds; the best is bold.\n\n"
        f"{tuning_table(scale)}",
        f"### {scale.name}: beyond the ends of the tuning\n\n{beyond_table(scale, best)}",
        f"{len(found)} runs, {cpu:.0f} minutes of CPU time. {where(found)}",
    ]
    return "\n\n".join(sections)


def where(found: list[dict[str, Any]]) -> str:
    """Commits, machine, versions and threads of some runs."""
    if not found:
        return ""
    commits = ", ".join(sorted({str(r["commit"]) for r in found}))
    one = found[0]
    return f"Commit {commits}; {one['machine']}, threads {one['threads']}, torch {one['versions']['torch']}."


def report() -> None:
    """Put together what there is.

    Raises:
        SystemExit: fewer runs are here than the page was made of, so that writing it would lose some.
    """
    ended_now = sum(result(job) is not None for scale in SCALES.values() for job in jobs(scale))
    refuse_to_lose_rows(DOCS / "ademamix_lm.csv", ended_now)
    written = tables()
    write_results(DOCS / "ademamix_lm.md", written)
    write_csv(SCALES)
    scale = next(iter(SCALES.values()))
    best = tuned(scale)
    if best is not None:
        plot(scale, ended([*compared(scale, best), *ablations(scale, best)]))
    print(written)
