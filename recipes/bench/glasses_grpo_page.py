"""What is said of the runs of :mod:`.glasses_grpo`: the page, and the file of raw numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from . import glasses_grpo_tables as tables
from .glasses_grpo_picture import plot
from .glasses_grpo_plan import EVERY, LOGGED, SEEDS, SETTINGS
from .glasses_grpo_tables import Runs, logged
from .published import filled, refuse_to_lose_rows, where_they_ran

DOCS = Path("docs/benchmarks")


def report(runs: Runs, far: Runs) -> None:
    """Write all of it from what has ended.

    Args:
        runs: of GRPO.
        far: ceilings of longer questions.
    """
    if not runs:
        raise SystemExit("nothing was run yet")
    raw = DOCS / "glasses_grpo.csv"
    refuse_to_lose_rows(raw, len(runs))
    rows = [row(run) for run in runs]
    with open(raw, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(DOCS / "glasses_grpo.png", runs)
    places = {
        "about": where_they_ran(runs, ("torch", "transformers", "trl"))
        + f" Seeds {SEEDS[0]} to {SEEDS[-1]}.",
        "ceilings": tables.ceilings_table(runs),
        "above": tables.above_table(runs),
        "ranks": tables.ranks_table(runs),
        "precision": tables.precision_table(runs),
        "bins": tables.bins_table(runs),
        "log": tables.log_table(runs),
        "gaps": tables.gaps_table(runs),
        "far": tables.far_table(far),
    }
    page = DOCS / "glasses_grpo.md"
    page.write_text(filled(page.read_text(), places))
    print(f"{page} is up to date")


def row(run: dict[str, Any]) -> dict[str, Any]:
    """A run in the CSV."""
    found: dict[str, Any] = {name: run[name] for name in ("setting", "arm", "dtype", "seed")}
    for when in ("before", "after"):
        for name, value in run[when].items():
            if name == "ceilings":
                found |= {f"ceiling_{criterion}_{when}": x for criterion, x in value.items()}
            elif isinstance(value, list):
                found |= {f"{name}_{i}_{when}": x for i, x in enumerate(value)}
            else:
                found[f"{name}_{when}"] = value
    columns = {name: name for name in LOGGED}
    for more in (1, EVERY):
        for at, length in zip(("short", "middle", "long"), SETTINGS[run["setting"]].watched, strict=True):
            columns[f"snr_plus_{more}_{at}"] = f"glasses/plus_{more}/snr_bfloat16/{length}"
    for column, name in columns.items():
        found[f"{column}_first"], found[f"{column}_last"] = (logged(run, name)[end] for end in (0, -1))
    return found | {"cpu_s": run["cpu_s"], "commit": run["commit"]}
