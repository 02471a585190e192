"""What is said of the runs of :mod:`.qdpo`: tables, a picture, and the file of raw numbers."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from ..qdpo_scores import recovered
from .intervals import interval
from .kept_runs import Runs
from .minillm_report import with_error
from .published import filled, refuse_to_lose_rows, where_they_ran
from .qdpo_plan import FORMATS, LONG, METHODS, SEEDS, TRIALS, Job, ways_of

DOCS = Path("docs/benchmarks")

Parts = dict[str, dict[str, Runs]]

#: score -> its column, its digits
COLUMNS: dict[str, tuple[str, int]] = {
    "agreement": ("same reply", 3),
    "recovered": ("recovered", 2),
    "agreement_at_8": ("same 8 tokens", 3),
    "flip_rate": ("flipped tokens", 4),
    "forward_kl": ("KL(p ‖ q)", 5),
    "reverse_kl": ("KL(q ‖ p)", 5),
    "rubric": ("rubric", 3),
    "win": ("wins", 3),
    "lose": ("loses", 3),
    "win_rate": ("win rate", 3),
    "perplexity": ("perplexity", 3),
}
#: what differences are told of, and whether more is better
COMPARED = {"agreement": 1, "flip_rate": -1, "forward_kl": -1, "rubric": 1, "win_rate": 1, "perplexity": -1}
#: what differences are taken to
BESIDE = ("rtn", "kd")


def of(runs: Runs, name: str, rtn: Runs) -> np.ndarray:
    """A score under each seed, (seeds,); what was recovered is told of seeds under which there is RTN too."""
    found = []
    for seed, run in sorted(runs.items()):
        scores = run["scores"]["trained"]
        if name == "recovered":
            if seed in rtn:
                before = rtn[seed]["scores"]["trained"]["agreement"]
                found.append(recovered(scores["agreement"], before))
        elif name == "agreement_at_8":
            found.append(scores["agreement_at"]["8"])
        else:
            found.append(scores[name])
    return np.array(found, float)


def scores_table(methods: tuple[str, ...], runs: dict[str, Runs]) -> str:
    """A row a method."""
    if not any(name in runs for name in methods):
        return "Not run yet."
    lines = [
        "| | seeds | " + " | ".join(title for title, _ in COLUMNS.values()) + " | CPU s |",
        "|---|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    rtn = runs.get("rtn", {})
    for name in methods:
        found = runs.get(name, {})
        if not found:
            lines.append(f"| {METHODS[name].title} | not run yet |" + " |" * (len(COLUMNS) + 1))
            continue
        cells = [with_error(of(found, score, rtn), digits) for score, (_, digits) in COLUMNS.items()]
        seconds = with_error([run["cpu_s"] for run in found.values()], 0)
        lines.append(f"| {METHODS[name].title} | {len(found)} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


def differences_table(methods: tuple[str, ...], runs: dict[str, Runs]) -> str:
    """A row each of a method beside RTN and beside KD, seed by seed, with its 95% interval."""
    if not any(name in runs for name in methods):
        return ""
    lines = [
        "| | seeds | " + " | ".join(COLUMNS[name][0] for name in COMPARED) + " |",
        "|---|---|" + "---|" * len(COMPARED),
    ]
    for other in BESIDE:
        for name in methods:
            if name in BESIDE[: BESIDE.index(other) + 1]:
                continue
            one, two = runs.get(name, {}), runs.get(other, {})
            seeds = sorted(one.keys() & two.keys())
            title = f"{METHODS[name].title}, against {METHODS[other].title}"
            cells = [
                _gap(
                    of({s: one[s] for s in seeds}, score, {}),
                    of({s: two[s] for s in seeds}, score, {}),
                    score,
                )
                for score in COMPARED
            ]
            lines.append(f"| {title} | {len(seeds) or 'not run yet'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gap(ours: np.ndarray, theirs: np.ndarray, score: str) -> str:
    """Mean of paired differences (seeds,); of three and more its interval, and whether that is off zero."""
    gap, digits = ours - theirs, COLUMNS[score][1]
    if len(gap) < 3:
        return f"{gap.mean():+.{digits}f}" if len(gap) else ""
    text = interval(lambda x: np.array([x.mean()]), gap[:, None], digits=digits)
    low, high = (float(end) for end in text.split("[")[1].rstrip("]").split(", "))
    better = gap.mean() * COMPARED[score] > 0
    return text + ("" if low <= 0 <= high else " (better)" if better else " (worse)")


def margins_table(methods: tuple[str, ...], runs: dict[str, Runs]) -> str:
    """Flips by how much the full-precision model prefers its token, of all seeds together."""
    rows = {name: _flips_by_margin(runs[name]) for name in methods if name in runs}
    if not rows:
        return "Not run yet."
    lows = list(next(iter(rows.values())))
    head = [f"{low} to {high}" for low, high in pairwise(lows)] + [f"{lows[-1]} and more"]
    tokens = [f"{n:,}" for _, n in next(iter(rows.values())).values()]
    lines = ["| margin, nats | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    lines.append("| tokens | " + " | ".join(tokens) + " |")
    for name, bins in rows.items():
        if len(runs[name]) == max(map(len, runs.values())):  # of the same seeds, and so of the same tokens
            flips = " | ".join(str(flips) for flips, _ in bins.values())
            lines.append(f"| {METHODS[name].title} | {flips} |")
    return "\n".join(lines)


def _flips_by_margin(runs: Runs) -> dict[str, tuple[int, int]]:
    """Lowest margin of a bin -> its flips and tokens, summed over seeds."""
    sums: dict[str, tuple[int, int]] = {}
    for run in runs.values():
        for low, (flips, tokens) in run["scores"]["trained"]["flips_by_margin"].items():
            before = sums.get(low, (0, 0))
            sums[low] = before[0] + flips, before[1] + tokens
    return sums


def tuning_table(runs: dict[str, Runs]) -> str:
    """Share of same replies of each method with each rate, on prompts for validation; the highest is bold."""
    most = max(len(way.rates) for way in METHODS.values())
    lines = ["| | rate: same replies |" + " |" * (most - 1), "|---|" + "---|" * most]
    for name, way in METHODS.items():
        if not way.rates:
            continue
        found = [of(runs.get(f"{name}-{rate:g}", {}), "agreement", {}) for rate in way.rates]
        known = [float(x[0]) for x in found if len(x)]
        cells = []
        for rate, x in zip(way.rates, found, strict=True):
            text = f"{rate:g}: " + (f"{x[0]:.3f}" if len(x) else "not run yet")
            cells.append(f"**{text}**" if len(x) and x[0] == max(known) else text)
        lines.append(f"| {way.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def trials_table(tuning: dict[str, Runs], runs: dict[str, Runs]) -> str:
    """Other settings, each below its method as it is."""
    if not runs:
        return "Not run yet."
    shown = ("agreement", "flip_rate", "forward_kl", "win_rate")
    lines = ["| | " + " | ".join(COLUMNS[name][0] for name in shown) + " |", "|---|" + "---|" * len(shown)]
    as_it_is: dict[str, tuple[float, Runs]] = {}
    for name, (method, _) in TRIALS.items():
        if method not in as_it_is:
            tried = {r: tuning.get(f"{method}-{r:g}", {}) for r in METHODS[method].rates}
            tried = {rate: found for rate, found in tried.items() if found}
            best = max(tried, key=lambda r: of(tried[r], "agreement", {})[0], default=None)
            if best is not None:
                as_it_is[method] = best, tried[best]
                cells = [f"{of(tried[best], x, {})[0]:.{COLUMNS[x][1]}f}" for x in shown]
                lines.append(f"| {METHODS[method].title} | {' | '.join(cells)} |")
        found = runs.get(name, {})
        cells = [f"{of(found, x, {})[0]:.{COLUMNS[x][1]}f}" if found else "not run yet" for x in shown]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(parts: Parts) -> dict[str, str]:
    """Every table of the page, by the name of its place there."""
    places = {}
    for name in FORMATS:
        methods = ways_of(name)
        places[f"scores {name}"] = scores_table(methods, parts[name])
        places[f"differences {name}"] = differences_table(methods, parts[name])
    longer = {**parts["long"], "rtn": parts["3"].get("rtn", {})}  # what was recovered is told from it
    return {
        **places,
        "margins": margins_table(ways_of("3"), parts["3"]),
        "scores long": scores_table(LONG, longer),
        "tuning": tuning_table(parts["tuning"]),
        "trials": trials_table(parts["tuning"], parts["trials"]),
    }


def plot(path: Path, parts: Parts) -> None:
    """Same replies by method and format, each seed a point; and what they cost in KL at 3 bits."""
    shown = [name for name in FORMATS if parts[name]]
    figure, axes = plt.subplots(1, len(shown) + 1, figsize=(4 * (len(shown) + 1), 4), layout="constrained")
    for ax, name in zip(axes, shown, strict=False):
        methods = [method for method in ways_of(name)[::-1] if method in parts[name]]
        for y, method in enumerate(methods):
            values = of(parts[name].get(method, {}), "agreement", {})
            ax.plot(values, [y] * len(values), "o", alpha=0.5, color=_colour(method))
            if len(values):
                ax.plot(values.mean(), y, "|", markersize=18, color=_colour(method))
        ax.set_yticks(range(len(methods)), [METHODS[method].title for method in methods])
        bits, group = FORMATS[name]
        ax.set_title(f"{bits} bits, a scale per {'channel' if group is None else f'{group} inputs'}")
        ax.set_xlabel("same replies")
    for method, runs in parts[shown[0]].items():
        title = METHODS[method].title
        kl, agreement = of(runs, "forward_kl", {}), of(runs, "agreement", {})
        axes[-1].plot(1e3 * kl, agreement, "o", label=title, color=_colour(method))
    axes[-1].set_title(f"{FORMATS[shown[0]][0]} bits")
    axes[-1].set_xlabel("KL(p ‖ q), 0.001 nats a token")
    axes[-1].set_ylabel("same replies")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside right upper", fontsize="x-small")
    for ax in axes:
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colour(method: str) -> tuple[float, ...]:
    return matplotlib.colormaps["tab20"](list(METHODS).index(method))


def write_csv(path: Path, parts: Parts, jobs: dict[str, list[Job]]) -> None:
    """A row a run."""
    scores = [name for name in COLUMNS if name not in ("recovered", "agreement_at_8")]
    more = ["tie", "agreed_tokens", "length"]
    about = ["updates", "best_update", "prompts", "pairs", "anchors", "label_violation", "cpu_s", "wall_s"]
    header = [
        "part",
        "run",
        "method",
        "bits",
        "group_size",
        "seed",
        *scores,
        *more,
        "agreement_at",
        "flips_by_margin",
        *about,
    ]
    lines: list[list[Any]] = [[*header, "commit", "overrides"]]
    for part, found in parts.items():
        for job in jobs[part]:
            run: Any = found.get(job.name, {}).get(job.seed)
            if run is None:
                continue
            trained = run["scores"]["trained"]
            numbers = [f"{trained[name]:.6g}" for name in (*scores, *more)]
            curve = " ".join(f"{k}:{share:g}" for k, share in trained["agreement_at"].items())
            margins = " ".join(f"{low}:{f}/{n}" for low, (f, n) in trained["flips_by_margin"].items())
            bits, group_size = FORMATS[job.format]
            which = [part, job.name, METHODS[job.way].method, bits, group_size or "", job.seed]
            rest = [run.get(name, "") for name in about]
            lines.append([*which, *numbers, curve, margins, *rest, run["commit"], " ".join(job.overrides)])
    refuse_to_lose_rows(path, len(lines) - 1)
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def report(parts: Parts, jobs: dict[str, list[Job]]) -> None:
    """Write the table of all runs, the picture and the tables of the page."""
    write_csv(DOCS / "qdpo.csv", parts, jobs)
    if any(parts[name] for name in FORMATS):
        plot(DOCS / "qdpo.png", parts)
    runs = [run for part in parts.values() for found in part.values() for run in found.values()]
    places = {
        **tables(parts),
        "about": where_they_ran(runs, ("torch", "transformers", "trl"), "of training")
        + f" Seeds {SEEDS[0]} to {SEEDS[-1]}.",
    }
    page = DOCS / "qdpo.md"
    page.write_text(filled(page.read_text(), places))
    print(f"{page} is up to date")
