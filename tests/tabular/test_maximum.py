"""The best candidate, with equal chances for equal values."""

import torch

from extensions.tabular.maximum import best


def test_of_equal_maxima_the_tie_says_which():
    values = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]).repeat(6, 1).double()
    ties = torch.tensor([0.0, 0.3, 0.34, 0.6, 0.67, 1 - 2.0**-53], dtype=torch.float64)
    top, column = best(values, ties)
    assert top.tolist() == [3.0] * 6
    assert column.tolist() == [1, 1, 2, 2, 4, 4]


def test_what_is_taken_out_never_wins():
    values = torch.tensor([[float("-inf"), -5.0, float("-inf")]]).double()
    top, column = best(values, torch.tensor([0.99]).double())
    assert (top.item(), column.item()) == (-5.0, 1)


def test_an_id_of_several_columns_has_one_chance():
    values = torch.tensor([[3.0, 1.0, 3.0, 3.0, 3.0]]).repeat(4, 1).double()
    ids = torch.tensor([[7, 5, 7, 2, 7]]).repeat(4, 1)
    ties = torch.tensor([0.0, 0.49, 0.5, 0.99], dtype=torch.float64)
    _, column = best(values, ties, ids)
    assert ids.gather(1, column[:, None])[:, 0].tolist() == [7, 7, 2, 2]
