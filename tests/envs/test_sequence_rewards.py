"""Rewards by TRL's contract: keywords in, a float or None for each completion out."""

import math

import pytest

from envs.sequence_tasks.rewards import (
    exact_reward,
    format_reward,
    graded_count_reward,
    length_penalty,
    text_of,
)

MATHS = "The final answer to your maths question is:"
COPY = "The answer to your question is:"


class Log(dict):
    """TRL's ``log_metric``."""

    def __call__(self, name, value):
        assert name not in self
        self[name] = value


def call(reward, completions, answers, kind="count_ones", lengths=None, **others):
    """As TRL calls it: by keyword, with columns and arguments that a reward may know nothing of."""
    size = len(completions)
    return reward(
        prompts=others.pop("prompts", ["How many?"] * size),
        completions=completions,
        completion_ids=others.pop("completion_ids", [[1, 2]] * size),
        answer=answers,
        kind=[kind] * size if isinstance(kind, str) else kind,
        length=lengths or [10] * size,
        payload=[["1"]] * size,
        seed=[0] * size,
        trainer_state=None,
        log_extra=lambda column, values: None,
        **{"log_metric": Log(), **others},
    )


def test_exact():
    texts = [f"{MATHS} 12", f"{MATHS} 13", "12", "no idea", f"{MATHS} 12 {MATHS} 13"]
    assert call(exact_reward, texts, ["12"] * 5) == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert call(exact_reward, [f"{COPY} 0", f"{COPY} 1"], ["0", "0"], "copy_last") == [1.0, 0.0]


@pytest.mark.parametrize(
    ("given", "right", "reward"),
    [
        ("12", "12", 1.0),
        ("13", "12", math.exp(-1 / 1.2)),
        ("11", "12", math.exp(-1 / 1.2)),
        ("5", "4", math.exp(-1)),  # never steeper than with a scale of 1
        ("0", "0", 1.0),
        ("110", "100", math.exp(-1)),
        ("-5", "5", math.exp(-10)),
        ("9" * 18, "5", 0.0),
        ("many", "5", 0.0),
    ],
)
def test_graded(given, right, reward):
    assert call(graded_count_reward, [f"{MATHS} {given}"], [right]) == [pytest.approx(reward)]


def test_graded_has_nothing_to_say_of_symbols():
    kinds = ["copy_last", "parity", "kv_recall", "sum_ones"]
    assert call(graded_count_reward, ["1"] * 4, ["1"] * 4, kinds) == [None, None, None, 1.0]


def test_format_pays_for_the_line_that_was_asked_for():
    asked, terse = f"How many? Say so:\n{MATHS} xxxx", "1 1 1 = "
    cases = [
        (asked, f"{MATHS} 99", 0.1),
        (asked, "99", 0.0),
        (asked, f"{MATHS} xxxx", 0.0),
        (asked, f"{MATHS} 1\n{MATHS} 2", 0.0),
        (terse, "99", 0.1),
        (terse, "1 1", 0.0),
    ]
    prompts, texts, rewards = (list(column) for column in zip(*cases, strict=True))
    assert call(format_reward, texts, ["3"] * 6, prompts=prompts) == rewards


def test_length_penalty_is_a_function_with_a_name_for_each_weight():
    penalty = length_penalty(0.01)
    assert penalty.__name__ == "length_penalty"
    assert call(penalty, ["a", "b"], ["1", "1"], completion_ids=[[1, 2, 3], []]) == [-0.03, 0.0]
    assert call(length_penalty(0.0), ["a"], ["1"]) == [0.0]
    with pytest.raises(ValueError, match="per_token must be at least 0"):
        length_penalty(-0.1)


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("12", "12"),
        ([{"role": "assistant", "content": "12"}], "12"),
        ([{"role": "assistant", "content": "9"}, {"role": "tool", "content": "x"}, {"content": "12"}], "12"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "12"}]}], "12"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], ""),
        ([], ""),
        (None, ""),
    ],
)
def test_completions_are_strings_or_messages(completion, text):
    assert text_of(completion) == text
    assert call(exact_reward, [completion], ["12"]) == [float(text == "12")]


@pytest.mark.parametrize("reward", [exact_reward, graded_count_reward])
def test_errors_are_logged_by_length(reward):
    log = Log()
    answers = ["16", "17", "32", "20", "1", "3"]
    texts = ["16", "20", "30", "no idea", "1", "50"]
    call(reward, texts, answers, lengths=[16, 17, 32, 20, 1, 3], log_metric=log)
    assert log == {
        "abs_error/len_9-16": 0.0,
        "abs_error/len_17-32": 2.5,
        "abs_error/len_1-1": 0.0,
        "abs_error/len_3-4": 47.0,
        "round_number_rate": pytest.approx(3 / 5),
    }


def test_nothing_is_logged_where_there_are_no_numbers():
    for texts, kind in ((["0"], "copy_last"), (["no idea"], "count_ones")):
        log = Log()
        call(exact_reward, texts, ["0"], kind, log_metric=log)
        assert not log


def test_without_lengths_and_without_a_log():
    log = Log()
    assert exact_reward(completions=["50"], answer=["50"], kind=["count_ones"], log_metric=log) == [1.0]
    assert log == {"round_number_rate": 1.0}
    assert graded_count_reward(completions=["50"], answer=["50"], kind=["count_ones"]) == [1.0]
