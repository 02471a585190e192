"""What is said of the runs of :mod:`.glasses_grpo`: tables, a picture, and the file of raw numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from .published import refuse_to_lose_rows

DOCS = Path("docs/benchmarks")


def report(runs: list[dict[str, Any]]) -> None:
    """Write all of it from what has ended."""
    if not runs:
        raise SystemExit("nothing was run yet")
    table = DOCS / "glasses_grpo.csv"
    refuse_to_lose_rows(table, len(runs))
    rows = [row(run) for run in runs]
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{table} is up to date")


def row(run: dict[str, Any]) -> dict[str, Any]:
    """A run in the CSV."""
    found: dict[str, Any] = {name: run[name] for name in ("setting", "arm", "dtype", "seed")}
    for when in ("before", "after"):
        for name in ("expected_reward", "greedy", "round_numbers"):
            found[f"{name}_{when}"] = run[when][name]
        for name, ceiling in run[when]["ceilings"].items():
            found[f"ceiling_{name}_{when}"] = ceiling
    return found | {"cpu_s": run["cpu_s"]}
