"""StochDQN from a thousand actions to a million, and what each part of it does there.

    OMP_NUM_THREADS=1 python -m recipes.reproduce.stochastic_q_scale [--worlds NAME ...] [--report]

Runs that have ended are kept in runs/stochastic_q_scale, so it may be stopped at any time, and several
processes may share the plan. What there is so far is then put together: stochastic_q_scale.csv (every
evaluation of every run), stochastic_q_scale.png and the tables in stochastic_q_scale.md. --report runs
nothing and does that alone.
"""

from __future__ import annotations

import argparse
import logging

import torch

from ..bench.training_runs import run
from .stochastic_q_scale_page import report
from .stochastic_q_scale_plan import SEEDS, WORLDS, jobs, methods

METHODS = list(dict.fromkeys(name for world in WORLDS for name in methods(world)))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, metavar="NAME", default=list(WORLDS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    parser.add_argument("--no-report", action="store_true", help="leave the page as it is")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    if not options.report:
        for job in jobs(options.worlds):
            if job.method in options.methods and job.seed in options.seeds:
                run(job, options.device)
    if not options.no_report:
        report()


if __name__ == "__main__":
    main()
