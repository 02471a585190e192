"""Tasks as objects, and as datasets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .config import TaskConfig
from .items import SequenceItem, generate, make_item, minimal_pair
from .oracles import oracle
from .parsing import parse_answer
from .payloads import classes

if TYPE_CHECKING:
    from datasets import Dataset


class SequenceTask:
    """Questions of one kind at every length.

    Args:
        task: a configuration, whose ``lengths`` are not looked at, or one of ``KINDS``.
        **fields: those of `TaskConfig` that are to be otherwise.

    Raises:
        ValueError: as `TaskConfig` does.
    """

    def __init__(self, task: TaskConfig | str, **fields: Any) -> None:
        self.config = TaskConfig(task, **fields) if isinstance(task, str) else replace(task, **fields)

    @property
    def name(self) -> str:
        """The kind, such as ``copy_last``."""
        return self.config.kind

    @property
    def chance(self) -> float:
        """The accuracy of a guess of one of the symbols, or of even and odd; 0 where answers are numbers."""
        answers = classes(self.config)
        return 1 / answers if answers > 1 else 0.0

    def items(self, length: int, size: int, depth: float | None = None) -> list[SequenceItem]:
        """``size`` items of this length; the same ones at each call.

        Args:
            length: elements of each sequence, at least 1.
            size: how many, at least 0.
            depth: ``kv_recall`` alone: where the key that is asked for stands, from 0, the first pair, to 1,
                the last. None draws a place for each item.

        Raises:
            ValueError: one of these is not so.
        """
        config = replace(self.config, lengths=[length], held_out=None)
        if depth is None:
            return generate(config, size)
        if config.kind != "kv_recall" or not 0 <= depth <= 1:
            raise ValueError(f"depth must be in [0, 1], and for kv_recall; got {depth!r} for {config.kind}")
        return [make_item(config, length, index, index, depth) for index in range(size)]

    def minimal_pair(self, item: SequenceItem) -> tuple[SequenceItem, SequenceItem]:
        """The item, and one with another answer that differs in one element; see
        `envs.sequence_tasks.minimal_pair`."""
        return minimal_pair(item)

    def parse(self, text: str) -> str | None:
        """The answer in a text, or None; see `parse_answer`."""
        return parse_answer(text, self.config.kind)

    def oracle(self, item: SequenceItem) -> str:
        """The answer, read off the item's prompt."""
        return oracle(item)


def to_hf_dataset(config: TaskConfig, size: int) -> Dataset:
    """`generate`'s items as a dataset for TRL, which hands the columns after ``prompt`` to reward functions.

    Columns: ``prompt``, ``answer``, ``kind`` str; ``length`` int; ``payload`` list of str; ``seed`` int.
    """
    from datasets import Dataset

    columns = ("prompt", "answer", "kind", "length", "payload", "seed")
    items = generate(config, size)
    return Dataset.from_dict({name: [getattr(item, name) for item in items] for name in columns})
