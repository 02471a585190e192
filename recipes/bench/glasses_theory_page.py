"""What is said of the figures of :mod:`.glasses_theory`: tables and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from extensions.glasses.statistics import critical_length

from .action_scaling_page import table
from .glasses_layer import POSITIONS

Row = dict[str, Any]

#: exponents that follow from weights of about 1 / n: what is predicted, and of which kind it is
PREDICTED = {
    ("nope", "ones"): "-2",
    ("nope", "random"): "-3/2",
    ("rope", "ones"): "-1",
    ("rope", "random"): "-1/2",
    ("steep_alibi", "random"): "0",
    ("learned", "ones"): "0",
    ("learned", "random"): "0",
}
RESAMPLES = 2000

NOTES = """
A pair is n tokens against n + 1, the last one repeated: *ones* are all the same token, behind 8 random
ones; *random* tokens are all different but for the last. Gaps are L1, d = 64, behind the norm; exponents
are the slopes of log(mean gap) against log n with a bootstrap interval over seeds.

**Why these exponents.** One more token changes the weights of the others, about 1 / n each, by a share 1 /
n. Without positions the weight of the prefix is 8 / n and changes by 8 / n^2: exponent -2. What changes
along the last token itself falls away behind the norm, since the residual points there too. The mean of
random values is n^-1/2 long and so is what is left of it: -3/2. With rotary positions one more token moves
all the others by one place, and every score changes: -1 for what stands out from the run, and -1/2 for
random values, which is how a mean of n random things moves, and no collapse of the theorem's kind.

**Where there is no collapse.** Steep ALiBi sees some twenty tokens, whatever n is: random sequences that
differ there stay apart, and a prefix beyond them is out of sight, so that the gap of its run of ones is 0.
Vectors that are learned for each place and added to the values are different for n and n + 1, always. ALiBi
of slope 2^-8 sees some hundred tokens and lies between. So it is not true of every positional encoding that
gaps fall alike.

**Without a prefix** all tokens are alike, attention returns their one value whatever its weights, and both
sequences have the same state.

**Precision.** What a model's head reads is one state with all its rounding, so n* is the first tested
length from which on the gap in float64 is below the rounding of a state in that dtype (left of the slash).
Rounding does not fall with n, as the gap does. Part of it is the same on both sides of a pair, which end in
the same token; what a dtype changes in the difference of the two states, its distortion, has an n* of its
own (right of the slash). In float16 and bfloat16 the two are about the same: the difference itself is lost,
and where distortion falls later on it is because both sides have become the same number. For float8 they
are far apart: it is simulated by rounding weights, which is the same on both sides, and the computation is
in float32.
"""

PATHS = """
*Paths* are the row of the product of A / beta + I (theorem 5.1 without its constants), *frozen* the
Jacobian without the derivative of the attention weights, as the theorem assumes, *full* the true one. Llama
of 6 layers, d = 64, 96 random tokens, weights N(0, std^2).

Where attention is flat, the theorem's picture is right: paths have the rank order of the Jacobian, and the
weights hardly depend on the inputs. Where attention is sharp, most of the Jacobian goes through the
weights, which the theorem leaves out. With all of the model's constants in it, `lipschitz_bound` was never
exceeded; it lies far above.
"""


def values(rows: list[Row], key: str) -> list[Any]:
    """What there is, in the order of the rows."""
    return list(dict.fromkeys(r[key] for r in rows))


def by_seed(rows: list[Row], quantity: str = "gap", **wanted: Any) -> tuple[list[int], np.ndarray]:
    """Lengths, and values of (seeds, lengths)."""
    chosen = [r for r in rows if all(r[key] == value for key, value in wanted.items())]
    lengths, seeds = values(chosen, "n"), values(chosen, "seed")
    found = {(r["seed"], r["n"]): r[quantity] for r in chosen}
    return lengths, np.array([[found[s, n] for n in lengths] for s in seeds], dtype=float)


def exponent(lengths: list[int], gaps: np.ndarray) -> tuple[float, float, float]:
    """Slope of log(mean over seeds) on log n, and its 95% bootstrap interval over seeds; NaN where a mean is
    0."""
    draws = np.random.default_rng(0).integers(len(gaps), size=(RESAMPLES, len(gaps)))
    means = np.concatenate((gaps.mean(0, keepdims=True), gaps[draws].mean(1)))
    if (means < 1e-12).any():
        return (float("nan"),) * 3
    x = np.log(lengths)
    x = x - x.mean()
    slopes = np.log(means) @ x / (x @ x)
    low, high = np.quantile(slopes[1:], (0.025, 0.975))
    return float(slopes[0]), float(low), float(high)


def exponents(rows: list[Row]) -> str:
    """A row a kind of positions and family."""
    lines = []
    for positions in POSITIONS:
        for family in ("ones", "random"):
            lengths, gaps = by_seed(rows, positions=positions, family=family)
            slope, low, high = exponent(lengths, gaps)
            lines.append(
                [
                    positions.replace("_", " "),
                    family,
                    f"{gaps[:, 0].mean():.2g}",
                    f"{gaps[:, -1].mean():.2g}",
                    "none: 0" if np.isnan(slope) else f"{slope:.2f} [{low:.2f}, {high:.2f}]",
                    PREDICTED.get((positions, family), ""),
                ]
            )
    lengths = values(rows, "n")
    head = ["positions", "family", f"gap, n = {lengths[0]}", f"n = {lengths[-1]}", "exponent", "predicted"]
    return table(head, lines)


def without_prefix(rows: list[Row]) -> str:
    """The largest gap of ones alone, where positions are not in the values."""
    largest = {p: by_seed(rows, positions=p, family="no prefix")[1].max() for p in POSITIONS}
    return ", ".join(f"{p.replace('_', ' ')} {x:.1g}" for p, x in largest.items())


def critical(rows: list[Row], positions: str, family: str, dtype: str) -> str:
    """n* of the mean gap over the mean rounding, and over the mean distortion."""
    lengths, gaps = by_seed(rows, positions=positions, family=family, dtype="float64")
    cells = []
    for kind in ("rounding", "distortion"):
        noise = by_seed(rows, kind, positions=positions, family=family, dtype=dtype)[1]
        found = critical_length(lengths, (gaps.mean(0) < noise.mean(0)).tolist())
        cells.append(f"> {lengths[-1]:,}" if found.censored == "right" else f"{found.length:,.0f}")
    return " / ".join(cells)


def floors(rows: list[Row]) -> str:
    """A row a dtype: its rounding, and n* of each case."""
    cases = [(p, f) for p in values(rows, "positions") for f in values(rows, "family")]
    lines = []
    for dtype in [x for x in values(rows, "dtype") if x != "float64"]:
        noise = [by_seed(rows, "rounding", positions=p, family=f, dtype=dtype)[1].mean() for p, f in cases]
        label = f"{dtype}, simulated" if dtype.startswith("float8") else dtype
        lines.append([label, f"{np.mean(noise):.2g}", *(critical(rows, p, f, dtype) for p, f in cases)])
    return table(["dtype", "rounding, L1", *(f"n*, {p}, {f}" for p, f in cases)], lines)


def jacobians(rows: list[Row]) -> str:
    """A row a sharpness; medians over seeds, and the range."""

    def cell(std: float, key: str) -> str:
        found = [r[key] for r in rows if r["std"] == std]
        return f"{np.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"

    keys = ["entropy", "spearman_full", "spearman_frozen", "frozen_over_full", "u_index", "log_ratio_median"]
    head = [
        "std",
        "entropy of a row, nats",
        "Spearman paths, full",
        "paths, frozen",
        "frozen / full",
        "U index",
    ]
    return table(
        [*head, "ln(bound / frozen)", "bound exceeded"],
        [
            [
                f"{std:g}",
                *(cell(std, key) for key in keys),
                f"{sum(r['violations'] for r in rows if r['std'] == std)}",
            ]
            for std in values(rows, "std")
        ],
    )


def write_page(path: Path, gaps: list[Row], rounded: list[Row], paths: list[Row], about: str) -> None:
    """The page, from all rows."""
    seeds = len(values(gaps, "seed"))
    text = ["# Collapse and over-squashing without training"]
    text += [f"`python -m recipes.bench.glasses_theory`, {about}. {seeds} seeds; all weights are random."]
    text += ["## Gaps in float64", exponents(gaps)]
    text += [f"Ones alone, without a prefix, largest gap over all lengths and seeds: {without_prefix(gaps)}."]
    text += ["![Gaps, precision and paths](glasses_theory.png)", NOTES.strip()]
    text += ["## Floors of precision", floors(rounded)]
    text += ["## Paths and the Jacobian", jacobians(paths), PATHS.strip()]
    path.write_text("\n\n".join(text) + "\n")


def draw(path: Path, gaps: list[Row], rounded: list[Row], paths: list[Row]) -> None:
    """Gaps by positions, gaps against rounding, frozen and path correlation against sharpness."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for i, positions in enumerate(POSITIONS):
        for family, style in (("ones", "-"), ("random", "--")):
            lengths, found = by_seed(gaps, positions=positions, family=family)
            label = positions.replace("_", " ") if family == "ones" else None
            left.loglog(lengths, found.mean(0), style, color=f"C{i}", label=label)
    left.set(
        title="gap in float64: ones (solid), random (dashed)", xlabel="n", ylabel="L1 gap", ylim=(1e-7, 300)
    )
    left.legend(loc="lower left")
    lengths, found = by_seed(rounded, positions="nope", family="ones", dtype="float64")
    middle.loglog(lengths, found.mean(0), "k", label="gap in float64")
    for i, dtype in enumerate(x for x in values(rounded, "dtype") if x != "float64"):
        kind = {"positions": "nope", "family": "ones", "dtype": dtype}
        middle.loglog(lengths, by_seed(rounded, "distortion", **kind)[1].mean(0), f"C{i}", label=dtype)
        middle.loglog(lengths, by_seed(rounded, "rounding", **kind)[1].mean(0), f"C{i}:")
    middle.set(title="no positions, ones; distortion (solid), rounding (dotted)", xlabel="n", ylabel="L1")
    middle.legend(loc="lower left")
    stds = values(paths, "std")
    for key, label in (
        ("spearman_full", "Spearman of paths and Jacobian"),
        ("frozen_over_full", "frozen / full Jacobian"),
    ):
        right.plot(
            stds, [np.median([r[key] for r in paths if r["std"] == s]) for s in stds], "o-", label=label
        )
    right.set(title="a random Llama", xlabel="std of its weights", ylim=(0, 1.1))
    right.legend()
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
