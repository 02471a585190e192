"""The picture that a run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_return(path: Path, result: dict[str, Any]) -> None:
    """Greedy and training return against steps, between random play and the optimum."""
    steps = [row["step"] for row in result["evaluations"]]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(steps, [row["greedy"] for row in result["evaluations"]], label="greedy policy", color="C0")
    axes.plot(steps, [row["training"] for row in result["evaluations"]], label="while learning", color="C1")
    if result["optimum"] is not None:
        axes.axhline(result["optimum"], color="C2", linestyle="--", label="oracle")
    axes.axhline(result["random"], color="grey", linestyle=":", label="random play")
    n = result["n_actions"]
    actions = "continuous actions" if n is None else f"{n:,} actions"
    axes.set_title(f"{result['algo']} on {result['env'].split('/')[-1]}, {actions}, seed {result['seed']}")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return of an episode")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_loss(path: Path, result: dict[str, Any]) -> None:
    """Loss above the source's own, on held-out text and while training, against steps."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, label in (("loss", "held out"), ("training", "while training")):
        points = [
            (e["step"], e[name] - result["floor"]) for e in result["evaluations"] if e[name] is not None
        ]
        axes.plot(*zip(*points, strict=True), label=label)
    axes.set_yscale("log")
    diverged = "" if result["diverged_at"] is None else f", diverged by step {result['diverged_at']:,}"
    axes.set_title(
        f"{result['optimizer']}, {result['parameters']:,} parameters, seed {result['seed']}{diverged}"
    )
    axes.set_xlabel("steps")
    axes.set_ylabel("nats a token above the least possible")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
