"""StochDQN beside the methods that one would take instead: every run behind docs/benchmarks/peers.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.peers [--part PART] [--worlds NAME ...] [--methods NAME ...]

Each method is tried in each world with two learning rates on a seed that is not reported; with the better one
come five other seeds. Runs that have ended are kept, so it may be stopped at any time, and several processes
may share the plan. What there is so far is then put together: peers.csv (every evaluation of every run),
peers.png and the tables in peers.md. --report runs nothing and does that alone.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator

import torch

from . import peers_plan as plan
from .peers_page import report
from .peers_runs import best_rates
from .training_runs import run

PARTS: dict[str, Callable[[plan.Rates], Iterator[plan.Job]]] = {
    "references": lambda rates: plan.references(),
    "tuning": lambda rates: plan.tuning(),
    "comparison": plan.comparison,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", nargs="+", choices=plan.WORLDS, default=list(plan.WORLDS))
    parser.add_argument("--methods", nargs="+", choices=plan.METHODS, default=list(plan.METHODS))
    parser.add_argument("--part", choices=PARTS, action="append", help="run only this; may be repeated")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    parser.add_argument("--no-report", action="store_true", help="leave the page as it is")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    if not options.report:
        for part in options.part or PARTS:
            for job in PARTS[part](best_rates()):
                if job.world in options.worlds and job.method in options.methods:
                    run(job, options.device)
    if not options.no_report:
        report()


if __name__ == "__main__":
    main()
