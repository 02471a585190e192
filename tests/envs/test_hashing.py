"""The words and bijections that the worlds are made of: equal on every backend, onto, and well mixed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.dynamics import feistel
from envs.dynamics.arrays import quotient
from envs.dynamics.digits import join, split
from envs.dynamics.feistel import Permutation
from envs.dynamics.hashing import bell, below, draw, mix, stream, subkey, unit, word

SIZES = [1, 2, 3, 5, 100, 997, 1000, 4096, 10_007]
LARGE = [10**6, 10**9, 2**31 - 1, 2**31 + 1, 2**62 - 1, 2**62]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("key", [0, 1, 2**32 - 1])
def test_permutation_is_a_bijection(n, key):
    ids = np.arange(n)
    images = Permutation(n).forward(ids, key)
    assert np.array_equal(np.sort(images), ids)
    assert np.array_equal(Permutation(n).inverse(images, key), ids)


@given(n=st.integers(1, 2**62), where=st.floats(0, 1, exclude_max=True), key=st.integers(0, 2**32 - 1))
def test_permutation_stays_inside_and_inverts(n, where, key):
    x = int(where * n)
    y = Permutation(n).forward(x, key)
    assert 0 <= y < n
    assert Permutation(n).inverse(y, key) == x


@pytest.mark.parametrize("n", LARGE)
def test_permutation_is_equal_on_all_backends(n):
    ids = np.array(
        [0, 1, n // 2, n - 2, n - 1, min(n - 1, 2**31 - 1), min(n - 1, 2**31), min(n - 1, 2**31 + 1)]
    )
    keys = word(7, np.arange(len(ids)))
    images = Permutation(n).forward(ids, keys)
    scalars = [Permutation(n).forward(int(i), int(k)) for i, k in zip(ids, keys, strict=True)]
    tensors = Permutation(n).forward(torch.tensor(ids), torch.tensor(keys))
    assert images.tolist() == scalars == tensors.tolist()
    assert np.array_equal(Permutation(n).inverse(images, keys), ids)


@pytest.mark.parametrize("n", [10_000, 10**6])
def test_permutation_scatters(n):
    ids = np.arange(10_000)
    ranks = Permutation(n).forward(ids, 3) / n
    other = Permutation(n).forward(ids, 4) / n
    # Correlations of 10,000 independent numbers have a standard deviation of 0.01.
    assert abs(np.corrcoef(ids, ranks)[0, 1]) < 0.05
    assert abs(np.corrcoef(ranks[1:], ranks[:-1])[0, 1]) < 0.05
    assert abs(np.corrcoef(ranks, other)[0, 1]) < 0.05
    counts = np.histogram(ranks, bins=20, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 50  # chi-square with 19 degrees of freedom: p = 1e-4


def test_mix_is_a_bijection_where_it_can_be_seen():
    assert len(np.unique(mix(np.arange(2**20)))) == 2**20


def test_words_are_equal_on_all_backends_and_uniform():
    keys, counters = np.arange(1000) * (2**62 // 1001), np.arange(1000) * 4_294_967 % 2**32
    words = word(keys, counters)
    assert words.tolist() == word(torch.tensor(keys), torch.tensor(counters)).tolist()
    assert words.tolist() == [word(int(k), int(c)) for k, c in zip(keys, counters, strict=True)]
    u = unit(words)
    assert u.dtype == np.float64
    assert unit(torch.tensor(words)).tolist() == u.tolist() == [unit(int(w)) for w in words]
    assert 0 <= u.min() <= u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / 1000) ** 0.5


def test_streams_and_counters_differ():
    assert len(np.unique(word(0, np.arange(10_000)))) > 9_990  # a word may come twice: 32 bits, 10,000 draws
    assert len(np.unique(word(np.arange(10_000), 0))) > 9_990
    assert abs(np.corrcoef(word(5, np.arange(10_000)), word(6, np.arange(10_000)))[0, 1]) < 0.05


def test_below_reaches_every_value():
    values = below(word(1, np.arange(10_000)), 7)
    assert np.bincount(values).tolist() == pytest.approx([10_000 / 7] * 7, rel=0.15)


def test_the_values_are_those_of_version_0():
    """A change here changes every world: it asks for new versions of their ids."""
    words = [(0, 0), (1, 0), (0, 1), (4294967296, 0), (4611686018427387903, 4294967295)]
    assert [word(*pair) for pair in words] == [3177732941, 326657834, 890842163, 1808814850, 1982857280]
    moves = [
        (1000, 0, 0),
        (1000000, 5, 7),
        (1000000000, 123456789, 4294967295),
        (4611686018427387904, 2305843009213693953, 1),
    ]
    assert [Permutation(n).forward(x, key) for n, x, key in moves] == [
        85,
        956261,
        303255215,
        1689772105716853233,
    ]


class Checked(int):
    """An integer whose every result must fit into int64."""


def _checked(name):
    def operate(self, other):
        result = Checked(getattr(int, name)(self, other))
        assert -(2**63) <= result < 2**63
        return result

    return operate


for _name in ("add", "sub", "mul", "and", "xor", "or", "rshift", "lshift", "floordiv"):
    for _side in ("", "r"):
        setattr(Checked, f"__{_side}{_name}__", _checked(f"__{_side}{_name}__"))


def test_no_intermediate_leaves_int64():
    with pytest.raises(AssertionError):
        Checked(2**40) * 2**40
    for key in (0, 1, 2**32 - 1, 2**62 - 1):
        for counter in range(2**32 - 50, 2**32):
            word(Checked(key), Checked(counter))
    for n in (2**62, 2**62 - 1, 10**9):
        for x in range(n - 50, n):
            for key in (0, 2**32 - 1):
                y = Permutation(n).forward(Checked(x), Checked(key))
                assert Permutation(n).inverse(Checked(y), Checked(key)) == x


@pytest.mark.parametrize("n", [3, 5, 7, 997, 10_007, 10**9, 2**31 + 1, 2**62 - 1])
def test_a_walk_of_the_stated_length_brings_all_inside(n, monkeypatch):
    """Where values may not be looked at, as on a GPU, the walk has a fixed length: with the same end."""
    ids = np.arange(min(n, 20_000)) if n < 10**6 else np.random.default_rng(0).integers(n, size=20_000)
    for key in range(5):
        walked, back = (Permutation(n).forward(ids, key), Permutation(n).inverse(ids, key))
        with monkeypatch.context() as patch:
            patch.setattr(feistel, "may_look", lambda x: False)
            assert np.array_equal(Permutation(n).forward(ids, key), walked)
            assert np.array_equal(Permutation(n).inverse(ids, key), back)


def test_no_walk_where_the_grid_has_no_cell_too_many():
    assert [Permutation(n).longest_walk for n in (1, 2, 100, 10**6, 2**62)] == [0] * 5
    assert [Permutation(n).longest_walk for n in (3, 5)] == [1, 1]


def test_a_stream_is_the_part_of_a_word_that_the_key_decides():
    keys = np.random.default_rng(0).integers(2**62, size=100)
    for counter in (0, 1, 2**32 - 1):
        assert np.array_equal(draw(stream(keys), counter), word(keys, counter))


def test_subkeys_are_keys_and_differ():
    keys = subkey(np.arange(300)[:, None], np.arange(300))  # (300, 300)
    assert 0 <= keys.min() <= keys.max() < 2**62
    assert keys.max() > 2**61
    assert len(np.unique(keys)) == keys.size
    assert subkey(torch.arange(300)[:, None], torch.arange(300)).tolist() == keys.tolist()
    assert subkey(5, 7) == keys[5, 7]
    assert abs(np.corrcoef(keys[:-1].ravel(), keys[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(keys[:, :-1].ravel(), keys[:, 1:].ravel())[0, 1]) < 0.02


def test_bell_is_centred_bounded_and_equal_on_all_backends():
    words = word(3, np.arange(200_000))
    z = bell(words)
    assert z.dtype == np.float64
    assert abs(z.mean()) < 5 / 200_000**0.5
    assert z.std() == pytest.approx(1, abs=0.01)
    assert abs((z**3).mean()) < 0.03
    assert (z**4).mean() == pytest.approx(3 - 1.2 / 4, abs=0.05)  # of four uniform numbers
    assert bell(2**32 - 1) == -bell(0) == pytest.approx(2 * 3**0.5, rel=0.01)
    assert bell(2**32 - 1) < 2 * 3**0.5
    assert bell(torch.tensor(words[:100])).tolist() == z[:100].tolist() == [bell(int(w)) for w in words[:100]]


@given(data=st.data())
def test_digits_go_there_and_back(data):
    sizes = tuple(data.draw(st.lists(st.integers(1, 2**20), min_size=1, max_size=3)))
    id = data.draw(st.integers(0, math.prod(sizes) - 1))
    digits = split(id, sizes)
    assert all(0 <= digit < size for digit, size in zip(digits, sizes, strict=True))
    assert sum(d * math.prod(sizes[:i]) for i, d in enumerate(digits)) == id == join(digits, sizes)
    for array in (np.array([id]), torch.tensor([id])):
        assert [d.item() for d in split(array, sizes)] == digits
        assert join(split(array, sizes), sizes).item() == id


@given(bound=st.integers(1, 2**62), divisor=st.integers(1, 2**31), where=st.floats(0, 1, exclude_max=True))
def test_quotients_are_exact(bound, divisor, where):
    near = int(where * bound) // divisor * divisor  # multiples and what is beside them are the hard ones
    xs = [x for x in (int(where * bound), near - 1, near, near + 1, bound - 1) if 0 <= x < bound]
    expected = [x // divisor for x in xs]
    assert quotient(torch.tensor(xs), divisor, bound).tolist() == expected
    assert quotient(np.array(xs), divisor, bound).tolist() == expected


def test_quotients_are_exact_at_the_edge_of_the_float64_way():
    rng = np.random.default_rng(0)
    bound = 2**50
    for divisor in (3, 7, 10, 999, 2**20 - 1, 2**25 + 1, 10**9 + 7):
        xs = bound - 1 - rng.integers(2**20, size=1000)
        xs[::2] = xs[::2] // divisor * divisor - rng.integers(2, size=500)
        assert quotient(torch.tensor(xs), divisor, bound).tolist() == (xs // divisor).tolist()
