"""The picture of :mod:`.radt_dial`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .radt_dial_plan import ALL_ARMS, ASKED, COMPARED, DATA, DISTRACTED, DT, DT_WIDE, HORIZON, RADT, Rates
from .radt_dial_runs import EACH, errors, runs_of


def plot(path: Path, rates: Rates) -> None:
    """Second halves, the way there, and the errors of all arms."""
    canvas, (halves, curves, arms) = plt.subplots(
        1, 3, figsize=(16, 6), layout="constrained", width_ratios=(1, 1, 1.1)
    )
    _plot_halves(halves, rates)
    _plot_curves(curves, rates)
    _plot_arms(arms, rates)
    canvas.savefig(path, dpi=100)
    plt.close(canvas)


def _plot_halves(ax: Any, rates: Rates) -> None:
    """What the second half was asked for and brought, a line a seed."""
    half = HORIZON / 2
    ax.plot([0, half], [0, half], color="grey", linestyle="--", label="as asked")
    ax.plot([0, half], [half, 0], color="grey", linestyle=":", label="going on as before")
    for color, arm in (("C0", RADT), ("C1", DT)):
        for i, run in enumerate(runs_of(arm, DISTRACTED, rates)):
            if run["flipped"] is not None:
                asked, brought = (np.reshape(run[key], (-1, EACH)).mean(1) for key in ("asked", "brought"))
                ax.plot(asked, brought, ".-", color=color, alpha=0.6, label=None if i else COMPARED[arm])
    ax.set_title(f"second half, after the turn\n({DISTRACTED})")
    ax.set_xlabel("asked for")
    ax.set_ylabel("brought, a line a seed")
    ax.legend()


def _plot_curves(ax: Any, rates: Rates) -> None:
    """Errors after the turn on the way, a line a seed."""
    for style, data in zip(("-", "--"), DATA, strict=True):
        for color, arm in (("C0", RADT), ("C1", DT)):
            for i, run in enumerate(runs_of(arm, data, rates)):
                steps, error = zip(*((at["step"], at["flipped"]) for at in run["curve"]), strict=True)
                ax.plot(
                    steps,
                    error,
                    style,
                    color=color,
                    alpha=0.6,
                    label=None if i else f"{COMPARED[arm]}, {data}",
                )
    ax.axhline(ASKED, color="grey", linestyle=":")
    ax.set_yscale("log")
    ax.set_title("error after the turn / (T / 2)")
    ax.set_xlabel("updates")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")


def _plot_arms(ax: Any, rates: Rates) -> None:
    """Errors after the turn at the end, a dot a seed."""
    arms = {DT: COMPARED[DT], DT_WIDE: COMPARED[DT_WIDE], **ALL_ARMS}
    for i, arm in enumerate(arms):
        found = errors(runs_of(arm, DISTRACTED, rates), "flipped")[:, 0]
        ax.plot(found, np.full(len(found), i), "o", color="C1" if arm in (DT, DT_WIDE) else "C0", alpha=0.6)
    ax.axvline(ASKED, color="grey", linestyle=":")
    ax.set_yticks(range(len(arms)), list(arms.values()), fontsize="small")
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_title(f"error after the turn / (T / 2), a dot a seed\n({DISTRACTED})")
    ax.grid(alpha=0.3)
