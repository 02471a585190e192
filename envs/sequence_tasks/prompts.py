"""The words around a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from .config import COPYING, NUMERIC, TaskConfig
from .payloads import WORDS

MATHS_LINE = "The final answer to your maths question is:"  # the lines that end an answer in the paper
COPY_LINE = "The answer to your question is:"

QUESTIONS = {
    "copy_first": "What is the first {symbol} of the sequence?",
    "copy_last": "What is the last {symbol} of the sequence?",
    "copy_nth": "What is {symbol} number {query} of the sequence, counted from its start?",
    "count_ones": "How often does {query} occur in the sequence?",
    "count_bernoulli": "How often does {query} occur in the sequence?",
    "count_word": "How often does the word {query} occur in the sequence?",
    "sum_ones": "The sequence is a sum. What is its value?",
    "parity": "Does {query} occur an even number of times in the sequence (say 0) or an odd one (say 1)?",
    "kv_recall": "The sequence has a value for each key. What is the value of {query}?",
}
HINTS = {
    "copy": " It need not be {counted}, so look closely.",
    "count": " The number need not be a round one, so count with care.",
    "other": " Look closely before you answer.",
}
STEPS = " Reason step by step, in groups of five."
DEMAND = " Close with this line, your answer in the place of xxxx:\n{line} xxxx\n\n"
TEMPLATES = {
    "question_first": "{question}{hint}{cot}{demand}{examples}Sequence: {payload}",
    "sequence_first": "{examples}Sequence: {payload}\n\n{question}{hint}{cot}{demand}",
}
TERSE = "{payload} = "
TERSE_WITH_QUERY = "{payload} ? {query} = "  # where the sequence alone does not say what is asked


def answer_line(kind: str) -> str:
    """What the line begins with that closes an answer."""
    return MATHS_LINE if kind in (*NUMERIC, "parity") else COPY_LINE


def lead_of(config: TaskConfig) -> str:
    """What an answer begins with, before the answer itself."""
    return "" if config.prompt_style == "terse" else f" {answer_line(config.kind)} "


def layout(config: TaskConfig, elements: Sequence[str]) -> str:
    """The sequence as it stands in a prompt, with its separators."""
    spaced = config.prompt_style == "terse" or config.kind in ("count_word", "kv_recall")
    pad = " " if spaced else ""
    joint = f"{pad}+{pad}" if config.kind == "sum_ones" else pad
    if config.separator is None:
        return joint.join(elements)
    every = config.separator.every
    first = every if config.separator.side == "left" else len(elements) % every or every
    starts = [0, *range(first, len(elements), every), len(elements)]
    groups = [joint.join(elements[i:j]) for i, j in pairwise(starts)]
    return f"{pad}{config.separator.text}{joint}".join(groups)


def prompt_of(config: TaskConfig, elements: Sequence[str], query: str) -> tuple[str, tuple[int, int]]:
    """The prompt, and from and up to which of its characters the sequence stands."""
    if config.prompt_style == "terse":
        template = TERSE_WITH_QUERY if config.kind in ("copy_nth", "kv_recall") else TERSE
    else:
        template = config.template or TEMPLATES[config.prompt_order]
    before, _, after = template.partition("{payload}")
    fields = _fields(config, query)
    head, payload = before.format(**fields), layout(config, elements)
    prompt = head + payload + after.format(**fields)
    if config.prompt_style == "words" and config.template is None:
        prompt = prompt.rstrip()  # an answer's lead begins with a space
    return prompt, (len(head), len(head) + len(payload))


def _fields(config: TaskConfig, query: str) -> dict[str, str]:
    """What templates may name, but for the sequence."""
    symbol = "digit" if config.alphabet.isdigit() else "letter" if config.alphabet.isalpha() else "symbol"
    family = "copy" if config.kind in COPYING else "count" if config.kind in NUMERIC else "other"
    return {
        "question": QUESTIONS[config.kind].format(symbol=symbol, query=query),
        "hint": HINTS[family].format(counted=config.counted) if config.hint else "",
        "cot": "" if config.cot == "none" else STEPS,
        "demand": DEMAND.format(line=answer_line(config.kind)),
        "examples": "".join(_example(config, length) for length in (8, 12)) if config.cot == "few" else "",
        "query": query,
    }


def _example(config: TaskConfig, length: int) -> str:
    """A question with its steps and its answer; every third element is another one in mixed sequences."""
    if config.kind in ("count_ones", "sum_ones"):
        elements = [config.counted] * length
    else:
        other = WORDS[0] if config.kind == "count_word" else config.alphabet[0]
        elements = [other if i % 3 == 1 else config.counted for i in range(length)]
    together = replace(config, separator=None)
    steps, total = [], 0
    for i in range(0, length, 5):
        group = elements[i : i + 5]
        number = group.count(config.counted)
        total += number
        steps.append(f"{layout(together, group)} has {number}, which makes {total}.")
    answer = total
    if config.kind == "parity":
        answer = total % 2
        steps.append(f"{total} is {'odd' if answer else 'even'}.")
    return f"Sequence: {layout(config, elements)}\n{' '.join(steps)}\n{answer_line(config.kind)} {answer}\n\n"
