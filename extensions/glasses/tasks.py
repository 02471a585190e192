"""What Glasses asks of a task: questions about a sequence, with answers that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Item(Protocol):
    """One question.

    Attributes:
        prompt: what the model is given.
        payload_span: the characters of the prompt that hold the sequence, from and up to.
        payload: the sequence's elements.
        lead: what an answer begins with, before the answer itself, such as " The final answer is: ".
        answer: what it must then say.
        length: elements of the sequence.
    """

    @property
    def prompt(self) -> str: ...

    @property
    def payload_span(self) -> tuple[int, int]: ...

    @property
    def payload(self) -> Sequence[str]: ...

    @property
    def lead(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def length(self) -> int: ...


class Task(Protocol):
    """Questions of one kind at every length, such as those of ``envs.sequence_tasks``."""

    @property
    def name(self) -> str:
        """Such as ``copy_last``."""
        ...

    def items(self, length: int, size: int) -> Sequence[Any]:
        """``size`` items of this length; the same ones at each call."""
        ...

    def minimal_pair(self, item: Any) -> tuple[Item, Item]:
        """The item and another that differs from it only in the token that bears the answer."""
        ...


@dataclass(frozen=True)
class Question:
    """An `Item`."""

    prompt: str
    payload_span: tuple[int, int]
    payload: tuple[str, ...]
    lead: str
    answer: str
    length: int

    @classmethod
    def of(cls, item: Item, **changed: Any) -> Question:
        """An item with some of its fields changed."""
        fields = ("prompt", "payload_span", "payload", "lead", "answer", "length")
        return cls(**{name: changed.get(name, getattr(item, name)) for name in fields})
