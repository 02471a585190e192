"""What is said of the times of :mod:`.stochastic_q_time`: tables, what they come to, and a picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..bench.action_scaling_page import table
from ..bench.minillm_page import read_about, read_rows
from ..bench.published import filled
from .stochastic_q_control_plan import authors_batch

PAGE, NAME = "stochastic_q_deep", "stochastic_q_deep_time"
#: ways to look at a set of candidates, and the names of the agents that do so
WAYS = {
    "a forward each, compared in Python": "python loop",
    "a forward each, compared in torch": "loop",
    "one batch": "batch",
}
N_OUTPUTS = "SB3's DQN, n outputs"
#: n -> how many times as long a step takes with all n, as a summary of the paper reports it
PUBLISHED = {1_000: 60.0, 4_096: 8.5}

#: (agent, n, quantity) -> median and quartiles of CPU time, in ms
Times = dict[tuple[str, int, str], tuple[float, float, float]]


def times(rows: list[dict[str, Any]]) -> Times:
    """CPU times of the CSV."""
    return {
        (row["agent"], row["n"], row["quantity"].removesuffix(", cpu s")): (
            1e3 * row["median"],
            1e3 * row["q25"],
            1e3 * row["q75"],
        )
        for row in rows
        if row["quantity"].endswith(", cpu s")
    }


def own_update(n: int) -> str:
    """The name of the update of 2 log2 n transitions."""
    return f"update of {authors_batch(n)}"


def step(t: Times, agent: str, n: int) -> float | None:
    """ms of an act and an update of 2 log2 n; None where one was not measured."""
    parts = [t.get((agent, n, quantity)) for quantity in ("act", own_update(n))]
    return None if None in parts else sum(part[0] for part in parts if part is not None)


def looped(t: Times) -> list[int]:
    """The n with which all n were gone through in Python."""
    return sorted({n for _, n, _ in t if step(t, "python loop, all n", n) is not None})


def times_as_long(t: Times, n: int, slow: str, fast: str) -> float:
    """One agent's step over another's, both measured."""
    before, after = step(t, slow, n), step(t, fast, n)
    if before is None or after is None:
        raise ValueError(f"{slow!r} and {fast!r} were not both measured at n = {n:,}: run without --report")
    return before / after


def parts_table(t: Times) -> str:
    """A step with all n and with a sample, in each way."""
    lines = []
    for n in looped(t):
        for way, name in WAYS.items():
            cells = [f"{n:,}", way, f"{step(t, f'{name}, all n', n):,.3g}"]
            for sampled in (f"{name}, sampled", f"{name}, sampled, one action in M"):
                ms = step(t, sampled, n)
                ratio = "" if ms is None else f"{times_as_long(t, n, f'{name}, all n', sampled):.1f}"
                cells += ["" if ms is None else f"{ms:,.3g}", ratio]
            lines.append(cells)
        lines.append([f"{n:,}", "n outputs (SB3's DQN)", f"{step(t, N_OUTPUTS, n):,.3g}", "", "", "", ""])
    head = ["n", "how", "all n, ms", "sampled, ms", "ratio", "sampled, one action in M, ms", "ratio"]
    return table(head, lines)


def made_of(t: Times, n: int) -> str:
    """What the ratio in the loop consists of."""
    k = authors_batch(n) // 2

    def ratio(name: str, sampled: str = "sampled") -> float:
        return times_as_long(t, n, f"{name}, all n", f"{name}, {sampled}")

    def saved(which: str, fast: str) -> float:
        return times_as_long(t, n, f"python loop, {which}", f"{fast}, {which}")

    loop, batch = ratio("python loop"), ratio("batch")
    said = [
        f"**n = {n:,}.** With a forward for each candidate, compared in Python, a step over all n takes "
        f"{loop:.1f} times as long as one over {3 * k} candidates (n / {3 * k} is {n / (3 * k):.1f}). When M "
        f"holds a single action {k + 1} are left, and it is "
        f"{ratio('python loop', 'sampled, one action in M'):.1f} times (n / {k + 1} is {n / (k + 1):.1f})."
    ]
    if n in PUBLISHED:
        said.append(f"A summary of the paper reports {PUBLISHED[n]:g} at this n.")
    said.append(
        f"In one batch, with the same network, the two are {batch:.1f} times apart: acts "
        f"{batched(t, n, 'act'):.1f}, updates {batched(t, n, own_update(n)):.1f}. Without the "
        f"loop the step over all n is {saved('all n', 'batch'):.1f} times faster and the sampled one "
        f"{saved('sampled', 'batch'):.1f} times; without only the comparisons in Python, "
        f"{saved('all n', 'loop'):.1f} and {saved('sampled', 'loop'):.1f} times."
    )
    dense, sampled = step(t, N_OUTPUTS, n), step(t, "StochDQN", n)
    if dense is not None and sampled is not None:
        said.append(
            f"SB3's DQN with n outputs takes {dense:.2f} ms, StochDQN of `extensions.sb3` {sampled:.2f} ms."
        )
    return " ".join(said)


def batched(t: Times, n: int, quantity: str) -> float:
    """All n over sampled, in batch."""
    return t["batch, all n", n, quantity][0] / t["batch, sampled", n, quantity][0]


def growth(t: Times) -> str:
    """What it costs that the batch grows with log n."""
    sizes = sorted({n for _, n, _ in t})
    first, last = sizes[0], sizes[-1]
    said = []
    for name in ("python loop, sampled", "batch, sampled", "StochDQN"):
        own = t[name, last, own_update(last)][0] / t[name, first, own_update(first)][0]
        fixed = t[name, last, "update of 32"][0] / t[name, first, "update of 32"][0]
        said.append(f"`{name}` {own:.2f} times (with a batch of 32 at both: {fixed:.2f})")
    return (
        f"**The batch** of 2 log2 n transitions goes from {authors_batch(first)} at n = {first:,} to "
        f"{authors_batch(last)} at {last:,}. With it an update takes so much longer: {'; '.join(said)}."
    )


def grid(t: Times, quantity: str | None) -> str:
    """Agents down, n across; ``None`` is the update of 2 log2 n. Median [quartiles]."""
    sizes = sorted({n for _, n, _ in t})
    lines = []
    for agent in dict.fromkeys(agent for agent, _, _ in t):
        cells = [t.get((agent, n, quantity or own_update(n))) for n in sizes]
        said = ["" if c is None else f"{c[0]:,.3g} [{c[1]:,.3g}, {c[2]:,.3g}]" for c in cells]
        if any(said):
            lines.append([agent, *said])
    return table(["agent", *(f"{n:,}" for n in sizes)], lines)


def draw(path: Path, t: Times) -> None:
    """An act and an update against n."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.6), layout="constrained", sharey=True)
    sizes = sorted({n for _, n, _ in t})
    agents = [agent for agent in dict.fromkeys(agent for agent, _, _ in t) if "one action" not in agent]
    for axis, title in zip(axes, ("one act", "one update of 2 log2 n transitions"), strict=True):
        for color, agent in enumerate(agents):
            quantity = {n: "act" if title == "one act" else own_update(n) for n in sizes}
            there = [n for n in sizes if (agent, n, quantity[n]) in t]
            middle, low, high = zip(*(t[agent, n, quantity[n]] for n in there), strict=True)
            style = "-" if "sampled" in agent or agent == "StochDQN" else "--"
            axis.plot(there, middle, style, marker="o", markersize=3, color=f"C{color}", label=agent)
            axis.fill_between(there, low, high, color=f"C{color}", alpha=0.2)
        axis.set(xscale="log", yscale="log", xlabel="number of actions n", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms of CPU time")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def report(folder: Path) -> None:
    """Write the times into the page, from the CSV beside it."""
    t = times(read_rows(folder / f"{NAME}.csv"))
    text = [
        f"{read_about(folder / f'{NAME}.json')}.",
        parts_table(t),
        *(textwrap.fill(made_of(t, n), 118) for n in looped(t)),
        textwrap.fill(growth(t), 118),
        "### An act, ms",
        grid(t, "act"),
        "### An update of 2 log2 n transitions, ms",
        grid(t, None),
        "### An update of 32, ms",
        grid(t, "update of 32"),
        "### An update of 64, ms",
        grid(t, "update of 64"),
    ]
    page = folder / f"{PAGE}.md"
    page.write_text(filled(page.read_text(), {"time": "\n\n".join(text)}))
    draw(folder / f"{NAME}.png", t)
