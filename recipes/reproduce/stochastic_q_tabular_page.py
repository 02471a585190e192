"""What is said of the runs of :mod:`.stochastic_q_tabular`: tables, a picture, and the raw numbers."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from ..bench.action_scaling_page import table
from ..bench.intervals import interval, iqm
from ..bench.minillm_page import write_rows
from ..bench.published import refuse_to_lose_rows
from .stochastic_q_tabular_words import HOW_TO_READ, NOTES, OF_CLIFF, OF_LIMITS, OF_SHORTFALLS, SAID
from .tabular_worlds import GENERATED, WORLDS

NAME = "stochastic_q_tabular"
SCORES = ("last", "first_half", "value", "greedy_value")
LIMITS = ("bias_phi", "rms_phi", "bias_optimum", "rms_optimum")
Found = dict[str, dict[str, Any]]  # part -> name -> result, with its settings, time and origin


def of_seeds(values: Any, digits: int) -> str:
    """Interquartile mean over seeds and its interval."""
    scores = np.array(values, dtype=float)[:, None]
    scores = scores[np.isfinite(scores).all(1)]  # the others had no episode that ended
    if not len(scores):
        return "no episode ended"
    if np.ptp(scores) < 10.0 ** -(digits + 2):
        return f"{scores.mean():.{digits}f}"
    return interval(iqm, scores, digits=digits)


def world_table(found: Found, world: str) -> str:
    """A row a method."""
    digits = 1 if world.startswith("Cliff") else 3
    lines = []
    for method, run in found[world].items():
        result = run["result"]
        base = np.array(found[world]["random"]["result"]["value"])
        shares = [
            (np.array(result[name]) - base.mean()) / (result["optimum"] - base.mean())
            for name in ("value", "greedy_value")
        ]
        lines.append(
            [
                method,
                of_seeds(result["last"], digits),
                of_seeds(result["first_half"], digits),
                *(of_seeds(share, 3) for share in shares),
                f"{np.mean(result['met']):.2f}",
            ]
        )
    what = "reward of a step" if world == GENERATED else "return of an episode"
    head = [
        "method",
        f"{what}, last tenth",
        "first half",
        "policy's value, share of optimum",
        "arg max of its table",
        "entries met",
    ]
    return table(head, lines)


def limits_table(found: Found) -> str:
    """How far from Q* and from the fixed points the tables are at the end."""
    lines = []
    for name, run in found["limits"].items():
        r = run["result"]
        lines.append(
            [
                name,
                f"{run['settings']['steps']:,}",
                f"{r['size']:.2f}",
                f"{r['gap']:.3f}",
                f"{r['bound']:.3f}",
                of_seeds(r["bias_phi"][-1], 3),
                of_seeds(r["rms_phi"][-1], 3),
                of_seeds(r["bias_optimum"][-1], 3),
                of_seeds(r["rms_optimum"][-1], 3),
            ]
        )
    head = [
        "what learns",
        "steps",
        "mean Q\\*",
        "mean Q\\* - Q_Phi",
        "bound",
        "Q - Q_Phi",
        "rms",
        "Q - Q\\*",
        "rms",
    ]
    return table(head, lines)


def fixed_table(found: Found) -> str:
    """Rounds on fixed values beside the closed forms."""
    lines = []
    for run in found["fixed values"].values():
        r = run["result"]
        for t in (1, 10, 100, 400):
            if t > len(r["rounds"]):
                continue
            at = t - 1
            lines.append(
                [
                    str(r["n"]),
                    str(r["k"]),
                    str(t),
                    f"{r['beta_without'][at]:.4f}",
                    f"{r['beta_without_exact']:.4f}",
                    f"{r['beta_with'][at]:.4f}",
                    f"{r['beta_with_exact'][at]:.4f}",
                    f"{r['omega_without'][at]:.4f}",
                    f"{r['omega_with'][at]:.4f}",
                ]
            )
    head = [
        "n",
        "k",
        "round",
        "beta, no memory",
        "closed form",
        "beta, memory",
        "closed form",
        "omega, no memory",
        "omega, memory",
    ]
    return table(head, lines)


def shortfall_table(found: Found) -> str:
    """omega and beta at the end of learning, in the world of 256 actions."""
    lines = []
    for method, run in found[GENERATED].items():
        r = run["result"]
        if not r["beta"]:
            continue
        last = {name: mean_of_seeds(np.array(r[name])[-10:].T) for name in ("omega", "beta")}
        exact = "" if r["beta_of_tables"] is None else of_seeds(r["beta_of_tables"], 3)
        lines.append([method, of_seeds(last["omega"], 3), of_seeds(last["beta"], 3), exact])
    return table(["method", "omega", "beta", "E[beta] of the last tables, exactly"], lines)


def raw(found: Found) -> list[dict[str, Any]]:
    """A row a seed of each run, for the CSV."""
    rows = []
    for world in WORLDS:
        for method, run in found[world].items():
            r = run["result"]
            for seed in range(run["settings"]["seeds"]):
                row = {"part": world, "name": method, "seed": seed, "steps": run["settings"]["steps"]}
                row |= {name: r[name][seed] for name in SCORES}
                rows.append(row | dict.fromkeys(LIMITS, "") | {"optimum": r["optimum"]})
    for name, run in found["limits"].items():
        r = run["result"]
        for seed in range(run["settings"]["seeds"]):
            row = {"part": "limits", "name": name, "seed": seed, "steps": run["settings"]["steps"]}
            row |= dict.fromkeys(SCORES, "")
            rows.append(row | {key: r[key][-1][seed] for key in LIMITS} | {"optimum": ""})
    return rows


def mean_of_seeds(points: Any) -> np.ndarray:
    """(points, seeds) to (points,), without the seeds that have nothing there; NaN where none has."""
    x = np.array(points, dtype=float)
    there = np.isfinite(x)
    many = there.sum(1)
    return np.where(many > 0, np.where(there, x, 0).sum(1) / np.maximum(many, 1), np.nan)


def summary(found: Found) -> dict[str, Any]:
    """What is drawn, for the JSON: means over seeds at each point."""
    kept: dict[str, Any] = {}
    for part, by_name in found.items():
        for name, run in by_name.items():
            r = run["result"]
            arrays = {
                key: [None if np.isnan(x) else round(x, 4) for x in mean_of_seeds(value).tolist()]
                for key, value in r.items()
                if key in ("curve", "omega", "beta", *LIMITS) and value and isinstance(value[0], list)
            }
            if part == "fixed values":
                arrays = r
            about = {key: run[key] for key in ("settings", "cpu_s", "made_by")}
            kept.setdefault(part, {})[name] = {**about, **arrays}
    return kept


def draw(path: Path, found: Found) -> None:
    """Learning, omega and beta, closed forms and fixed points."""
    figure, axes = plt.subplots(2, 3, figsize=(17, 9), layout="constrained")
    for ax, (world, chosen) in zip(axes[0], WORLDS.items(), strict=True):
        for i, (method, run) in enumerate(found[world].items()):
            curve = mean_of_seeds(run["result"]["curve"])
            x = (np.arange(len(curve)) + 1) * (run["settings"]["steps"] // len(curve))
            family = i if method == "random" else i % 3
            style = {0: "--", 1: "-", 2: ":"}[i // 3] if method != "random" else "-."
            color = "grey" if method == "random" else f"C{family}"
            ax.plot(x, curve, label=method, color=color, linestyle=style)
        ax.set(xlabel="steps", title=f"{world}, gamma {chosen.gamma:g}")
        ax.set_ylabel("mean reward of a step" if world == GENERATED else "return of an episode, learning")
    axes[0, 0].legend(fontsize=8)
    axes[0, 1].set_ylim(-400, 0)

    for i, method in enumerate(("StochQ", "StochQ, no memory")):
        run = found[GENERATED][method]
        for name, style in (("omega", "-"), ("beta", "--")):
            curve = mean_of_seeds(run["result"][name])
            x = (np.arange(len(curve)) + 1) * (run["settings"]["steps"] // len(curve))
            axes[1, 0].plot(x, curve, style, label=f"{name}, {method}", color=f"C{i}")
    axes[1, 0].set(xlabel="steps", title=f"{GENERATED}, while learning")
    axes[1, 0].legend(fontsize=8)

    for i, run in enumerate(found["fixed values"].values()):
        r = run["result"]
        middle = axes[1, 1]
        middle.plot(r["rounds"], r["beta_with"], "o", markersize=3, color=f"C{i}")
        middle.plot(r["rounds"], r["beta_with_exact"], color=f"C{i}", label=f"n={r['n']}, memory")
        middle.plot(r["rounds"], r["beta_without"], ".", markersize=2, color=f"C{i}")
        middle.axhline(r["beta_without_exact"], color=f"C{i}", linestyle="--", label=f"n={r['n']}, no memory")
    middle.set(xlabel="rounds", ylabel="beta", title="Fixed uniform values: measured and closed form")
    middle.set(xscale="log", yscale="log")
    middle.legend(fontsize=8)

    for i, (name, run) in enumerate(found["limits"].items()):
        r = run["result"]
        for to, style in (("phi", "-"), ("optimum", ":")):
            rms = np.array(r[f"rms_{to}"]).mean(1)
            label = name if to == "phi" else None
            axes[1, 2].plot(r["steps"], rms, style, color=f"C{i}", label=label)
    axes[1, 2].set(xlabel="steps", ylabel="rms", yscale="log")
    axes[1, 2].set_title("Distance from the fixed point (line) and from Q* (dots)")
    axes[1, 2].legend(fontsize=8)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def write_all(folder: Path, found: Found) -> None:
    """The page, its picture and its numbers.

    Raises:
        SystemExit: there are fewer runs than the page was made of.
    """
    rows = raw(found)
    refuse_to_lose_rows(folder / f"{NAME}.csv", len(rows))
    write_rows(folder / f"{NAME}.csv", rows)
    (folder / f"{NAME}.json").write_text(json.dumps(summary(found)) + "\n")
    every = [run for by_name in found.values() for run in by_name.values()]
    origins = sorted({run["made_by"] for run in every})
    seeds = found[GENERATED]["Q"]["settings"]["seeds"]
    minutes = sum(run["cpu_s"] for run in every) / 60
    text = [
        "# Stochastic Q-learning in tables",
        textwrap.fill(
            f"`python -m recipes.reproduce.{NAME}`, {'; and '.join(origins)}. "
            f"{minutes:.0f} minutes of CPU time.",
            width=110,
        ),
        SAID.strip(),
        f"![Learning, shortfalls and limits]({NAME}.png)",
        "## Learning",
        HOW_TO_READ.format(seeds=seeds).strip(),
    ]
    for world in WORLDS:
        text += [f"### {world}", world_table(found, world)]
        if world.startswith("Cliff"):
            text += [OF_CLIFF.strip()]
    text += ["## omega and beta", OF_SHORTFALLS.strip(), shortfall_table(found)]
    text += [
        "On fixed values, independent and uniform on [0, 1], exploited round after round:",
        fixed_table(found),
    ]
    text += ["## Limits", OF_LIMITS.strip(), limits_table(found), NOTES.strip()]
    text += [f"Every seed is in `{NAME}.csv`, what is drawn in `{NAME}.json`."]
    (folder / f"{NAME}.md").write_text("\n\n".join(text) + "\n")
    draw(folder / f"{NAME}.png", found)
