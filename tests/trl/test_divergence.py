"""The tiled heads against the plain formulas in float64, and what they keep in memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from extensions.trl.divergence import Head, tiled_divergences

N, V, H, H_TEACHER = 300, 11, 6, 9


def two_models(dtype=torch.float64, bias=False, scale=1.0, softcap=None, device="cpu"):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype)

    student = (
        draw(N, H).requires_grad_(),
        Head(draw(V, H).requires_grad_(), draw(V).requires_grad_() if bias else None, scale, softcap),
    )
    teacher = draw(N, H_TEACHER), Head(draw(V, H_TEACHER), draw(V) if bias else None, 0.7, softcap)
    return student, teacher, torch.randint(0, V, (N,), generator=g).to(device)


def plainly(hidden, head, temperature):
    z = hidden @ head.weight.t()
    z = (z if head.bias is None else z + head.bias) * head.scale
    z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
    return torch.log_softmax(z / temperature, -1)  # (N, V)


SETTINGS = [
    {},
    {"bias": True},
    {"scale": 0.3},
    {"softcap": 2.0},
    {"bias": True, "scale": 1.7, "softcap": 3.0},
]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("setting", SETTINGS)
def test_values_and_gradients_are_those_of_the_formulas(setting, temperature):
    (h, head), (h_teacher, teacher), y = two_models(**setting)
    ours = tiled_divergences(
        h, head, h_teacher, teacher, y, temperature, with_forward_kl=True, tile_elements=V
    )
    log_q, log_p = plainly(h, head, temperature), plainly(h_teacher, teacher, temperature)
    plain = {
        "log_q": log_q.gather(1, y[:, None])[:, 0],
        "log_p": log_p.gather(1, y[:, None])[:, 0],
        "reverse_kl": (log_q.exp() * (log_q - log_p)).sum(1),
        "forward_kl": (log_p.exp() * (log_p - log_q)).sum(1),
        "entropy": -(log_q.exp() * log_q).sum(1),
    }
    for name, value in plain.items():
        torch.testing.assert_close(getattr(ours, name), value, rtol=1e-11, atol=1e-11)

    leaves = [x for x in (h, head.weight, head.bias) if x is not None]
    c = torch.randn(3, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    names = ("log_q", "reverse_kl", "forward_kl")
    for coefficients in (c, torch.eye(3, dtype=torch.float64)[:, :, None] * c[:, None, :]):
        for rows in coefficients.reshape(-1, 3, N):
            expected = torch.autograd.grad(
                sum((k * plain[n]).sum() for k, n in zip(rows, names, strict=True)), leaves, retain_graph=True
            )
            got = torch.autograd.grad(
                sum((k * getattr(ours, n)).sum() for k, n in zip(rows, names, strict=True)),
                leaves,
                retain_graph=True,
            )
            for one, other in zip(got, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_only_what_is_asked_for_has_a_gradient():
    (h, head), (h_teacher, teacher), y = two_models()
    d = tiled_divergences(h, head, h_teacher, teacher, y)
    assert d.log_q.requires_grad
    assert d.reverse_kl.requires_grad
    assert d.forward_kl is None
    assert not d.log_p.requires_grad
    assert not d.entropy.requires_grad


def test_the_student_alone_is_its_log_likelihood():
    (h, head), _, y = two_models()
    d = tiled_divergences(h, head, None, None, y)
    expected = plainly(h, head, 1.0).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(d.log_q, expected)
    torch.testing.assert_close(
        torch.autograd.grad(d.log_q.sum(), h)[0], torch.autograd.grad(expected.sum(), h)[0]
    )
    assert d.reverse_kl is None
    assert d.log_p is None


def test_no_positions_at_all_give_a_zero_with_a_gradient():
    (h, head), (h_teacher, teacher), y = two_models()
    d = tiled_divergences(h[:0], head, h_teacher[:0], teacher, y[:0])
    (d.reverse_kl.sum() + d.log_q.sum()).backward()
    assert head.weight.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_float32_divergences(dtype):
    (h, head), (h_teacher, teacher), y = two_models(dtype)
    d = tiled_divergences(h, head, h_teacher, teacher, y)
    assert d.reverse_kl.dtype == torch.float32
    log_q = plainly(h.double(), Head(head.weight.double()), 1.0)
    log_p = plainly(h_teacher.double(), Head(teacher.weight.double(), None, 0.7), 1.0)
    exact = (log_q.exp() * (log_q - log_p)).sum(1)
    # products of half-precision factors are exact in float32: only the rounding of the inputs is lost
    torch.testing.assert_close(d.reverse_kl.double(), exact, rtol=1e-4, atol=1e-5)
    d.reverse_kl.sum().backward()
    assert h.grad.dtype == dtype
    assert head.weight.grad.dtype == dtype


def test_autocast_computes_in_its_own_type_and_returns_gradients_in_ours():
    (h, head), (h_teacher, teacher), y = two_models(torch.float32)
    exact = tiled_divergences(h, head, h_teacher, teacher, y).reverse_kl
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tiled_divergences(h, head, h_teacher, teacher, y).reverse_kl
    assert 1e-4 < (exact - rounded).abs().max() < 0.2
    rounded.sum().backward()
    assert h.grad.dtype == head.weight.grad.dtype == torch.float32


def test_different_vocabularies_are_refused_and_the_first_of_a_padded_one_are_kept():
    (h, head), (h_teacher, teacher), y = two_models()
    padded = Head(torch.cat([teacher.weight, teacher.weight[:3]]), None, 0.7)
    with pytest.raises(ValueError, match="same vocabulary"):
        tiled_divergences(h, head, h_teacher, padded, y)
    kept = tiled_divergences(h, head, h_teacher, padded.first(V), y)
    torch.testing.assert_close(kept.reverse_kl, tiled_divergences(h, head, h_teacher, teacher, y).reverse_kl)


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor any operation returned."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


def test_the_logits_of_the_whole_batch_never_exist():
    n, v, h = 2048, 5000, 8
    hidden, weight = torch.randn(n, h, requires_grad=True), torch.randn(v, h, requires_grad=True)
    with LargestTensor() as seen:
        d = tiled_divergences(
            hidden,
            Head(weight),
            hidden.detach(),
            Head(weight.detach()),
            torch.zeros(n).long(),
            tile_elements=v,
        )
        (d.reverse_kl + d.log_q).sum().backward()
    assert seen.largest == 128 * v  # one tile; the batch would be 16 of them


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_agrees_with_the_cpu(dtype):
    results = []
    for device in ("cpu", "cuda"):
        (h, head), (h_teacher, teacher), y = two_models(dtype, device=device)
        d = tiled_divergences(h, head, h_teacher, teacher, y)
        (d.reverse_kl.sum() + d.log_q.sum()).backward()
        results.append((d.reverse_kl.detach().cpu(), h.grad.float().cpu(), head.weight.grad.float().cpu()))
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
