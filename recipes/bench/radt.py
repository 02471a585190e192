"""How closely RADT and TorchRL's Decision Transformer bring the return asked for: every run behind
docs/benchmarks/radt.md.

    python -m recipes.bench.radt [--only NAME ...] [--seeds 0 1 2 3 4] [--tune] [--report]

Each run is one of ``python -m recipes.radt`` in a folder of its own, which goes on where it was stopped; so
does the whole. What has ended is then put together: radt.csv (the target and the return of every test
episode), radt.png and the tables in radt.md. NAME is the beginning of a row's name, such as "hopper" or
"half_cheetah, dt"; rows that take long are run only if they are named.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from .radt_page import report
from .radt_plan import ROWS, TRIALS, TUNING_SEED, Row


def run(row: Row, seed: int) -> None:
    """One run of the recipe, from its checkpoint if it has one, unless it has ended."""
    if row.result(seed) is not None:
        return
    folder = row.folder(seed)
    begun = (folder / "config.yaml").exists()
    told = [f"resume={folder}"] if begun else [*row.overrides(seed), f"hydra.run.dir={folder}"]
    print(f"{row.name}, seed {seed}", flush=True)
    subprocess.run([sys.executable, "-m", "recipes.radt", *told], check=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows whose name begins so")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tune", action="store_true", help="compare learning rates, and nothing else")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args(argv)
    if options.only:
        rows = [row for row in ROWS if any(row.name.startswith(name) for name in options.only)]
    else:
        rows = [row for row in ROWS if not row.long]
    if not rows:
        parser.error(f"no row begins so; there are {', '.join(repr(row.name) for row in ROWS)}")
    if options.tune:
        for trial in TRIALS:
            run(trial, TUNING_SEED)
    elif not options.report:
        for seed in options.seeds:  # the seeds go round, so that a comparison cut short is an even one
            for row in rows:
                run(row, seed)
    report()


if __name__ == "__main__":
    main()
