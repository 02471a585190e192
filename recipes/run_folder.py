"""The one folder that a run leaves: its config, metrics, checkpoint and result."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "stable_baselines3", "torchrl", "gymnasium", "numpy", "mujoco", "transformers", "trl")


class RunFolder:
    """``config.yaml``, ``metrics.csv``, TensorBoard events, ``checkpoint-STEP/``, ``result.json``.

    A run may be killed at any moment: files and checkpoints are written under another name and renamed. Only
    the events are appended to, and those after a checkpoint are hidden when a run goes on from it.

    Args:
        path: the folder, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        partial = self.path / f".{name}.partial"
        partial.write_text(text)
        os.replace(partial, self.path / name)

    @contextmanager
    def new_checkpoint(self, step: int) -> Iterator[Path]:
        """A folder to fill, which replaces the earlier checkpoints once it is full."""
        partial, whole = self.path / ".checkpoint.partial", self.path / f"checkpoint-{step:010d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        earlier = self._checkpoints()
        shutil.rmtree(whole, ignore_errors=True)
        os.rename(partial, whole)
        for folder in earlier:
            if folder != whole:
                shutil.rmtree(folder)

    def checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        return max(self._checkpoints(), default=None)

    def _checkpoints(self) -> list[Path]:
        return [folder for folder in self.path.glob("checkpoint-*") if folder.is_dir()]

    def result(self) -> dict[str, Any] | None:
        """What the run came to, if it has ended."""
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.exists() else None


class MetricsTable:
    """``metrics.csv``: a row a step, a column a metric.

    Written anew at each row: a run has some hundreds, new columns come late, and what a killed run wrote
    after its checkpoint must go.

    Args:
        folder: where the file is, or will be.
        up_to: rows of a later step are dropped; None drops all.
    """

    def __init__(self, folder: RunFolder, up_to: int | None = None) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        file = folder.path / "metrics.csv"
        if up_to is not None and file.exists():
            with open(file, newline="") as lines:
                self.rows = [row for row in csv.DictReader(lines) if int(row["step"]) <= up_to]

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Add a row and write the file."""
        self.rows.append({"step": step, **values})
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")  # quotes what holds a comma, as names of remedies do
        table.writerows([columns, *([row.get(name, "") for name in columns] for row in self.rows)])
        self.folder.write("metrics.csv", text.getvalue())


def where_it_ran() -> dict[str, Any]:
    """Versions of what matters, and the machine in a few words."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} cores",
    }


def _commit() -> str | None:
    """The checkout's commit, with a + if there were changes; None outside of a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty=+"], capture_output=True, text=True
        )
    except OSError:
        return None
    return described.stdout.strip() or None


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":")[1].strip()
    return platform.processor() or "unknown processor"
