"""What the pages about MiniLLM have in common."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

#: what the figures of the exact language come from, besides the benchmark itself
EXACT = (
    "extensions/trl/minillm/objective.py",
    "extensions/trl/minillm/modes.py",
    "recipes/exact_language.py",
)


def commit_and_machine(*made_by: str) -> str:
    """The commit, whether ``made_by`` (paths) have changed since, what the figures were made on, and when."""
    commit = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True).stdout.strip()
    changed = ["git", "diff", "--quiet", "HEAD", "--", *made_by]
    if subprocess.run(changed).returncode:
        commit += " with changes"
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    name = cpu.group(1) if cpu else platform.processor()
    return (
        f"commit {commit}; {name}, {os.cpu_count()} cores, {torch.get_num_threads()} thread; "
        f"Python {platform.python_version()}, torch {torch.__version__}; {date.today()}"
    )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Raw numbers, as CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{x:.6g}" if isinstance(x, float) else x for k, x in row.items()})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What :func:`write_rows` wrote, numbers as numbers."""
    with open(path, newline="") as file:
        return [{key: as_number(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


def as_number(cell: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell


def write_about(path: Path, about: str) -> None:
    """By what, on what and when the raw numbers were made; read back, that is what a page says."""
    path.write_text(json.dumps({"made_by": about}, indent=1) + "\n")


def read_about(path: Path) -> str:
    return json.loads(path.read_text())["made_by"]
