"""What is said of the figures of :mod:`.qdpo_speed`: tables, and the bounds set for them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from .action_scaling_page import table
from .minillm_page import read_rows

MOST_TIME, MOST_MEMORY, MOST_SIZE = 1.25, 1.005, 1.02

NOTES = """
One update of `QDPOTrainer` at 4 bits beside one of TRL's `DPOTrainer`: the same models (Qwen3's architecture,
random weights), the same ready pairs and losses, all replies of one length, and in both the reference's
log-probabilities made beforehand. The trainers take turns in one process, in another order each round, after
a round that is not timed; a turn is two updates. A ratio is that of two times of one round: the median over
rounds, with its quartiles. On a machine that others use, CPU time is the clock to quote.

The bounds are those this implementation is held to: an update may take 1.25 times as long as TRL's, and no
more memory than TRL's and another copy of the weights that are rounded. What rounding costs is in proportion
to the weights, and all the rest to weights times tokens: the fewer tokens a batch has, the higher the ratio.
"""

MEMORY = """
*Peak* is what a turn allocates at most, gradients and the optimizer's state included, beyond the model's
parameters and buffers, by torch's profiler. *Bound*: TRL's peak and the weights that are rounded. A batch of
ours also holds a mask and the teacher's scores: some kilobytes, which the half per cent is for.
"""

GENERATION = """
Greedy replies to a batch of prompts, as pairs are made; *weights rounded once* is what
`extensions.trl.qdpo.layers.cached_weights` does, the rounding counted in. CPU time, as a ratio to that of the
same model in full precision of the same round, median and quartiles.
"""

SIZES = """
Bytes of the quantized layers in the exported file, with scales and the shapes that its format keeps, over
bits x weights / 8 + scales.
"""


def claims(rows: list[dict[str, Any]], exported: list[dict[str, Any]]) -> str:
    """The bounds set for this implementation, and what was measured."""
    lines = []
    ours = [row for row in rows if row["rounded_bytes"]]
    for row in ours:
        measured = _with_quartiles(row, "cpu")
        what = f"time of an update, {row['trainer']}: {row['case']}"
        lines.append([what, measured, f"<= {MOST_TIME}", said(row["cpu_ratio"], MOST_TIME)])
    for row in ours:
        share = row["peak_bytes"] / bound(row, rows)
        what = f"peak memory over its bound, {row['trainer']}: {row['case']}"
        lines.append([what, f"{share:.4f}", "<= 1 + 0.005", said(share, MOST_MEMORY)])
    for row in exported:
        name = f"{row['bits']} bits, a scale per {_scale(row)}"
        off = max(row["ratio"], 1 / row["ratio"])
        lines.append([f"size of the export, {name}", f"{row['ratio']:.4f}", "1 ± 0.02", said(off, MOST_SIZE)])
    return table(["", "measured", "bound", ""], lines)


def said(found: float, most: float) -> str:
    return "within" if found <= most else "**beyond**"


def bound(row: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    """TRL's peak on the same case, and another copy of the weights that are rounded."""
    theirs = next(r for r in rows if r["case"] == row["case"] and r["rounded_bytes"] == 0)
    return theirs["peak_bytes"] + row["rounded_bytes"]


def _with_quartiles(row: dict[str, Any], clock: str) -> str:
    return f"{row[f'{clock}_ratio']:.2f} ({row[f'{clock}_q25']:.2f}-{row[f'{clock}_q75']:.2f})"


def _scale(row: dict[str, Any]) -> str:
    return "channel" if row["group_size"] == "channel" else f"{row['group_size']} inputs"


def updates(rows: list[dict[str, Any]]) -> str:
    """Every trainer of every case."""
    lines = []
    for row in rows:
        ratios = [
            f"{row[f'{c}_ratio']:.2f} ({row[f'{c}_q25']:.2f}-{row[f'{c}_q75']:.2f})" for c in ("cpu", "wall")
        ]
        times = [f"{row[f'{c}_ms']:.0f}" for c in ("cpu", "wall")]
        memory = [f"{row[name] / 1e6:.1f}" for name in ("model_bytes", "peak_bytes", "rounded_bytes")]
        lines.append([row["case"], row["trainer"], *times, *ratios, *memory])
    head = ["cpu time, ms", "wall time, ms", "ratio, cpu time", "ratio, wall time"]
    return table(["case", "", *head, "model, MB", "peak, MB", "rounded weights, MB"], lines)


def generation(rows: list[dict[str, Any]]) -> str:
    """Each case and way to read the weights."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        of = {
            who: [row["cpu_s"] for row in rows if (row["case"], row["weights"]) == (case, who)]
            for who in dict.fromkeys(row["weights"] for row in rows)
        }
        *others, base = of.values()
        for who, spent in zip(of, others, strict=False):
            ratios = [a / b for a, b in zip(spent, base, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            lines.append(
                [case, who, f"{1e3 * statistics.median(spent):.0f}", f"{middle:.2f} ({low:.2f}-{high:.2f})"]
            )
    return table(["case", "", "cpu time, ms", "ratio to full precision"], lines)


def exports(rows: list[dict[str, Any]]) -> str:
    """Each grid."""
    lines = [
        [
            str(row["bits"]),
            _scale(row),
            f"{row['weights']:,}",
            f"{row['scales']:,}",
            f"{row['file_bytes']:,}",
            f"{row['ratio']:.4f}",
            f"{row['float32_bytes'] / row['file_bytes']:.2f}",
        ]
        for row in rows
    ]
    head = ["bits", "a scale per", "weights", "scales", "bytes", "over bits x weights / 8 + scales"]
    return table([*head, "times smaller than float32"], lines)


def cases(of: dict[str, dict[str, Any]]) -> str:
    """What was run."""
    names = ("layers", "width", "vocabulary", "pairs", "prompt", "reply")
    return table(["case", *names], [[name, *(f"{case[x]:,}" for x in names)] for name, case in of.items()])


def write_page(out: Path) -> None:
    """The page, from the files beside it."""
    where = json.loads((out / "qdpo_speed_cpu.json").read_text())
    rows, exported = (read_rows(out / f"qdpo_speed_{name}.csv") for name in ("cpu", "sizes"))
    parts = [
        "# Time and memory of QDPO's step",
        "`OMP_NUM_THREADS=1 python -m recipes.bench.qdpo_speed`",
        NOTES.strip(),
        f"{where['where']}. {where['rounds']} rounds.",
        claims(rows, exported),
        "## An update",
        cases(where["cases"]),
        updates(rows),
        MEMORY.strip(),
        "## Generation",
        GENERATION.strip(),
        generation(read_rows(out / "qdpo_speed_generation_cpu.csv")),
        "## Size of the export",
        SIZES.strip(),
        exports(exported),
    ]
    (out / "qdpo_speed.md").write_text("\n\n".join(parts) + "\n")
