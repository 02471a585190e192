"""Codecs: ids to digits, points and features and back, at the ends of the range and at random."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions.stochmax import ActionFeatures, BoxBins, IdCodec, MixedRadix

MAX = 1 << 62

#: n below, around and far above 2**31, up to the limit; with digits of one value
RADICES = [
    [1],
    [7],
    [1, 3, 1, 2],
    [10] * 6,
    [2] * 20,
    [2] * 31,
    [2] * 32,
    [2**31 - 1],
    [2**31 + 1],
    [3, 2**31],
    [2] * 62,
    [2**62],
    [1, 2**31, 1, 2**31],
]


def marked_ids(n: int) -> list[int]:
    """The ends of the range, and what lies around 2**31 if it reaches so far."""
    around = [2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32, n // 2, n // 3]
    return sorted({0, n - 1, *(i for i in around if i < n)})


@st.composite
def radices(draw) -> list[int]:
    nvec, n = [], 1
    for m in draw(st.lists(st.integers(1, 2**20), min_size=1, max_size=12)):
        if n * m <= MAX:
            nvec.append(m)
            n *= m
    return nvec


def digits_by_python(i: int, nvec: list[int]) -> list[int]:
    out = []
    for m in nvec:
        i, digit = divmod(i, m)
        out.append(digit)
    return out


@pytest.mark.parametrize("n", [1, 2, 10**6, 2**31, 2**62])
def test_plain_ids_are_themselves(n):
    codec = IdCodec(n)
    ids = torch.tensor(marked_ids(n))
    assert torch.equal(codec.decode(codec.encode(ids)), ids)
    assert codec.feature_dim == 0
    with pytest.raises(TypeError, match="MixedRadix"):
        codec.features(ids)
    with pytest.raises(TypeError, match="MixedRadix or BoxBins"):
        codec.neighbours(ids, 1)


@pytest.mark.parametrize("n", [0, -1, 2**62 + 1])
def test_n_out_of_range(n):
    with pytest.raises(ValueError, match=r"n must be in \[1, 2\*\*62\]"):
        IdCodec(n)


@pytest.mark.parametrize("nvec", RADICES, ids=str)
def test_mixed_radix_round_trip_at_marked_ids(nvec):
    codec = MixedRadix(nvec)
    assert codec.n == math.prod(nvec)
    ids = marked_ids(codec.n)
    digits = codec.decode(ids)
    assert digits.tolist() == [digits_by_python(i, nvec) for i in ids]
    assert codec.encode(digits).tolist() == ids


@given(radices(), st.data())
@settings(max_examples=60, deadline=None)
def test_mixed_radix_round_trip(nvec, data):
    codec = MixedRadix(nvec)
    ids = data.draw(st.lists(st.integers(0, codec.n - 1), min_size=1, max_size=8))
    digits = codec.decode(ids)
    assert digits.shape == (len(ids), len(nvec))
    assert digits.tolist() == [digits_by_python(i, nvec) for i in ids]
    assert codec.encode(digits).tolist() == ids


def test_mixed_radix_agrees_with_numpy():
    nvec = [3, 5, 2, 7]
    ids = np.arange(math.prod(nvec))
    ours = MixedRadix(nvec).decode(ids).numpy()
    assert np.array_equal(ours.T, np.unravel_index(ids, nvec, order="F"))


def test_mixed_radix_keeps_batch_shape():
    codec = MixedRadix([4, 5])
    ids = torch.arange(12).reshape(2, 3, 2)
    assert codec.decode(ids).shape == (2, 3, 2, 2)
    assert codec.features(ids).shape == (2, 3, 2, 2)
    assert torch.equal(codec.encode(codec.decode(ids)), ids)


@pytest.mark.parametrize("nvec", [[], [0], [3, -1]])
def test_mixed_radix_refuses_empty_digits(nvec):
    with pytest.raises(ValueError, match="nvec"):
        MixedRadix(nvec)


def test_mixed_radix_refuses_a_product_that_overflows():
    # numpy's product of these is 0, torch's too
    with pytest.raises(ValueError, match=r"exceeds 2\*\*62"):
        MixedRadix([2**32, 2**32])


@pytest.mark.parametrize(
    "digits", [[[0.0, 1.0]], [[0, 1, 0]], [[0, 5]], [[-1, 0]]], ids=["float", "width", "high", "negative"]
)
def test_mixed_radix_encode_refuses(digits):
    with pytest.raises(ValueError, match=r"digit"):
        MixedRadix([4, 5]).encode(digits)


@pytest.mark.parametrize(
    "codec", [IdCodec(20), MixedRadix([4, 5]), BoxBins([-1, -1], [1, 1], [4, 5])], ids=str
)
@pytest.mark.parametrize("ids", [[0.0], [1.5], [-1], [20], [True]])
def test_decode_refuses_ids_that_are_none(codec, ids):
    with pytest.raises(ValueError, match="action ids must be"):
        codec.decode(ids)


@given(radices(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_mixed_radix_features(nvec, one_hot):
    if one_hot:
        nvec = [min(m, 5) for m in nvec]
    codec = MixedRadix(nvec, one_hot=one_hot)
    ids = torch.tensor(marked_ids(codec.n))
    x = codec.features(ids)
    assert x.shape == (len(ids), codec.feature_dim)
    assert x.dtype == torch.float32
    assert x.min() >= -1.0
    assert x.max() <= 1.0
    if one_hot:
        assert codec.feature_dim == sum(nvec)
        assert torch.equal(x.sum(-1), torch.full((len(ids),), float(len(nvec))))
        blocks = x.split(nvec, dim=-1)
        assert torch.equal(torch.stack([b.argmax(-1) for b in blocks], -1), codec.decode(ids))
    else:
        assert codec.feature_dim == len(nvec)
        assert torch.equal(x[0], torch.full((len(nvec),), -1.0))
        assert all(x[-1, j] == (1.0 if m > 1 else -1.0) for j, m in enumerate(nvec))


def test_one_hot_keeps_batch_shape():
    codec = MixedRadix([2, 3], one_hot=True)
    x = codec.features(torch.arange(6).reshape(3, 2))
    assert x.shape == (3, 2, 5)
    assert x[2, 1].tolist() == [0, 1, 0, 0, 1]  # id 5 is digits (1, 2)


@st.composite
def boxes(draw) -> BoxBins:
    d = draw(st.integers(1, 4))
    low = draw(st.lists(st.floats(-1e6, 1e6), min_size=d, max_size=d))
    width = draw(st.lists(st.floats(1e-3, 1e6), min_size=d, max_size=d))
    bins = draw(st.lists(st.integers(1, 1000), min_size=d, max_size=d))
    return BoxBins(low, [a + w for a, w in zip(low, width, strict=True)], bins)


@given(boxes(), st.data())
@settings(max_examples=60, deadline=None)
def test_box_bins_round_trip(codec, data):
    ids = data.draw(st.lists(st.integers(0, codec.n - 1), min_size=1, max_size=8))
    points = codec.decode(ids)
    assert points.dtype == torch.float64
    assert bool(((points >= codec.low) & (points <= codec.high)).all())
    assert codec.encode(points).tolist() == ids


@given(boxes())
@settings(max_examples=60, deadline=None)
def test_box_bins_end_points_are_exact(codec):
    first, last = codec.decode([0, codec.n - 1])
    several = codec.nvec > 1
    assert torch.equal(first[several], codec.low[several])
    assert torch.equal(last[several], codec.high[several])


@given(st.floats(1e-6, 1e6), st.integers(0, 500))
@settings(max_examples=60, deadline=None)
def test_odd_bins_of_a_symmetric_box_hold_exactly_zero(half, c):
    codec = BoxBins([-half], [half], 2 * c + 1)
    assert codec.decode([c]).item() == 0.0
    assert codec.encode([[0.0]]).item() == c


def test_odd_bins_hold_zero_for_float32_bounds():
    # as gymnasium's boxes come; 0.4 is no exact binary fraction
    bound = np.array([0.4, 0.1], dtype=np.float32)
    codec = BoxBins(-bound, bound, 101)
    assert codec.decode([codec.n // 2]).tolist() == [[0.0, 0.0]]


def test_one_bin_is_the_middle():
    codec = BoxBins([-1.0, 2.0], [3.0, 2.0], 1)
    assert codec.n == 1
    assert codec.decode([0]).tolist() == [[1.0, 2.0]]
    assert codec.features(torch.tensor([0])).tolist() == [[0.0, 0.0]]
    assert codec.encode([[-1.0, 2.0]]).tolist() == [0]


@given(boxes(), st.data())
@settings(max_examples=60, deadline=None)
def test_encode_finds_the_nearest_bin(codec, data):
    t = data.draw(st.lists(st.floats(-0.5, 1.5), min_size=len(codec.low), max_size=len(codec.low)))
    point = codec.low + torch.tensor(t, dtype=torch.float64) * (codec.high - codec.low)
    digits = codec.digits(codec.encode(point))
    for j, m in enumerate(codec.nvec.tolist()):
        lo, hi = codec.low[j].item(), codec.high[j].item()
        bins = [(lo + hi) / 2] if m == 1 else [lo + c / (m - 1) * (hi - lo) for c in range(m)]
        distance = [abs(b - point[j].item()) for b in bins]
        assert distance[digits[j]] <= min(distance) + 1e-9 * (hi - lo)


def test_encode_clips_to_the_box():
    codec = BoxBins([-1.0, -1.0], [1.0, 1.0], 11)
    assert codec.encode([[9.0, -9.0]]).item() == codec.encode([[1.0, -1.0]]).item() == 10


def test_encode_reaches_the_end_of_a_dimension_finer_than_float64():
    codec = BoxBins([0.0], [1.0], 2**62)
    assert codec.encode([[1.0]]).item() == 2**62 - 1


@pytest.mark.parametrize(
    "bins", [5, np.int64(5), [5, 5], np.array([5, 5])], ids=["int", "int64", "list", "array"]
)
def test_bins_may_be_any_integers(bins):
    assert BoxBins([-1, -1], [1, 1], bins).n == 25


@pytest.mark.parametrize(
    ("low", "high", "bins"),
    [
        ([1.0], [0.0], 3),
        ([0.0], [float("inf")], 3),
        ([float("nan")], [1.0], 3),
        ([0.0, 0.0], [1.0], 3),
        ([0.0], [1.0], [3, 3]),
        ([0.0], [1.0], 0),
    ],
    ids=["order", "inf", "nan", "length", "bins", "none"],
)
def test_box_bins_refuses(low, high, bins):
    with pytest.raises(ValueError, match=r"low and high|bin counts|nvec"):
        BoxBins(low, high, bins)


@pytest.mark.parametrize("point", [[[0.0]], [[0.0, float("nan")]], [[0.0, float("inf")]]])
def test_box_bins_encode_refuses(point):
    with pytest.raises(ValueError, match="finite points"):
        BoxBins([-1, -1], [1, 1], 3).encode(point)


@given(boxes())
@settings(max_examples=30, deadline=None)
def test_box_features_are_the_unit_box(codec):
    x = codec.features(torch.tensor([[0, codec.n - 1]]))
    several = codec.nvec > 1
    assert x.shape == (1, 2, codec.feature_dim)
    assert x.dtype == torch.float32
    assert torch.equal(x[0, 0], torch.where(several, -1.0, 0.0))
    assert torch.equal(x[0, 1], torch.where(several, 1.0, 0.0))


@given(radices(), st.booleans(), st.integers(1, 30), st.data())
@settings(max_examples=80, deadline=None)
def test_neighbours_change_exactly_one_digit(nvec, box, k, data):
    codec = BoxBins([-1.0] * len(nvec), [1.0] * len(nvec), nvec) if box else MixedRadix(nvec)
    ids = data.draw(st.lists(st.integers(0, codec.n - 1), min_size=1, max_size=4))
    near = codec.neighbours(torch.tensor(ids), k)
    assert near.shape == (len(ids), k)
    assert near.dtype == torch.int64
    before = codec.decode(ids) if not box else codec.digits(torch.tensor(ids))
    after = codec.digits(codec.check_ids(near))  # check_ids: all in range
    changed = (after != before.unsqueeze(1)).sum(-1)
    if min(nvec) > 1:
        assert bool((changed == 1).all())
    else:
        assert bool((changed <= 1).all())  # a digit with one value can only stay


def test_neighbours_walk_round_all_digits():
    codec = MixedRadix([10] * 6)
    near = codec.neighbours(torch.tensor([123456]), 6)
    changed = codec.decode(near[0]) != codec.decode([123456])
    assert torch.equal(changed.sum(0), torch.ones(6, dtype=torch.int64))


@pytest.mark.parametrize("codec", [MixedRadix([6]), BoxBins([0.0], [1.0], 6)], ids=["digits", "bins"])
def test_every_other_value_of_a_digit_is_a_neighbour(codec):
    torch.manual_seed(0)
    near = codec.neighbours(torch.full((500,), 2), 1).flatten()
    assert set(near.tolist()) == {0, 1, 3, 4, 5}


def test_neighbours_of_digits_without_order_are_uniform():
    torch.manual_seed(0)
    counts = torch.bincount(MixedRadix([6]).neighbours(torch.full((6000,), 2), 1).flatten(), minlength=6)
    assert counts[2] == 0
    others = counts[counts > 0].double()
    assert ((others - 1200) ** 2 / 1200).sum() < 18.5  # chi-square, 4 degrees, p = 0.001


# -- features of the user --


def test_a_table_of_features():
    table = np.random.default_rng(0).normal(size=(50, 3))
    codec = ActionFeatures(50, table)
    assert codec.feature_dim == 3
    ids = torch.tensor([[0, 49], [7, 7]])
    assert torch.equal(codec.features(ids), torch.from_numpy(table).float()[ids])


def test_a_function_of_features_needs_no_table():
    codec = ActionFeatures(MAX, lambda ids: torch.stack([ids / MAX, (ids % 2).float()], -1))
    assert codec.feature_dim == 2
    assert codec.features(torch.tensor([[MAX - 1]])).shape == (1, 1, 2)


def test_a_function_may_return_an_array():
    codec = ActionFeatures(100, lambda ids: np.stack([ids.numpy() / 100.0], -1))
    assert isinstance(codec.features(torch.tensor([[1]])), torch.Tensor)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((4, 2)), r"features must be \(5, d\)"),
        (np.zeros(5), r"features must be \(5, d\)"),
        (np.zeros((5, 0)), "feature"),
        (lambda ids: ids.float(), r"shape \(B, C, d\)"),
        (lambda ids: torch.zeros(3, 2), r"shape \(B, C, d\)"),
        (lambda ids: ids.float().flatten().unsqueeze(-1), r"shape \(B, C, d\)"),
        (lambda ids: ids.unsqueeze(-1), r"shape \(B, C, d\)"),
        (lambda ids: torch.full((*ids.shape, 2), float("nan")), "finite"),
    ],
    ids=["rows", "vector", "empty", "no_d", "constant", "flat", "integers", "nan"],
)
def test_features_of_the_wrong_shape(features, message):
    with pytest.raises(ValueError, match=message):
        ActionFeatures(5, features)


@pytest.mark.parametrize(
    "codec", [IdCodec(9), MixedRadix([3, 3]), BoxBins([-1], [1], 9), ActionFeatures(9, np.eye(9))], ids=str
)
def test_a_codec_leaves_nothing_in_a_checkpoint_and_follows_its_network(codec):
    assert codec.state_dict() == {}
    assert list(codec.parameters()) == []
    moved = pickle.loads(pickle.dumps(codec)).to("meta")
    assert all(buffer.device.type == "meta" for buffer in moved.buffers())
