"""Answers read off the text of a prompt: another way than that of the generator, which counts elements."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .items import SequenceItem

# By kind: the answer, from a sequence's text without separators, and what the question names.
_ANSWERS: dict[str, Callable[[str, str], str]] = {
    "copy_first": lambda text, query: text.strip()[0],
    "copy_last": lambda text, query: text.strip()[-1],
    "copy_nth": lambda text, query: "".join(text.split())[int(query) - 1],
    "count_ones": lambda text, query: str(text.count(query)),
    "count_bernoulli": lambda text, query: str(len(text) - len(text.replace(query, ""))),
    "count_word": lambda text, query: str(len(re.findall(rf"\b{query}\b", text))),
    "sum_ones": lambda text, query: str(sum(map(int, text.split("+")))),
    "parity": lambda text, query: str(len(re.findall(query, text)) & 1),
    "kv_recall": lambda text, query: re.findall(rf"\b{query}:(\w)", text)[0],
}


def oracle(item: SequenceItem) -> str:
    """The answer to an item, found in the sequence as its prompt has it."""
    start, end = item.payload_span
    text = item.prompt[start:end]
    if item.config.separator is not None:
        text = text.replace(item.config.separator.text, "")
    return _ANSWERS[item.kind](text, item.query)
