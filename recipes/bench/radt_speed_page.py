"""What is said of the figures of :mod:`.radt_speed`: tables, and the bounds set for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .action_scaling_page import table
from .minillm_page import read_rows
from .radt_speed_cases import AT_ONCE, AT_ONCE_CACHED, BY_HAND, GATHER, RADT, RADT_RELU, SLIDING

ROWS, ABOUT = "radt_speed_{device}.csv", "radt_speed_{device}.json"

#: part, contestant, how its cases end, what it is, and how many times as fast it is to be at least
CLAIMS = (
    ("updates", RADT, "", "updates a second, to those of DTActor", 1.0),
    ("full windows", SLIDING, "K 20, batch 64", "steps from the cache, to whole windows", 5.0),
    ("evaluation", AT_ONCE_CACHED, "", "targets all at once, from a cache, to a plain loop", 20.0),
    ("evaluation", AT_ONCE, "", "targets all at once, on whole windows, to a plain loop", 20.0),
)

NOTES = """
How many times as fast one thing is as another, beside which it ran: both take turns in one process, in
another order each round, after a round that is not timed. A ratio is that of two times of one round: the
median over rounds, with its quartiles. On a machine that others use, CPU time is the clock to quote.
"""

PARTS = {
    "updates": (
        "Updates",
        "ms an update",
        """
`RADTActor` beside TorchRL's `DTActor` of equal width, depth, context and batch, one head each: loss,
gradients, clipping and AdamW (fused). `RADTActor` has times and a mask, as in the paper, and the paper's
GELU; `DTActor` has ReLU, TorchRL's default, which takes less time, and *{RADT_RELU}* has it too.
RADT has two tokens a step where DT has three, but each of its layers has a second attention, and modulations.
On a CPU its dropout draws fewer random numbers than torch's; without dropout that advantage is gone.
""",
    ),
    "full windows": (
        "A step with full windows",
        "ms a step",
        """
`RADTPolicy` in the middle of episodes. Without a cache each step computes the window anew, 2 K tokens; with
`cache="sliding"` two, of an actor trained with `attention_window=K`.
""",
    ),
    "first steps": (
        "The first K steps",
        "ms a step",
        """
From the first step of an episode to the K-th, during which no window slides and `cache="exact"` has a cache.
Windows are short then: half of K on average.
""",
    ),
    "evaluation": (
        "Evaluation of targets",
        "ms an episode",
        """
*{BY_HAND}*: one episode after another, and at each step the actor on the last K steps.
*{AT_ONCE}*: an environment for each episode, all stepped in turn on one core, and the
actor on all of them. Milliseconds are of one episode. Of what is played one at a time a few episodes are
timed, not all 700: ten of the dial, two of HalfCheetah, a turn. Models have D 64, 2 layers, K 10.
""",
    ),
    "windows": (
        "Windows of the dataset",
        "ms a batch",
        """
*{GATHER}* gathers a batch in one operation; the loop slices, pads and stacks sample by sample, in
numpy, with the same law.
""",
    ),
}

Rows = list[dict[str, Any]]


def spread(row: dict[str, Any], name: str, digits: str) -> str:
    """A median with its quartiles."""
    low, median, high = (f"{float(row[key]):{digits}}" for key in (f"{name}_q25", name, f"{name}_q75"))
    return f"{median} ({low}-{high})"


def claims(rows: Rows, clock: str) -> str:
    """The bounds set for this implementation, and what was measured."""
    lines = []
    for part, who, case, what, bound in CLAIMS:
        for row in rows:
            if (
                (row["part"], row["clock"]) == (part, clock)
                and row["who"] == who
                and row["case"].endswith(case)
            ):
                verdict = "reached" if float(row["ratio"]) >= bound else "**missed**"
                lines.append(
                    [f"{what}: {row['case']}", spread(row, "ratio", ".2f"), f">= {bound:g}", verdict]
                )
    return table(["times as fast", "measured", "bound", ""], lines)


def part_table(rows: Rows, part: str, unit: str, clocks: tuple[str, ...]) -> str:
    """Every contestant of every case."""
    lines = []
    for row in rows:
        if (row["part"], row["clock"]) != (part, clocks[0]):
            continue
        same = [
            other
            for clock in clocks
            for other in rows
            if [other[key] for key in ("part", "case", "who")] == [part, row["case"], row["who"]]
            and other["clock"] == clock
        ]
        cells = [spread(one, "ms", ".3g") for one in same] + [spread(one, "ratio", ".2f") for one in same]
        lines.append([row["case"], row["who"], *cells])
    head = [f"{unit}, {clock}" for clock in clocks] + [f"times as fast, {clock}" for clock in clocks]
    return table(["", "", *head], lines)


def write_page(out: Path) -> None:
    """The page, from the files beside it."""
    names = {"RADT_RELU": RADT_RELU, "BY_HAND": BY_HAND, "AT_ONCE": AT_ONCE, "GATHER": GATHER}
    said = ["# Speed of RADT", "`python -m recipes.bench.radt_speed`", NOTES.strip()]
    for device in ("cpu", "cuda"):
        said.append(f"## {'CPU' if device == 'cpu' else 'CUDA'}")
        if not (out / ROWS.format(device=device)).exists():
            said.append(f"Not run yet: `python -m recipes.bench.radt_speed --device {device}`.")
            continue
        rows = read_rows(out / ROWS.format(device=device))
        where = json.loads((out / ABOUT.format(device=device)).read_text())["made_by"]
        clocks = ("cpu", "wall") if device == "cpu" else ("wall",)
        rounds = {row["part"]: row["rounds"] for row in rows}
        said += [
            f"{where}. {rounds['updates']} rounds, {rounds['evaluation']} of the evaluation.",
            claims(rows, clocks[0]),
        ]
        for part, (title, unit, notes) in PARTS.items():
            said += [f"### {title}", notes.strip().format(**names), part_table(rows, part, unit, clocks)]
    (out / "radt_speed.md").write_text("\n\n".join(said) + "\n")
