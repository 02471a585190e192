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


def rounded(x):
    return x.detach().bfloat16().double()


def test_autocast_rounds_the_factors_alone_and_returns_gradients_in_our_type():
    (h, head), (h_teacher, teacher), y = two_models(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = tiled_divergences(h, head, h_teacher, teacher, y)
    r, w = rounded(h).requires_grad_(), rounded(head.weight).requires_grad_()
    exact = tiled_divergences(
        r, Head(w), rounded(h_teacher), Head(rounded(teacher.weight), None, teacher.scale), y
    )
    for name in ("reverse_kl", "log_q", "log_p", "entropy"):
        got = getattr(found, name)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), getattr(exact, name), rtol=1e-4, atol=1e-5)
    found.reverse_kl.sum().backward()
    exact.reverse_kl.sum().backward()
    assert h.grad.dtype == head.weight.grad.dtype == torch.float32
    torch.testing.assert_close(h.grad.double(), r.grad, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(head.weight.grad.double(), w.grad, rtol=1e-2, atol=2e-2)


def test_gradients_of_a_half_precision_head_are_summed_over_tiles_in_float32():
    n, v, h = 4096, 12, 8
    g = torch.Generator().manual_seed(0)
    hidden, teacher = (torch.randn(n, h, generator=g).bfloat16() for _ in range(2))
    weight, y = torch.randn(v, h, generator=g).bfloat16(), torch.randint(v, (n,), generator=g)

    def gradient(dtype):
        w = weight.to(dtype).requires_grad_()
        d = tiled_divergences(
            hidden.to(dtype), Head(w), teacher.to(dtype), Head(weight.to(dtype)), y, tile_elements=1
        )
        d.reverse_kl.mean().backward()
        return w.grad.double()

    exact = gradient(torch.float64)
    assert (gradient(torch.bfloat16) - exact).norm() < 2e-3 * exact.norm()  # that of its own rounding


def test_the_backward_pass_works_on_what_the_forward_has_rounded():
    """Hidden states so long that their rounding moves the gradient by more than that of its factors."""
    (short, head), (h_teacher, teacher), y = two_models(torch.float32)
    h = (30.0 * short.detach()).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        tiled_divergences(h, head, h_teacher, teacher, y).reverse_kl.sum().backward()
    gradients = []
    for change in (rounded, torch.Tensor.double):  # both as the forward does, or the states as they came
        states = change(h.detach()).requires_grad_()
        theirs = Head(rounded(teacher.weight), None, teacher.scale)
        found = tiled_divergences(states, Head(rounded(head.weight)), rounded(h_teacher), theirs, y)
        found.reverse_kl.sum().backward()
        gradients.append(states.grad)
    right, wrong = ((h.grad.double() - g).norm() / g.norm() for g in gradients)
    assert right < 5e-3
    assert wrong > 4 * right


class Casts(TorchDispatchMode):
    """How many tensors of this shape were made in another type."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.n = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and out.shape == self.shape:
            self.n += out.dtype != args[0].dtype
        return out


def test_heads_are_cast_once_a_pass_and_not_in_every_tile():
    (h, head), (h_teacher, _), y = two_models(torch.float32)
    teacher = Head(torch.randn(V, H_TEACHER))
    for shape, casts in (((V, H), 2), ((V, H_TEACHER), 2)):
        with Casts(shape) as seen:
            with torch.autocast("cpu", torch.bfloat16):
                d = tiled_divergences(h, head, h_teacher, teacher, y, tile_elements=1)  # three tiles
            assert seen.n == casts  # to bfloat16, and to the float32 that a CPU multiplies in
            d.reverse_kl.sum().backward()
            assert seen.n == 2 * casts


def test_different_vocabularies_are_refused_and_the_first_of_a_padded_one_are_kept():
    (h, head), (h_teacher, teacher), y = two_models()
    padded = Head(torch.cat([teacher.weight, teacher.weight[:3]]), None, 0.7)
    with pytest.raises(ValueError, match="same vocabulary"):
        tiled_divergences(h, head, h_teacher, padded, y)
    kept = tiled_divergences(h, head, h_teacher, padded.first(V), y)
    torch.testing.assert_close(kept.reverse_kl, tiled_divergences(h, head, h_teacher, teacher, y).reverse_kl)


def test_the_logits_of_the_whole_batch_never_exist(largest_tensor):
    n, v, h = 2048, 5000, 8
    hidden, weight = torch.randn(n, h, requires_grad=True), torch.randn(v, h, requires_grad=True)
    with largest_tensor as seen:
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
