"""Judges, and comparisons that take no account of the order in which answers are shown."""

import itertools
import math

import numpy as np
import pytest

from extensions.trl.evaluation import ScoreJudge, compare

PROMPTS = ["p", "q", [{"role": "user", "content": "r"}], "s"]


def longer(prompts, first, second):
    return [len(a) - len(b) for a, b in zip(first, second, strict=True)]


def first_wins(prompts, first, second):
    return [1] * len(first)


def test_wins_ties_and_losses_are_counted():
    verdict = compare(longer, PROMPTS, ["aaa", "a", "same", "bb"], ["a", "aa", "same", "cc"], seed=0)
    assert verdict.outcomes == [1.0, 0.0, 0.5, 0.5]
    assert (verdict.win, verdict.tie, verdict.lose) == (0.25, 0.5, 0.25)
    assert verdict.win_rate == 0.5
    assert verdict.position_bias == 0
    assert (verdict.pairs, verdict.judged) == (4, 3)


def test_an_answer_that_is_better_has_a_win_rate_above_a_half():
    assert compare(longer, ["p"], ["aa"], ["a"], seed=0).win_rate == 1
    assert compare(longer, ["p"], ["a"], ["aa"], seed=0).win_rate == 0


def test_a_judge_that_prefers_what_it_reads_first_decides_nothing():
    verdict = compare(first_wins, PROMPTS, list("abcd"), list("efgh"), seed=0)
    assert (verdict.tie, verdict.win_rate, verdict.position_bias) == (1.0, 0.5, 1.0)


@pytest.mark.parametrize(("one", "other"), itertools.product([-1, 0, 1], repeat=2))
def test_both_orders_must_agree(one, other):
    """``one`` is said of (answer, other answer), ``other`` of the swapped pair."""

    def judge(prompts, first, second):
        return [one if first == ["ours"] else other]

    verdict = compare(judge, ["p"], ["ours"], ["theirs"], seed=0)
    expected = {(1, -1): 1.0, (-1, 1): 0.0}.get((one, other), 0.5)
    assert verdict.outcomes == [expected]
    assert verdict.position_bias == float(one != -other)


def test_equal_answers_are_ties_that_no_judge_is_asked_about():
    def judge(prompts, first, second):
        raise AssertionError

    verdict = compare(judge, PROMPTS, list("abcd"), list("abcd"), seed=0)
    assert (verdict.tie, verdict.judged) == (1.0, 0)
    assert math.isnan(verdict.position_bias)


def test_the_judge_gets_prompts_as_they_are_and_in_their_order():
    calls = []

    def judge(prompts, first, second):
        calls.append((list(prompts), list(first), list(second)))
        return [0] * len(prompts)

    compare(judge, PROMPTS, list("abcd"), list("efgd"), seed=0)
    assert calls == [(PROMPTS[:3], list("abc"), list("efg")), (PROMPTS[:3], list("efg"), list("abc"))]


def test_the_interval_is_that_of_resampled_outcomes():
    wins, ties, losses = 30, 25, 45
    ours = ["aa"] * wins + ["a"] * (ties + losses)
    theirs = ["b"] * (wins + ties) + ["bb"] * losses
    verdict = compare(longer, ["p"] * 100, ours, theirs, seed=0, resamples=20_000)
    drawn = np.random.default_rng(1).choice(verdict.outcomes, size=(20_000, 100)).mean(1)
    assert [verdict.low, verdict.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.011)
    assert verdict.low < verdict.win_rate < verdict.high


def test_the_interval_is_the_same_for_the_same_seed_and_shrinks_with_more_prompts():
    def width(n, seed):
        verdict = compare(longer, ["p"] * n, ["aa", "a"] * (n // 2), ["b", "bb"] * (n // 2), seed=seed)
        return verdict.high - verdict.low

    assert compare(longer, PROMPTS, list("abcd"), list("efgh"), seed=3) == compare(
        longer, PROMPTS, list("abcd"), list("efgh"), seed=3
    )
    assert width(1600, 0) == pytest.approx(width(100, 0) / 4, rel=0.1)


def test_a_score_makes_a_judge():
    judge = ScoreJudge(lambda prompt, answer: answer.count(prompt), margin=1)
    assert judge(["a"] * 4, ["aaa", "a", "aa", "aa"], ["a", "aaa", "a", "aa"]) == [1.0, -1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda p, a, b: [1], "4 pairs and returned 1 verdicts"),
        (lambda p, a, b: [1, 0, math.nan, 1], "verdict on the prompt .*'r'.* is nan"),
        (lambda p, a, b: [1, None, 0, 1], "verdict on the prompt 'q' is None; it must be"),
        (lambda p, a, b: [1, "A", 0, 1], "verdict on the prompt 'q' is 'A'"),
        (ScoreJudge(lambda prompt, answer: math.nan), "is NaN: give every answer a number"),
    ],
)
def test_a_judge_that_does_not_answer_is_refused(judge, message):
    with pytest.raises(ValueError, match=message):
        compare(judge, PROMPTS, list("abcd"), list("efgh"), seed=0)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="no prompts"):
        compare(longer, [], [], [], seed=0)
    with pytest.raises(ValueError, match="4 prompts, 3 answers and 4 others"):
        compare(longer, PROMPTS, list("abc"), list("abcd"), seed=0)
    with pytest.raises(ValueError, match="margin"):
        ScoreJudge(lambda prompt, answer: 0.0, margin=-1)
