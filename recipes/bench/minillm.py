"""Six ways to distil, on instructions of known law: every run behind docs/benchmarks/minillm.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.minillm [--part PART] [--report]

First come the teacher and the students' warm starts, then each method with four learning rates. At their
best rates follow all methods with equal numbers of updates, MiniLLM without its parts, all methods with
equal CPU time, and some for longer. Runs that have ended are kept and those that were killed go on, so it
may be stopped at any time. What there is so far is then put together: minillm.csv (every run),
minillm.png and the tables in minillm.md.
"""

from __future__ import annotations

import argparse

from . import minillm_plan as plan
from .minillm_report import report
from .minillm_runs import best_rates, ended, run, updates_in_equal_time

PARTS = ("tuning", "updates", "ablation", "time", "long")


def jobs(part: str) -> list[plan.Job]:
    """The runs of a part, as far as they can be known by now."""
    if part == "tuning":
        return list(plan.tuning())
    rates = best_rates(ended(plan.tuning()))
    if part == "time":
        return list(plan.equal_time(rates, updates_in_equal_time(ended(plan.equal_updates(rates)))))
    made = {"updates": plan.equal_updates, "ablation": plan.ablations, "long": plan.long}
    return list(made[part](rates))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="run only this; may be repeated")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args()
    if not options.report:
        for part in options.part or PARTS:
            for job in jobs(part):
                run(job)
    report({part: ended(jobs(part)) for part in PARTS}, {part: jobs(part) for part in PARTS})


if __name__ == "__main__":
    main()
