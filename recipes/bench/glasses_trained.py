"""Tiny decoders, trained on short sequences and asked about long ones: docs/benchmarks/glasses_trained.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.glasses_trained [--tasks TASK ...] [--tier a b] [--report]

Copying the first or the last digit, and counting ones, with RoPE, no positions and learned ones, with and
without each remedy, five seeds each. Tier a is every remedy with RoPE, and no remedy and separators from the
left with the others; tier b is the rest. What has ended is kept, weights too, so it may be stopped at any
time. What there is so far is then put together: glasses_trained.csv, glasses_trained.png and the tables in
glasses_trained.md.
"""

from __future__ import annotations

import argparse

import torch

from . import glasses_trained_plan as plan
from .glasses_questions import TASKS
from .glasses_trained_page import report
from .glasses_trained_runs import run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--tier", choices=("a", "b"), nargs="+", default=("a",))
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not options.report:
        for tier in options.tier:
            for job in plan.jobs(tier, tuple(options.tasks)):
                run(job)
    report()


if __name__ == "__main__":
    main()
