"""StochDQN beside the methods that one would take instead: every run behind docs/benchmarks/peers.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.peers [--part PART] [--worlds NAME ...] [--methods NAME ...]

Each method is tried in each world with two to four learning rates on a seed that is not reported; with the
best come five other seeds. Runs that have ended are kept, so it may be stopped at any time, and several
processes may share the plan. What there is so far is then put together: peers.csv (every evaluation of every
run), peers.png and the tables in peers.md. --report runs nothing and does that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import peers_plan as plan
from .peers_page import report
from .peers_runs import best_rates, tuning
from .training_runs import command_line, quietly_on_one_thread, run

PARTS: dict[str, Callable[[plan.Rates], Iterator[plan.Job]]] = {
    "references": lambda rates: plan.references(),
    "tuning": lambda rates: tuning(),
    "comparison": plan.comparison,
}


def main(argv: list[str] | None = None) -> None:
    parser = command_line(__doc__, list(plan.WORLDS), list(plan.METHODS))
    parser.add_argument("--part", choices=PARTS, action="append", help="run only this; may be repeated")
    options = parser.parse_args(argv)
    quietly_on_one_thread()
    if not options.report:
        for part in options.part or PARTS:
            for job in PARTS[part](best_rates()):
                if job.world in options.worlds and job.method in options.methods:
                    run(job, options.device)
    if not options.no_report:
        report()


if __name__ == "__main__":
    main()
