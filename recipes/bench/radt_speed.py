"""Speed of RADT: updates beside TorchRL's DTActor, cached steps, evaluation of many targets, windows.

    python -m recipes.bench.radt_speed [--quick] [--device cpu|cuda] [--threads N] [--rounds N] [--out DIR]

All that is compared takes turns in one process, after a round that is not timed; a ratio is that of two times
of one round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .minillm_page import commit_and_machine, write_rows
from .radt_speed_cases import Turn, plan
from .radt_speed_page import ABOUT, ROWS, write_page

MADE_BY = ("extensions/torchrl", "recipes/gym_batch.py", "recipes/bench/radt_speed_cases.py")
FEWER = {"evaluation": 3}  # a part that takes long has so many times fewer rounds


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models, two rounds: the path, no figures")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, help="docs/benchmarks, or a temporary folder if --quick")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    torch.set_num_threads(args.threads)
    out = args.out or Path(tempfile.mkdtemp() if args.quick else "docs/benchmarks")
    out.mkdir(parents=True, exist_ok=True)

    raw = []
    for part, case, setup in plan(args.device, args.quick):
        rounds = 2 if args.quick else max(3, args.rounds // FEWER.get(part, 1))
        found = take_turns(setup(), rounds, args.device)
        raw += [{"part": part, "case": case, **one} for one in found]
        print(f"{part}, {case}: done", flush=True)
    write_rows(out / ROWS.format(device=args.device), summary(raw, args.device))
    write_rows(out / ROWS.format(device=f"{args.device}_raw"), raw)
    where = f"{commit_and_machine(*MADE_BY)}, torchrl {version('torchrl')}"
    where += f", transformers {version('transformers')}"
    where += f"; {torch.cuda.get_device_name()}" if args.device == "cuda" else ""
    (out / ABOUT.format(device=args.device)).write_text(json.dumps({"made_by": where}, indent=1) + "\n")
    write_page(out)
    if args.quick:
        print("\nno figures: models this small and so few rounds say nothing of speed")
    print(f"see {out / 'radt_speed.md'}")


def take_turns(contestants: dict[str, Turn], rounds: int, device: str) -> list[dict[str, Any]]:
    """Seconds of a unit, by either clock: a row a round and contestant, in another order each round."""
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    order, raw = random.Random(0), []
    for r in range(-1, rounds):
        for who in order.sample(list(contestants), len(contestants)):
            wait()
            wall, cpu = time.perf_counter(), time.process_time()
            units = contestants[who]()
            wait()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if r >= 0:  # the first one warms up
                raw.append({"round": r, "who": who, "wall_s": wall / units, "cpu_s": cpu / units})
    return sorted(raw, key=lambda one: (one["round"], list(contestants).index(one["who"])))


def summary(raw: list[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    """A row for each contestant and clock: its time, and how many times as fast as the first one it is."""
    rows = []
    for part, case in dict.fromkeys((one["part"], one["case"]) for one in raw):
        of = [one for one in raw if (one["part"], one["case"]) == (part, case)]
        names = list(dict.fromkeys(one["who"] for one in of))
        for clock in ("cpu", "wall") if device == "cpu" else ("wall",):
            times = {who: [one[f"{clock}_s"] for one in of if one["who"] == who] for who in names}
            for who in names:
                ratios = [a / b for a, b in zip(times[names[0]], times[who], strict=True)]
                row: dict[str, Any] = {"part": part, "case": case, "who": who, "clock": clock}
                row |= quartiles("ms", [1e3 * seconds for seconds in times[who]])
                row |= quartiles("ratio", ratios)
                rows.append(row | {"rounds": len(ratios), "threads": torch.get_num_threads()})
    return rows


def quartiles(name: str, values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {f"{name}_q25": low, name: median, f"{name}_q75": high}


if __name__ == "__main__":
    main()
