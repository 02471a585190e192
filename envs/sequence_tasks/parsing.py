"""The answer in a text, if it is beyond doubt."""

from __future__ import annotations

import re

from .config import COPYING, KINDS, NUMERIC, require_one_of
from .prompts import answer_line

# No digits other than 0-9, commas only between thousands, at most 18 digits: what has more is no count.
NUMBER = r"-?(?:[0-9]{1,3}(?:,[0-9]{3}){1,5}|[0-9]{1,18})"
VALUES = {
    **dict.fromkeys(NUMERIC, NUMBER),
    **dict.fromkeys((*COPYING, "kv_recall"), "[0-9A-Za-z]"),
    "parity": "[01]",
}
MARKS = r"[ \t*_`$'\"<>]*"  # emphasis, quotes and the like around an answer
# After an opening quote, the line is quoted and not given.
LINES = {
    kind: re.compile(
        r"(?<![\"'`\u201c\u2018\u00ab])"
        + r"\s+".join(map(re.escape, answer_line(kind).split()))
        + r"([^\r\n]*)",
        re.IGNORECASE,
    )
    for kind in KINDS
}
ALONE = {kind: re.compile(rf"{MARKS}({value}){MARKS}\.?{MARKS}") for kind, value in VALUES.items()}


def parse_answer(text: str, kind: str) -> str | None:
    """The answer that ``text`` gives to a question of this kind, in the form that items have it; or None.

    It is what follows in the line that the prompts demand, "The final answer to your maths question is:" or
    "The answer to your question is:", and must be alone there but for a full stop and quotes or emphasis
    around it. In several such lines it must be the same. Lines with the placeholder of the prompt, and lines
    within quotes, count for nothing. Without such a line, the whole text must be the answer.

    Numbers may have commas between thousands: "1,000" is "1000". "007" is "7".

    Raises:
        ValueError: there is no such kind.
    """
    require_one_of("kind", kind, KINDS)
    given = [rest.strip() for rest in LINES[kind].findall(text)]
    candidates = [rest for rest in given if not re.fullmatch(rf"{MARKS}xxxx{MARKS}\.?{MARKS}", rest)]
    if not given:
        candidates = [text.strip()]
    answers = {_alone(candidate, kind) for candidate in candidates}
    return answers.pop() if len(answers) == 1 else None


def has_answer_line(text: str, kind: str) -> bool:
    """Whether the line that the prompts demand is in the text, outside quotes."""
    return LINES[kind].search(text) is not None


def _alone(text: str, kind: str) -> str | None:
    """The answer that ``text`` consists of."""
    found = ALONE[kind].fullmatch(text)
    if found is None:
        return None
    return str(int(found[1].replace(",", ""))) if kind in NUMERIC else found[1]
