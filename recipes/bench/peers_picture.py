"""The picture of :mod:`.peers`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .intervals import iqm
from .peers_plan import METHODS, WORLDS
from .peers_runs import runs_of, shares

LOWEST = -0.1  # a policy may be worse than random by far


def plot(path: Path) -> None:
    """A column a world: shares against steps, and against the CPU time of training."""
    columns = len(WORLDS)
    canvas, grid = plt.subplots(
        2, columns, figsize=(3.6 * columns, 6.4), layout="constrained", sharey=True, squeeze=False
    )
    for (upper, lower), world in zip(grid.T, WORLDS, strict=True):
        for color, (name, method) in enumerate(METHODS.items()):
            if not method.learns:
                continue
            runs = runs_of(world, name)
            scores = shares(world, runs)  # (seeds, checkpoints)
            if not scores.size:
                continue
            middle = [iqm(scores[:, [i]])[0] for i in range(scores.shape[1])]
            for ax, what in ((upper, "steps"), (lower, "cpu_s")):
                x = np.array([[at[what] for at in run["records"]] for run in runs])
                ax.plot(x.T, scores.T, color=f"C{color}", alpha=0.2, linewidth=1)
                ax.plot(np.median(x, axis=0), middle, color=f"C{color}", linewidth=2, label=method.title)
        upper.set_title(world, fontsize=9)
        upper.set_xlabel("environment steps")
        lower.set_xlabel("CPU s of training")
        for ax in (upper, lower):
            ax.set_ylim(LOWEST, 1.05)
            ax.axhline(1.0, color="grey", linestyle="--", linewidth=1)
            ax.grid(alpha=0.3)
    grid[0, 0].set_ylabel("share, random 0, oracle 1")
    grid[1, 0].set_ylabel("share, random 0, oracle 1")
    handles = {
        label: line for ax in grid.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if handles:
        canvas.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    canvas.savefig(path, dpi=80)
    plt.close(canvas)
