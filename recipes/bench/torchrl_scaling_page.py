"""What is said of the figures of :mod:`.torchrl_scaling`: tables against what is asked."""

from __future__ import annotations

import importlib.metadata
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

from recipes.bench.action_scaling_page import grid, machine, table
from recipes.bench.intervals import ratio_of_medians

NOTES = """
`torchrl_dqn` is TorchRL's `QValueActor`, `EGreedyModule`, `DQNLoss`, `HardUpdate` and `torch.optim.Adam`,
with categorical actions. `row`, `low_rank` (rank 32) and `feature` are `StochQValueActor`,
`StochEGreedyModule`, `StochDQNLoss`, this package's `HardUpdate` and `RowAdam`, with that head and
`candidates="log"`: 2 ceil(log2 n) candidates a state, 20 at n = 10^3 and 40 at n = 10^6. `low_rank_40`
has 40 at every n, so that what grows with n in its row is not the number of candidates but what it costs
to look at rows of a larger table.

An act is the policy on 64 observations of 17 floats, exploring in one of ten; an update is loss,
backward, clipping, optimizer and target updater on 256 transitions, smooth L1, the target copied after
every 200 updates, in a network of 256 and 256 hidden units, float32, eager. Cells take turns, a slice of
time each a round; the machine is shared, so on a CPU the time to quote is CPU time, and wall time stands
beside it in the CSV, both with quartiles. Rows are warm: those of the 50,000 replayed actions, which
the timed batches are drawn from, were trained before. A replay row is what the actor writes for a state.

A figure is the ratio of two medians over turns, of the median call of each turn, with a 95% bootstrap
interval over turns. *Asked* is what we had set out for. A figure passes, or falls short, if the whole
interval does; else what is asked lies within the noise. TorchRL's update at 10^6 was called so few times
only as the CSV says: it takes that long.
"""


#: (agent, n, quantity) -> the median of each turn
Turns = dict[tuple[str, int, str], list[float]]
Claim = tuple[str, tuple[float, float, float], str, float | None]


def claims(turns: Turns, clock: str) -> list[Claim]:
    """What is asked, the figure with the ends of its interval, and its bound, where both were measured."""
    act, update = f"act_{clock}_s", f"update_{clock}_s"
    asked: list[tuple[str, Any, Any, str, float | None]] = []
    for head in ("row", "low_rank", "low_rank_40", "feature"):
        asked.append(
            (f"update, {head}, n = 10^6 / 10^3", (head, 10**6, update), (head, 10**3, update), "<=", 1.2)
        )
    for head in ("row", "low_rank", "feature"):
        pair = ("torchrl_dqn", 10**6, update), (head, 10**6, update)
        asked.append((f"update at n = 10^6, TorchRL's DQN / {head}", *pair, ">=", 500.0))
        pair = ("torchrl_dqn", 10**6, act), (head, 10**6, act)
        asked.append((f"act at n = 10^6, TorchRL's DQN / {head}", *pair, "", None))
        rows = (head, 10**6, "replay_row_bytes"), (head, 10**2, "replay_row_bytes")
        asked.append((f"bytes of a replay row, {head}, n = 10^6 / 10^2", *rows, "<=", 1.0))
    return [
        (what, ratio_of_medians(turns[a], turns[b]), sign, bound)
        for what, a, b, sign, bound in asked
        if a in turns and b in turns
    ]


def claims_table(turns: Turns, clock: str) -> str:
    """The claims as a table."""
    rows = []
    for what, (x, low, high), sign, bound in claims(turns, clock):
        asked = "" if bound is None else f"{sign} {bound:g}"
        rows.append([what, f"{x:.3g} [{low:.3g}, {high:.3g}]", asked, verdict(low, high, sign, bound)])
    return table(["figure", "measured [95% interval]", "asked", ""], rows)


def verdict(low: float, high: float, sign: str, bound: float | None) -> str:
    """Whether all of an interval is on the side that is asked for."""
    if bound is None:
        return ""
    good = [x <= bound if sign == "<=" else x >= bound for x in (low, high)]
    return "pass" if all(good) else "within the noise" if any(good) else "**falls short**"


def write_page(out: Path, rows: list[dict[str, Any]], device: str) -> None:
    """The page, from the rows of the device that was measured."""
    m = {(r["agent"], r["n"], r["quantity"]): r["median"] for r in rows}
    turns = {(r["agent"], r["n"], r["quantity"]): [float(x) for x in str(r["turns"]).split()] for r in rows}
    clock = "wall" if device == "cuda" else "cpu"
    commit = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True).stdout.strip()
    versions = f"torchrl {importlib.metadata.version('torchrl')}"
    text = ["# TorchRL: time against the number of actions"]
    text += [f"`python -m recipes.bench.torchrl_scaling`, commit {commit}, {date.today()}.", NOTES.strip()]
    text += [f"## {device.upper()}", f"{machine(device)}; {versions}.", claims_table(turns, clock)]
    for what in ("act", "update"):
        text += [f"### One {what}, ms of {clock} time", grid(m, f"{what}_{clock}_s", 1e3, True)]
    text += ["### A replay row, bytes", grid(m, "replay_row_bytes", 1.0, True)]
    if device != "cuda":
        text += ["## CUDA", "Not run: there was no GPU, and nothing is claimed."]
    (out / "torchrl_scaling.md").write_text("\n\n".join(text) + "\n")
    print(claims_table(turns, clock))
