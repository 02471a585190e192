"""Pages of results: what has been published stays until there is more."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

MARKS = ("<!-- results -->", "<!-- end of results -->")


def refuse_to_lose_rows(published: Path, rows: int) -> None:
    """Stop before a page is written from fewer runs than it was made of, as in a fresh clone.

    Args:
        published: the CSV beside the page.
        rows: how many rows there would be now.

    Raises:
        SystemExit: there would be fewer.
    """
    if not published.exists():
        return
    with open(published, newline="") as file:
        before = sum(1 for _ in csv.reader(file)) - 1
    if rows < before:
        raise SystemExit(
            f"{published} has {before} rows, and the runs that are here make {rows}: the page is left as it "
            f"is. The runs that were made are kept; remove {published} to begin a page of your own."
        )


def write_results(page: Path, results: str) -> None:
    """Put results between a page's marks, in the place of those that are there."""
    text = page.read_text()
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    page.write_text(f"{before}{MARKS[0]}\n\n{results}\n\n{MARKS[1]}{after}")


def filled(page: str, places: dict[str, str]) -> str:
    """The page with what stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` written anew."""
    for name, text in places.items():
        between = re.compile(f"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        page, n = between.subn(partial(_between, text), page)
        if n != 1:
            raise SystemExit(f"the page must have <!-- {name} --> and <!-- end of {name} --> once")
    return page


def _between(text: str, match: re.Match[str]) -> str:
    return f"{match[1]}{text}\n{match[2]}"


def where_they_ran(runs: list[dict[str, Any]], packages: Iterable[str], counted: str = "in all") -> str:
    """How many runs there are, and what they were made with.

    Args:
        runs: with ``cpu_s`` and what `recipes.run_folder.where_it_ran` tells.
        packages: whose versions are said.
        counted: which of a run's CPU time ``cpu_s`` is.
    """
    if not runs:
        return "Nothing was run yet."

    def distinct(values: Iterable[Any]) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    minutes = sum(run["cpu_s"] for run in runs) / 60
    return (
        f"{len(runs)} runs, {minutes:.0f} minutes of CPU time {counted}, one thread each. "
        f"{distinct(run['machine'] for run in runs)}; "
        + ", ".join(f"{name} {distinct(run['versions'].get(name) for run in runs)}" for name in packages)
        + f"; commits {distinct(run['commit'] for run in runs)}."
    )
