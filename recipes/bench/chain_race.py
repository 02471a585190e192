"""Time until the greedy policy has 0.95 of the optimum of ScatterChain-1M: SB3's agent beside TorchRL's.

    OMP_NUM_THREADS=1 python -m recipes.bench.chain_race [--seeds 5] [--only NAME ...] [--report]

The agents of both recipes learn in turn, one thread each, until two looks in a row find their greedy policy
good enough. The clock stands still while it is looked at. Runs that have ended are kept, so it may be stopped
at any time. What there is so far is then put together: chain_race.csv (every look of every run) and the
tables in chain_race.md.
"""

from __future__ import annotations

import argparse
import warnings

from .chain_race_page import report
from .chain_race_runs import AGENTS, Job, run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=AGENTS, default=list(AGENTS), metavar="NAME")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args(argv)
    # Early on beta is large for anyone.
    warnings.filterwarnings("ignore", message="The stochastic maximum falls short")
    if not options.report:
        for seed in range(options.seeds):
            for name in options.only:
                run(Job(name, seed))
    report()


if __name__ == "__main__":
    main()
