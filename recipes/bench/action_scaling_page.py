"""What is said of the figures of :mod:`.action_scaling`: tables against what is asked, and a picture."""

from __future__ import annotations

import operator
import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import stable_baselines3
import torch
from matplotlib.ticker import NullFormatter

NOTES = """
An act is `model.predict(obs, deterministic=False)` of one observation with no exploration; an update is
`model.train(gradient_steps=1)`, from a replay of 50,000 transitions whose actions are uniform over n. The
agents are the real classes: `sb3_dqn` is SB3's `DQN`; `row`, `low_rank` (rank 32) and `feature` are
`StochDQN` with that head and `candidates="log"`; `exact_*` have `candidates="all"`, so `exact_action_in` is
the feature head over all n, in batches; `auto` has `head="auto"` and `candidates="auto"`. net_arch [256,
256], batch 32, observations of 17 floats, float32.

Cells take turns, a slice of time each a round, after one call untimed in each turn. Rows are warm: those
that the replay names were trained before. The machine is shared, so on a CPU the time to quote is CPU time;
wall-clock time is beside it in the CSV, both with quartiles. Peak memory is that of a fresh process
(`VmHWM`) that makes the agent, warms its rows, then acts and updates; its replay is 8 MB. Rows that no
action of the replay names take no memory yet. When every row has been met, the tables (online, target and
Adam's moments) are 4.1 GB for `row` and 0.51 GB for `low_rank` at n = 10^6. The first update of a row also
has new pages to fault in, which is not in these figures.

`head="auto"` and `candidates="auto"` change over at 512 actions (`DENSE_BELOW`, `EXACT_UP_TO`). The update
with n outputs becomes the dearer one between 256 and 512 actions, the act at several thousand; one update and
four acts, SB3's `train_freq`, come to about the same at 512. An agent that acts far more often than it learns
does well to give `head="linear", candidates="all"` up to a few thousand actions.
"""

#: (agent, n, quantity) -> median
Medians = dict[tuple[str, int, str], float]
HEADS = ("row", "low_rank", "feature")


def claims(m: Medians, clock: str) -> list[tuple[str, float, str, float]]:
    """What is asked, the figure and its bound, where all that it takes was measured."""
    act, update = f"act_{clock}_s", f"update_{clock}_s"
    asked: list[tuple[str, tuple[str, int, str], tuple[str, int, str], str, float]] = []
    for head in HEADS:
        for what, key in (("act", act), ("update", update)):
            bound = 1.5 if head == "low_rank" else 2.0
            asked += [
                (f"{what}, {head}, n = 10^6 / 10^3", (head, 10**6, key), (head, 10**3, key), "<=", bound)
            ]
    for head in HEADS:
        pair = ("sb3_dqn", 10**6, update), (head, 10**6, update)
        asked += [(f"update at n = 10^6, SB3's DQN / {head}", *pair, ">=", 1000.0)]
    for head in (*HEADS, "auto"):
        pair = (head, 10**3, update), ("sb3_dqn", 10**3, update)
        asked += [(f"update at n = 10^3, {head} / SB3's DQN", *pair, "<=", 1.0)]
    ratios = [(what, m[a] / m[b], sign, bound) for what, a, b, sign, bound in asked if a in m and b in m]
    peaks = [("low_rank", 6, 1.0), ("feature", 6, 0.5), ("feature", 9, 1.0)]
    return ratios + [
        (f"peak memory, {head}, n = 10^{d}, GB", m[head, 10**d, "peak_rss"] / 1e9, "<", bound)
        for head, d, bound in peaks
        if (head, 10**d, "peak_rss") in m
    ]


def claims_table(m: Medians, clock: str) -> str:
    holds = {"<=": operator.le, ">=": operator.ge, "<": operator.lt}
    return table(
        ["figure", "measured", "asked", ""],
        [
            [what, f"{x:.3g}", f"{sign} {bound:g}", "pass" if holds[sign](x, bound) else "**falls short**"]
            for what, x, sign, bound in claims(m, clock)
        ],
    )


def grid(m: Medians, quantity: str, scale: float, decades: bool) -> str:
    """Agents down; n across, either the powers of ten or the others."""
    keys = [(a, n) for a, n, q in m if q == quantity and (n in {10**d for d in range(10)}) == decades]
    agents, ns = list(dict.fromkeys(a for a, _ in keys)), sorted({n for _, n in keys})
    return table(
        ["agent", *(f"{n:,}" for n in ns)],
        [[a, *(f"{m[a, n, quantity] * scale:.3g}" if (a, n) in keys else "" for n in ns)] for a in agents],
    )


def crossovers(m: Medians, quantity: str) -> str:
    """Up to which measured n SB3's DQN, dense and exact, is cheaper than each head with its candidates."""
    dense = {n: x for (agent, n, q), x in m.items() if agent == "sb3_dqn" and q == quantity}
    parts = []
    for head in HEADS:
        cheaper = [n for n, x in dense.items() if x < m.get((head, n, quantity), 0.0)]
        parts.append(f"`{head}` " + (f"up to n = {max(cheaper):,}" if cheaper else "nowhere"))
    return f"A dense head with its exact maximum (`sb3_dqn`) is cheaper than {', '.join(parts)}."


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def machine(device: str) -> str:
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    parts = [f"{cpu.group(1) if cpu else platform.processor()}, {os.cpu_count()} cores"]
    parts += [torch.cuda.get_device_name()] if device == "cuda" else []
    parts += [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    parts += [f"stable-baselines3 {stable_baselines3.__version__}", f"{torch.get_num_threads()} thread"]
    return "; ".join(parts)


def write_page(path: Path, medians: dict[str, Medians]) -> None:
    """The page, from the medians of each device."""
    commit = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True).stdout.strip()
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "extensions"]).returncode:
        commit += " with changes"
    text = ["# Time and memory against the number of actions"]
    text += [f"`python -m recipes.bench.action_scaling`, commit {commit}, {date.today()}."]
    text += [NOTES.strip()]
    for device, m in medians.items():
        clock = "cpu" if device == "cpu" else "wall"
        text += [f"## {device.upper()}", f"{machine(device)}.", f"![{device}](action_scaling_{device}.png)"]
        text += [claims_table(m, clock)]
        for what in ("act", "update"):
            key = f"{what}_{clock}_s"
            text += [f"### One {what}, ms of {clock} time", grid(m, key, 1e3, True), grid(m, key, 1e3, False)]
            text += [crossovers(m, key)]
        text += ["### Peak memory, GB", grid(m, "peak_rss", 1e-9, True)]
        text += ["Over that of a process that only imported:", grid(m, "peak_rss_over_imports", 1e-9, True)]
        if device == "cuda":
            text += ["On the GPU:", grid(m, "peak_cuda", 1e-9, True)]
    if "cuda" not in medians:
        text += ["## CUDA", "Not run: there was no GPU, and nothing is claimed."]
    path.write_text("\n\n".join(text) + "\n")


def draw(path: Path, rows: list[dict[str, Any]], device: str) -> None:
    clock, peak = ("cpu", "peak_rss") if device == "cpu" else ("wall", "peak_cuda")
    panels = {
        f"act_{clock}_s": f"one act, s of {clock} time",
        f"update_{clock}_s": f"one update, s of {clock} time",
        peak: "peak memory, bytes",
    }
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.5), layout="constrained")
    agents = [a for a in dict.fromkeys(r["agent"] for r in rows) if a != "auto"]
    for ax, (quantity, title) in zip(axes, panels.items(), strict=True):
        for color, agent in enumerate(agents):
            wanted = (device, agent, quantity)
            found = [r for r in rows if (r["device"], r["agent"], r["quantity"]) == wanted]
            found.sort(key=lambda r: r["n"])
            n, q25, median, q75 = ([r[key] for r in found] for key in ("n", "q25", "median", "q75"))
            ax.plot(n, median, marker="o", markersize=3, color=f"C{color}", label=agent)
            ax.fill_between(n, q25, q75, color=f"C{color}", alpha=0.2)
        ax.set(xscale="log", yscale="log", xlabel="number of actions n", title=title)
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(alpha=0.3)
    axes[2].set_ylim(1e8, 1e10)  # whole decades, which the axis names
    axes[0].legend()
    figure.suptitle(f"StochDQN and SB3's DQN, {machine(device)}; medians and quartiles")
    figure.savefig(path, dpi=110)
    plt.close(figure)
