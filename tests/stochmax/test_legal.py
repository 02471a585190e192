"""Legal actions given as lists: drawn from, kept to, and refused when they cannot be right."""

import pickle

import pytest
import torch

from extensions.stochmax import (
    ExactMaximum,
    IdCodec,
    LegalActions,
    MixedRadix,
    Neighbours,
    RecentExploited,
    ReplayActions,
    SampledMaximum,
    Uniform,
)
from extensions.stochmax.legal import LegalMask
from extensions.stochmax.sources import Query

CPU = torch.device("cpu")
N = 1000


def residues(obs):
    """Legal in a state x are x, x + 10, x + 20, ...; half as many in odd states, the rest padding."""
    x = obs[:, :1].long()
    ids = x + 10 * torch.arange(6)
    return torch.where((x % 2 == 1) & (torch.arange(6) >= 3), -1, ids)


def query(states) -> Query:
    return Query(len(states), CPU, torch.tensor(states, dtype=torch.float32).unsqueeze(1))


def test_a_draw_is_uniform_over_the_legal_ids_of_each_state():
    torch.manual_seed(0)
    ids = LegalActions(residues, IdCodec(N)).draw(query([2, 3]), 6000)
    assert ids.shape == (2, 6000)
    for row, x, count in ((ids[0], 2, 6), (ids[1], 3, 3)):
        values, counts = row.unique(return_counts=True)
        assert values.tolist() == [x + 10 * j for j in range(count)]
        expected = 6000 / count
        assert ((counts - expected) ** 2 / expected).sum() < 20.5  # chi-square, 5 degrees, p = 0.001


def test_a_list_holds_everywhere_and_counts_once():
    legal = LegalActions([7, 3, 7, 999], IdCodec(N))
    assert legal.all(query([0, 1])).tolist() == [3, 7, 999]  # shared by all states
    assert set(legal.draw(query([0, 1]), 50).flatten().tolist()) == {3, 7, 999}
    assert legal.contains(query([0]), torch.tensor([[3, 4, 999]])).tolist() == [[True, False, True]]


def test_a_list_goes_to_a_device_once():
    legal = LegalActions([3, 7], IdCodec(N))
    ask = Query(2, torch.device("meta"))
    first = legal.all(ask)
    assert first.device.type == "meta"
    assert legal.all(ask) is first
    assert legal.all(query([0])).tolist() == [3, 7]  # and where it was before it still is
    assert not pickle.loads(pickle.dumps(legal))._copies


def test_all_fills_short_lists_with_their_own_ids():
    ids = LegalActions(residues, IdCodec(N)).all(query([2, 3]))
    assert set(ids[0].tolist()) == {2, 12, 22, 32, 42, 52}
    assert set(ids[1].tolist()) == {3, 13, 23}


def test_contains_goes_by_state_and_never_by_padding():
    legal = LegalActions(residues, IdCodec(N))
    ids = torch.tensor([[2, 13, 52], [2, 13, 53]])
    assert legal.contains(query([2, 3]), ids).tolist() == [[True, False, True], [False, True, False]]


def test_padding_may_stand_anywhere_in_a_list():
    legal = LegalActions(lambda obs: torch.tensor([[-1, 5, -1, 0]]), IdCodec(N))
    assert set(legal.draw(query([0]), 200).flatten().tolist()) == {0, 5}
    assert set(legal.all(query([0])).flatten().tolist()) == {0, 5}


def test_the_last_of_a_long_list_is_reached_and_nothing_beyond():
    # 2**24 + 1 is where float32 stops telling integers apart
    legal = LegalActions([0], IdCodec(2**26))
    legal.everywhere = torch.arange(2**24 + 3)
    ids = legal.draw(query([0]), 200_000)
    assert ids.max() < 2**24 + 3
    assert bool((ids % 2 == 1).any())


@pytest.mark.parametrize("legal", [[], torch.empty(0, dtype=torch.int64)], ids=["list", "tensor"])
def test_an_empty_list(legal):
    with pytest.raises(ValueError, match="legal_actions is empty"):
        LegalActions(legal, IdCodec(N))


@pytest.mark.parametrize("legal", [[0, 1000], [-1], [0.5]])
def test_a_list_of_ids_that_are_none(legal):
    with pytest.raises(ValueError, match="action ids must be"):
        LegalActions(legal, IdCodec(N))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.tensor([[0, 1], [-1, -1]]), "no id.*state 1"),
        (torch.tensor([[0, 1], [5, N]]), "above 999, for state 1"),
        (torch.empty(2, 0, dtype=torch.int64), "no id.*state 0"),
        (torch.tensor([0, 1]), r"\(B, L\)"),
        (torch.tensor([[0, 1]]), r"\(B, L\)"),
        (torch.tensor([[0.0], [1.0]]), "integer ids"),
        (torch.ones(2, N, dtype=torch.bool), "not a mask"),
    ],
    ids=["empty", "high", "no_columns", "vector", "rows", "float", "mask"],
)
def test_a_function_that_returns_no_legal_ids(returned, message):
    with pytest.raises(ValueError, match=message):
        LegalActions(lambda obs: returned, IdCodec(N)).draw(query([0, 1]), 1)


# -- in the maximum --


NOTHING = {
    "list": lambda obs: torch.where(obs > 0, torch.tensor([5, 7]), -1),
    "no_columns": lambda obs: torch.empty(len(obs), 0, dtype=torch.int64),
    "mask": None,
}


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("way", NOTHING)
def test_where_an_episode_ended_no_action_needs_to_be_legal(way, exact, looks, monkeypatch):
    monkeypatch.setattr("extensions.stochmax.legal.may_look", lambda x: looks)  # as on a GPU
    codec, ask = IdCodec(9), query([1, 0] if way != "no_columns" else [0, 0])
    legal = LegalMask(codec) if way == "mask" else LegalActions(NOTHING[way], codec)
    ask.mask = torch.tensor([[False] * 5 + [True, False] * 2, [False] * 9])
    ask.terminal = ask.obs[:, 0] == 0
    maximum = ExactMaximum(codec, legal) if exact else SampledMaximum([Uniform(64)], codec, legal)
    best = maximum.bootstrap(q, ask.obs, ask)
    assert best.value.isfinite().all()
    assert ((best.action >= 0) & (best.action < 9)).all()
    if way != "no_columns":
        assert best.action[0] == 7
    if looks:
        ask.terminal = torch.zeros(2, dtype=torch.bool)
        with pytest.raises(ValueError, match="needs at least one legal"):
            maximum.bootstrap(q, ask.obs, ask)


def test_what_is_legal_where_an_episode_ended_is_kept():
    ask = query([2, 3])
    ask.terminal = torch.tensor([True, True])
    ids = LegalActions(residues, IdCodec(N)).draw(ask, 200)
    assert set(ids[0].tolist()) == {2, 12, 22, 32, 42, 52}
    mask = LegalMask(IdCodec(4))
    ask.mask = torch.tensor([[False, True, False, True]] * 2)
    assert set(mask.draw(ask, 200).flatten().tolist()) == {1, 3}


def q(states, ids):
    """The higher the id the better, so that anything illegal would win."""
    return ids.expand(len(states), -1).float()


def replay(k):
    return torch.arange(N - k, N)


@pytest.mark.parametrize(
    "sources",
    [
        [Uniform(4), ReplayActions(8)],
        [ReplayActions(8), Uniform(4)],
        [RecentExploited(4), Uniform(2, shared=True, once_a_step=True)],
        [Uniform(4), Neighbours(16, rounds=2)],
    ],
    ids=["log", "memory_first", "recent", "neighbours"],
)
@pytest.mark.parametrize("legal", [residues, [2, 3, 12, 13]], ids=["function", "list"])
def test_the_best_candidate_is_legal(sources, legal):
    codec = MixedRadix([10] * 3)
    maximum = SampledMaximum(sources, codec, LegalActions(legal, codec))
    ask = query([2, 3] * 8)
    ask.replay = replay
    for _ in range(10):
        best = maximum(q, ask.obs, ask)
        assert bool(maximum.legal.contains(ask, best.action.unsqueeze(1)).all())
        assert torch.equal(best.value, best.action.float())


def test_a_legal_memory_counts():
    codec = IdCodec(N)
    maximum = SampledMaximum([Uniform(1), ReplayActions(8)], codec, LegalActions([1, 2, 995], codec))
    ask = query([0] * 4)
    ask.replay = replay
    assert maximum(q, ask.obs, ask).action.tolist() == [995] * 4


def test_sources_must_be_able_to_propose_something_legal():
    codec = IdCodec(N)
    with pytest.raises(ValueError, match=r"need Uniform\(\)"):
        SampledMaximum([ReplayActions()], codec, LegalActions([1, 2], codec))


def test_the_exact_maximum_is_over_the_legal_ids():
    codec = IdCodec(N)
    ask = query([2, 3])
    best = ExactMaximum(codec, LegalActions(residues, codec))(q, ask.obs, ask)
    assert best.action.tolist() == [52, 23]


@pytest.mark.parametrize("batch", [0, 2, 7])
@pytest.mark.parametrize("legal", [None, [2, 3, 52], residues], ids=["all", "list", "function"])
def test_the_exact_maximum_of_any_number_of_states(legal, batch, monkeypatch):
    """None too, and more of them than values are computed at a time."""
    monkeypatch.setattr(ExactMaximum, "CHUNK_VALUES", 3)
    codec = IdCodec(60)
    ask = query([2] * batch)
    value = lambda obs, ids: (torch.arange(60) if ids is None else ids).float().expand(len(obs), -1)  # noqa: E731
    best = ExactMaximum(codec, None if legal is None else LegalActions(legal, codec))(value, ask.obs, ask)
    assert best.action.tolist() == [59 if legal is None else 52] * batch
