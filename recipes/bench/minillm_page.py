"""What the pages about MiniLLM have in common."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

#: what the figures of the exact language come from, besides the benchmark itself
EXACT = (
    "extensions/trl/minillm/objective.py",
    "extensions/trl/minillm/modes.py",
    "recipes/exact_language.py",
)


def commit_and_machine(*made_by: str) -> str:
    """The commit, whether ``made_by`` (paths) have changed since, and what the figures were made on."""
    commit = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True).stdout.strip()
    changed = ["git", "diff", "--quiet", "HEAD", "--", *made_by]
    if subprocess.run(changed).returncode:
        commit += " with changes"
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    name = cpu.group(1) if cpu else platform.processor()
    return (
        f"commit {commit}; {name}, {os.cpu_count()} cores, {torch.get_num_threads()} thread; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
