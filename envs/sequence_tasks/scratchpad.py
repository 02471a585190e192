"""An environment with tools for TRL's ``GRPOTrainer``: a sequence to read in parts, and a place for notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .config import NUMERIC, TaskConfig
from .items import endless, generate
from .parsing import parse_answer
from .prompts import QUESTIONS

if TYPE_CHECKING:
    from datasets import Dataset


class CountScratchpadEnv:
    """Count what is in a sequence that is seen only in parts; for ``GRPOTrainer(environment_factory=...)``.

    The model reads the sequence by the tool `read` and writes down what it likes by `note`. Its last note
    must be its answer: the environment sees no text but the notes::

        trainer = GRPOTrainer(
            model,
            args=GRPOConfig(...),
            train_dataset=scratchpad_dataset(TaskConfig("count_bernoulli"), 1000),
            environment_factory=CountScratchpadEnv,
        )

    GRPO compares rollouts of one group, which must have the same sequence. The dataset sees to it. Without
    one (then TRL wants ``max_steps``) all environments draw the same sequences in the same order, and share
    them for as long as every batch resets as many environments as the first.

    Args:
        config: where sequences are drawn from if no dataset gives them; a kind whose answer is a number.
        window: the most elements that `read` returns at once, at least 1.

    Raises:
        ValueError: ``window`` is less than 1, or the kind's answer is not a number.
    """

    def __init__(self, config: TaskConfig | None = None, window: int = 20) -> None:
        self._config = require_numeric(config or TaskConfig("count_bernoulli"))
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self._window = window
        self._drawn = endless(self._config)
        self._kind = self._config.kind
        self._payload: tuple[str, ...] = ()
        self._answer = ""
        self._notes: list[str] = []

    def reset(
        self,
        payload: Sequence[str] | None = None,
        answer: str | None = None,
        kind: str | None = None,
        counted: str | None = None,
        **row: Any,
    ) -> str:
        """Start with the sequence of a row of `scratchpad_dataset`, or with one that is drawn.

        Returns: the question, which TRL appends to the last message of the user.

        Raises:
            ValueError: the row has a ``payload``, and not all that goes with it.
        """
        self._notes = []
        if payload is None:
            item = next(self._drawn)
            payload, answer, kind, counted = item.payload, item.answer, item.kind, item.query
        if answer is None or kind is None or counted is None:
            raise ValueError(
                "A row has payload, answer, kind and counted: make the dataset with scratchpad_dataset."
            )
        self._payload, self._answer, self._kind = tuple(payload), answer, kind
        return (
            f"{QUESTIONS[kind].format(query=counted)} It has {len(self._payload)} elements. Read it by the "
            f"tool read, at most {self._window} elements at once, from element 0 on. Write down what you "
            "need by the tool note. Your last note must be your answer, the number and nothing else."
        )

    def get_reward(self) -> float:
        """1 if the last note is the right answer, else 0."""
        given = parse_answer(self._notes[-1], self._kind) if self._notes else None
        return float(given == self._answer)

    def read(self, start: int, end: int) -> str:
        """
        Reads elements of the sequence, from one up to another, the latter not included.

        Args:
            start: The first element to read, counted from 0.
            end: The element to stop before.

        Returns:
            The elements, with spaces between them.
        """
        if not 0 <= start < end <= len(self._payload) or end - start > self._window:
            raise ValueError(
                f"start and end must be in 0 <= start < end <= {len(self._payload)}, "
                f"and at most {self._window} apart; got {start} and {end}"
            )
        return " ".join(self._payload[start:end])

    def note(self, text: str) -> str:
        """
        Writes a note below the earlier ones.

        Args:
            text: What to write down. The last note is taken for the answer.

        Returns:
            All notes so far, one a line.
        """
        self._notes.append(text)
        return "\n".join(self._notes)


def scratchpad_dataset(config: TaskConfig, size: int) -> Dataset:
    """Sequences for `CountScratchpadEnv`, with prompts that are empty: the environment asks the question.

    Columns: ``prompt``, one empty message; ``payload`` list of str; ``answer``, ``kind``, ``counted`` str;
    ``length`` int.
    """
    from datasets import Dataset

    items = generate(require_numeric(config), size)
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": ""}] for _ in items],
            "payload": [list(item.payload) for item in items],
            "answer": [item.answer for item in items],
            "kind": [item.kind for item in items],
            "counted": [item.query for item in items],
            "length": [item.length for item in items],
        }
    )


def require_numeric(config: TaskConfig) -> TaskConfig:
    """The configuration, if its answers are numbers."""
    if config.kind not in NUMERIC:
        raise ValueError(f"A scratchpad is for {', '.join(NUMERIC)}; got {config.kind}")
    return config
