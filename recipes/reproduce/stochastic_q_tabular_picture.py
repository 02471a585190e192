"""The picture of the runs of :mod:`.stochastic_q_tabular`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .stochastic_q_tabular_claims import mean_of_seeds
from .tabular_worlds import GENERATED, WORLDS


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Learning, omega and beta, closed forms and fixed points."""
    figure, axes = plt.subplots(2, 3, figsize=(17, 9), layout="constrained")
    for ax, (world, chosen) in zip(axes[0], WORLDS.items(), strict=True):
        for i, (method, run) in enumerate(found[world].items()):
            curve = mean_of_seeds(run["result"]["curve"])
            x = (np.arange(len(curve)) + 1) * (run["settings"]["steps"] // len(curve))
            family = i if method == "random" else i % 3
            style = {0: "--", 1: "-", 2: ":"}[i // 3] if method != "random" else "-."
            color = "grey" if method == "random" else f"C{family}"
            ax.plot(x, curve, label=method, color=color, linestyle=style)
        ax.set(xlabel="steps", title=f"{world}, gamma {chosen.gamma:g}")
        ax.set_ylabel("mean reward of a step" if world == GENERATED else "return of an episode, learning")
    axes[0, 0].legend(fontsize=8)
    axes[0, 1].set_ylim(-400, 0)

    for i, method in enumerate(("StochQ", "StochQ, no memory")):
        run = found[GENERATED][method]
        for name, style in (("omega", "-"), ("beta", "--")):
            curve = mean_of_seeds(run["result"][name])
            x = (np.arange(len(curve)) + 1) * (run["settings"]["steps"] // len(curve))
            axes[1, 0].plot(x, curve, style, label=f"{name}, {method}", color=f"C{i}")
    axes[1, 0].set(xlabel="steps", title=f"{GENERATED}, while learning")
    axes[1, 0].legend(fontsize=8)

    for i, run in enumerate(found["fixed values"].values()):
        r = run["result"]
        middle = axes[1, 1]
        middle.plot(r["rounds"], r["beta_with"], "o", markersize=3, color=f"C{i}")
        middle.plot(r["rounds"], r["beta_with_exact"], color=f"C{i}", label=f"n={r['n']}, memory")
        middle.plot(r["rounds"], r["beta_without"], ".", markersize=2, color=f"C{i}")
        middle.axhline(r["beta_without_exact"], color=f"C{i}", linestyle="--", label=f"n={r['n']}, no memory")
    middle.set(xlabel="rounds", ylabel="beta", title="Fixed uniform values: measured and closed form")
    middle.set(xscale="log", yscale="log")
    middle.legend(fontsize=8)

    for i, (name, run) in enumerate(found["limits"].items()):
        r = run["result"]
        for to, style in (("phi", "-"), ("optimum", ":")):
            rms = np.array(r[f"rms_{to}"]).mean(1)
            label = name if to == "phi" else None
            axes[1, 2].plot(r["steps"], rms, style, color=f"C{i}", label=label)
    axes[1, 2].set(xlabel="steps", ylabel="rms", yscale="log")
    axes[1, 2].set_title("Distance from the fixed point (line) and from Q* (dots)")
    axes[1, 2].legend(fontsize=8)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    plt.close(figure)
