"""What is said of the figures of :mod:`.optimizers`: tables against what is asked, and a picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .action_scaling_page import table

NOTES = """
One call of `step()` over the same parameters and gradients. All take turns in one process, in another order
each round; a ratio is that of two times of one round, and the table has the median over the rounds
with its quartiles. On a machine that others use, CPU time is the steadier clock for one thread; for two,
which wait for each other, it is wall time. Both are in `optimizers_cpu.csv`, every single time in
`optimizers_cpu_raw.csv`.

**The floor.** A step of AdamW reads p, g, m, v and writes p, m, v: 28 bytes a float32 parameter. AdEMAMix
reads and writes one more moment: 36 bytes, so at the speed of memory it takes 9/7 = 1.286 of AdamW's time;
with beta1 = 0 there is no fast moment, and it takes the same. Kept beside the weights: 12 bytes a
parameter, 8 with beta1 = 0.

What is below the floor owes it to how memory is read: the C++ step prefetches across the borders of pages.
The for-loops of all are several times slower since each operation goes through memory anew; AdEMAMix's
foreach on a CPU takes each tensor a cache's worth at a time instead.

bitsandbytes' figures are of its CPU path, which is written for correctness; its CUDA kernels are another
matter.
"""

EIGHT_BIT = """
`python -m recipes.bench.eight_bit`: what a weight is off, root mean square, as a share of what they have
moved in float64; means over the seeds, one thread. The first column says what the gradients are. Training
adds its own noise, so this is not what a loss is off by; but it is no rounding error either.
"""

#: (device, threads, optimizer, clock) -> row of the CSV
Rows = dict[tuple[str, int, str, str], dict[str, Any]]
ASKED = [
    ("AdEMAMix, fused", 1.29),
    ("AdEMAMix, fused, beta1=0", 1.05),
]
ASKED_CUDA = [("AdEMAMix, fused", 1.35)]
FOREACH = "AdEMAMix, foreach"


def read(out: Path) -> Rows:
    """All rows that were measured, of any device."""
    rows: Rows = {}
    for path in sorted(out.glob("optimizers_*.csv")):
        if path.stem.endswith("_raw"):
            continue
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                rows[row["device"], int(row["threads"]), row["optimizer"], row["clock"]] = row
    return rows


def claims(rows: Rows, device: str, threads: int, clock: str) -> list[list[str]]:
    """What is asked, what was measured, and whether it holds."""
    lines = []
    for name, bound in ASKED if device == "cpu" else ASKED_CUDA:
        ratio = float(rows[device, threads, name, clock]["ratio"])
        verdict = "pass" if ratio <= bound else "**falls short**"
        lines.append([f"{name} / torch AdamW, fused", f"{ratio:.3f}", f"<= {bound}", verdict])
    mine = float(rows[device, threads, FOREACH, clock]["ratio"])
    others = {
        name: float(row["ratio"])
        for (d, t, name, c), row in rows.items()
        if (d, t, c) == (device, threads, clock) and name.endswith("foreach") and name != FOREACH
    }
    for name, ratio in others.items():
        verdict = "pass" if mine < ratio else "**falls short**"
        lines.append([f"{FOREACH} / {name}", f"{mine / ratio:.2f}", "< 1", verdict])
    return lines


def times(rows: Rows, device: str, threads: int) -> str:
    """Every optimizer with its ratios and what it keeps."""
    clocks = ["cpu", "wall"] if device == "cpu" else ["wall"]
    head = ["optimizer", *(f"{clock} time, ratio (quartiles)" for clock in clocks), "ms", "bytes a parameter"]
    lines = []
    for d, t, name, clock in rows:
        if (d, t, clock) != (device, threads, clocks[0]):
            continue
        of = [rows[device, threads, name, c] for c in clocks]
        ratios = [f"{float(r['ratio']):.2f} ({float(r['q25']):.2f}-{float(r['q75']):.2f})" for r in of]
        lines.append([name, *ratios, f"{float(of[0]['median_ms']):.1f}", f"{float(of[0]['bytes']):.2f}"])
    return table(head, lines)


def summary(rows: list[dict[str, Any]], device: str, threads: int) -> str:
    """The table of what was measured just now."""
    return times({(r["device"], r["threads"], r["optimizer"], r["clock"]): r for r in rows}, device, threads)


def draw(path: Path, rows: Rows, device: str) -> None:
    """Bars of the ratios, one thread, by the steadier clock."""
    clock = "cpu" if device == "cpu" else "wall"
    of = {n: float(r["ratio"]) for (d, t, n, c), r in rows.items() if (d, t, c) == (device, 1, clock)}
    names = sorted(of, key=lambda name: -of[name])
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(names) + 1), layout="constrained")
    colours = ["tab:blue" if "AdEMAMix" in n.split(",")[0].split(" ")[0] else "lightgrey" for n in names]
    axes.barh(names, [of[name] for name in names], color=colours)
    axes.axvline(9 / 7, color="black", linewidth=0.8, linestyle="--", label="9/7, the floor of AdEMAMix")
    axes.set(xscale="log", xlabel=f"{clock} time of a step as a multiple of torch's fused AdamW")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def eight_bit_errors(path: Path) -> str:
    """A line for each kind of gradients and length, a column for each optimizer."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            of_case = found.setdefault((row["case"], row["steps"]), {})
            of_case.setdefault(row["optimizer"], []).append(float(row["relative_error"]))
    names = list(next(iter(found.values())))
    return table(
        ["gradients", "steps", "seeds", *names],
        [
            [case, steps, str(len(of[names[0]])), *(f"{mean(of[name]):.1e}" for name in names)]
            for (case, steps), of in found.items()
        ],
    )


def write_page(out: Path) -> None:
    """The page and its pictures, from the files beside it."""
    rows = read(out)
    ran = {
        path.stem.removeprefix("optimizers_"): json.loads(path.read_text())
        for path in out.glob("optimizers_*.json")
    }
    parts = ["# Time of an optimizer's step", "`python -m recipes.bench.optimizers`", NOTES.strip()]
    for device in ("cpu", "cuda"):
        parts.append(f"## {'CPU' if device == 'cpu' else 'CUDA'}")
        if device not in ran:
            parts.append(
                "Not run yet: `python -m recipes.bench.optimizers --device cuda`. The Triton kernel\n"
                "compiles for compute capability 9.0 and has run under Triton's interpreter, where its\n"
                "arithmetic is right; of its speed nothing is known."
            )
            continue
        where = ran[device]
        rounds = next(row["rounds"] for (d, *_), row in rows.items() if d == device)
        peers = [f"{name} {version}" for name, version in where["peers"].items()]
        machine = [
            where["machine"],
            where["device"],
            f"Python {where['python']}",
            f"torch {where['versions']['torch']}",
        ]
        parts.append(
            f"{where['parameters'] / 1e6:.1f} million float32 parameters in {where['tensors']} tensors, "
            f"shaped as a decoder's; {rounds} rounds. Commit {where['commit']}, {where['day']}. "
            + "; ".join([*filter(None, machine), *peers])
            + "."
        )
        draw(out / f"optimizers_{device}.png", rows, device)
        parts.append(f"![{device}](optimizers_{device}.png)")
        for t in sorted({t for d, t, *_ in rows if d == device}):
            clock = "cpu" if device == "cpu" and t == 1 else "wall"
            parts.append(f"### {t} thread{'s' if t > 1 else ''}" if device == "cpu" else "### One device")
            parts.append(table(["ratio", f"{clock} time", "asked", ""], claims(rows, device, t, clock)))
            parts.append(times(rows, device, t))
    if (out / "eight_bit.csv").exists():
        parts += ["## 8-bit moments", EIGHT_BIT.strip(), eight_bit_errors(out / "eight_bit.csv")]
    (out / "optimizers.md").write_text("\n\n".join(parts) + "\n")
