"""Wilson's interval and n50, against closed forms."""

import math

import pytest
import torch

from extensions.glasses.statistics import critical_length, half_length, mean_ratio, sign_test, wilson


def test_wilson_ends_are_shares_at_which_the_observed_one_is_z_deviations_away():
    low, high = wilson(torch.tensor([3, 17, 50]), 50)
    z = 1.959963984540054
    for share, ends in zip((0.06, 0.34, 1.0), zip(low.tolist(), high.tolist(), strict=True), strict=True):
        for end in ends:
            assert abs(end - share) == pytest.approx(z * math.sqrt(end * (1 - end) / 50), abs=1e-9)


def test_wilson_is_never_empty():
    low, high = wilson(torch.tensor([0, 8]), 8)
    assert low[0] == 0 < high[0]
    assert low[1] < 1
    assert high[1] == pytest.approx(1)


def test_wilson_holds_the_true_share_as_often_as_it_says():
    draws = torch.distributions.Binomial(40, torch.tensor(0.3)).sample((20_000,))
    low, high = wilson(draws, 40, level=0.9)
    assert ((low <= 0.3) & (high >= 0.3)).double().mean().item() == pytest.approx(0.9, abs=0.03)


def test_n50_is_where_the_line_between_two_lengths_crosses_the_half():
    found = half_length([8, 32, 128], [1.0, 1.0, 0.5], chance=0.5)  # crosses 0.75 half way in the logarithm
    assert found.length == pytest.approx(64)
    assert found.censored == "no"
    assert half_length([8, 32, 128], [1.0, 0.6, 0.2], chance=0.0).length == pytest.approx(8 * 16 ** (5 / 8))


def test_n50_counts_no_dip_that_is_made_good():
    assert half_length([8, 16, 32, 64], [1.0, 0.0, 1.0, 0.0], chance=0.0).length == pytest.approx(32 * 2**0.5)


def test_n50_outside_of_what_was_tested():
    assert half_length([8, 16], [1.0, 0.5], 0.0).censored == "right"
    assert half_length([8, 16], [1.0, 0.5], 0.0).length == math.inf
    assert (half_length([8, 16], [0.4, 0.1], 0.0).length, half_length([8, 16], [0.4, 0.1], 0.0).censored) == (
        8,
        "left",
    )


def test_bad_input():
    with pytest.raises(ValueError, match="chance"):
        half_length([8], [1.0], 1.0)
    with pytest.raises(ValueError, match="ascending"):
        half_length([16, 8], [1.0, 0.0], 0.0)
    with pytest.raises(ValueError, match="1 trial"):
        wilson(0, 0)


@pytest.mark.parametrize(
    ("below", "length", "censored"),
    [
        ("..##", 30, "no"),
        (".#.#", 40, "no"),
        ("####", 10, "left"),
        ("....", math.inf, "right"),
        ("###.", math.inf, "right"),
    ],
)
def test_from_which_length_on_all_are_below(below, length, censored):
    found = critical_length((10, 20, 30, 40), [mark == "#" for mark in below])
    assert (found.length, found.censored) == (length, censored)


def test_geometric_means_of_ratios():
    found = mean_ratio(torch.tensor([0.5, 2.0, 0.0, math.inf, math.nan]))
    assert (found.value, found.count) == (pytest.approx(1), 2)
    assert math.isnan(found.low)
    assert str(found) == "x1"
    many = mean_ratio(torch.tensor([2.0, 3.0, 2.5, 4.0, 2.2]))
    assert 2 < many.low < many.value < many.high < 4
    assert mean_ratio(torch.tensor([0.0])).count == 0


def test_sign_tests_are_binomial():
    assert sign_test(0, 0) == 1
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(6, 0) == sign_test(0, 6) == pytest.approx(2 / 64)
    assert sign_test(3, 3) == 1
    assert sign_test(8, 1) == pytest.approx(2 * 10 / 512)
