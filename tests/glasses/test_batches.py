"""Batches in parts."""

import pytest
import torch
from tensordict import TensorDict

from extensions.glasses import batches
from extensions.glasses.batches import TOKENS, at_once, in_pairs, of_one_size, place_of


def sizes(a, b, size):
    return [(len(x), len(y)) for x, y in in_pairs(a, b, size)]


def test_parts_of_a_tensor():
    a, b = torch.arange(10).view(5, 2), torch.arange(15).view(5, 3)
    parts = list(in_pairs(a, b, 2))
    assert torch.equal(torch.cat([x for x, _ in parts]), a)
    assert torch.equal(torch.cat([y for _, y in parts]), b)
    assert [len(x) for x, _ in parts] == [2, 2, 1]


def test_parts_of_a_mapping_and_of_a_tensordict():
    a = {"x": torch.zeros(3, 2), "y": torch.ones(3)}
    assert [len(x["y"]) for x, _ in in_pairs(a, a, 2)] == [2, 1]
    td = TensorDict(a, [3])
    assert [len(x["y"]) for x, _ in in_pairs(td, td, 2)] == [2, 1]


def test_lists_are_cut_where_a_length_changes():
    a = [[0] * n for n in (2, 2, 3, 3, 3)]
    b = [[0] * n for n in (2, 2, 3, 4, 4)]
    assert sizes(a, b, 8) == [(2, 2), (1, 1), (2, 2)]


def test_no_more_tokens_than_a_forward_should_have(monkeypatch):
    monkeypatch.setattr(batches, "TOKENS", 12)
    assert [at_once(8, n) for n in (1, 4, 5, 100)] == [8, 3, 2, 1]
    assert sizes(torch.zeros(7, 4), torch.zeros(7, 5), 8) == [(2, 2), (2, 2), (2, 2), (1, 1)]


@pytest.mark.parametrize(("position", "expected"), [(-1, [3, 2]), (-2, [2, 1]), (0, [1, 0]), (1, [2, 1])])
def test_places_among_real_tokens(position, expected):
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]).bool()
    assert place_of(position, 4, mask).tolist() == expected


def test_places_without_padding():
    assert (place_of(-1, 4, None), place_of(2, 4, None)) == (3, 2)
    with pytest.raises(ValueError, match="position 4 is outside of a sequence of 4 tokens"):
        place_of(4, 4, None)
    with pytest.raises(ValueError, match="outside of a sequence of 1 real tokens"):
        place_of(-2, 4, torch.tensor([[1, 1], [0, 1]]).bool())


def test_bad_input():
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        list(in_pairs(torch.zeros(2, 2), torch.zeros(2, 2), 0))
    with pytest.raises(ValueError, match="as many sequences on both sides, got 2 and 3"):
        list(in_pairs(torch.zeros(2, 2), torch.zeros(3, 2), 1))
    batch = {"observation": torch.zeros(3, 4, 2), "timestep": torch.arange(4)}
    with pytest.raises(
        ValueError, match=r"as many sequences, got .*'timestep': 4.*: expand what is given once"
    ):
        list(in_pairs(batch, batch, 1))


@pytest.mark.parametrize("batch", [torch.arange(3), [5, 6, 7], "1 1 1", ["1 1"], torch.arange(3).numpy()])
def test_what_is_no_batch_of_sequences(batch):
    with pytest.raises(ValueError, match=r"give sequences of ids or vectors.*\[ids\] for one"):
        list(in_pairs(batch, batch, 1))


@pytest.mark.parametrize("count", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("kind", ["tensor", "mapping"])
def test_parts_of_one_size_hold_each_sequence_once_among_the_new_ones(count, kind):
    ids = torch.arange(2 * count).reshape(count, 2)
    parts = list(of_one_size(ids if kind == "tensor" else {"input_ids": ids}, 4))
    rows = [part if kind == "tensor" else part["input_ids"] for part, _ in parts]
    assert {len(x) for x in rows} == {min(count, 4)}
    assert torch.equal(torch.cat([x[-new:] for x, (_, new) in zip(rows, parts, strict=True)]), ids)


def test_parts_of_long_sequences_are_smaller():
    assert [len(x) for x, _ in of_one_size(torch.zeros(4, TOKENS // 2), 4)] == [2, 2]
