"""Low-bit chat models led back to what they said: every run behind docs/benchmarks/qdpo.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.qdpo [--part PART] [--report]

First each way to a low-bit model is tried with three learning rates at 3 bits a weight. At their best rates
follow all of them on each format: 3, 2 and 4 bits with one scale per output channel, then some with one for
32 inputs. Runs that have ended are kept and those that were killed go on, so it may be stopped at any time.
What there is so far is then put together: qdpo.csv (every run), qdpo.png and the tables in qdpo.md.
"""

from __future__ import annotations

import argparse
import os

from . import qdpo_plan as plan
from .qdpo_report import report
from .qdpo_runs import best_rates, ended, run

PARTS = ("tuning", "3", "2", "4", "long", "trials", "3-g32", "2-g32", "4-g32")


def jobs(part: str) -> list[plan.Job]:
    """The runs of a part, as far as they can be known by now."""
    if part == "tuning":
        return list(plan.tuning())
    rates = best_rates(ended(plan.tuning()))
    made = {"trials": plan.trials, "long": plan.long}
    return list(made[part](rates) if part in made else plan.comparison(part, rates))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="run only this; may be repeated")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    if not options.report:
        for part in options.part or PARTS:
            for job in jobs(part):
                run(job)
    found = {part: jobs(part) for part in PARTS}
    report({part: ended(found[part]) for part in PARTS}, found)


if __name__ == "__main__":
    main()
