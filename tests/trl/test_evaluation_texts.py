"""Rouge-L, Dist-n and calibration error against what is counted by hand or by brute force."""

import builtins
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from extensions.trl.evaluation import (
    distinct_n,
    expected_calibration_error,
    rouge_l,
    rouge_l_scores,
)


@pytest.mark.parametrize(
    ("prediction", "reference", "f"),
    [
        ("the cat sat", "the cat sat", 1.0),
        # Longest common subsequence "the cat on mat" of 4; precision 4/5, recall 4/6.
        ("the cat lies on mat", "the cat sat on the mat", 2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6)),
        # Order counts: of "b a" only one word is in order.
        ("b a", "a b", 0.5),
        # The stemmer makes one word of these, case and punctuation do not count.
        ("Running cats!", "run cat", 1.0),
        ("", "something", 0.0),
        ("dog", "cat", 0.0),
    ],
)
def test_rouge_l_by_hand(prediction, reference, f):
    assert rouge_l([prediction], [reference]) == pytest.approx(100 * f)


def test_the_nearest_of_several_references_counts():
    assert rouge_l_scores(["a b"], [["c d", "a b", "a c"]]) == pytest.approx([100.0])
    assert rouge_l(["a b", "x y"], [["c d", "a b"], "x z"]) == pytest.approx(75.0)


def test_rouge_l_refuses_what_has_no_answer():
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        rouge_l(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no predictions"):
        rouge_l([], [])
    with pytest.raises(ValueError, match="Prediction 0 has an empty list"):
        rouge_l(["a"], [[]])


def test_the_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("rouge_score"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install rouge-score"):
        rouge_l(["a"], ["a"])


@given(st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=5), st.integers(1, 4))
def test_distinct_n_by_brute_force(texts, n):
    grams = []
    for text in texts:
        for start in range(len(text)):
            gram = text[start : start + n]
            if len(gram) == n:
                grams.append(gram)
    distinct = [g for i, g in enumerate(grams) if g not in grams[:i]]
    assert distinct_n(texts, n) == (len(distinct) / len(grams) if grams else 0.0)
    assert distinct_n([" ".join(map(str, t)) for t in texts], n) == distinct_n(texts, n)


def test_distinct_n_of_nothing_is_zero():
    assert distinct_n([]) == distinct_n([""]) == distinct_n(["a b c"], 4) == 0.0
    assert distinct_n(["a b a b a b"], 2) == pytest.approx(2 / 5)
    with pytest.raises(ValueError, match="n must be at least 1"):
        distinct_n(["a"], 0)


def test_calibration_error_by_hand():
    # Bins of a quarter: {0.1} wrong, {0.3, 0.5} one right (the edge belongs below), {0.9, 1.0} both right.
    confidences, correct = [0.1, 0.3, 0.5, 0.9, 1.0], [False, True, False, True, True]
    expected = (1 * abs(0 - 0.1) + 2 * abs(0.5 - 0.4) + 2 * abs(1 - 0.95)) / 5
    assert expected_calibration_error(confidences, correct, bins=4) == pytest.approx(expected)
    # With one bin it is the gap between accuracy and mean confidence.
    assert expected_calibration_error(confidences, correct, bins=1) == pytest.approx(abs(0.6 - 0.56))
    assert expected_calibration_error(torch.tensor([1.0, 0.0]), torch.tensor([True, False])) == 0.0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1), st.integers(1, 12))
def test_calibration_error_bin_by_bin(answers, bins):
    expected = 0.0
    for m in range(1, bins + 1):
        inside = [(c, r) for c, r in answers if ((m - 1) / bins < c or (m == 1 and c == 0)) and c <= m / bins]
        if inside:
            accuracy = sum(r for _, r in inside) / len(inside)
            confidence = math.fsum(c for c, _ in inside) / len(inside)
            expected += len(inside) / len(answers) * abs(accuracy - confidence)
    found = expected_calibration_error(*(list(column) for column in zip(*answers, strict=True)), bins=bins)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "not empty"),
        (([0.5], [True, False]), "equally long"),
        (([1.5], [True]), "probabilities"),
        (([math.nan], [True]), "probabilities"),
        (([0.5], [True], 0), "bins"),
    ],
)
def test_calibration_error_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(*arguments)
