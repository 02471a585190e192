"""Time of MiniLLM's training step, and time and peak memory of its loss, beside TRL's DistillationTrainer.

    python -m recipes.bench.minillm_speed [--quick] [--device cpu|cuda] [--threads N] [--rounds N] [--out DIR]

All that is compared takes turns in one process; a ratio is that of two times of one round. Memory is that of
a fresh process each.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import minillm_speed_loss as loss
from .minillm_speed_page import LOSSES, summary, write_page

MADE_BY = ("extensions/trl", "recipes/bench/minillm_speed_steps.py", "recipes/bench/minillm_speed_loss.py")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models, two rounds: the path, no figures")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8, help="of the trainers; half as many of the losses")
    parser.add_argument("--out", type=Path, help="docs/benchmarks, or a temporary folder if --quick")
    parser.add_argument("--memory-of", choices=LOSSES, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    torch.set_num_threads(args.threads)
    if args.memory_of:
        return loss.report_memory(args.memory_of, loss.Size(*args.size), args.device)
    out = args.out or Path(tempfile.mkdtemp() if args.quick else "docs/benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    measure(args.device, 2 if args.quick else args.rounds, args.quick, out)
    write_page(out)
    if args.quick:
        print("\nno figures: models this small and so few rounds say nothing of speed")
    print(f"see {out / 'minillm_speed.md'}")


def measure(device: str, rounds: int, quick: bool, out: Path) -> None:
    """Losses, then trainers, and the files of both."""
    # Here, since the processes that only measure memory do without trainers.
    from . import minillm_speed_steps as steps
    from .minillm_page import commit_and_machine

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore", category=FutureWarning)
    sizes = loss.QUICK if quick else loss.CPU if device == "cpu" else loss.CUDA
    raw: list[dict[str, Any]] = []
    memory: dict[tuple[str, str], dict[str, int]] = {}
    for name, size in sizes.items():
        raw += loss.measure(name, size, device, max(2, rounds // 2))
        memory |= {(name, which): loss.measure_memory(which, size, device) for which in LOSSES}
        print(f"the loss alone, {name}: done", flush=True)
    stem = out / f"minillm_speed_loss_{device}"
    write_csv(stem.with_suffix(".csv"), loss.FIELDS, loss.rows_of(raw, memory, device))
    write_csv(stem.with_name(f"{stem.name}_raw.csv"), loss.RAW_FIELDS, raw)

    cases = steps.QUICK if quick else steps.CPU if device == "cpu" else steps.CUDA
    raw = []
    for name, case in cases.items():
        raw += steps.measure(name, case, device, rounds)
        print(summary(steps.rows_of([one for one in raw if one["case"] == name], cases, device)), flush=True)
    stem = out / f"minillm_speed_{device}"
    write_csv(stem.with_suffix(".csv"), steps.FIELDS, steps.rows_of(raw, cases, device))
    write_csv(stem.with_name(f"{stem.name}_raw.csv"), steps.RAW_FIELDS, raw)
    where = commit_and_machine(*MADE_BY)
    where += "".join(f", {name} {version(name)}" for name in ("transformers", "trl"))
    record = {
        "where": where + (f"; {torch.cuda.get_device_name()}" if device == "cuda" else ""),
        "cases": {name: asdict(case) for name, case in cases.items()},
        "sizes": {name: asdict(size) for name, size in sizes.items()},
    }
    stem.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


def write_csv(path: Path, fields: list[str], rows: list[dict[str, Any]]) -> None:
    """One file, whole."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
