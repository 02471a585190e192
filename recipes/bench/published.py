"""What has been published stays until there is more."""

from __future__ import annotations

import csv
from pathlib import Path


def refuse_to_lose_rows(published: Path, rows: int) -> None:
    """Stop before a page is written from fewer runs than it was made of, as in a fresh clone.

    Args:
        published: the CSV beside the page, a row a run.
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
            f"{published} was made from {before} runs, and here are {rows}: the page is left as it is. The "
            f"runs that were made are kept; remove {published} to begin a page of your own."
        )
