"""What is said of the figures of :mod:`.glasses_speed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .action_scaling_page import table
from .intervals import ratio_of_medians

Row = dict[str, Any]

SENSITIVITY = """
A random Llama; the Frobenius norm of the Jacobian of the last state by each of n tokens. *Exact* is a
backward pass for each of d features, those of K probes are estimates whose error is over tokens and 8
draws. Times are medians of CPU time, the two in turn.
"""

GAP = """
`representation_gap` of 8 pairs in float32 and bfloat16, with states of all layers, against the plain
forward passes of two models, one in each dtype, with the logits of the last token. Glasses has one model
and casts its parameters as they are used.
"""

MEMORY = """
What the gaps of 16 pairs add to the peak of a process, a Llama of width 256. Of longer sequences fewer go
into one forward, and what is kept of each is the state at one token. At one sequence a forward there is
nothing left to divide, and what grows is the model's own forward.
"""


def cost(row: Row, of: str, to: str) -> str:
    """A ratio of medians with its interval, from the two times of one row and their ratios."""
    ratios = [float(x) for x in str(row["ratios"]).split()]
    _, low, high = ratio_of_medians(ratios, [1.0])
    return f"{row[of] / row[to]:.2f} [{low:.2f}, {high:.2f}]"


def write_page(path: Path, rows: dict[str, list[Row]], about: str) -> None:
    """The page, from the rows of each part."""
    text = ["# What Glasses costs", f"`python -m recipes.bench.glasses_speed`, {about}."]
    text += ["## Estimated sensitivities", SENSITIVITY.strip()]
    text += [
        table(
            ["d, layers, n", "K", "mean error", "largest", "exact, s", "time / exact"],
            [
                [
                    f"{r['width']}, {r['layers']}, {r['n']}",
                    str(r["probes"]),
                    f"{r['mean_error']:.1%}",
                    f"{r['max_error']:.1%}",
                    f"{r['exact_s']:.2f}",
                    cost(r, "estimate_s", "exact_s"),
                ]
                for r in rows["sensitivity"]
            ],
        )
    ]
    text += ["## Gaps", GAP.strip()]
    text += [
        table(
            ["d, layers, n", "plain, s", "gap, s", "gap / plain"],
            [
                [
                    f"{r['width']}, {r['layers']}, {r['n']}",
                    f"{r['plain_s']:.3f}",
                    f"{r['gap_s']:.3f}",
                    cost(r, "gap_s", "plain_s"),
                ]
                for r in rows["gap"]
            ],
        )
    ]
    text += ["## Memory", MEMORY.strip()]
    text += [
        table(
            ["n", "pairs in a forward at most", "peak, MB"],
            [[str(r["n"]), str(r["chunk"]), f"{r['peak_mb']:.0f}"] for r in rows["memory"]],
        )
    ]
    text += ["## A whole report"]
    if rows["whole"]:
        (row,) = rows["whole"]
        text += [
            "`python -m recipes.bench.glasses_speed --whole`: the recipe as it is, two tasks and retrieval, "
            "a tokenizer that makes one token of an element and the space before it, lengths 8 to 2,048, a "
            f"Llama of {row['parameters'] / 1e6:.0f} M random parameters, {row['threads']} threads: "
            f"{row['report_wall_s'] / 60:.1f} minutes ({row['report_cpu_s'] / 60:.1f} of CPU time)."
        ]
    else:
        text += ["Not run yet: `python -m recipes.bench.glasses_speed --whole`."]
    text += ["## On a GPU", "Not run yet: `python -m recipes.bench.glasses_speed --device cuda`."]
    path.write_text("\n\n".join(text) + "\n")
