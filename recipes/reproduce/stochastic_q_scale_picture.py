"""The picture of :mod:`.stochastic_q_scale`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ..bench.intervals import estimate, iqm
from ..bench.training_runs import in_last_third
from .stochastic_q_scale_plan import BASE, FAMILIES, LARGEST, actions, in_ablation, in_size

LOWEST = -0.1  # a policy may be worse than random by far

#: of a world, a method, and "greedy" or "training": (seeds, checkpoints)
Shares = Callable[[str, str, str], np.ndarray]


def plot(path: Path, shares: Shares) -> None:
    """A column a world: shares in the last third of the runs. Above against n, below with one thing changed
    at a time."""
    columns = len(FAMILIES)
    canvas, grid = plt.subplots(
        2, columns, figsize=(5.6 * columns, 8.4), layout="constrained", height_ratios=[2, 3], squeeze=False
    )
    for upper, lower, family, largest in zip(*grid, FAMILIES, LARGEST, strict=True):
        against_n(upper, family, shares)
        one_change_each(lower, largest, shares)
    canvas.savefig(path, dpi=80)
    plt.close(canvas)


def middle_of(found: np.ndarray) -> tuple[float, float, float]:
    """Interquartile mean of the seeds, and the ends of its interval."""
    point, (low, high) = estimate(iqm, in_last_third(found))
    return float(point[0]), float(low[0]), float(high[0])


def against_n(ax: Axes, family: str, shares: Shares) -> None:
    """A line a method over the sizes of a world: the greedy policy's, and dotted what training brought."""
    worlds = FAMILIES[family]
    for color, name in enumerate(dict.fromkeys(name for world in worlds for name in in_size(world))):
        for what, style in (("greedy", "o-"), ("training", ".:")):
            found = {actions(world): shares(world, name, what) for world in worlds}
            known = {n: middle_of(scores) for n, scores in found.items() if scores.size}
            if not known:
                continue
            middle, low, high = np.array(list(known.values())).T
            ax.plot(list(known), middle, style, color=f"C{color}", label=name if what == "greedy" else None)
            if what == "greedy":
                ax.fill_between(list(known), low, high, color=f"C{color}", alpha=0.15, linewidth=0)
    if ax.lines:
        ax.legend(fontsize=8, loc="lower left")
    ax.set_xscale("log")
    ax.set_ylim(LOWEST, 1.05)
    ax.set_title(family)
    ax.set_xlabel("actions")
    ax.set_ylabel("share, random 0, oracle 1")
    ax.grid(alpha=0.3)


def one_change_each(ax: Axes, world: str, shares: Shares) -> None:
    """A row a change: the seeds' greedy policies and their interquartile mean with its interval, and what
    training brought (a hollow diamond)."""
    names = [BASE, *(name for rows in in_ablation(world).values() for name in rows)]
    for y, name in enumerate(names):
        found = shares(world, name, "greedy")
        if not found.size:
            continue
        middle, low, high = middle_of(found)
        color = "C3" if name == BASE else "C0"
        ax.plot([low, high], [y, y], color=color, linewidth=4, alpha=0.4)
        ax.plot(middle, y, "o", color=color)
        ax.plot(in_last_third(found).clip(LOWEST), [y] * len(found), "|", color="black", markersize=9)
        ax.plot(middle_of(shares(world, name, "training"))[0], y, "D", color="black", fillstyle="none")
        if name == BASE:
            ax.axvline(middle, color=color, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set_title(f"{world}, one thing changed at a time", fontsize=9)
    ax.set_xlabel("share, random 0, oracle 1")
    ax.grid(alpha=0.3, axis="x")
