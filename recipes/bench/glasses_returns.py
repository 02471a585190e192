"""Does a Decision Transformer with more past in sight listen less to the return: every run behind
docs/benchmarks/glasses_returns.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.glasses_returns [--part PART] [--report]

TorchRL's Decision Transformer and RADT are trained from scratch on the return dial, with 1 to 50 steps in
sight, on episodes as collected, on such whose past tells nothing of the return, and with returns of other
episodes. Before and after, the sensitivity of the action to returns is measured; then they are played. Runs
that have ended are kept, so it may be stopped at any time. What there is so far is then put together:
glasses_returns.csv (every run), glasses_returns.png and the tables in glasses_returns.md.
"""

from __future__ import annotations

import argparse

from .glasses_returns_page import report
from .glasses_returns_plan import PARTS
from .glasses_returns_runs import run
from .training_runs import quietly_on_one_thread


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="run only this; may be repeated")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args(argv)
    quietly_on_one_thread()
    if not options.report:
        for part in options.part or PARTS:
            for job in PARTS[part]():
                run(job)
    report()


if __name__ == "__main__":
    main()
