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
from .stochastic_q_scale_plan import BASE, FAMILIES, LARGEST, actions, in_ablation, in_size

LOWEST = -0.1  # a policy may be worse than random by far

#: of a world and a method: (seeds, checkpoints)
Shares = Callable[[str, str], np.ndarray]


def plot(path: Path, shares: Shares) -> None:
    """A column a world. Above, the share at the end against n; below, with one thing changed at a time."""
    columns = len(FAMILIES)
    canvas, grid = plt.subplots(
        2, columns, figsize=(4.6 * columns, 8.4), layout="constrained", height_ratios=[2, 3], squeeze=False
    )
    for upper, lower, family, largest in zip(*grid, FAMILIES, LARGEST, strict=True):
        against_n(upper, family, shares)
        one_change_each(lower, largest, shares)
    canvas.savefig(path, dpi=80)
    plt.close(canvas)


def at_the_end(found: np.ndarray) -> tuple[float, float, float]:
    """Interquartile mean of the seeds, and the ends of its interval."""
    point, (low, high) = estimate(iqm, found[:, -1:])
    return float(point[0]), float(low[0]), float(high[0])


def against_n(ax: Axes, family: str, shares: Shares) -> None:
    """A line a method, over the sizes of a world."""
    worlds = FAMILIES[family]
    for color, name in enumerate(dict.fromkeys(name for world in worlds for name in in_size(world))):
        known = [(actions(world), found) for world in worlds if (found := shares(world, name)).size]
        if known:
            middle, low, high = np.array([at_the_end(found) for _, found in known]).T
            x = [n for n, _ in known]
            ax.fill_between(x, low, high, color=f"C{color}", alpha=0.15, linewidth=0)
            ax.plot(x, middle, "o-", color=f"C{color}", label=name)
            ax.legend(fontsize=8, loc="lower left")
    ax.set_xscale("log")
    ax.set_ylim(LOWEST, 1.05)
    ax.set_title(family)
    ax.set_xlabel("actions")
    ax.set_ylabel("share, random 0, oracle 1")
    ax.grid(alpha=0.3)


def one_change_each(ax: Axes, world: str, shares: Shares) -> None:
    """A row a change: its seeds, and their interquartile mean with its interval."""
    names = [BASE, *(name for rows in in_ablation(world).values() for name in rows)]
    for y, name in enumerate(names):
        found = shares(world, name)
        if not found.size:
            continue
        middle, low, high = at_the_end(found)
        color = "C3" if name == BASE else "C0"
        ax.plot([low, high], [y, y], color=color, linewidth=4, alpha=0.4)
        ax.plot(middle, y, "o", color=color)
        ax.plot(found[:, -1].clip(LOWEST), [y] * len(found), "|", color="black", markersize=9)
        if name == BASE:
            ax.axvline(middle, color=color, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(LOWEST - 0.02, 1.05)
    ax.set_title(f"{world}, one thing changed at a time", fontsize=9)
    ax.set_xlabel("share at the end")
    ax.grid(alpha=0.3, axis="x")
