"""What an answer to a dialogue is worth, part by part, and the judge that prefers the better one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import dialogue_words as words
from .dialogues import Dialogue, Wanted, prompt_key

#: parts of the score and their weights
WEIGHTS = {"facts": 0.5, "format": 0.2, "topic": 0.1, "repetition": 0.1, "length": 0.1}
#: words that make a statement wrong where they do not belong
VALUES = frozenset(
    (*words.NAMES, *words.KINDS, *words.COLOURS, *words.PLACES, *words.FOODS, *words.COUNTED)
    + (*words.THINGS, *words.NUMBERS)
)

Judge = Callable[[Sequence[Any], Sequence[str], Sequence[str]], Sequence[float]]


def rubric(answer: str, dialogue: Dialogue) -> float:
    """The worth of an answer to a dialogue's prompt, from 0 to 1: its parts by `WEIGHTS`."""
    parts = rubric_parts(answer, dialogue)
    return sum(weight * parts[name] for name, weight in WEIGHTS.items())


def rubric_parts(answer: str, dialogue: Dialogue) -> dict[str, float]:
    """What a reader looks at, each from 0 to 1.

    Returns:
        facts: the share of the statements that were wanted and are there, with all that matters in them, in
            their order. format: of the first word, the last word and the marks, the mean share that is as the
            system line says. topic: the share of statements in which there is no value that none of those
            wanted has. repetition: the share of statements that are new. length: the number of statements
            over the number wanted, or the other way round.
    """
    wanted = dialogue.wanted
    *said, rest = [part.split() for part in f" {answer} ".split(" . ")]
    if not said:  # there is no statement
        return dict.fromkeys(WEIGHTS, 0.0)
    begins = said[0][:1] == [wanted.beginning]
    del said[0][: said[0].index(":") + 1 if ":" in said[0] else 1]
    marks = [statement[0] if statement else "" for statement in said]
    statements = [tuple(statement[1:]) for statement in said]
    n, n_wanted = len(statements), len(wanted.facts)
    right_marks = sum(mark == right for mark, right in zip(marks, wanted.markers, strict=False))
    allowed = {word for fact in wanted.facts for word in fact}
    on_topic = sum(not (VALUES & set(statement)) - allowed for statement in statements)
    return {
        "facts": _found(wanted, statements) / n_wanted,
        "format": (begins + (rest == [wanted.ending]) + right_marks / max(n, n_wanted)) / 3,
        "topic": on_topic / n,
        "repetition": len(set(statements)) / n,
        "length": min(n, n_wanted) / max(n, n_wanted),
    }


def _found(wanted: Wanted, statements: list[tuple[str, ...]]) -> int:
    """How many of the facts wanted are stated, one after the other."""
    found, start = 0, 0
    for fact in wanted.facts:
        for i in range(start, len(statements)):
            left = iter(statements[i])
            if all(word in left for word in fact):  # consumes: the words are there in that order
                found, start = found + 1, i + 1
                break
    return found


def rubric_judge(dialogues: Sequence[Dialogue], margin: float = 0.01) -> Judge:
    """A judge of answers to the prompts of ``dialogues``.

    Args:
        dialogues: whose prompts it knows; of another one it raises KeyError.
        margin: of the rubric's scores, within which it is a tie.

    Returns:
        From prompts and two answers to each: 1 where the first is better, -1 where the second is, 0 for ties.
    """
    known = {prompt_key(dialogue.prompt): dialogue for dialogue in dialogues}

    def judge(prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]) -> list[float]:
        verdicts = []
        for prompt, a, b in zip(prompts, first, second, strict=True):
            dialogue = known[prompt_key(prompt)]
            better = rubric(a, dialogue) - rubric(b, dialogue)
            verdicts.append(0.0 if abs(better) < margin else 1.0 if better > 0 else -1.0)
        return verdicts

    return judge
