"""GRPO on counting, and the ceiling on its reward: every run behind docs/benchmarks/glasses_grpo.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.glasses_grpo [--report]

A tiny Llama is trained from scratch to count ones, then goes on by TRL's GRPO on exact reward: two
settings, four arms (plain, separators from the left, from the right, anywhere), float32 and bfloat16, five
seeds. Before GRPO the ceiling on its reward is computed from its states. Runs that have ended are kept, so it
may be stopped at any time. What there is so far is then put together: glasses_grpo.csv, glasses_grpo.png and
the tables in glasses_grpo.md.
"""

from __future__ import annotations

import argparse
import os

from .glasses_grpo_page import report
from .glasses_grpo_plan import far_jobs, jobs
from .glasses_grpo_runs import ended, run
from .training_runs import quietly_on_one_thread


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    quietly_on_one_thread()
    if not options.report:
        for far_job in far_jobs():
            run(far_job)
        for job in jobs():
            run(job)
    report(ended(jobs()), ended(far_jobs()))


if __name__ == "__main__":
    main()
