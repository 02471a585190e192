"""AdEMAMix8bit: its codes, that small changes are not lost, and what a torch.optim user expects."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from extensions.optim import AdEMAMix, AdEMAMix8bit, SlowScheduler
from extensions.optim.ademamix import blockwise
from extensions.optim.ademamix.blockwise import BLOCK, PERIOD

pytestmark = pytest.mark.filterwarnings("ignore:AdEMAMix.* with alpha")
SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "alpha": 4.0, "alpha_warmup": 9, "beta3_warmup": 7}
CODES = {
    "exp_avg_codes": torch.int8,
    "exp_avg_slow_codes": torch.int8,
    "exp_avg_sq_codes": torch.uint8,
}
SCALES = ("exp_avg_scale", "exp_avg_slow_scale", "exp_avg_sq_range")


def parameter(*shape, dtype=torch.float32, seed=0):
    return normal(*shape, seed=seed).to(dtype).requires_grad_()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(optimizer, n=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()


def through_a_file(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def moments(optimizer, p):
    state = optimizer.state[p]
    has_fast = "exp_avg_codes" in state
    names = ("exp_avg_codes", "exp_avg_scale", "exp_avg_slow_codes", "exp_avg_slow_scale")
    parts = [state[name] if has_fast or "slow" in name else None for name in names]
    return blockwise.decode_moments(
        blockwise.Codes(*parts, state["exp_avg_sq_codes"], state["exp_avg_sq_range"]),
        state["slow_share"].item() if has_fast else 0.0,
    )


def test_a_gradient_whose_square_overflows_leaves_its_block_finite():
    p, q = parameter(512), parameter(512)
    ours = AdEMAMix8bit([p], lr=1e-2, alpha=1.0, min_8bit_size=0)
    whole = AdEMAMix([q], lr=1e-2, alpha=1.0)
    for t in range(4):
        for x, optimizer in ((p, ours), (q, whole)):
            x.grad = normal(512, seed=t).float()
            if t == 0:
                x.grad[3] = 1e21
            optimizer.step()
    assert torch.isfinite(p).all()
    # Its neighbours make short steps for a while; other blocks notice nothing.
    torch.testing.assert_close(p[BLOCK:], q[BLOCK:], rtol=0.0, atol=0.02)


def test_beta1_may_be_written_from_zero():
    p = parameter(5000)
    optimizer = AdEMAMix8bit([p], betas=(0.0, 0.99, 0.999), alpha=1.0)
    step(optimizer)
    optimizer.param_groups[0]["betas"] = (0.9, 0.99, 0.999)
    step(optimizer, 2)
    assert torch.isfinite(p).all()
    assert optimizer.state[p]["exp_avg_codes"].any()


# Codes


@pytest.mark.parametrize("which", [blockwise.SLOW, blockwise.ROOT])
def test_chances_are_even_over_elements_and_over_steps(which):
    phases = blockwise.phases(0, PERIOD, torch.device("cpu"))
    over_elements = blockwise.chances(phases, 12345, which).sort().values
    over_steps = torch.stack([blockwise.chances(phases[:8], t, which) for t in range(4096)]).sort(0).values
    for sorted_, error in ((over_elements, 0.01), (over_steps[:, 0], 0.002), (over_steps[:, 7], 0.002)):
        assert (sorted_ >= 0).all()
        assert (sorted_ < 1).all()
        torch.testing.assert_close(sorted_, torch.linspace(0, 1, len(sorted_)), atol=error, rtol=0)


def test_chances_depend_on_the_element_not_on_how_many_are_taken_at_once():
    n = 3 * PERIOD + 1000
    everything = blockwise.phases(0, n, torch.device("cpu"))
    for begin, end in ((0, 7), (PERIOD, PERIOD + 256), (2 * PERIOD - 5, 3 * PERIOD + 5), (n - 3, n)):
        assert torch.equal(blockwise.phases(begin, end - begin, torch.device("cpu")), everything[begin:end])
    assert not torch.equal(everything[:PERIOD], everything[PERIOD : 2 * PERIOD])


def test_chances_of_the_two_averages_are_not_correlated():
    phases = blockwise.phases(0, 1, torch.device("cpu"))
    slow, root = (
        torch.cat([blockwise.chances(phases, t, which) for t in range(4096)]).double() for which in (0, 1)
    )
    assert abs(torch.corrcoef(torch.stack((slow, root)))[0, 1]) < 0.01


def test_rounding_is_right_in_the_mean():
    steps, phases = 2000, blockwise.phases(0, BLOCK, torch.device("cpu")).view(1, BLOCK)
    average = normal(1, BLOCK).float()
    square = normal(1, BLOCK, seed=1).float().square()
    mean, mean_square = torch.zeros(1, BLOCK, dtype=torch.float64), torch.zeros(1, BLOCK, dtype=torch.float64)
    for t in range(steps):
        codes = blockwise.encode(average.clone(), blockwise.chances(phases, t, blockwise.SLOW))
        mean += blockwise.decode(*codes) / steps
        codes, span = blockwise.encode_root(square, blockwise.chances(phases, t, blockwise.ROOT))
        mean_square += blockwise.decode_root(codes, span).double().square() / steps
    level = average.abs().max() / blockwise.LEVELS
    assert (mean - average).abs().max() < 0.003 * level  # a single rounding is off by up to a level
    torch.testing.assert_close(mean_square, square.double(), rtol=5e-4, atol=0)


def test_codes_know_zero_and_the_ends_of_a_block():
    square = torch.tensor([[0.0, 1e-30, 1.0, 4.0], [0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
    for chance in (0.0, 0.5, 0.999999):
        codes, span = blockwise.encode_root(square, torch.full_like(square, chance))
        root = blockwise.decode_root(codes, span)
        assert (root[0, 0], *root[1]) == (0,) * 5
        # 1e-30 has 1e-15 of the greatest root: raised, so that its steps shorten.
        torch.testing.assert_close(root[0, 1], torch.tensor(2.0**-23))
        torch.testing.assert_close(root[0, 3], torch.tensor(2.0))
        torch.testing.assert_close(root[2], torch.full((4,), 3.0))
        assert 0.9 < root[0, 2] < 1.1
        average = torch.tensor([[-2.0, 0.0, 1e-3, 2.0], [0.0, 0.0, 0.0, 0.0]])
        back = blockwise.decode(*blockwise.encode(average.clone(), torch.full((2, 4), chance)))
        assert back[0, 0] == -2
        assert back[0, 1] == 0
        assert back[0, 3] == 2
        assert not back[1].any()


# The algorithm


def both(gradients, n, dtype=torch.float32, like=AdEMAMix8bit, **settings):
    """Weights after steps by float64 AdEMAMix and by ``like``, and the latter optimizer."""
    exact, p = torch.zeros(n, dtype=torch.float64, requires_grad=True), parameter(n, dtype=dtype)
    p.data.zero_()
    reference, optimizer = AdEMAMix([exact], **settings), like([p], **settings)
    for gradient in gradients:
        exact.grad, p.grad = gradient.double(), gradient.to(dtype)
        reference.step()
        optimizer.step()
    return exact.detach(), p.detach().double(), reference, optimizer


def noisy(n, steps, signal, huge=1.0, seed=0):
    mean, scale = signal * normal(n, seed=seed), torch.exp(0.3 * normal(n, seed=seed + 1)) * 1e-2
    scale[::BLOCK] *= huge
    generator = torch.Generator().manual_seed(seed + 2)
    for _ in range(steps):
        yield (scale * (mean + torch.randn(n, generator=generator, dtype=torch.float64))).float()


@pytest.mark.parametrize("betas", [(0.9, 0.999, 0.9999), (0.0, 0.999, 0.999)])
@pytest.mark.parametrize("huge", [1.0, 1e4])
def test_sixty_steps_are_near_those_in_float64(betas, huge):
    exact, ours, *_ = both(
        noisy(4096 + 100, 60, 0.3, huge), 4096 + 100, **{**SETTINGS, "betas": betas, "weight_decay": 0.0}
    )
    # Roots of a ratio of 1e4 in each block are 254 levels of 4% apart.
    assert (ours - exact).norm() < (0.02 if huge == 1 else 0.05) * exact.norm()
    assert (ours - exact).abs().max() < (0.05 if huge == 1 else 0.1) * exact.abs().max()


def test_the_slow_average_neither_stalls_nor_drifts_over_many_steps():
    # Half of the elements push one way at every step, the others at one in four only, by turns: in each block
    # there are ones that a scale of the greatest alone would not bring along.
    n, steps = 4096, 1500
    each = torch.arange(n)
    gradients = [torch.where((each % 2 == 0) | ((each // 2 + t) % 4 == 0), 1.0, 0.0) for t in range(steps)]
    *_, reference, optimizer = both(gradients, n, lr=1e-3, alpha=2.0)
    (exact,), (ours,) = reference.state.values(), [moments(optimizer, p) for p in optimizer.state]
    for mine, name in zip(ours, ("exp_avg", "exp_avg_slow", "exp_avg_sq"), strict=True):
        for half in (0, 1):
            value, true = mine[half::2].double(), exact[name][half::2]
            # What is left of the errors averages out; a stall would be a loss of most of it.
            assert abs(value.mean() - true.mean()) < 0.01 * true.mean(), name
            assert (value - true).square().mean().sqrt() < 0.1 * true.mean(), name


def test_the_slow_average_of_noisy_gradients_is_near_that_in_float64():
    exact, ours, reference, optimizer = both(noisy(4096, 1500, 0.1), 4096, lr=1e-3, alpha=2.0)
    ((true, root),) = [(s["exp_avg_slow"], s["exp_avg_sq"].sqrt()) for s in reference.state.values()]
    (slow,) = [moments(optimizer, p)[1] for p in optimizer.state]
    # 0.15 if m2 itself were kept, and not what is left of it without its share of m1.
    assert ((slow - true) / root).norm() < 0.12 * (true / root).norm()
    assert (ours - exact).norm() < 0.03 * exact.norm()


def test_a_small_gradient_beside_a_huge_one_keeps_its_pace():
    exact, ours, *_ = both(noisy(4096, 300, 1.0, huge=1e5), 4096, lr=1e-3, alpha=2.0, alpha_warmup=300)
    small = torch.arange(4096) % BLOCK != 0
    assert (ours - exact)[small].norm() < 0.1 * exact[small].norm()
    assert (ours - exact).abs().max() < 0.2 * exact.abs().max()


def test_no_step_explodes_after_gradients_have_stopped():
    # The squared moment of half a block fades away while the other half goes on.
    n = 4096
    gradients = [torch.ones(n) if t < 5 else (torch.arange(n) % 2).float() for t in range(1500)]
    exact, ours, *_ = both(gradients, n, lr=1e-3, alpha=1.0, betas=(0.9, 0.99, 0.999))
    assert (ours - exact).norm() < 0.1 * exact.norm()
    assert (ours - exact).abs().max() < 0.3 * exact.abs().max()


def test_what_gets_no_gradient_does_not_move():
    p = parameter(64, 256)
    before = p.detach().clone()
    optimizer = AdEMAMix8bit([p], alpha=4.0)
    for _ in range(5):
        p.grad = torch.zeros_like(p)
        p.grad[3] = 1.0
        optimizer.step()
    moved = (p != before).any(1)
    assert moved.nonzero().flatten().tolist() == [3]


def test_huge_and_not_finite_gradients_stay_in_their_block():
    p = parameter(8192)
    optimizer = AdEMAMix8bit([p], alpha=1.0)
    p.grad = torch.ones(8192)
    p.grad[0], p.grad[BLOCK] = float("nan"), 1e18
    optimizer.step()
    optimizer.step()
    assert p[0].isnan()
    assert p[BLOCK:].isfinite().all()


def test_with_alpha_zero_it_is_near_adamw():
    p, q = parameter(5000), parameter(5000)
    step(AdEMAMix8bit([p], lr=1e-3, alpha=0.0, weight_decay=0.1), 30)
    step(torch.optim.AdamW([q], lr=1e-3, weight_decay=0.1), 30)
    start = parameter(5000)
    assert (p - q).norm() < 0.02 * (q - start).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_updated_through_float32(dtype):
    gradients = [gradient.to(dtype).float() for gradient in noisy(4096, 20, 0.3)]
    exact, ours, *_ = both(gradients, 4096, dtype=dtype, **SETTINGS)
    assert (ours - exact).norm() < 0.03 * exact.norm()


def test_maximize_is_the_negated_gradient():
    p, q = parameter(5000), parameter(5000)
    up, down = AdEMAMix8bit([p], maximize=True), AdEMAMix8bit([q])
    for t in range(3):
        p.grad = normal(5000, seed=t).float()
        q.grad = -p.grad
        kept = p.grad.clone()
        up.step()
        down.step()
        assert torch.equal(p.grad, kept)
    assert torch.equal(p, q)


def test_elements_are_told_by_their_index_however_they_lie_in_memory():
    p = parameter(4, 32, 8, 9)
    q = p.detach().to(memory_format=torch.channels_last, copy=True).requires_grad_()
    r = torch.zeros(4, 32, 8, 18).narrow(3, 0, 9).copy_(p.detach()).requires_grad_()
    for each in (p, q, r):
        step(AdEMAMix8bit([each], **SETTINGS), 3)
    assert torch.equal(p, q)
    assert torch.equal(p, r)


def test_how_many_elements_are_taken_at_a_time_does_not_matter(monkeypatch):
    p, q = parameter(5, 1111), parameter(5, 1111)
    step(AdEMAMix8bit([p], **SETTINGS), 3)
    monkeypatch.setattr(blockwise, "CPU_CHUNK", 2 * BLOCK)
    step(AdEMAMix8bit([q], **SETTINGS), 3)
    assert torch.equal(p, q)


# State


@pytest.mark.parametrize(("beta1", "bytes_"), [(0.9, 3 * 1 + 4 * 4 / BLOCK), (0.0, 2 * 1 + 3 * 4 / BLOCK)])
def test_its_memory(beta1, bytes_):
    p = parameter(512, 256)
    optimizer = AdEMAMix8bit([p], betas=(beta1, 0.999, 0.999))
    step(optimizer)
    state = optimizer.state[p]
    assert sum(t.nbytes for name, t in state.items() if t.dim()) == bytes_ * p.numel()
    assert ("exp_avg_codes" in state) == (beta1 > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta1", [0.9, 0.0])
def test_a_resumed_run_goes_on_to_the_same_bits(dtype, beta1):
    def new(params):
        settings = {**SETTINGS, "betas": (beta1, 0.99, 0.999)}
        return AdEMAMix8bit([{"params": params[:1]}, {"params": params[1:], "lr": 1e-3}], **settings)

    params = [parameter(70, 70, dtype=dtype), parameter(9, dtype=dtype)]
    optimizer = new(params)
    step(optimizer, 3)
    before = torch.random.get_rng_state()
    resumed_params = [p.detach().clone().requires_grad_() for p in params]
    resumed = new(resumed_params)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for name, type_ in CODES.items():
        if beta1 or "slow" in name or "sq" in name:
            assert resumed.state[resumed_params[0]][name].dtype == type_
    for name in SCALES[0 if beta1 else 1 :]:
        assert resumed.state[resumed_params[0]][name].dtype == torch.float32
    assert resumed.state[resumed_params[1]]["exp_avg_slow"].dtype == torch.float32
    step(optimizer, 3, seed=2)
    step(resumed, 3, seed=2)
    for p, q in zip(params, resumed_params, strict=True):
        assert torch.equal(p, q)
        for name, value in optimizer.state[p].items():
            assert torch.equal(value, resumed.state[q][name]), name
    assert torch.equal(before, torch.random.get_rng_state())


def test_copies_and_pickles_go_on_alike():
    model = nn.Linear(80, 80)
    optimizer = AdEMAMix8bit(model.parameters(), **SETTINGS)
    step(optimizer, 2)
    copied_model, copied = copy.deepcopy((model, optimizer))
    pickled_model, pickled = pickle.loads(pickle.dumps((model, optimizer)))
    for each in (optimizer, copied, pickled):
        step(each, 2, seed=3)
    for other in (copied_model, pickled_model):
        assert torch.equal(other.weight, model.weight)
    assert pickled.defaults["min_8bit_size"] == 4096


def test_states_of_other_optimizers_are_refused_with_the_way_out():
    p = parameter(80, 80)
    ours, whole, adamw = AdEMAMix8bit([p]), AdEMAMix([p]), torch.optim.AdamW([p])
    for optimizer in (ours, whole, adamw):
        step(optimizer)
    with pytest.raises(ValueError, match="load it into an AdEMAMix8bit"):
        whole.load_state_dict(ours.state_dict())
    with pytest.raises(ValueError, match="not of AdEMAMix8bit"):
        ours.load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match=r"AdEMAMix8bit.from_adamw\(adamw\)"):
        ours.load_state_dict(adamw.state_dict())
    with pytest.raises(ValueError, match=r"of shape \(80, 80\) for parameter 0"):
        AdEMAMix8bit([parameter(40, 160)]).load_state_dict(ours.state_dict())
    cut = copy.deepcopy(ours.state_dict())
    del cut["state"][0]["exp_avg_slow_scale"]
    with pytest.raises(ValueError, match="lacks exp_avg_slow_scale for parameter 0"):
        ours.load_state_dict(cut)


# What a user of torch.optim does


def test_small_tensors_have_float_moments_and_the_steps_of_ademamix():
    p, q, large = parameter(4095), parameter(4095), parameter(4096)
    optimizer = AdEMAMix8bit([p, large], **SETTINGS)
    step(optimizer, 3)
    whole = AdEMAMix([q, parameter(4096)], **SETTINGS)
    step(whole, 3)
    assert torch.equal(p, q)
    assert optimizer.state[p]["exp_avg_slow"].dtype == torch.float32
    assert "exp_avg_slow_codes" in optimizer.state[large]


def test_a_group_may_keep_float_moments():
    p, q = parameter(5000), parameter(5000)
    optimizer = AdEMAMix8bit([{"params": [p], "min_8bit_size": 10**9}, {"params": [q]}])
    optimizer.add_param_group({"params": [parameter(10)], "min_8bit_size": 0})
    step(optimizer)
    assert "exp_avg_slow" in optimizer.state[p]
    assert "exp_avg_slow_codes" in optimizer.state[q]
    assert "exp_avg_slow_codes" in list(optimizer.state.values())[-1]
    assert [group["min_8bit_size"] for group in optimizer.param_groups] == [10**9, 4096, 0]


@pytest.mark.parametrize("flag", ["foreach", "fused", "capturable", "differentiable"])
def test_flags_that_it_lacks_are_refused_with_the_way_out(flag):
    words = f"AdEMAMix8bit does not support {flag}=True.*use AdEMAMix with {flag}=True"
    with pytest.raises(RuntimeError, match=words):
        AdEMAMix8bit(None, **{flag: True})
    optimizer = AdEMAMix8bit([parameter(2)], **{flag: False})
    with pytest.raises(RuntimeError, match=words):
        optimizer.add_param_group({"params": [parameter(3)], flag: True})
    assert len(optimizer.param_groups) == 1


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="Invalid min_8bit_size value: -1"):
        AdEMAMix8bit(None, min_8bit_size=-1)
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        AdEMAMix8bit(None, lr=-1)
    with pytest.raises(RuntimeError, match=r"complex.*view_as_real"):
        AdEMAMix8bit([torch.zeros(3, dtype=torch.complex64, requires_grad=True)])
    optimizer = AdEMAMix8bit([parameter(2)])
    with pytest.raises(RuntimeError, match="complex"):
        optimizer.add_param_group({"params": torch.zeros(3, dtype=torch.complex64, requires_grad=True)})
    assert len(optimizer.param_groups) == 1
    embedding = nn.Embedding(100, 50, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    optimizer = AdEMAMix8bit(embedding.parameters())
    with pytest.raises(RuntimeError, match=r"AdEMAMix8bit does not support sparse.*RowAdam"):
        optimizer.step()
    assert not optimizer.state


def test_a_closure_an_lr_tensor_a_scheduler_and_a_scaler():
    p, q = parameter(5000), parameter(5000)
    tensor_lr, optimizer = AdEMAMix8bit([p], lr=torch.tensor(1e-2)), AdEMAMix8bit([q], lr=1e-2)

    def closure():
        optimizer.zero_grad()
        loss = q.square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert first == parameter(5000).square().sum()
    p.grad = 2 * parameter(5000).detach()
    tensor_lr.step()
    assert torch.equal(p, q)
    slow = SlowScheduler(optimizer, beta3=lambda t: 0.9)
    slow.step()
    assert optimizer.param_groups[0]["betas"][2] == 0.9
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(q.square().sum() * float("inf")).backward()
    before = q.detach().clone()
    scaler.step(optimizer)
    assert torch.equal(q, before)


def test_from_and_to_adamw():
    model = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 3))
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    step(theirs, 5)
    ours = AdEMAMix8bit.from_adamw(theirs, beta3=0.999, alpha=2.0)
    back = ours.to_adamw()
    for p in model.parameters():
        state, kept = theirs.state[p], back.state[p]
        assert ours.state[p]["step"] == kept["step"] == 5
        assert ours.state[p]["slow_step"] == 0
        assert (kept["exp_avg"] - state["exp_avg"]).norm() < 0.01 * state["exp_avg"].norm()
        assert (kept["exp_avg_sq"] - state["exp_avg_sq"]).norm() < 0.05 * state["exp_avg_sq"].norm()
    assert not moments(ours, model[0].weight)[1].any()
    step(ours, 2)
    step(back, 2)
    assert "min_8bit_size" not in back.param_groups[0]
    without = AdEMAMix8bit([{"params": model.parameters()}], betas=(0.0, 0.99, 0.999))
    step(without)
    assert not without.to_adamw().state[model[0].weight]["exp_avg"].any()


def test_reset_slow_and_diagnostics():
    p, q = parameter(5000), parameter(5000)
    ours, whole = (kind([t], **SETTINGS) for kind, t in ((AdEMAMix8bit, p), (AdEMAMix, q)))
    assert ours.diagnostics()[0]["alpha"] != ours.diagnostics()[0]["alpha"]  # NaN before the first step
    assert not ours.state
    step(ours, 12)
    step(whole, 12)
    for name, value in whole.diagnostics()[0].items():
        assert ours.diagnostics()[0][name] == pytest.approx(value, abs=0.02), name
    ours.reset_slow()
    assert not moments(ours, p)[1].any()
    assert ours.state[p]["slow_step"] == 0


def test_it_learns_a_regression_as_ademamix_does():
    data, target = normal(256, 64).float(), normal(256, 8, seed=1).float()
    losses = []
    for kind in (AdEMAMix, AdEMAMix8bit):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 8))
        optimizer = kind(
            model.parameters(),
            lr=3e-3,
            alpha=4.0,
            alpha_warmup=150,
            beta3_warmup=150,
            betas=(0.9, 0.999, 0.99),
        )
        for _ in range(150):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(data), target)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[0] < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a CUDA device")
def test_the_gpu_makes_the_steps_of_the_cpu():
    p = parameter(300, 301)
    q = p.detach().to("cuda", copy=True).requires_grad_()
    ours, theirs = AdEMAMix8bit([p], **SETTINGS), AdEMAMix8bit([q], **SETTINGS)
    for t in range(5):
        p.grad = normal(300, 301, seed=t).float()
        q.grad = p.grad.to("cuda")
        ours.step()
        theirs.step()
    # A last bit may turn a rounding by chance, now and then.
    assert (p - q.cpu()).norm() < 1e-3 * (p - parameter(300, 301)).norm()
