"""Dropout by 16 bits a feature: the law, the gradient, and torch's own where that is as fast."""

import pytest
import torch
from torch.nn import functional as F

from extensions.torchrl.radt.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1000, 1001), (64, 41, 127), (333_333,)], ids=str)
def test_as_many_are_dropped_as_asked_and_the_mean_stays(shape, p):
    torch.manual_seed(0)
    x = torch.ones(shape, dtype=torch.float64)
    y = Dropout(p)(x)
    rounded = round(p * 2**16) / 2**16
    assert abs(rounded - p) <= 2**-17
    assert set(y.unique().tolist()) == {0.0, 1 / (1 - rounded)}
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(float((y == 0).double().mean()) - p) < 5 * deviation


def test_neighbours_are_independent():
    """The 16-bit numbers are parts of one of 64; all of its bits are random, the sign too."""
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(400_000)) == 0).double().view(-1, 4)
    assert (dropped.mean(0) - 0.5).abs().max() < 0.01
    correlation = torch.corrcoef(dropped.T) - torch.eye(4, dtype=torch.float64)
    assert correlation.abs().max() < 0.015
    assert abs(float(torch.corrcoef(torch.stack((dropped[1:, 0], dropped[:-1, 3])))[0, 1])) < 0.015


def test_gradients_pass_where_features_did():
    torch.manual_seed(0)
    x = torch.randn(50, 7, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y / x).detach())
    assert 0 < (x.grad == 0).sum() < x.numel()


def test_seeds_and_modes():
    x, drop = torch.randn(40, 3), Dropout(0.5)

    def draw(seed):
        torch.manual_seed(seed)
        return drop(x)

    assert draw(0).equal(draw(0))
    assert not draw(0).equal(draw(1))
    assert Dropout(0.0)(x) is x
    assert drop.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype):
    assert Dropout(0.1)(torch.ones(3, dtype=dtype)).dtype == dtype


def test_it_is_torchs_while_a_compiler_looks(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = torch.ones(100)
    torch.manual_seed(0)
    y = Dropout(0.5)(x)
    torch.manual_seed(0)
    assert y.equal(F.dropout(x, 0.5))
