"""AdEMAMix against the paper's algorithm in plain numbers, and against torch's AdamW."""

import math

import pytest
import torch

from extensions.optim import AdEMAMix
from extensions.optim.ademamix.schedules import alpha_at, bias_correction, slow_rate_at

pytestmark = pytest.mark.filterwarnings("ignore:AdEMAMix with alpha")

PATHS = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "differentiable": {"differentiable": True},
}
SETTINGS = {"lr": 1e-2, "eps": 1e-8, "weight_decay": 0.1, "alpha": 5.0}


def gradients(steps, n, seed=0):
    return torch.randn(steps, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(n, dtype=torch.float64):
    return torch.randn(n, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


def trained(weights, grads, path, **settings):
    """``weights`` after a step for each row of ``grads``."""
    p = weights.clone().requires_grad_()
    if path == "differentiable":
        p = p.clone()
    optimizer = AdEMAMix([p], **settings, **PATHS[path])
    for g in grads:
        p.grad = g.to(p.dtype)
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize(
    ("t", "beta3"),
    [
        (1, 0.949963743190),
        (10, 0.990900162403),
        (100, 0.999008912043),
        (500, 0.999800199625),
        (900, 0.999888901222),
        (999, 0.999899900000),
        (1000, 0.9999),
        (5000, 0.9999),
    ],
)
def test_beta3_at_the_golden_values(t, beta3, beta3_oracle):
    rate = slow_rate_at(t, beta1=0.9, beta3=0.9999, warmup=1000)
    assert 1 - rate == pytest.approx(beta3, abs=1e-12)
    if t < 1000:
        assert 1 - rate == pytest.approx(beta3_oracle(t, 0.9999, 1000, 0.9), abs=1e-15)


def test_the_half_life_grows_linearly():
    half_life = [math.log(0.5) / math.log1p(-slow_rate_at(t, 0.9, 0.9999, 1000)) for t in range(1, 1001)]
    steps = torch.tensor(half_life, dtype=torch.float64).diff()
    torch.testing.assert_close(steps, steps.mean().expand(999), rtol=1e-6, atol=0.0)


def test_beta3_from_beta1_zero_is_a_root_of_beta3():
    for t in (1, 10, 500, 999):
        rate = slow_rate_at(t, beta1=0.0, beta3=0.999, warmup=1000)
        assert 1 - rate == pytest.approx(0.999 ** (1000 / t), rel=1e-12)
    assert slow_rate_at(1000, 0.0, 0.999, 1000) == pytest.approx(0.001, rel=1e-12)


@pytest.mark.parametrize("warmup", [None, 0, 0.0])
def test_no_warm_up_is_the_full_value_from_the_first_step(warmup):
    assert slow_rate_at(1, 0.9, 0.9999, warmup) == 1 - 0.9999
    assert alpha_at(1, 5.0, warmup) == 5.0


def test_a_beta3_not_above_beta1_is_held():
    assert slow_rate_at(1, beta1=0.99, beta3=0.9, warmup=100) == 1 - 0.9
    assert slow_rate_at(1, beta1=0.0, beta3=0.0, warmup=100) == 1.0


def test_alpha_grows_linearly_and_stops():
    assert [alpha_at(t, 8.0, 4) for t in (1, 2, 3, 4, 5, 400)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_schedules_of_a_tensor_are_those_of_numbers_to_float32():
    t = torch.arange(1.0, 1200.0)
    for beta1 in (0.9, 0.0):
        rates = torch.tensor([slow_rate_at(float(k), beta1, 0.9999, 1000) for k in t], dtype=torch.float64)
        torch.testing.assert_close(slow_rate_at(t, beta1, 0.9999, 1000).double(), rates, rtol=2e-6, atol=0.0)
    # 1 - 0.9999 in float32 would be off by 1.7e-4 of itself.
    corrections = torch.tensor([bias_correction(float(k), 0.9999) for k in t], dtype=torch.float64)
    torch.testing.assert_close(bias_correction(t, 0.9999).double(), corrections, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "schedules",
    [
        {"alpha_warmup": 40, "beta3_warmup": 25},
        {"alpha_warmup": 200, "beta3_warmup": 1},
        {"alpha_warmup": None, "beta3_warmup": 0},
    ],
)
def test_sixty_steps_in_float64_are_the_papers(path, schedules, oracle):
    betas = (0.9, 0.99, 0.999)
    grads, weights = gradients(60, 5), start(5)
    torch.set_default_dtype(torch.float64)  # so that the step count of the differentiable path is one too
    try:
        p = trained(weights, grads, path, betas=betas, **SETTINGS, **schedules)
    finally:
        torch.set_default_dtype(torch.float32)
    expected = [
        oracle(w.item(), grads[:, i].tolist(), betas=betas, **SETTINGS, **schedules)
        for i, w in enumerate(weights)
    ]
    torch.testing.assert_close(p, torch.tensor(expected, dtype=torch.float64), rtol=0.0, atol=1e-12)
    assert (p - weights).abs().max() > 0.05


@pytest.mark.parametrize("path", PATHS)
def test_sixty_steps_in_float32_stay_near_float64(path):
    # The parameters move by 0.3 to 0.4; the bound is 5e-6.
    settings = {**SETTINGS, "alpha_warmup": 40, "beta3_warmup": 40}
    grads, weights = gradients(60, 8192), start(8192, torch.float32)
    grads = grads.float().double()
    exact = trained(weights.double(), grads, "for-loop", **settings)
    p = trained(weights, grads, path, **settings)
    assert (p.double() - exact).abs().max() < 5e-6


@pytest.mark.parametrize("path", PATHS)
def test_without_beta1_there_is_no_fast_moment(path):
    betas = (0.0, 0.99, 0.999)
    settings = {**SETTINGS, "alpha_warmup": 30, "beta3_warmup": None}
    grads, weights = gradients(20, 3), start(3)
    p = trained(weights, grads, path, betas=betas, **settings)
    # beta1 = 0 leaves m1 = g, which a beta1 of 1e-300 gives as well.
    close = trained(weights, grads, path, betas=(1e-300, *betas[1:]), **settings)
    torch.testing.assert_close(p, close, rtol=0.0, atol=1e-7 if path == "differentiable" else 1e-14)

    q = weights.clone().requires_grad_()
    optimizer = AdEMAMix([q], betas=betas)
    q.grad = grads[0]
    optimizer.step()
    assert set(optimizer.state[q]) == {"step", "slow_step", "exp_avg_slow", "exp_avg_sq"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", ["for-loop", "foreach", "fused"])
@pytest.mark.parametrize("maximize", [False, True])
def test_alpha_zero_is_adamw(path, dtype, maximize):
    settings = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8, "maximize": maximize, **PATHS[path]}
    p = start(1000, dtype).requires_grad_()
    q = p.detach().clone().requires_grad_()
    ours = AdEMAMix([p], betas=(0.9, 0.99, 0.9999), alpha=0.0, **settings)
    theirs = torch.optim.AdamW([q], betas=(0.9, 0.99), **settings)
    for g in gradients(50, 1000):
        p.grad, q.grad = g.to(dtype), g.to(dtype)
        ours.step()
        theirs.step()
    if path == "for-loop":
        assert torch.equal(p, q)  # to the last bit
    else:
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(p, q, rtol=0.0, atol=50 * eps)


def test_the_slow_average_is_not_corrected_for_its_bias():
    # One step with alpha = 1 and beta1 = 0: (g + (1 - beta3) g) / |g| = 1 + (1 - beta3).
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p.grad = torch.full_like(p, 3.0)
    AdEMAMix([p], lr=1.0, betas=(0.0, 0.9, 0.75), eps=0.0, alpha=1.0).step()
    assert p.item() == pytest.approx(-1.25, abs=1e-15)


def test_the_first_step_is_number_one_of_the_schedules():
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p.grad = torch.full_like(p, 3.0)
    AdEMAMix([p], lr=1.0, betas=(0.0, 0.9, 0.75), eps=0.0, alpha=1.0, alpha_warmup=4).step()
    assert p.item() == pytest.approx(-(1 + 0.25 * 0.25), abs=1e-15)


def test_a_parameter_counts_its_own_steps(oracle):
    # One that gets its first gradient late is corrected, and scheduled, from there.
    settings = {**SETTINGS, "betas": (0.9, 0.99, 0.999), "alpha_warmup": 20, "beta3_warmup": 20}
    early, late = torch.ones(1, dtype=torch.float64, requires_grad=True), torch.ones(1, dtype=torch.float64)
    late.requires_grad_()
    optimizer = AdEMAMix([early, late], **settings)
    grads = gradients(10, 2)
    for t, g in enumerate(grads):
        early.grad = g[:1].clone()
        late.grad = g[1:].clone() if t >= 6 else None
        optimizer.step()
    assert early.item() == pytest.approx(oracle(1.0, grads[:, 0].tolist(), **settings), abs=1e-13)
    assert late.item() == pytest.approx(oracle(1.0, grads[6:, 1].tolist(), **settings), abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["for-loop", "foreach", "fused"])
def test_a_half_precision_slow_average_does_not_stall(path, dtype):
    # In bfloat16 it would stop at 0.03: beta3 = 0.9999 adds less than half of its last digit.
    p = torch.zeros(4, dtype=dtype, requires_grad=True)
    optimizer = AdEMAMix([p], lr=0.0, **PATHS[path])
    p.grad = torch.ones_like(p)
    for _ in range(3000):
        optimizer.step()
    slow = optimizer.state[p]["exp_avg_slow"]
    assert slow.dtype == torch.float32
    torch.testing.assert_close(slow, torch.full((4,), 1 - 0.9999**3000), rtol=1e-4, atol=0.0)
