"""What a text answers: read where it is beyond doubt, and not guessed elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.sequence_tasks import KINDS, SequenceTask, parse_answer
from envs.sequence_tasks.config import COUNTING
from envs.sequence_tasks.parsing import has_answer_line

MATHS = "The final answer to your maths question is:"
COPY = "The answer to your question is:"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (f"{MATHS} 12", "12"),
        (f" {MATHS} 12\n", "12"),
        (f"There are many. {MATHS} 12.", "12"),
        (f"{MATHS.lower()}   12", "12"),
        ("The final answer\nto your maths question is:\t12", "12"),
        (f"**{MATHS}** 12", "12"),
        (f"**{MATHS} 12**", "12"),
        (f"{MATHS} **12**.", "12"),
        (f'{MATHS} "12"', "12"),
        (f"{MATHS} <12>", "12"),
        (f"{MATHS} 1,000", "1000"),
        (f"{MATHS} 12,345,678", "12345678"),
        (f"{MATHS} 007", "7"),
        (f"{MATHS} -3", "-3"),
        (f"{MATHS} 0", "0"),
        ("12", "12"),
        (" 12 \n", "12"),
        (f"{MATHS} 12\nI hope that this helps you with your 3 questions.", "12"),
        # Several lines: the same answer twice is one answer.
        (f"{MATHS} 12\nLet me check: 12 indeed.\n{MATHS} 12", "12"),
        (f"{MATHS} 12\nNo, that was wrong.\n{MATHS} 13", None),
        (f"{MATHS} 12\n{MATHS} many", None),
        (f"{MATHS} 12 or 13", None),
        (f"{MATHS} 12 ones", None),
        (f"{MATHS} about 12", None),
        (f"{MATHS} twelve", None),
        (f"{MATHS}", None),
        # The demand of the prompt, told again.
        (f"You want a line '{MATHS} xxxx'. It is:\n{MATHS} 12", "12"),
        (f"I shall close with {MATHS} xxxx\n{MATHS} 12", "12"),
        (f'An example said "{MATHS} 7". Here I count more.\n{MATHS} 12', "12"),
        (f'An example said "{MATHS} 7".', None),
        (f"An example said \u201c{MATHS} 7\u201d.", None),
        (f"{MATHS} xxxx", None),
        # Numbers that are none.
        (f"{MATHS} 1,00", None),
        (f"{MATHS} 1,0000", None),
        (f"{MATHS} ,100", None),
        (f"{MATHS} 1 000", None),
        (f"{MATHS} 12.5", None),
        (f"{MATHS} 12.0", None),
        (f"{MATHS} 1e3", None),
        (f"{MATHS} 0x1f", None),
        (f"{MATHS} --3", None),
        (f"{MATHS} \u0661\u0662", None),
        (f"{MATHS} \uff11\uff12", None),
        (f"{MATHS} 1²", None),
        (f"{MATHS} {'9' * 5000}", None),
        (f"{MATHS} 9{',000' * 5}", "9000000000000000"),
        (f"{MATHS} 9{',000' * 2000}", None),
        (f"{MATHS} nan", None),
        (f"{MATHS} inf", None),
        ("12 13", None),
        ("It is 12", None),
        ("", None),
    ],
)
def test_numbers(text, answer):
    assert parse_answer(text, "count_ones") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (f"{COPY} 0", "0"),
        (f"{COPY} <0>", "0"),
        (f"{COPY} a", "a"),
        (f"{COPY} 0\n{COPY} 1", None),
        (f"{COPY} 01", None),
        (f"{COPY} 0, 1", None),
        (f"{COPY} \u0660", None),
        (f"{COPY} .", None),
        ("1", "1"),
        ("1 1", None),
        (f"{MATHS} 0", None),  # the line of another question
    ],
)
@pytest.mark.parametrize("kind", ["copy_last", "kv_recall"])
def test_symbols(kind, text, answer):
    assert parse_answer(text, kind) == answer


@pytest.mark.parametrize(
    ("given_", "answer"), [("0", "0"), ("1", "1"), ("2", None), ("odd", None), ("10", None)]
)
def test_parity(given_, answer):
    assert parse_answer(f"{MATHS} {given_}", "parity") == answer


@pytest.mark.parametrize(
    ("kind", "cot"), [*((kind, "none") for kind in KINDS), *((kind, "few") for kind in COUNTING)]
)
def test_a_prompt_is_no_answer_to_itself(kind, cot):
    prompt = SequenceTask(kind, cot=cot).items(30, 1)[0].prompt
    assert parse_answer(prompt, kind) is None
    assert has_answer_line(prompt, kind)


def test_there_must_be_such_a_kind():
    with pytest.raises(ValueError, match="kind must be one of"):
        parse_answer("1", "count")


@given(st.sampled_from(KINDS), st.text(max_size=200), st.text(max_size=200))
def test_no_text_breaks_it(kind, before, after):
    for line in (MATHS, COPY):
        answer = parse_answer(f"{before}{line}{after}", kind)
        assert answer is None or answer.isascii()


@given(st.integers(-(10**17), 10**17), st.booleans())
def test_every_number_is_read(number, commas):
    text = f"{MATHS} {number:,}" if commas else f"{MATHS} {number}"
    assert parse_answer(text, "sum_ones") == str(number)
