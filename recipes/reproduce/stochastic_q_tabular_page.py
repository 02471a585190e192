"""What is said of the runs of :mod:`.stochastic_q_tabular`: tables, and the raw numbers."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from ..bench.action_scaling_page import table
from ..bench.minillm_page import read_rows, write_rows
from ..bench.published import refuse_to_lose_rows
from .stochastic_q_tabular_claims import PAIRS, Rows, difference, filled, mean_of_seeds, of_seeds, scores_of
from .stochastic_q_tabular_picture import draw
from .stochastic_q_tabular_words import (
    AGREES,
    HOW_TO_READ,
    LEARNING,
    NOTES,
    OF_CLIFF,
    OF_DIFFERENCES,
    OF_LIMITS,
    OF_SHORTFALLS,
    OF_THEORY,
)
from .tabular_worlds import GENERATED, WORLDS

NAME = "stochastic_q_tabular"
CLIFF = "CliffWalking-v1"
SCORES = ("last", "first_half", "reward", "value", "greedy_value", "met")
PLAY = {"last": "last tenth", "first_half": "first half", "reward": "reward of a step, last tenth"}
VALUES = {"policy": "value", "argmax": "greedy_value"}  # kind of policy -> its value
SHORTFALLS = ("omega", "beta", "beta_of_tables")
LIMITS = ("bias_phi", "rms_phi", "bias_optimum", "rms_optimum")
Found = dict[str, dict[str, Any]]  # part -> name -> result, with its settings, time and origin


def world_table(rows: Rows, world: str) -> str:
    """A row a method."""
    digits = 1 if world == CLIFF else 3
    what = "reward of a step" if world == GENERATED else "return of an episode"
    columns = {f"{what}, last tenth": ("last", digits), "first half": ("first_half", digits)}
    if world == CLIFF:  # where some seeds end no episode
        columns["reward of a step, last tenth"] = ("reward", 3)
    columns |= {
        "its policy's value, share of optimum": ("policy_share", 3),
        "arg max over all n": ("argmax_share", 3),
    }
    methods = dict.fromkeys(row["name"] for row in rows if row["part"] == world)
    lines = [
        [
            method,
            *(of_seeds(scores_of(rows, world, method, score), d) for score, d in columns.values()),
            f"{scores_of(rows, world, method, 'met').mean():.2f}",
        ]
        for method in methods
    ]
    return table(["method", *columns, "entries met"], lines)


def differences_table(rows: Rows) -> str:
    """Sampled methods beside exact ones, in all that the learner's play is measured by."""
    lines = []
    for world in WORLDS:
        for score, what in PLAY.items():
            if score == "reward" and world != CLIFF:
                continue
            digits = 1 if world == CLIFF and score != "reward" else 3
            cells = [difference(rows, world, pair, score, digits) for pair in PAIRS]
            lines.append([f"{world}, {what}", *(cell or "seeds without an episode" for cell in cells)])
    return table(["", *(f"{one} - {other}" for one, other in PAIRS)], lines)


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


def shortfall_table(rows: Rows) -> str:
    """omega and beta at the end of learning, in the world of 256 actions."""
    lines = []
    for method in dict.fromkeys(
        row["name"] for row in rows if row["part"] == GENERATED and row["beta"] != ""
    ):
        scores = {score: scores_of(rows, GENERATED, method, score) for score in SHORTFALLS}
        exact = scores["beta_of_tables"]
        cells = [of_seeds(scores["omega"], 3), of_seeds(scores["beta"], 3)]
        lines.append([method, *cells, of_seeds(exact, 3) if np.isfinite(exact).all() else ""])
    return table(["method", "omega", "beta", "E[beta] of the last tables, exactly"], lines)


def raw(found: Found) -> Rows:
    """A row a seed of each run of learning and of the limits, for the CSV."""
    rows = []
    for world in WORLDS:
        for method, run in found[world].items():
            r = run["result"]
            columns = {name: r[name] for name in SCORES}
            columns |= {f"{kind}_share": shares(found, world, r[value]) for kind, value in VALUES.items()}
            columns |= {x: mean_of_seeds(np.array(r[x])[-10:].T) for x in ("omega", "beta") if r[x]}
            columns |= {"beta_of_tables": r["beta_of_tables"]} if r["beta_of_tables"] else {}
            rows += rows_of(world, method, run, columns, {"optimum": r["optimum"]})
    for name, run in found["limits"].items():
        r = run["result"]
        columns = {key: r[key][-1] for key in LIMITS}
        rows += rows_of("limits", name, run, columns, {key: r[key] for key in ("gap", "bound")})
    return rows


def rows_of(part: str, name: str, run: Any, columns: dict[str, Any], same: dict[str, float]) -> Rows:
    """The rows of a run: columns (seeds,), and what is the same of all seeds."""
    every = (*SCORES, *(f"{kind}_share" for kind in VALUES), *SHORTFALLS, *LIMITS, "optimum", "gap", "bound")
    seeds, steps = run["settings"]["seeds"], run["settings"]["steps"]
    return [
        {"part": part, "name": name, "seed": seed, "steps": steps}
        | dict.fromkeys(every, "")
        | {key: float(values[seed]) for key, values in columns.items()}
        | same
        for seed in range(seeds)
    ]


def shares(found: Found, world: str, values: Any) -> np.ndarray:
    """Values of policies, (seeds,), where 0 is random play and 1 the optimum."""
    random = found[world]["random"]["result"]
    base = np.mean(random["value"])
    return (np.array(values) - base) / (random["optimum"] - base)


def summary(found: Found) -> dict[str, Any]:
    """What is drawn, for the JSON: means over seeds at each point."""
    kept: dict[str, Any] = {}
    for part, by_name in found.items():
        for name, run in by_name.items():
            r = run["result"]
            arrays = {
                key: rounded(mean_of_seeds(value))
                for key, value in r.items()
                if key in ("curve", "omega", "beta", *LIMITS) and value and isinstance(value[0], list)
            }
            if part == "fixed values":
                arrays = {
                    key: rounded(value) if isinstance(value, list) else value for key, value in r.items()
                }
            about = {key: run[key] for key in ("settings", "cpu_s", "made_by")}
            kept.setdefault(part, {})[name] = {**about, **arrays}
    return kept


def rounded(values: Any) -> list[float | None]:
    """Four digits of each, None where there is none: what a JSON can hold."""
    return [None if np.isnan(x) else round(x, 4) for x in np.asarray(values).tolist()]


def bullets(said: tuple[str, ...], rows: Rows) -> str:
    """A list, with its figures from the rows."""
    lines = [f"- {filled(' '.join(words.split()), rows)}" for words in said]
    return "\n".join(
        textwrap.fill(line, width=110, subsequent_indent="  ", break_on_hyphens=False) for line in lines
    )


def write_all(folder: Path, found: Found) -> None:
    """The page, its picture and its numbers.

    Raises:
        SystemExit: there are fewer runs than the page was made of.
    """
    published = folder / f"{NAME}.csv"
    rows = raw(found)
    refuse_to_lose_rows(published, len(rows))
    write_rows(published, rows)
    rows = read_rows(published)  # so that what the page says can be had from the CSV
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
        OF_THEORY.strip(),
        bullets(AGREES, rows),
        "How it learns beside the exact methods, for better or worse:",
        bullets(LEARNING, rows),
        f"![Learning, shortfalls and limits]({NAME}.png)",
        "## Learning",
        HOW_TO_READ.format(seeds=seeds).strip(),
    ]
    for world in WORLDS:
        text += [f"### {world}", world_table(rows, world)]
        if world == CLIFF:
            text += [OF_CLIFF.strip()]
    text += ["### Sampled beside exact", OF_DIFFERENCES.strip(), differences_table(rows)]
    text += ["## omega and beta", OF_SHORTFALLS.strip(), shortfall_table(rows)]
    text += [
        "On fixed values, independent and uniform on [0, 1], exploited round after round:",
        fixed_table(found),
    ]
    text += ["## Limits", OF_LIMITS.strip(), limits_table(found), NOTES.strip()]
    text += [
        f"Every seed's figures in the tables of learning and of the limits are in `{NAME}.csv`.\n"
        f"`{NAME}.json` has the curves, means over seeds, and the fixed values round by round."
    ]
    (folder / f"{NAME}.md").write_text("\n\n".join(text) + "\n")
    draw(folder / f"{NAME}.png", found)
