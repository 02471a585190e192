"""Time and memory of QDPOTrainer's step beside TRL's DPOTrainer, size of the export, time of generation.

    OMP_NUM_THREADS=1 python -m recipes.bench.qdpo_speed [--quick] [--rounds N] [--out DIR]

All that is compared takes turns in one process; a ratio is that of two times of one round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

from . import qdpo_speed_steps as steps
from .minillm_page import commit_and_machine, write_rows
from .qdpo_speed_page import write_page
from .qdpo_speed_sizes import sizes

MADE_BY = ("extensions/trl/qdpo", "recipes/bench/qdpo_speed_steps.py", "recipes/bench/qdpo_speed_sizes.py")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, two rounds: the path, no figures")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="docs/benchmarks, or a temporary folder if --quick")
    args = parser.parse_args(argv)
    out = args.out or Path(tempfile.mkdtemp() if args.quick else "docs/benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    cases = steps.QUICK if args.quick else steps.CASES
    rounds = 2 if args.quick else args.rounds
    raw, memory, generation = [], [], []
    for name, case in cases.items():
        times, peaks = steps.measure(name, case, rounds)
        raw += times
        memory += peaks
        generation += steps.measure_generation(name, case, rounds)
        print(f"{name}: done", flush=True)
    write_rows(out / "qdpo_speed_cpu_raw.csv", raw)
    write_rows(out / "qdpo_speed_cpu.csv", steps.rows_of(raw, memory))
    write_rows(out / "qdpo_speed_generation_cpu.csv", generation)
    write_rows(out / "qdpo_speed_sizes.csv", sizes(next(iter(cases.values()))))
    where = commit_and_machine(*MADE_BY) + "".join(f", {x} {version(x)}" for x in ("transformers", "trl"))
    about = {"where": where, "rounds": rounds, "cases": {name: vars(case) for name, case in cases.items()}}
    (out / "qdpo_speed_cpu.json").write_text(json.dumps(about, indent=2) + "\n")
    write_page(out)
    if args.quick:
        print("\nno figures: models this small and so few rounds say nothing of speed")
    print(f"see {out / 'qdpo_speed.md'}")


if __name__ == "__main__":
    main()
