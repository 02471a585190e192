"""A dial that is turned over in mid-episode: every run behind docs/benchmarks/radt_dial.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.radt_dial [--part PART] [--report]

RADT, TorchRL's Decision Transformer and a negative control are tried with four learning rates on a seed. At
the rates that follow unturned targets best come RADT beside DT on five other seeds, RADT without its parts
and with other norms, each norm with higher rates, and longer runs. Runs that have ended are kept, so it may
be stopped at any time. What there is so far is then put together: radt_dial.csv (every run), radt_dial.png
and the tables in radt_dial.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch

from . import radt_dial_plan as plan
from .radt_dial_page import report
from .radt_dial_runs import best_rates, run

PARTS: dict[str, Callable[[plan.Rates], Iterator[plan.Job]]] = {
    "tuning": lambda rates: plan.tuning(),
    "comparison": plan.comparison,
    "ablation": plan.ablation,
    "stability": plan.stability,
    "long": plan.long,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="run only this; may be repeated")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not options.report:
        for part in options.part or PARTS:
            for job in PARTS[part](best_rates()):
                run(job)
    report()


if __name__ == "__main__":
    main()
