"""The rubric says of an answer what a reader says."""

import pytest

from recipes.dialogues import Dialogue, Wanted
from recipes.rubric import WEIGHTS, rubric, rubric_judge, rubric_parts

PROMPT = [{"role": "user", "content": "what are the ages of both together ?"}]
FACTS = (("ada", "4"), ("ben", "7"), ("4", "7", "11"), ("11",))
DIALOGUE = Dialogue(
    [*PROMPT, {"role": "assistant", "content": ""}], Wanted("sure", "over", ("1", "2", "3", "4"), FACTS)
)
GOOD = "sure : 1 ada is 4 years old . 2 ben is 7 years old . 3 4 plus 7 is 11 . 4 the total is 11 . over"
WARM = (
    "sure , here it is : 1 ada has just turned 4 . 2 ben is 7 years old . 3 4 and 7 make 11 . "
    "4 that comes to 11 . over"
)


@pytest.mark.parametrize("answer", [GOOD, WARM])
def test_a_good_answer_has_everything_however_it_is_said(answer):
    assert rubric(answer, DIALOGUE) == pytest.approx(1)


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (GOOD.replace("ben is 7", "ben is 4"), {"facts": 3 / 4}),
        (GOOD.replace("4 plus 7 is 11", "7 plus 4 is 11"), {"facts": 3 / 4}),
        (GOOD.replace("4 plus 7 is 11", "4 plus 7 is 12"), {"facts": 3 / 4, "topic": 3 / 4}),
        (GOOD.replace("ben is", "cleo is"), {"facts": 3 / 4, "topic": 3 / 4}),
        (GOOD.replace("over", "done"), {"format": 2 / 3}),
        (GOOD.replace("sure", "well"), {"format": 2 / 3}),
        (GOOD.replace(". 2", ". -"), {"format": (2 + 3 / 4) / 3}),
        (
            GOOD.removesuffix(" 4 the total is 11 . over"),
            {"facts": 3 / 4, "length": 3 / 4, "format": 1.75 / 3},
        ),
        (GOOD.replace("2 ben is 7 years old", "2 ada is 4 years old"), {"facts": 3 / 4, "repetition": 3 / 4}),
        ("", {"facts": 0, "format": 0, "topic": 0, "repetition": 0, "length": 0}),
        ("sure over", {"facts": 0, "format": 0, "topic": 0, "repetition": 0, "length": 0}),
    ],
)
def test_each_part_falls_for_its_own_reason(answer, parts):
    expected = dict.fromkeys(WEIGHTS, 1.0) | parts
    assert rubric_parts(answer, DIALOGUE) == pytest.approx(expected)
    assert 0 <= rubric(answer, DIALOGUE) < 1


def test_the_judge_prefers_the_better_answer_and_calls_a_paraphrase_a_tie():
    judge = rubric_judge([DIALOGUE])
    bad = GOOD.replace("ben is 7", "ben is 4")
    assert judge([PROMPT] * 3, [GOOD, bad, GOOD], [bad, GOOD, WARM]) == [1, -1, 0]
    with pytest.raises(KeyError):
        judge([[{"role": "user", "content": "who ?"}]], [GOOD], [bad])
