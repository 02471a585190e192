"""Numbers that are a function of seed, stream, step and column."""

import itertools

import numpy as np
import pytest
import torch

from extensions.tabular.randomness import DRAWN_UP_TO, Stream, candidates, integers, normal

CPU = torch.device("cpu")


def stream(seeds, number=0):
    return Stream(torch.tensor(seeds), number, CPU)


def test_a_seed_draws_the_same_whatever_is_beside_it_and_from_wherever_it_starts():
    together = stream([5, 6, 7]).uniform(0, 100, 9)
    assert torch.equal(stream([6]).uniform(0, 100, 9)[:, 0], together[:, 1])
    assert torch.equal(stream([7]).uniform(40, 5, 3)[:, 0], together[40:45, 2, :3])


def test_streams_seeds_steps_and_columns_are_unrelated():
    u = torch.stack([stream([0, 1, 2, 3], number).uniform(0, 500, 6) for number in range(4)])
    flat = (u - 0.5).reshape(4, 500, 24).permute(0, 2, 1).reshape(96, 500)
    related = torch.corrcoef(flat) - torch.eye(96, dtype=torch.float64)
    assert float(related.abs().max()) < 5 / 500**0.5
    lagged = (u[:, 1:] - 0.5) * (u[:, :-1] - 0.5)
    assert abs(float(lagged.mean())) < 5 * (1 / 12) / lagged.numel() ** 0.5


def test_numbers_are_uniform():
    u = stream(list(range(100))).uniform(0, 100, 100).flatten()
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    counts = torch.histc(u, 100, 0, 1)
    chi2 = float(((counts - 1e4) ** 2 / 1e4).sum())
    assert 50 < chi2 < 170  # 99 degrees of freedom


def test_integers_reach_all_ids_and_no_other():
    ids = integers(stream([0]).uniform(0, 1, 10_000)[0, 0], 7)
    assert sorted(set(ids.tolist())) == list(range(7))
    largest = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    for n in (1, 2, 3, 7, 10**6, 10**9, 10**9 + 7, 2**40 + 1):
        assert integers(largest, n).item() == n - 1


def test_the_largest_n_has_ids_of_all_remainders():
    ids = integers(stream([0]).uniform(0, 1, 8000)[0, 0], DRAWN_UP_TO)
    assert int(torch.bincount(ids % 8, minlength=8).min()) > 850
    assert int(ids.max()) < DRAWN_UP_TO


def test_normal_numbers_are_normal():
    x = normal(stream([0, 1]).uniform(0, 500, 200).reshape(-1, 2))
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02
    assert abs(float((x**3).mean())) < 0.05
    assert abs(float((x**4).mean()) - 3) < 0.1


def test_each_subset_is_equally_likely():
    ids = candidates(stream([0]).uniform(0, 30_000, 3)[:, 0], 6)
    found = np.sort(ids.numpy(), 1)
    counts = [int((found == subset).all(1).sum()) for subset in itertools.combinations(range(6), 3)]
    assert sum(counts) == 30_000  # so all are distinct
    chi2 = sum((c - 1500) ** 2 / 1500 for c in counts)
    assert chi2 < 45  # 19 degrees of freedom


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (256, 8), (256, 256)])
def test_candidates_are_distinct_up_to_256(n, k):
    ids = candidates(stream([0]).uniform(0, 20, k)[:, 0], n)
    assert all(len(set(row)) == k for row in ids.tolist())
    assert int(ids.min()) >= 0
    assert int(ids.max()) < n
