"""StochDQN from a thousand actions to a million, and what each part of it does there.

    OMP_NUM_THREADS=1 python -m recipes.reproduce.stochastic_q_scale [--worlds NAME ...] [--report]

Runs that have ended are kept in runs/stochastic_q_scale, so it may be stopped at any time, and several
processes may share the plan. What there is so far is then put together: stochastic_q_scale.csv (every
evaluation of every run), stochastic_q_scale.png and the tables in stochastic_q_scale.md. --report runs
nothing and does that alone.
"""

from __future__ import annotations

from ..bench.training_runs import command_line, quietly_on_one_thread, run
from .stochastic_q_scale_page import report
from .stochastic_q_scale_plan import SEEDS, WORLDS, jobs, methods

METHODS = list(dict.fromkeys(name for world in WORLDS for name in methods(world)))


def main(argv: list[str] | None = None) -> None:
    parser = command_line(__doc__, list(WORLDS), METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, metavar="SEED", default=list(SEEDS))
    options = parser.parse_args(argv)
    quietly_on_one_thread()
    if not options.report:
        for job in jobs(options.worlds):
            if job.method in options.methods and job.seed in options.seeds:
                run(job, options.device)
    if not options.no_report:
        report()


if __name__ == "__main__":
    main()
