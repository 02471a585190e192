"""The picture of :mod:`.glasses_grpo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .glasses_grpo_plan import ARMS, DTYPES, SETTINGS

LINES = {"float32": "-", "bfloat16": "--"}
MARKERS = {"float32": "o", "bfloat16": "x"}


def plot(path: Path, runs: list[dict[str, Any]]) -> None:
    """A column a setting: reward while training, under its ceiling; what was told against what came."""
    settings = [name for name in SETTINGS if any(run["setting"] == name for run in runs)]
    canvas, grid = plt.subplots(
        2, len(settings), figsize=(4.2 * len(settings), 7), layout="constrained", squeeze=False
    )
    for (upper, lower), setting in zip(grid.T, settings, strict=True):
        for color, arm in enumerate(ARMS):
            for dtype in DTYPES:
                found = [
                    run for run in runs if (run["setting"], run["arm"], run["dtype"]) == (setting, arm, dtype)
                ]
                if found:
                    _training(
                        upper, found, f"C{color}", LINES[dtype], ARMS[arm] if dtype == "float32" else None
                    )
                    told = [run["before"]["ceilings"]["snr"] for run in found]
                    came = [run["after"]["expected_reward"] for run in found]
                    lower.scatter(told, came, color=f"C{color}", marker=MARKERS[dtype], s=18)
        upper.set_title(SETTINGS[setting].title, fontsize="medium")
        upper.set_xlabel("updates of GRPO")
        upper.set_ylim(0, 1.02)
        lower.plot([0, 1], [0, 1], color="grey", linestyle=":")
        lower.set_xlim(0, 1.04)
        lower.set_ylim(0, 1.04)
        lower.set_xlabel("ceiling by SNR, before GRPO")
        for ax in (upper, lower):
            ax.grid(alpha=0.3)
    grid[0, 0].set_ylabel("exact reward of samples")
    grid[1, 0].set_ylabel("expected exact reward, after")
    grid[0, 0].legend(fontsize="small")
    canvas.suptitle("solid, circles: float32; dashed, crosses: bfloat16; dotted: ceiling", fontsize="small")
    canvas.savefig(path, dpi=90)
    plt.close(canvas)


def _training(ax: Any, runs: list[dict[str, Any]], color: str, line: str, label: str | None) -> None:
    """Means over seeds: reward as TRL logged it, and the ceiling by SNR."""
    entries = [[entry for entry in run["history"] if "reward" in entry] for run in runs]
    steps = [entry["step"] for entry in entries[0]]
    ax.plot(
        steps, np.mean([[e["reward"] for e in one] for one in entries], 0), color=color, ls=line, label=label
    )
    ax.axhline(np.mean([run["before"]["ceilings"]["snr"] for run in runs]), color=color, linestyle=":")
