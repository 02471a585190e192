"""Clipping by the norm of dense and sparse gradients together."""

import pytest
import torch
from torch import nn

from extensions.optim import clip_grad_norm_


def params(seed=0, rows=True):
    generator = torch.Generator().manual_seed(seed)
    a, b, table, none = (nn.Parameter(torch.zeros(s)) for s in ((3, 2), (4,), (50, 2), (2,)))
    a.grad, b.grad = torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)
    if rows:
        ids = torch.tensor([[7, 9, 7, 7]])  # row 7 thrice: its parts must be summed before they are squared
        table.grad = torch.sparse_coo_tensor(ids, torch.randn(4, 2, generator=generator), (50, 2))
    return [a, b, table, none]


def densified(ps):
    out = []
    for p in ps:
        q = nn.Parameter(p.detach().clone())
        q.grad = None if p.grad is None else p.grad.to_dense() if p.grad.is_sparse else p.grad.clone()
        out.append(q)
    return out


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_equals_torch_on_the_densified_gradient(max_norm, seed):
    ours = params(seed)
    theirs = densified(ours)
    norm = clip_grad_norm_(ours, max_norm)
    expected = nn.utils.clip_grad_norm_(theirs, max_norm)
    assert norm.ndim == 0
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours, theirs, strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad.to_dense(), b.grad)
    assert ours[2].grad.is_sparse


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_is_torchs_bit_for_bit_without_rows(max_norm):
    ours = params(rows=False)
    theirs = densified(ours)
    assert torch.equal(clip_grad_norm_(ours, max_norm), nn.utils.clip_grad_norm_(theirs, max_norm))
    assert all(a.grad is None or torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_without_any_gradient():
    assert clip_grad_norm_([nn.Parameter(torch.zeros(2))], 1.0) == 0.0


def test_parameters_may_come_from_a_generator():
    ps = params()
    assert clip_grad_norm_((p for p in ps), 1.0) > 0
