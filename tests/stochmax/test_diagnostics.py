"""omega, beta and the memory hit rate on tables worked out by hand."""

import pytest
import torch

from extensions.stochmax import (
    IdCodec,
    LegalActions,
    MixedRadix,
    Neighbours,
    SampledMaximum,
    Source,
    Uniform,
    diagnostics,
)
from extensions.stochmax.diagnostics import measure_shortfall
from extensions.stochmax.sources import Query


class Fixed(Source):
    def __init__(self, ids, memory=False):
        self.ids, self.is_memory = torch.as_tensor(ids), memory

    def propose(self, query):
        return self.ids


def table_q(table):
    def q(states, ids):
        return table[:, ids] if ids.ndim == 1 else table.gather(1, ids)

    return q


def measure(table, sources, codec=None, legal=None, known=None):
    codec = codec or IdCodec(table.shape[1])
    query = Query(len(table), torch.device("cpu"), table)
    return measure_shortfall(SampledMaximum(sources, codec, legal), table_q(table), table, query, known)


TABLE = torch.tensor([[1.0, 2.0, 4.0, 0.0], [8.0, 2.0, 4.0, 6.0], [-1.0, -2.0, -3.0, -4.0]])


def test_by_hand():
    # state 0: 2 of 4, from memory; state 1: 6 of 8, drawn; state 2: -2 of -1, from memory, no ratio
    shortfall = measure(TABLE, [Fixed([3]), Fixed([1], memory=True)])
    assert shortfall.omega.item() == pytest.approx((2 / 4 + 6 / 8) / 2)
    assert shortfall.beta.item() == pytest.approx((2 + 2 + 1) / 3)
    assert shortfall.memory_hit_rate.item() == pytest.approx(2 / 3)
    assert shortfall.value.item() == pytest.approx((4 + 8 + 1) / 3)
    assert shortfall.exact


def test_all_candidates_fall_short_of_nothing():
    shortfall = measure(TABLE, [Uniform(4)])
    assert (shortfall.omega.item(), shortfall.beta.item()) == (1.0, 0.0)
    assert shortfall.memory_hit_rate.item() == 0.0


def test_omega_is_nan_where_no_maximum_is_positive():
    assert measure(TABLE[2:], [Uniform(4)]).omega.isnan()


def test_what_neighbours_find_counts_and_is_no_memory():
    """From id 3 two rounds reach 4 of 4, stay at 6 of 8 (a local optimum), and reach -1 of -1."""
    alone = measure(TABLE, [Fixed([3], memory=True)])
    refined = measure(TABLE, [Fixed([3], memory=True), Neighbours(8, rounds=2)], MixedRadix([2, 2]))
    assert alone.beta.item() == pytest.approx((4 + 2 + 3) / 3)
    assert refined.beta.item() == pytest.approx(2 / 3)
    assert refined.omega.item() == pytest.approx((1 + 6 / 8) / 2)
    assert alone.memory_hit_rate.item() == 1.0
    assert refined.memory_hit_rate.item() == pytest.approx(1 / 3)


def test_with_legal_actions_the_maximum_is_over_them():
    shortfall = measure(TABLE, [Uniform(1), Fixed([1, 3])], legal=LegalActions([1, 3], IdCodec(4)))
    assert shortfall.beta.item() == 0.0
    assert shortfall.value.item() == pytest.approx((2 + 6 + 2) / 3)
    assert shortfall.exact


def test_of_many_legal_ids_a_large_sample_is_measured(monkeypatch):
    monkeypatch.setattr(diagnostics, "EXACT_VALUES", 10_000)
    monkeypatch.setattr(diagnostics, "LARGE_SAMPLE", 64)
    torch.manual_seed(0)
    table = torch.rand(8, 5000)
    table[:, 4321], table[:, 4320] = 10.0, 20.0  # the latter is not legal
    asked = []

    def q(states, ids):
        asked.append(len(states) * ids.shape[-1])
        return table_q(table)(states, ids)

    maximum = SampledMaximum([Uniform(8)], IdCodec(5000), LegalActions(range(1, 5000, 2), IdCodec(5000)))
    query = Query(8, torch.device("cpu"), table)
    sampled = measure_shortfall(maximum, q, table, query)
    assert not sampled.exact
    assert sampled.value < 1.0
    known = measure_shortfall(maximum, q, table, query, torch.tensor([4320, 4321]))
    assert known.value == 10.0
    assert max(asked) <= 8 * 64
    few = SampledMaximum([Uniform(8)], IdCodec(5000), LegalActions([1, 3], IdCodec(5000)))
    assert measure_shortfall(few, q, table, query).exact


def test_a_large_sample_stands_in_for_all(monkeypatch):
    monkeypatch.setattr(diagnostics, "EXACT_VALUES", 10)
    monkeypatch.setattr(diagnostics, "LARGE_SAMPLE", 64)
    torch.manual_seed(0)
    table = torch.rand(8, 5000)
    table[:, 4321] = 10.0
    sampled = measure(table, [Uniform(8)])
    assert not sampled.exact
    assert sampled.value < 1.0  # 64 of 5000 do not find the one
    assert sampled.beta >= 0.0
    known = measure(table, [Uniform(8)], known=torch.tensor([4321]))
    assert known.value == 10.0  # but a row that was trained is looked at


def test_beta_is_never_negative_even_if_the_sample_is_worse_than_the_candidates(monkeypatch):
    monkeypatch.setattr(diagnostics, "EXACT_VALUES", 0)
    monkeypatch.setattr(diagnostics, "LARGE_SAMPLE", 1)
    table = torch.rand(8, 5000)
    table[:, 7] = 10.0
    assert measure(table, [Fixed([7])]).beta.item() == 0.0
