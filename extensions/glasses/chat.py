"""Tasks put to models that were tuned on conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .tasks import Item, Question, Task


@dataclass(frozen=True)
class Turn(Question):
    """A question as the turn of a user, and what was asked."""

    asked: Any = None


class ChatTask:
    """A task whose prompts are the turn of a user, as the tokenizer's chat template writes it.

    The lead of an answer is then how the model's turn begins. `RepeatQuestion` needs the question's text
    here, since what stands before the sequence is the template too.

    Args:
        task: whose questions.
        tokenizer: with a chat template.

    Raises:
        ValueError: it has none, or it changes the prompt.
    """

    def __init__(self, task: Task, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("this tokenizer has no chat template: put the task to the model as it is")
        self.task, self.tokenizer = task, tokenizer
        self.name = task.name
        self.chance = getattr(task, "chance", None)

    def items(self, length: int, size: int, *where: Any) -> Sequence[Turn]:
        """Those of the task, as turns; further arguments, such as a depth, go to it."""
        return [self._turn(item) for item in self.task.items(length, size, *where)]

    def minimal_pair(self, item: Turn) -> tuple[Turn, Turn]:
        """That of the task, as turns."""
        one, other = self.task.minimal_pair(item.asked)
        return self._turn(one), self._turn(other)

    def _turn(self, item: Item) -> Turn:
        turns = [{"role": "user", "content": item.prompt}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        bos = self.tokenizer.bos_token
        if (
            bos
            and text.startswith(bos)
            and self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id
        ):
            text = text.removeprefix(bos)  # it is put in front when the text is encoded
        start, stop = item.payload_span
        sequence = item.prompt[start:stop]
        place = text.find(item.prompt.strip())
        if place < 0:
            raise ValueError("the chat template changes the prompt, so the sequence is not found in it")
        place += len(item.prompt[:start].lstrip())
        if text[place : place + len(sequence)] != sequence:
            raise ValueError("the chat template changes the prompt, so the sequence is not found in it")
        return Turn(
            prompt=text,
            payload_span=(place, place + len(sequence)),
            payload=tuple(item.payload),
            lead=item.lead.lstrip(),
            answer=item.answer,
            length=item.length,
            asked=item,
        )
