"""The exponents of collapse, and from which length on a gap is under the noise."""

import math

import pytest
import torch

from extensions.glasses import ModuleAdapter, Ones, RandomThenRepeat, RepeatLast, Separated, collapse_curve
from recipes.bench.glasses_layer import RandomAttention
from recipes.bench.glasses_theory import family, gaps
from recipes.bench.glasses_theory_page import by_seed, exponent

LENGTHS = (128, 256, 512, 1024)
SEEDS = 8


def slope(positions, name):
    rows = [row for seed in range(SEEDS) for row in gaps(positions, name, seed, LENGTHS, ())]
    return exponent(*by_seed(rows))[0]


@pytest.mark.parametrize(
    ("positions", "name", "predicted"),
    [("nope", "ones", -2), ("rope", "ones", -1), ("nope", "random", -1.5), ("rope", "random", -0.5)],
)
def test_exponents(positions, name, predicted):
    assert slope(positions, name) == pytest.approx(predicted, abs=0.2)


@pytest.mark.parametrize("positions", ["steep_alibi", "learned"])
def test_no_collapse_where_positions_do_not_fade(positions):
    assert slope(positions, "random") == pytest.approx(0, abs=0.1)


def test_no_gap_at_all_without_a_prefix():
    rows = list(gaps("nope", "no prefix", 0, LENGTHS, ()))
    assert [row["gap"] for row in rows] == [0.0] * len(LENGTHS)


def model(positions="nope", width=16):
    layer = RandomAttention(positions, width=width, vocabulary=2048).eval()
    return ModuleAdapter(layer, embed=layer.embed)


def test_gaps_under_the_floor_of_bfloat16():
    """Its rounding does not fall with n as the gap does."""
    curve = collapse_curve(
        model(), family("ones", 0, 2048), (8, 32, 128, 512), layers=[-1], norms=("l1",), reference="float64"
    )
    assert curve.n_star("bfloat16").censored == "no"
    assert curve.n_star("bfloat16").length < 512
    assert curve.n_star("float32").length == math.inf
    rounding = curve.rounding["bfloat16"][:, 0, 0]
    assert rounding.max() < 3 * rounding.min()
    found, true = (curve.gap[dtype][-1, 0, 0] for dtype in ("bfloat16", "float64"))
    assert abs(found - true) > true / 2  # what is seen in bfloat16 is not the gap


def test_a_curve_holds_the_means_of_its_reports():
    curve = collapse_curve(model(), RandomThenRepeat(range(2, 2048), 1, draws=3), (4, 8), layers=[-1])
    assert curve.gap["float32"].shape == (2, 1, 3)
    assert torch.equal(curve.gap["float32"][1], curve.reports[1].gap["float32"].mean(0))
    expected = curve.gap["float32"] / curve.rounding["bfloat16"]
    assert torch.equal(curve.snr["bfloat16"], expected)
    assert curve.as_dict()["family"] == "random_then_repeat"


def test_slope_of_a_known_power_law():
    """The state is the inputs' mean: one more of a token that is 1 among zeros makes it 1 / n."""
    mean = ModuleAdapter(
        lambda x: x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None],
        embed=lambda ids: ids[..., None].double(),
    )

    class Behind:
        name = "behind"

        def pairs(self, n):
            ones = torch.zeros(1, n, dtype=torch.long)
            ones[:, 0] = 1
            return torch.zeros(1, n, dtype=torch.long), ones

    curve = collapse_curve(mean, Behind(), (10, 100, 1000), dtypes=(), reference="float64", layers=[-1])
    found = curve.slope()
    assert found.value == pytest.approx(-1)
    assert math.isnan(found.low)  # of one pair there is no interval
    assert str(found) == "-1.00 [no interval]"


def test_slopes_of_lengths_with_other_numbers_of_pairs():
    class Fewer:
        name = "fewer"

        def pairs(self, n):
            return RandomThenRepeat(range(2, 2048), 1, draws=6 if n < 8 else 4).pairs(n)

    curve = collapse_curve(model(), Fewer(), (4, 8), layers=[-1], dtypes=())
    means = [report.gap["float32"][:, 0, 0].mean().item() for report in curve.reports]
    found = curve.slope()
    assert found.value == pytest.approx(math.log(means[1] / means[0]) / math.log(2), rel=1e-6)
    assert found.low < found.value < found.high


def test_a_pair_without_a_gap_leaves_the_slope():
    class SomeAlike:
        name = "some alike"

        def pairs(self, n):
            a, b = RandomThenRepeat(range(2, 2048), 1, draws=4).pairs(n)
            b[0, : n + 1] = b[0, -1]  # of one token, as its other side is
            return torch.cat((b[:1, :n], a[1:])), b

    curve = collapse_curve(model(), SomeAlike(), (4, 8), layers=[-1], dtypes=(), reference="float64")
    gaps = [report.gap["float64"][:, 0, 0] for report in curve.reports]
    assert [gap[0].item() for gap in gaps] == pytest.approx([0, 0], abs=1e-12)
    gaps[0][0] = gaps[1][0] = 0
    means = [gap.mean().item() for gap in gaps]
    found = curve.slope()
    assert found.value == pytest.approx(math.log(means[1] / means[0]) / math.log(2), rel=1e-6)
    assert math.isnan(found.low)  # four draws of that pair have no logarithm


def test_slope_of_no_gap_is_no_number():
    curve = collapse_curve(model(), Ones(1), (4, 8), dtypes=(), reference="float64", layers=[-1])
    assert math.isnan(curve.slope().value)


def test_no_n_star_of_the_reference():
    curve = collapse_curve(model(), Ones(1, prefix=[3]), (4, 8), layers=[-1])
    with pytest.raises(ValueError, match="no rounding of 'float32' was measured, only of bfloat16"):
        curve.n_star("float32")


@pytest.mark.parametrize("lengths", [(), (4, 4), (8, 4), (0, 1)])
def test_lengths_ascend(lengths):
    with pytest.raises(ValueError, match="positive and ascending"):
        collapse_curve(model(), Ones(1), lengths)


def test_progress():
    seen = []
    collapse_curve(model(), Ones(1, prefix=[3]), (4, 8), layers=[-1], progress=seen.append)
    assert seen == [4, 8]


class TestFamilies:
    def test_ones(self):
        a, b = Ones(7, prefix=[1, 2]).pairs(3)
        assert a.tolist() == [[1, 2, 7, 7, 7]]
        assert b.tolist() == [[1, 2, 7, 7, 7, 7]]

    def test_ones_behind_several_prefixes(self):
        a, b = Ones(7, prefix=torch.tensor([[1], [2]]), more=2).pairs(1)
        assert a.tolist() == [[1, 7], [2, 7]]
        assert b.tolist() == [[1, 7, 7, 7], [2, 7, 7, 7]]

    def test_repeat_last(self):
        a, b = RepeatLast(torch.tensor([[1, 2, 3]]), prefix=[9]).pairs(2)
        assert (a.tolist(), b.tolist()) == ([[9, 1, 2]], [[9, 1, 2, 2]])
        with pytest.raises(ValueError, match="length 4 is more than the 3 tokens"):
            RepeatLast(torch.tensor([[1, 2, 3]])).pairs(4)

    def test_random_then_repeat(self):
        draw = RandomThenRepeat((3, 4, 5), 7, draws=4)
        a, b = draw.pairs(6)
        assert a.shape == (4, 6)
        assert (a[:, -1] == 7).all()
        assert ((a[:, :-1] >= 3) & (a[:, :-1] <= 5)).all()
        assert torch.equal(b, torch.cat((a, a[:, -1:]), 1))
        assert torch.equal(draw.pairs(9)[0][:, :5], a[:, :5])
        assert len({tuple(row.tolist()) for row in a}) > 1

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ({}, ("1,1,1,1", "")),
            ({"side": "left"}, ("11,11", "11,11,1")),
            ({"side": "right"}, ("11,11", "1,11,11")),
            ({"side": "left", "phase_matched": True}, ("11,11", "11,11,11")),
        ],
    )
    def test_separated(self, kind, expected):
        if not kind:
            a, _ = Separated(1, 0, every=1).pairs(4)
            assert a.tolist() == [[1, 0, 1, 0, 1, 0, 1]]
            return
        found = Separated(1, 0, every=2, **kind).pairs(4)
        texts = tuple("".join("1" if x else "," for x in row[0].tolist()) for row in found)
        assert texts == expected

    def test_names_and_refusals(self):
        assert Separated(1, 0, side="right", phase_matched=True).name == "separated_3_right_matched"
        with pytest.raises(ValueError, match='side must be "left" or "right"'):
            Separated(1, 0, side="middle")
        with pytest.raises(ValueError, match="every must be at least 1"):
            Separated(1, 0, every=0)


def test_a_task_is_no_family():
    from envs.sequence_tasks import SequenceTask

    with pytest.raises(TypeError, match="put a task into MinimalPairs"):
        collapse_curve(model(), SequenceTask("copy_last"), (4, 8))
