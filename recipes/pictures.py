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


def plot_distillation(path: Path, result: dict[str, Any]) -> None:
    """What students and teacher came to, and how the student's errors accumulate along its answers."""
    shown = [
        (name, title)
        for name, title in (
            ("reverse_kl", "KL(student || teacher), nats an answer"),
            ("forward_kl", "KL(teacher || student), nats an answer"),
            ("valid", "share of right answers"),
            ("rouge_l", "Rouge-L with an answer"),
        )
        if name in result["scores"]["student"]
    ]
    figure, axes = plt.subplots(
        1, len(shown) + 1, figsize=(3.2 * (len(shown) + 1), 3.4), layout="constrained"
    )
    for ax, (name, title) in zip(axes, shown, strict=False):
        for i, (who, scores) in enumerate(result["scores"].items()):
            ax.bar(
                who.replace("_", " "), scores[name], yerr=scores.get(f"{name}_se"), color=f"C{i}", capsize=3
            )
        ax.set_title(title, fontsize="medium")
    for i, (who, scores) in enumerate(result["scores"].items()):
        if who != "teacher":
            lengths = range(1, len(scores["exposure"]) + 1)
            values = [float("nan") if x is None else x for x in scores["exposure"]]
            axes[-1].plot(lengths, values, label=who.replace("_", " "), color=f"C{i}")
    axes[-1].set_title("excess accumulated error, %", fontsize="medium")
    axes[-1].set_xlabel("tokens")
    axes[-1].legend()
    for ax in axes:
        ax.grid(alpha=0.3)
    figure.suptitle(f"{result['method']}, {result['updates']:,} updates, seed {result['seed']}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_quantized(path: Path, result: dict[str, Any]) -> None:
    """How long replies agree with the full-precision model's, and what else became of the quantized model."""
    shown = [
        (name, title)
        for name, title in (
            ("flip_rate", "share of flipped tokens"),
            ("forward_kl", "KL(full precision || policy), nats a token"),
            ("reverse_kl", "KL(policy || full precision), nats a token"),
            ("rubric", "worth of a reply"),
        )
        if name in result["scores"]["trained"]
    ]
    width = len(shown) + 1
    figure, axes = plt.subplots(1, width, figsize=(3.2 * width, 3.4), layout="constrained")
    for i, (who, scores) in enumerate(result["scores"].items()):
        lengths = [int(k) for k in scores["agreement_at"]]
        axes[0].plot(lengths, scores["agreement_at"].values(), marker="o", label=who, color=f"C{i}")
        for ax, (name, _) in zip(axes[1:], shown, strict=True):
            ax.bar(who, scores[name], color=f"C{i}")
    for ax, (_, title) in zip(axes, [("", "share of replies that agree so far"), *shown], strict=True):
        ax.set_title(title, fontsize="medium")
        ax.grid(alpha=0.3)
    axes[0].set_xlabel("tokens")
    axes[0].set_ylim(0, 1.02)
    axes[0].legend()
    figure.suptitle(f"{result['method']}, {result['bits']} bits, seed {result['seed']}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_alignment(path: Path, result: dict[str, Any]) -> None:
    """Returns against the targets they were asked for, and the line where they would be equal."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained", sharey=True)
    for ax, name in zip(panels, ("last", "selected"), strict=True):
        targets, returns = result[name]["targets"], result[name]["returns"]
        ax.plot(targets, targets, color="grey", linestyle="--", label="as asked")
        ax.axvspan(*result["range"], color="grey", alpha=0.12, label="5th to 95th percentile of the data")
        for target, row in zip(targets, returns, strict=True):
            ax.scatter([target] * len(row), row, s=8, alpha=0.4, color="C0")
        means = [sum(row) / len(row) for row in returns]
        ax.plot(targets, means, marker="o", color="C0", label="mean return")
        error = result[name]["normalised"]["in_range"]["error_of_mean"]
        ax.set_title(f"{name} checkpoint: error {error:.3f} of the range", fontsize="medium")
        ax.set_xlabel("return asked for")
        ax.grid(alpha=0.3)
    panels[0].set_ylabel("return of an episode")
    panels[0].legend(fontsize="small")
    figure.suptitle(
        f"{result['actor'].upper()} on {result['dataset']}, {result['steps']:,} steps, seed {result['seed']}"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
