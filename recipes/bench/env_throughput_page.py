"""What is said of the figures of :mod:`.env_throughput`: what is asked, then every door in a table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from .action_scaling_page import table

NOTES = """
Millions of steps a second, median over the rounds with quartiles; for one environment thousands. One
contestant after the other gets a slice of time in each round, in one process, after an untimed turn. On one
thread of a CPU it is processor time, else wall time.

A step of gymnasium's doors is `env.step` with what it checks, and the resets that the ends of episodes ask
for. A bare step is the dynamics in torch and the observation after it, without a reset: what a loop of one's
own would call. A rollout is TorchRL's, of 16 steps with uniform actions, auto-resets and its stack of
tensordicts, the state of the world among them. Compiled means `torch.compile` of the bare step, and TorchRL's
own `compile={"warmup": 3}` of the rollout.

Each world has some 10^6 actions, and its default arguments. The compiled rollout is timed for one world: it
takes seconds to minutes to compile. Worlds whose state has two axes (SlateRec, Mastermind,
JointReplenishment, BatchSchedule) are slower in large vectors than in ones that fit a cache, and slow alone.
"Asked" is what the project set itself. All of it takes some ten minutes.
"""
DOORS = ("gymnasium, one", "gymnasium, vector", "torch, bare step", "torch, step only", "TorchRL, rollout")
CARTPOLE = "gymnasium's CartPole"

#: (device, door, world, mode, batch) -> row of the CSV
Rows = dict[tuple[str, str, str, str, int], dict[str, Any]]


def keyed(rows: list[dict[str, Any]]) -> Rows:
    return {(r["device"], r["door"], r["world"], r["mode"], int(r["batch"])): r for r in rows}


def read(out: Path) -> Rows:
    """All rows that were measured, of any device."""
    rows: list[dict[str, Any]] = []
    for path in sorted(out.glob("env_throughput_*.csv")):
        with open(path, newline="") as file:
            rows += csv.DictReader(file)
    return keyed(rows)


def rate(rows: Rows, *key: Any) -> float:
    return float(rows[key]["steps_per_s"])


def best(rows: Rows, device: str, door: str, mode: str, batch: int | None = None) -> tuple[float, str]:
    """The highest rate of a world of ours through a door, and which world it was."""
    return max(
        (float(row["steps_per_s"]), world)
        for (d, o, world, m, b), row in rows.items()
        if (d, o, m) == (device, door, mode) and world != CARTPOLE and (batch is None or b == batch)
    )


def claims(rows: Rows, device: str) -> list[list[str]]:
    """What is asked, the figure, and whether it holds; empty for a quick run."""
    lines: list[list[str]] = []

    def claim(what: str, figure: float, sign: str, bound: float, unit: str) -> None:
        holds = figure >= bound if sign == ">=" else figure <= bound
        verdict = "pass" if holds else "**falls short**"
        lines.append([what, f"{figure:.3g} {unit}".strip(), f"{sign} {bound:g} {unit}".strip(), verdict])

    large = (device, "TorchRL, rollout", "ScatterChain", "eager", 65536)
    if large not in rows:
        return lines
    source, hand = (
        rate(rows, device, "torch, step only", "ScatterChain", m, 65536) for m in ("one source", "by hand")
    )
    claim("ScatterChain's step in torch: time of the one source / by hand", hand / source, "<=", 1.2, "")
    top, world = best(rows, device, "TorchRL, rollout", "eager", 65536)
    if device == "cpu":
        single, name = best(rows, device, "gymnasium, one", "")
        claim(f"one environment ({name})", single / 1e3, ">=", 15, "k/s")
        flock, name = best(rows, device, "gymnasium, vector", "", 65536)
        claim(f"vector of 65,536 ({name})", flock / 1e6, ">=", 5, "M/s")
        for batch in (4096, 65536):
            flock, name = best(rows, device, "gymnasium, vector", "", batch)
            peer = rate(rows, device, "gymnasium, vector", CARTPOLE, "", batch)
            claim(f"vector of {batch:,} ({name}) / CartPoleVectorEnv", flock / peer, ">=", 1, "")
        claim(f"rollout of 65,536 ({world})", top / 1e6, ">=", 1.5, "M/s")
        found = gains(rows, device)
        gain, name = found[len(found) // 2]
        claim(f"bare step of 65,536, compiled / eager, median of the worlds ({name})", gain, ">=", 3, "")
    else:
        claim(f"rollout of 65,536 ({world})", top / 1e6, ">=", 20, "M/s")
        fast, name = best(rows, device, "torch, bare step", "compiled", 2**20)
        claim(f"bare compiled step of 2^20 ({name})", fast / 1e9, ">=", 1, "G/s")
    return lines


def below(rows: Rows, door: str, batch: int, bound: float) -> str:
    """The worlds that a door makes fewer steps a second of, on a CPU, slowest first."""
    found = sorted(
        (float(row["steps_per_s"]), world)
        for (d, o, world, _, b), row in rows.items()
        if (d, o, b) == ("cpu", door, batch) and world != CARTPOLE and float(row["steps_per_s"]) < bound
    )
    return ", ".join(world for _, world in found) or "none"


def gains(rows: Rows, device: str) -> list[tuple[float, str]]:
    """How many times as fast the bare step of each world is when it is compiled, least first."""
    bare = {
        (w, m, b): rate(rows, d, o, w, m, b)
        for d, o, w, m, b in rows
        if (d, o) == (device, "torch, bare step")
    }
    return sorted((v / bare[w, "eager", b], w) for (w, m, b), v in bare.items() if m == "compiled")


def door_table(rows: Rows, device: str, door: str) -> str:
    """Worlds down, batches and modes across."""
    of = {(w, m, b): r for (d, o, w, m, b), r in rows.items() if (d, o) == (device, door)}
    columns = list(dict.fromkeys((m, b) for _, m, b in of))
    worlds = list(dict.fromkeys(w for w, *_ in of))
    scale, digits, unit = (1e3, 0, "k/s") if door == "gymnasium, one" else (1e6, 2, "M/s")

    def cell(world: str, column: tuple[str, int]) -> str:
        row = of.get((world, *column))
        if row is None:
            return ""
        q25, median, q75 = (float(row[x]) / scale for x in ("q25", "steps_per_s", "q75"))
        return f"{median:.{digits}f} ({q25:.{digits}f}-{q75:.{digits}f})"

    heads = [
        ", ".join(filter(None, [mode, f"batch {batch:,}" if batch > 1 else ""])) for mode, batch in columns
    ]
    return table(
        ["", *(f"{head}, {unit}".removeprefix(", ") for head in heads)],
        [[world, *(cell(world, column) for column in columns)] for world in worlds],
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """The tables of what was measured just now."""
    found, device = keyed(rows), rows[0]["device"]
    doors = [door for door in DOORS if any(key[1] == door for key in found)]
    return "\n\n".join(f"{door}\n{door_table(found, device, door)}" for door in doors)


def write_page(out: Path) -> None:
    """The page, from the files beside it."""
    rows = read(out)
    parts = [
        "# Steps a second of the environments",
        "`python -m recipes.bench.env_throughput`",
        NOTES.strip(),
    ]
    for device in ("cpu", "cuda"):
        parts.append(f"## {'CPU' if device == 'cpu' else 'CUDA'}")
        place = out / f"env_throughput_{device}.json"
        if not place.exists():
            parts.append(f"Not run yet: `python -m recipes.bench.env_throughput --device {device}`.")
            continue
        where = json.loads(place.read_text())
        some = next(row for (d, *_), row in rows.items() if d == device)
        machine = [where["machine"], where["device"], f"Python {where['python']}"]
        machine += [
            f"{name} {version}"
            for name, version in where["versions"].items()
            if name in ("torch", "numpy", "gymnasium")
        ]
        machine += [
            f"{some['threads']} thread{'' if str(some['threads']) == '1' else 's'}",
            f"{some['rounds']} rounds",
        ]
        parts.append("; ".join(filter(None, machine)) + f". Commit {where['commit']}, {where['day']}.")
        if asked := claims(rows, device):
            parts.append(table(["", "measured", "asked", ""], asked))
            if device == "cpu":
                fewer = [f"{world} {gain:.1f}" for gain, world in gains(rows, device) if gain < 3]
                slow = [
                    ("below 15 k/s by one environment", below(rows, "gymnasium, one", 1, 15e3)),
                    ("below 5 M/s by a vector of 4,096", below(rows, "gymnasium, vector", 4096, 5e6)),
                    ("below 5 M/s by a vector of 65,536", below(rows, "gymnasium, vector", 65536, 5e6)),
                    ("below 1.5 M/s by a rollout of 65,536", below(rows, "TorchRL, rollout", 65536, 1.5e6)),
                    ("less than 3 times as fast when compiled", ", ".join(fewer) or "none"),
                ]
                parts.append("The table names the world it is about. These do less:")
                parts.append("\n".join(f"- {what}: {which}" for what, which in slow))
        for door in DOORS:
            if any(key[:2] == (device, door) for key in rows):
                parts += [f"### {door[0].upper()}{door[1:]}", door_table(rows, device, door)]
    (out / "env_throughput.md").write_text("\n\n".join(parts) + "\n")
