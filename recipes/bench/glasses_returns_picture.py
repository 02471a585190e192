"""The picture of :mod:`.glasses_returns`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .glasses_returns_plan import COLLECTED, CONTEXTS, DT, INDEPENDENT, RADT, SHUFFLED
from .glasses_returns_runs import Found, values
from .intervals import iqm

COLORS = {COLLECTED: "C0", INDEPENDENT: "C2", SHUFFLED: "C3"}
STYLES = {DT: "-", RADT: "--"}


def plot(path: Path, runs: Found) -> None:
    """Shares before and after, what a return does, and how policies follow a turn, a dot a seed."""
    canvas, (shares, shifts, errors) = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    for arm in STYLES:
        _line(
            shares,
            runs,
            arm,
            COLLECTED,
            "init",
            "newest_token",
            color="grey",
            label=f"{arm.title}, before training",
        )
    if first := values(runs, DT, COLLECTED, CONTEXTS[0], "init", "newest_token"):
        shares.plot(CONTEXTS, np.mean(first) / np.array(CONTEXTS), ":", color="black", label="1 / K")
    for data in (COLLECTED, INDEPENDENT):
        for arm in STYLES:
            _line(shares, runs, arm, data, "trained", "newest_token", label=f"{arm.title}, {data}")
    for data in COLORS:
        for arm in STYLES:
            _line(shifts, runs, arm, data, "trained", "shift_newest", label=f"{arm.title}, {data}")
            _line(errors, runs, arm, data, "turned_error", label=f"{arm.title}, {data}")
    for ax, title in (
        (shares, "share of the newest return's token"),
        (shifts, "action moved by the newest return + 1 std"),
        (errors, "error after the turn / (T / 2)"),
    ):
        ax.set_title(title)
        ax.set_xscale("log")
        ax.set_xticks(CONTEXTS, [str(k) for k in CONTEXTS])
        ax.minorticks_off()
        ax.set_xlabel("steps in sight, K")
        ax.grid(alpha=0.3)
    if runs:
        shares.set_yscale("log")
        shares.set_ylim(1e-5, 1.5)
    for ax in (shares, shifts):
        ax.legend(fontsize="small")
    canvas.savefig(path, dpi=100)
    plt.close(canvas)


def _line(
    ax: Any, runs: Found, arm: Any, data: str, *names: str, label: str, color: str | None = None
) -> None:
    """Interquartile means over seeds by context, where there are runs, and each seed."""
    color = color or COLORS[data]
    found = {k: x for k in CONTEXTS if (x := values(runs, arm, data, k, *names))}
    ax.plot(list(found), [iqm(np.array(x))[0] for x in found.values()], STYLES[arm], color=color, label=label)
    for k, x in found.items():
        ax.plot([k] * len(x), x, ".", color=color, alpha=0.4)
