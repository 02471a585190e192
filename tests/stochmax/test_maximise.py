"""The maximum over candidates against brute force, with ties, empty sets and invalid candidates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions.stochmax import exact_maximise, maximise, stoch_argmax, stoch_max
from extensions.stochmax.maximise import Maximum, better

N = 40


def table_q(table):
    """Q from a table (B, n), as every head answers."""
    return lambda states, ids: table[:, ids] if ids.ndim == 1 else table.gather(1, ids)


@st.composite
def problems(draw):
    """A table of few distinct values, so that ties abound, and one to three sets, shared or not."""
    batch = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(-3, 3, (batch, N), generator=generator).float()
    sets = []
    for _ in range(draw(st.integers(1, 3))):
        shape = (draw(st.integers(0, 6)),)
        if draw(st.booleans()):
            shape = (batch, *shape)
        sets.append(torch.randint(N, shape, generator=generator))
    if not sum(s.shape[-1] for s in sets):
        sets.append(torch.tensor([0]))
    return table, sets


def brute_force(table, sets, valid=None):
    for row, values in enumerate(table.tolist()):
        ids = [i for s in sets for i in (s if s.ndim == 1 else s[row]).tolist()]
        scores = [values[i] for i in ids]
        if valid is not None:
            scores = [v if ok else float("-inf") for v, ok in zip(scores, valid[row].tolist(), strict=True)]
        column = scores.index(max(scores))  # the first of equals
        yield scores[column], ids[column], column


@given(problems())
@settings(max_examples=150, deadline=None)
def test_equals_brute_force(problem):
    table, sets = problem
    best = maximise(table_q(table), table, *sets)
    assert list(zip(*(x.tolist() for x in best), strict=True)) == list(brute_force(table, sets))
    assert torch.equal(stoch_max(table_q(table), table, *sets), best.value)
    assert torch.equal(stoch_argmax(table_q(table), table, *sets), best.action)
    assert best.action.dtype == torch.int64


@pytest.mark.parametrize(("batch", "calls"), [(1, 1), (3, 2)])
def test_sets_that_all_states_share_are_scored_in_one_call(batch, calls):
    table = torch.randn(batch, N)
    asked = []

    def q(states, ids):
        asked.append(ids.shape)
        return table_q(table)(states, ids)

    own, shared = torch.arange(5).expand(batch, 5), torch.tensor([30, 31])
    maximise(q, table, own, shared)
    assert len(asked) == calls
    asked.clear()
    maximise(q, table, shared, shared + 2)
    assert asked == [(4,)]


@given(problems(), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_equals_brute_force_over_valid_candidates(problem, seed):
    table, sets = problem
    width = sum(s.shape[-1] for s in sets)
    valid = torch.rand(len(table), width, generator=torch.Generator().manual_seed(seed)) < 0.5
    best = maximise(table_q(table), table, *sets, valid=valid)
    assert list(zip(*(x.tolist() for x in best), strict=True)) == list(brute_force(table, sets, valid))


def test_the_first_of_equal_candidates_wins():
    table = torch.zeros(1, N)
    assert maximise(table_q(table), table, torch.tensor([7, 3]), torch.tensor([[1]])) == Maximum(0.0, 7, 0)


def test_a_shared_set_equals_the_same_set_for_each_state():
    table = torch.randn(5, N)
    ids = torch.randint(N, (9,))
    for one, each in zip(
        maximise(table_q(table), table, ids),
        maximise(table_q(table), table, ids.expand(5, -1)),
        strict=True,
    ):
        assert torch.equal(one, each)


def test_a_shared_set_reaches_q_as_it_is():
    seen = []

    def q(states, ids):
        seen.append(tuple(ids.shape))
        return torch.zeros(3, ids.shape[-1])

    maximise(
        q, None, torch.arange(4), torch.zeros(3, 2, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    )
    assert seen == [(4,), (3, 2)]  # one call a set, none for the empty one


@pytest.mark.parametrize(
    "sets", [(), (torch.empty(0, dtype=torch.int64),), (torch.empty(3, 0, dtype=torch.int64),) * 2]
)
def test_no_candidate_at_all(sets):
    with pytest.raises(ValueError, match="candidate set is empty"):
        maximise(table_q(torch.zeros(3, N)), None, *sets)


def test_a_state_without_a_valid_candidate_is_worth_minus_infinity():
    table = torch.zeros(2, N)
    valid = torch.tensor([[True, False], [False, False]])
    best = maximise(table_q(table), table, torch.tensor([4, 5]), valid=valid)
    assert best.value.tolist() == [0.0, float("-inf")]


@given(st.integers(1, 70), st.integers(1, 80), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_exact_equals_argmax_whatever_the_chunk(n, chunk, seed):
    table = torch.randint(-2, 2, (3, n), generator=torch.Generator().manual_seed(seed)).float()
    best = exact_maximise(table_q(table), table, n, chunk=chunk)
    assert torch.equal(best.value, table.max(1).values)
    assert torch.equal(best.action, table.argmax(1))
    assert torch.equal(best.column, best.action)


def test_exact_over_no_action():
    with pytest.raises(ValueError, match="empty"):
        exact_maximise(table_q(torch.zeros(1, 0)), None, 0)


def test_better_keeps_the_first_of_equals():
    a = Maximum(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1, 2, 3]), torch.tensor([0, 0, 0]))
    b = Maximum(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([7, 8, 9]), torch.tensor([5, 5, 5]))
    assert better(a, b).action.tolist() == [1, 8, 3]
    assert better(a, b).column.tolist() == [0, 5, 0]
