"""What all reports share: parts, measured one after the other, and the files that are made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch

from ..adapters import Adapter
from .text import markdown

Part = dict[str, Any]


class Report:
    """A report on a model.

    Args:
        model: in eval mode.

    Attributes:
        parts: what was measured, by name, as "gap/copy_last"; plain Python.

    Raises:
        ValueError: train mode.
    """

    def __init__(self, model: Adapter) -> None:
        model.check_ready()
        self.model: Any = model
        self.parts: dict[str, Part] = {}

    def plan(self) -> Iterator[tuple[str, Callable[[], Part]]]:
        """The parts by name, and what measures each."""
        raise NotImplementedError

    def run(
        self, folder: str | Path | None = None, progress: Callable[[str, int, int], None] | None = None
    ) -> Self:
        """Measure what is not yet there.

        Args:
            folder: each part is kept in it when it is done, as JSON, and is not measured again by a later
                run. Who gives a folder must give the same model and settings with it.
            progress: is called with a part's name, how many are done and how many there are.

        Returns:
            Itself.
        """
        plan = dict(self.plan())
        for done, (name, measure) in enumerate(plan.items(), 1):
            kept = None if folder is None else Path(folder) / f"{name.replace('/', '-')}.json"
            if name not in self.parts:
                self.parts[name] = json.loads(kept.read_text()) if kept and kept.exists() else measure()
            if kept is not None and not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                part = kept.with_suffix(".part")
                part.write_text(json.dumps(self.parts[name], indent=1))
                part.replace(kept)
            if progress is not None:
                progress(name, done, len(plan))
        return self

    @property
    def verdicts(self) -> list[str]:
        """Lines with numbers, of all parts."""
        return [line for part in self.parts.values() for line in part["verdicts"]]

    def as_dict(self) -> dict[str, Any]:
        """The model's facts, the verdicts and all parts; plain Python."""
        parameters = list(self.model.module.parameters())
        return {
            "model": {
                "class": type(self.model.module).__name__,
                "name": getattr(getattr(self.model.module, "config", None), "name_or_path", "") or None,
                "parameters": sum(p.numel() for p in parameters),
                "layers": self.model.depth,
                "dtype": self.model.dtype,
                "device": str(self.model.device),
            },
            "torch": torch.__version__,
            "verdicts": self.verdicts,
            "parts": self.parts,
        }

    def save(self, folder: str | Path) -> None:
        """Write ``report.json``, ``report.md`` and, if matplotlib is there, a picture of each part.

        Raises:
            RuntimeError: nothing was measured yet.
        """
        if not self.parts:
            raise RuntimeError("nothing was measured yet: call run() first")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.as_dict(), indent=1))
        pictures: dict[str, str] = {}
        try:
            from .pictures import draw
        except ImportError:  # matplotlib is an extra
            pass
        else:
            pictures = draw(self.parts, folder)
        (folder / "report.md").write_text(markdown(self.as_dict(), pictures))
