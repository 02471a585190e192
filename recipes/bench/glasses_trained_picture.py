"""The picture of :mod:`.glasses_trained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from . import glasses_trained_plan as plan
from .glasses_decoder import POSITIONS
from .glasses_questions import TASKS
from .glasses_trained_plan import ARMS
from .glasses_trained_rows import CHANCE, Case, Row, cases, curves
from .intervals import estimate


def plot(path: Path, rows: list[Row]) -> None:
    """Answers by remedy and by positions, margins in both precisions, gaps of both kinds of pairs."""
    canvas, axes = plt.subplots(4, 3, figsize=(15, 17), layout="constrained")
    for column, task in enumerate(TASKS):
        _accuracies(axes[0, column], rows, [(task, "rope", arm) for arm in ARMS])
        axes[0, column].set_title(f"{task}, RoPE")
        _accuracies(axes[1, column], rows, [(task, positions, "plain") for positions in POSITIONS])
        axes[1, column].set_title(f"{task}, no remedy")
        _gaps(axes[3, column], rows, task)
    for column, task in enumerate(("copy_first", "copy_last")):
        _margins(axes[2, column], rows, task)
    _shares(axes[2, 2], rows)
    canvas.savefig(path, dpi=90)
    plt.close(canvas)


def _band(ax: Any, lengths: list[int], values: np.ndarray, color: str, label: str, style: str = "-") -> None:
    """The mean over seeds, and its 95% bootstrap interval."""
    mean, (low, high) = estimate(lambda x: x.mean(0), values)
    ax.plot(lengths, mean, style, color=color, label=label)
    ax.fill_between(lengths, low, high, color=color, alpha=0.15, linewidth=0)


def _accuracies(ax: Any, rows: list[Row], wanted: list[Case]) -> None:
    for i, case in enumerate(wanted):
        if case in cases(rows):
            lengths, right = curves(rows, case, "right_float32")
            label = ARMS[case[2]].title if len(wanted) == len(ARMS) else plan.NAMES[case[1]]
            _band(ax, lengths, right, f"C{i}", label)
    ax.axhline((1 + CHANCE[wanted[0][0]]) / 2, color="grey", linestyle=":")
    ax.axvline(plan.LONGEST, color="grey", linewidth=0.8)
    ax.set_xscale("log", base=2)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("digits (vertical line: longest of training)")
    ax.set_ylabel("share of right answers")
    ax.legend(fontsize="small")


def _margins(ax: Any, rows: list[Row], task: str) -> None:
    """Every seed, in float32 and, dashed, in bfloat16."""
    for i, positions in enumerate(POSITIONS):
        case = (task, positions, "plain")
        if case in cases(rows):
            for style, dtype in zip(("-", "--"), plan.DTYPES, strict=True):
                lengths, values = curves(rows, case, f"margin_of_0_{dtype}")
                for seed, row in enumerate(values):
                    label = f"{plan.NAMES[positions]}, {dtype}" if seed == 0 else None
                    ax.plot(lengths, row, style, color=f"C{i}", alpha=0.7, label=label)
    ax.axhline(0, color="grey", linestyle=":")
    ax.set_xscale("log", base=2)
    ax.set_title(f"{task}, no remedy, a line a seed")
    ax.set_xlabel("digits")
    ax.set_ylabel("logit of 0 less that of 1, when 0 is right")
    ax.legend(fontsize="small")


def _shares(ax: Any, rows: list[Row]) -> None:
    """Median share of the copied digit's sensitivity."""
    for style, task in zip(("-", "--"), ("copy_first", "copy_last"), strict=True):
        for i, positions in enumerate(POSITIONS):
            case = (task, positions, "plain")
            if case in cases(rows):
                lengths, share = curves(rows, case, "share")
                ax.plot(
                    lengths,
                    np.median(share, 0),
                    f"o{style}",
                    color=f"C{i}",
                    label=f"{task}, {plan.NAMES[positions]}",
                )
    ax.plot(
        plan.SENSITIVITY_LENGTHS,
        1 / (np.array(plan.SENSITIVITY_LENGTHS) + 2),
        ":",
        color="grey",
        label="1 / tokens",
    )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_title("share of the sensitivity, no remedy, median")
    ax.set_xlabel("digits")
    ax.set_ylabel("of the digit to be copied")
    ax.legend(fontsize="small")


def _gaps(ax: Any, rows: list[Row], task: str) -> None:
    """Median gaps of n against n + 1 and, dashed, n + 3."""
    for i, arm in enumerate(("plain", "left", "right", "filler")):
        case = (task, "nope", arm)
        if case in cases(rows):
            for style, kind in (("-", "next"), ("--", "matched")):
                lengths, gap = curves(rows, case, f"gap_{kind}")
                more = {"next": "n + 1", "matched": "n + 3"}[kind]
                ax.plot(lengths, np.median(gap, 0), style, color=f"C{i}", label=f"{ARMS[arm].title}, {more}")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_title(f"gap of ones, {task}, no positions, median")
    ax.set_xlabel("digits")
    ax.set_ylabel("largest feature of the difference")
    ax.legend(fontsize="x-small")
