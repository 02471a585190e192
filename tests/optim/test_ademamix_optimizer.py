"""AdEMAMix as a ``torch.optim`` optimizer: its arguments, state, switches and words."""

import copy
import io
import math
import pickle
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from extensions.optim import AdEMAMix, SlowScheduler

pytestmark = pytest.mark.filterwarnings("ignore:AdEMAMix with alpha")
SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "alpha": 4.0, "alpha_warmup": 9, "beta3_warmup": 7}


def parameter(*shape, dtype=torch.float64, seed=0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_()


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


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        ({"lr": float("nan")}, ValueError, "Invalid learning rate: nan"),
        ({"lr": torch.tensor([0.1, 0.1])}, ValueError, "Tensor lr must be 1-element"),
        (
            {"lr": torch.tensor(0.1), "foreach": True},
            ValueError,
            "lr as a Tensor is not supported for capturable=False and foreach=True",
        ),
        ({"eps": -1e-8}, ValueError, "Invalid epsilon value: -1e-08"),
        ({"weight_decay": -0.1}, ValueError, "Invalid weight_decay value: -0.1"),
        ({"betas": (1.0, 0.9, 0.9)}, ValueError, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1, 0.9)}, ValueError, "Invalid beta parameter at index 1: -0.1"),
        ({"betas": (0.9, 0.9, 1.0)}, ValueError, "Invalid beta parameter at index 2: 1.0"),
        ({"betas": (0.9, 0.9, float("nan"))}, ValueError, "Invalid beta parameter at index 2: nan"),
        ({"betas": (0.9, 0.999)}, ValueError, r"three numbers.*got \(0\.9, 0\.999\).*0\.9999"),
        ({"betas": (0.9, 0.9, torch.tensor(0.9))}, ValueError, r"betas\[2\] must be a number, got a Tensor"),
        ({"betas": 0.9}, ValueError, r"three numbers, .*got 0\.9"),
        ({"alpha": -1.0}, ValueError, "Invalid alpha value: -1.0"),
        ({"alpha": torch.tensor(1.0)}, ValueError, r"alpha must be a number, got a Tensor: pass its \.item"),
        ({"alpha_warmup": "100"}, ValueError, "alpha_warmup must be a number, got '100'"),
        ({"lr": "0.1"}, ValueError, "lr must be a number, got '0.1'"),
        ({"alpha": float("inf")}, ValueError, "Invalid alpha value: inf"),
        ({"alpha_warmup": -1}, ValueError, "Invalid alpha_warmup value: -1"),
        ({"beta3_warmup": float("nan")}, ValueError, "Invalid beta3_warmup value: nan"),
        ({"beta3_warmup": 0.1}, ValueError, "a number of steps, no share of them"),
        ({"alpha_warmup": True}, ValueError, "alpha_warmup must be a number, got True"),
        ({"fused": True, "foreach": True}, RuntimeError, "`fused` and `foreach` cannot be `True` together"),
        ({"fused": True, "differentiable": True}, RuntimeError, "`fused` does not support `differentiable`"),
    ],
)
def test_bad_arguments_are_refused_in_the_constructor_and_in_a_group(arguments, error, words):
    with pytest.raises(error, match=words):
        AdEMAMix(None, **arguments)
    with pytest.raises(error, match=words):
        AdEMAMix([{"params": [parameter(2)]}, {"params": [parameter(3)], **arguments}])
    optimizer = AdEMAMix([parameter(2)], alpha=1.0)
    with pytest.raises(error, match=words):
        optimizer.add_param_group({"params": [parameter(3)], **arguments})
    assert len(optimizer.param_groups) == 1


def test_flags_and_schedules_are_keywords_only():
    with pytest.raises(TypeError):
        AdEMAMix([parameter(2)], 1e-3, (0.9, 0.999, 0.9999), 1e-8, 0.0, 5.0)
    optimizer = AdEMAMix([parameter(2)], 1e-4, (0.8, 0.99, 0.999), 1e-6, 0.2)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        1e-4,
        (0.8, 0.99, 0.999),
        1e-6,
        0.2,
    )


def test_a_large_alpha_without_warm_up_is_warned_of():
    with pytest.warns(UserWarning, match="alpha_warmup=T and beta3_warmup=T"):
        AdEMAMix([parameter(2)])
    with pytest.warns(UserWarning, match="alpha > 1"):
        AdEMAMix([{"params": [parameter(2)], "alpha_warmup": 0}], alpha_warmup=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AdEMAMix([parameter(2)], alpha_warmup=100)
        optimizer = AdEMAMix([parameter(2)], alpha=1.0)
    # It points at the user's line.
    with pytest.warns(UserWarning, match="alpha > 1") as caught:
        optimizer.add_param_group({"params": [parameter(3)], "alpha": 2.0})
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="alpha > 1") as caught:
        AdEMAMix.from_adamw(torch.optim.AdamW([parameter(2)]))
    assert caught[0].filename == __file__


def test_sparse_gradients_are_refused_with_the_way_out():
    embedding = nn.Embedding(10, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    optimizer = AdEMAMix(embedding.parameters())
    with pytest.raises(RuntimeError, match=r"sparse=False.*RowAdam"):
        optimizer.step()
    assert not optimizer.state


def test_fused_takes_floating_point_parameters_only():
    p = torch.randn(3, dtype=torch.complex64, requires_grad=True)
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="floating point Tensors of supported devices"):
        AdEMAMix([p], fused=True).step()


def test_the_functional_wants_tensors_for_steps():
    from extensions.optim.ademamix import ademamix

    hyper = dict.fromkeys(("beta1", "beta2", "beta3", "alpha", "lr", "weight_decay", "eps"), 0.5)
    with pytest.raises(RuntimeError, match="must contain a list of singleton tensors"):
        ademamix(
            *[[torch.ones(2)]] * 5, [1.0], [0.0], **hyper, alpha_warmup=1, beta3_warmup=1, maximize=False
        )


# What a user of torch.optim does


def test_groups_have_their_own_settings():
    p, q = parameter(4), parameter(4, seed=2)
    together = AdEMAMix(
        [
            {"params": [p]},
            {
                "params": [q],
                "lr": 0.1,
                "betas": (0.0, 0.5, 0.9),
                "alpha": 1.0,
                "alpha_warmup": 3,
                "maximize": True,
            },
        ],
        **SETTINGS,
    )
    step(together, 5)
    p_alone, q_alone = parameter(4), parameter(4, seed=2)
    first = AdEMAMix([p_alone], **SETTINGS)
    second = AdEMAMix(
        [q_alone],
        **{**SETTINGS, "lr": 0.1, "alpha": 1.0, "alpha_warmup": 3},
        betas=(0.0, 0.5, 0.9),
        maximize=True,
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        for alone, optimizer in ((p_alone, first), (q_alone, second)):
            alone.grad = torch.randn(4, generator=generator, dtype=torch.float64)
            optimizer.step()
    assert torch.equal(p, p_alone)
    assert torch.equal(q, q_alone)


def test_a_group_added_late_begins_its_own_schedules():
    p, q = parameter(3), parameter(3, seed=2)
    optimizer = AdEMAMix([p], **SETTINGS)
    step(optimizer, 4)
    optimizer.add_param_group({"params": [q]})
    step(optimizer, 2)
    assert optimizer.state[p]["step"] == 6
    assert optimizer.state[q]["step"] == 2


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    p = parameter(3)
    optimizer = AdEMAMix([p], **SETTINGS)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(30)]
    assert losses[-1] < losses[0]


def test_hooks_fire():
    optimizer = AdEMAMix([parameter(3)], **SETTINGS)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before step"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after step"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("state_dict"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("before load"))
    optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("after load"))
    step(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before step", "after step", "state_dict", "before load", "after load"]


def test_named_parameters_keep_their_names():
    model = nn.Linear(3, 2)
    optimizer = AdEMAMix(model.named_parameters(), **SETTINGS)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_no_gradient_is_no_step():
    p, q = parameter(3), parameter(3)
    optimizer = AdEMAMix([p, q], **SETTINGS)
    before = p.detach().clone()
    q.grad = torch.ones_like(q)
    optimizer.step()
    assert torch.equal(p, before)
    assert p not in optimizer.state


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_a_gradient_of_zero_is_no_step_without_decay(path):
    p = parameter(3)
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    AdEMAMix([p], **path).step()
    assert torch.equal(p, before)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: 0.9**i),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),  # turns beta1 as well
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5),
                torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
            ],
            [5],
        ),
    ],
)
@pytest.mark.parametrize("lr", [0.1, "tensor"])
def test_learning_rate_schedulers(scheduler, lr):
    p = parameter(3)
    lr = torch.tensor(0.1, dtype=torch.float64) if lr == "tensor" else lr
    optimizer = AdEMAMix([p], **{**SETTINGS, "lr": lr}, foreach=False)
    schedule = scheduler(optimizer)
    used = []
    for i in range(10):
        group = optimizer.param_groups[0]
        used.append((float(group["lr"]), group["betas"]))
        step(optimizer, seed=i)
        schedule.step()
    # The weights are those of steps made by hand with the same rates.
    q = parameter(3)
    by_hand = AdEMAMix([q], **SETTINGS)
    for i, (rate, betas) in enumerate(used):
        by_hand.param_groups[0].update(lr=rate, betas=betas)
        step(by_hand, seed=i)
    torch.testing.assert_close(p, q, rtol=0.0, atol=1e-14)
    assert len(set(used)) > 5


# Saving and loading


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("betas", [(0.9, 0.99, 0.999), (0.0, 0.99, 0.999)])
def test_n_and_n_steps_are_2n_steps(path, dtype, betas):
    p, q = parameter(50, dtype=dtype), parameter(50, dtype=dtype)
    whole = AdEMAMix([p], **SETTINGS, betas=betas, **path)
    step(whole, 5, seed=1)
    half = AdEMAMix([q], **SETTINGS, betas=betas, **path)
    step(half, 5, seed=1)
    resumed = AdEMAMix([q], alpha=0.0, **path)  # the settings come from the file
    resumed.load_state_dict(through_a_file(half.state_dict()))
    step(whole, 5, seed=2)
    step(resumed, 5, seed=2)
    assert torch.equal(p, q)
    for name, value in whole.state[p].items():
        assert torch.equal(value, resumed.state[q][name])
        assert value.dtype == resumed.state[q][name].dtype


def test_moments_of_half_precision_parameters_stay_float32_through_loading():
    p = parameter(50, dtype=torch.bfloat16)
    optimizer = AdEMAMix([p], **SETTINGS)
    step(optimizer, 3)
    seen = []
    resumed = AdEMAMix([p], **SETTINGS)
    resumed.register_load_state_dict_post_hook(
        lambda o: seen.append(o.state[p]["exp_avg_slow"].dtype)  # already, for a user's own hook
    )
    resumed.load_state_dict(optimizer.state_dict())
    assert seen == [torch.float32]
    for name in ("exp_avg", "exp_avg_slow", "exp_avg_sq"):
        assert torch.equal(resumed.state[p][name], optimizer.state[p][name])
        assert not torch.equal(resumed.state[p][name], optimizer.state[p][name].bfloat16().float())


def test_a_pre_hook_may_rewrite_the_state_that_is_loaded():
    p = parameter(5, dtype=torch.bfloat16)
    optimizer = AdEMAMix([p], **SETTINGS)
    step(optimizer, 3)
    saved = optimizer.state_dict()
    resumed = AdEMAMix([p], **SETTINGS)
    resumed.register_load_state_dict_pre_hook(
        lambda _, s: {**s, "state": {0: {**s["state"][0], "exp_avg_slow": torch.full((5,), 0.123456)}}}
    )
    resumed.load_state_dict(saved)
    assert torch.equal(resumed.state[p]["exp_avg_slow"], torch.full((5,), 0.123456))
    assert len(resumed._optimizer_load_state_dict_pre_hooks) == 1
    assert not resumed._optimizer_load_state_dict_post_hooks


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_alike(copied):
    p = parameter(5)
    optimizer = AdEMAMix([p], **SETTINGS, fused=True)
    step(optimizer, 3)
    twin = copied(optimizer)
    assert twin._step_supports_amp_scaling
    step(optimizer, 3, seed=5)
    step(twin, 3, seed=5)
    assert torch.equal(p, twin.param_groups[0]["params"][0])


def test_an_older_state_gets_what_it_lacks():
    p = parameter(5)
    optimizer = AdEMAMix([p], **SETTINGS)
    step(optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for name in ("maximize", "foreach", "capturable", "differentiable", "fused"):
        del saved["param_groups"][0][name]
    saved["state"][0]["step"] = 3
    del saved["state"][0]["slow_step"]
    resumed = AdEMAMix([p], **SETTINGS)
    resumed.load_state_dict(saved)
    assert torch.equal(resumed.state[p]["step"], torch.tensor(3.0))
    assert torch.equal(resumed.state[p]["slow_step"], torch.tensor(3.0))
    step(resumed)


def test_the_state_of_another_optimizer_is_refused():
    p = parameter(5)
    for other, words in (
        (torch.optim.AdamW([p]), r"AdEMAMix\.from_adamw"),
        (torch.optim.SGD([p], momentum=0.9), "the optimizer that it was saved from"),
    ):
        step(other)
        optimizer = AdEMAMix([p], **SETTINGS)
        with pytest.raises(ValueError, match=words):
            optimizer.load_state_dict(other.state_dict())
        assert not optimizer.state


def test_a_state_cut_short_or_of_another_model_is_refused():
    p = parameter(5)
    optimizer = AdEMAMix([p], **SETTINGS)
    step(optimizer)
    short = copy.deepcopy(optimizer.state_dict())
    del short["state"][0]["exp_avg_slow"]
    with pytest.raises(ValueError, match="lacks exp_avg_slow for parameter 0"):
        AdEMAMix([p], **SETTINGS).load_state_dict(short)
    with pytest.raises(ValueError, match=r"shape \(5,\) for parameter 0, which is \(6,\)"):
        AdEMAMix([parameter(6)], **SETTINGS).load_state_dict(optimizer.state_dict())


# AdamW and back


def adamw(params, **settings):
    return torch.optim.AdamW(params, **{"lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.95), **settings})


def test_from_adamw_with_alpha_zero_goes_on_as_adamw():
    p, q = parameter(20), parameter(20)
    theirs, other = adamw([p]), adamw([q])
    step(theirs, 5)
    step(other, 5)
    ours = AdEMAMix.from_adamw(other, alpha=0.0)
    step(theirs, 5, seed=2)
    step(ours, 5, seed=2)
    assert torch.equal(p, q)


def test_from_adamw_begins_the_schedules_at_the_switch():
    p, q = parameter(20), parameter(20)
    before = adamw([p])
    step(before, 5)
    ours = AdEMAMix.from_adamw(before, alpha=4.0, beta3=0.99, alpha_warmup=8, beta3_warmup=4)
    step(ours, 3, seed=2)

    # By hand: corrections by the true step, alpha and beta3 by the steps since the switch.
    other = adamw([q])
    step(other, 5)
    m1, v, m2 = other.state[q]["exp_avg"], other.state[q]["exp_avg_sq"], torch.zeros_like(q)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for k in (1, 2, 3):
            g, t = torch.randn(20, generator=generator, dtype=torch.float64), 5 + k
            mu = k / 4
            beta3 = math.exp(1 / ((1 - mu) / math.log(0.8) + mu / math.log(0.99)))
            m1 = 0.8 * m1 + 0.2 * g
            m2 = beta3 * m2 + (1 - beta3) * g
            v = 0.95 * v + 0.05 * g * g
            u = (m1 / (1 - 0.8**t) + 4 * k / 8 * m2) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
            q.copy_(q - 0.01 * (u + 0.1 * q))
    torch.testing.assert_close(p, q, rtol=0.0, atol=1e-14)


def test_from_adamw_takes_over_groups_names_and_what_schedulers_left():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    groups = [
        {"params": list(model[0].named_parameters()), "lr": 0.5, "betas": (0.0, 0.9)},
        {"params": list(model[1].named_parameters(prefix="b"))},
    ]
    before = adamw(groups, foreach=True, maximize=True)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(before, 0.5)
    model(torch.ones(1, 2)).sum().backward()
    before.step()
    scheduler.step()
    ours = AdEMAMix.from_adamw(before, alpha=1.0)
    first, second = ours.param_groups
    assert (first["lr"], first["initial_lr"], first["betas"]) == (0.25, 0.5, (0.0, 0.9, 0.9999))
    assert second["param_names"] == ["b.weight", "b.bias"]
    assert second["foreach"] is True
    assert second["maximize"] is True
    assert "amsgrad" not in first
    assert "exp_avg" not in ours.state[model[0].weight]
    scheduler.optimizer = ours
    ours.step()
    scheduler.step()
    assert ours.param_groups[0]["lr"] == 0.125
    assert ours.defaults["lr"] == 1e-2


def test_from_adamw_raises_half_precision_moments_to_float32():
    p = parameter(20, dtype=torch.bfloat16)
    before = adamw([p])
    step(before, 3)
    ours = AdEMAMix.from_adamw(before, alpha=1.0)
    step(ours)
    assert {ours.state[p][name].dtype for name in ("exp_avg", "exp_avg_slow", "exp_avg_sq")} == {
        torch.float32
    }


def test_from_adamw_refuses_what_is_not_adamw():
    p = parameter(3)
    with pytest.raises(TypeError, match=r"takes a torch\.optim\.AdamW, got SGD"):
        AdEMAMix.from_adamw(torch.optim.SGD([p]))
    with pytest.raises(TypeError, match="adds its weight_decay to the gradient"):
        AdEMAMix.from_adamw(torch.optim.Adam([p], weight_decay=0.1))
    with pytest.raises(ValueError, match="amsgrad=False"):
        AdEMAMix.from_adamw(adamw([p], amsgrad=True))
    assert isinstance(AdEMAMix.from_adamw(torch.optim.Adam([p]), alpha=0.0), AdEMAMix)


@pytest.mark.parametrize("betas", [(0.9, 0.99, 0.999), (0.0, 0.99, 0.999)])
def test_to_adamw_goes_on_as_alpha_zero_would(betas):
    p, q = parameter(20), parameter(20)
    one, other = AdEMAMix([p], **SETTINGS, betas=betas), AdEMAMix([q], **SETTINGS, betas=betas)
    step(one, 5)
    step(other, 5)
    theirs = one.to_adamw()
    assert type(theirs) is torch.optim.AdamW
    assert set(theirs.param_groups[0]) == set(torch.optim.AdamW([p]).param_groups[0])
    other.param_groups[0]["alpha"] = 0.0
    step(theirs, 5, seed=2)
    step(other, 5, seed=2)
    torch.testing.assert_close(p, q, rtol=0.0, atol=1e-15)
    theirs.load_state_dict(through_a_file(theirs.state_dict()))


# The slow average


def test_reset_slow_empties_it_and_begins_its_schedules_anew():
    p = parameter(20)
    optimizer = AdEMAMix([p], **SETTINGS)
    step(optimizer, 20)
    optimizer.reset_slow()
    assert not optimizer.state[p]["exp_avg_slow"].any()
    assert optimizer.state[p]["exp_avg"].any()
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))  # which keeps where it began
    step(optimizer)
    shown = optimizer.diagnostics()[0]
    assert shown["alpha"] == pytest.approx(4.0 / 9)
    assert shown["beta3"] < 0.9995


def test_diagnostics_of_gradients_that_agree_and_that_do_not():
    p = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = AdEMAMix([p], alpha=3.0, betas=(0.9, 0.999, 0.99))
    p.grad = torch.full_like(p, 2.0)
    for _ in range(2000):
        optimizer.step()
    shown = optimizer.diagnostics()[0]
    assert shown["cos_fast_slow"] == pytest.approx(1.0)
    assert shown["slow_to_fast"] == pytest.approx(3.0)
    assert shown["step_multiplier"] == pytest.approx(4.0)  # 1 + alpha
    assert (shown["alpha"], shown["beta3"]) == (3.0, pytest.approx(0.99))

    p.grad = -p.grad
    for _ in range(60):
        optimizer.step()
    assert optimizer.diagnostics()[0]["cos_fast_slow"] == pytest.approx(-1.0)


def test_diagnostics_without_a_fast_moment_or_before_any_step():
    p = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = AdEMAMix([p], alpha=3.0, betas=(0.0, 0.999, 0.99), maximize=True)
    assert all(value != value for value in optimizer.diagnostics()[0].values())  # NaN
    p.grad = torch.full_like(p, 2.0)
    for _ in range(2000):
        optimizer.step()
    assert optimizer.diagnostics()[0]["step_multiplier"] == pytest.approx(4.0)
    optimizer.zero_grad()
    shown = optimizer.diagnostics()[0]
    assert (shown["alpha"], shown["beta3"]) == (3.0, pytest.approx(0.99))
    assert shown["step_multiplier"] != shown["step_multiplier"]


def test_diagnostics_of_gradients_whose_squares_overflow_float32():
    p = torch.zeros(4, requires_grad=True)
    optimizer = AdEMAMix([p], alpha=1.0, betas=(0.9, 0.999, 0.99))
    p.grad = torch.full_like(p, 1e19)
    optimizer.step()
    assert optimizer.diagnostics()[0]["cos_fast_slow"] == pytest.approx(1.0)


def test_the_slow_average_counts_beyond_float32s_last_odd_number():
    p = parameter(3)
    optimizer = AdEMAMix([p], **SETTINGS)
    step(optimizer)
    optimizer.state[p]["step"].fill_(2.0**24)
    optimizer.reset_slow()
    step(optimizer, 3)
    assert optimizer.diagnostics()[0]["alpha"] == pytest.approx(4.0 * 3 / 9)


# Schedules of one's own


class Ramp:
    def __init__(self, slope):
        self.slope = slope

    def __call__(self, t):
        return self.slope * t


def test_slow_scheduler_sets_what_the_coming_step_uses():
    p, q = parameter(6), parameter(6)
    scheduled = AdEMAMix([p], **{**SETTINGS, "alpha": 0.0, "alpha_warmup": None, "beta3_warmup": None})
    slow = SlowScheduler(scheduled, alpha=lambda t: min(4.0 * t / 9, 4.0), beta3=lambda t: 0.9999)
    built_in = AdEMAMix([q], **{**SETTINGS, "beta3_warmup": None})
    for i in range(15):
        step(scheduled, seed=i)
        slow.step()
        step(built_in, seed=i)
    torch.testing.assert_close(p, q, rtol=0.0, atol=1e-14)


def test_slow_scheduler_goes_on_where_it_was():
    def make(p):
        optimizer = AdEMAMix([p], lr=1e-2, alpha=0.0)
        return optimizer, SlowScheduler(optimizer, alpha=Ramp(0.1), beta3=lambda t: 0.9 + 0.001 * t)

    p, q = parameter(6), parameter(6)
    whole, half = make(p), make(q)
    for optimizer, slow in (whole, half):
        for i in range(5):
            step(optimizer, seed=i)
            slow.step()
    saved = [through_a_file(half[0].state_dict()), through_a_file(half[1].state_dict())]
    resumed, resumed_slow = make(q)
    resumed_slow.alpha.slope = 7.0  # its attributes are saved
    resumed.load_state_dict(saved[0])
    resumed_slow.load_state_dict(saved[1])
    for optimizer, slow in (whole, (resumed, resumed_slow)):
        for i in range(5, 10):
            step(optimizer, seed=i)
            slow.step()
    assert torch.equal(p, q)


def test_slow_scheduler_refuses_what_it_cannot_schedule():
    optimizer = AdEMAMix([parameter(2)], alpha=0.0)
    with pytest.raises(TypeError, match="schedules an AdEMAMix, got AdamW"):
        SlowScheduler(torch.optim.AdamW([parameter(2)]), alpha=Ramp(1))
    with pytest.raises(TypeError, match=r"alpha must be a function of the step, .*got 5\.0"):
        SlowScheduler(optimizer, alpha=5.0)
    with pytest.raises(ValueError, match="nothing to schedule"):
        SlowScheduler(optimizer)
    with pytest.raises(ValueError, match="Expected 1 schedules of alpha, one a group, got 2"):
        SlowScheduler(optimizer, alpha=[Ramp(1), Ramp(2)])
    with pytest.raises(ValueError, match=r"Invalid beta parameter at index 2: 1\.5"):
        SlowScheduler(optimizer, beta3=Ramp(1.5))
    with pytest.raises(ValueError, match="does not reach a captured graph"):
        SlowScheduler(AdEMAMix([parameter(2)], alpha=0.0, capturable=True), alpha=Ramp(1))
    with pytest.raises(ValueError, match="leave None"):
        SlowScheduler(AdEMAMix([parameter(2)], alpha_warmup=5), alpha=Ramp(1))
    slow = SlowScheduler(optimizer, alpha=Ramp(1))
    with pytest.raises(ValueError, match="with other schedules"):
        SlowScheduler(optimizer, beta3=lambda t: 0.9).load_state_dict(slow.state_dict())


def test_slow_scheduler_takes_groups_that_come_late_and_functions_of_c():
    optimizer = AdEMAMix([parameter(2)], alpha=0.0)
    slow = SlowScheduler(optimizer, alpha=math.sqrt)
    optimizer.add_param_group({"params": [parameter(3)]})
    slow.step()
    assert [group["alpha"] for group in optimizer.param_groups] == [math.sqrt(2)] * 2
    through_a_file(slow.state_dict())


def test_slow_scheduler_sets_all_groups_or_none():
    optimizer = AdEMAMix([{"params": [parameter(2)]}, {"params": [parameter(3)]}], alpha=0.0)
    slow = SlowScheduler(optimizer, alpha=[Ramp(1.0), lambda t: 2.0 - t])
    slow.step()
    with pytest.raises(ValueError, match="Invalid alpha value"):
        slow.step()
    assert [group["alpha"] for group in optimizer.param_groups] == [2.0, 0.0]


def test_beta1_may_be_written_from_zero_and_back():
    p = parameter(4)
    optimizer = AdEMAMix([p], betas=(0.0, 0.99, 0.999), **SETTINGS)
    step(optimizer)
    optimizer.param_groups[0]["betas"] = (0.9, 0.99, 0.999)
    step(optimizer)
    assert "exp_avg" in optimizer.state[p]
    optimizer.param_groups[0]["betas"] = (0.0, 0.99, 0.999)
    step(optimizer)
    assert "exp_avg" not in optimizer.state[p]


def test_a_parameter_cast_after_the_first_step_is_refused_until_its_state_is():
    model = nn.Linear(3, 2)
    optimizer = AdEMAMix(model.parameters(), **SETTINGS)
    step(optimizer)
    model.double()
    with pytest.raises(RuntimeError, match=r"load_state_dict\(optimizer\.state_dict\(\)\)"):
        step(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    step(optimizer)
    assert optimizer.state[model.weight]["exp_avg"].dtype == torch.float64


def test_reading_the_state_of_a_parameter_without_one_does_no_harm():
    p, q = parameter(3), parameter(3)
    for optimizer in (AdEMAMix([p, q], **SETTINGS), torch.optim.AdamW([p, q])):
        p.grad, q.grad = torch.ones_like(p), None
        optimizer.step()
        assert optimizer.state[q] == {}  # which a defaultdict keeps
        if isinstance(optimizer, AdEMAMix):
            optimizer.reset_slow()
            optimizer.to_adamw()
            optimizer.diagnostics()
            optimizer.load_state_dict(optimizer.state_dict())
        else:
            AdEMAMix.from_adamw(optimizer, alpha=0.0)


def test_state_under_keys_that_no_group_names_is_refused():
    p = parameter(3)
    optimizer = AdEMAMix([p], **SETTINGS)
    step(optimizer)
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"state for \['0'\]"):
        optimizer.load_state_dict({**saved, "state": {"0": saved["state"][0]}})
    two = AdEMAMix([{"params": [p]}, {"params": [parameter(2)]}], **SETTINGS)
    with pytest.raises(ValueError, match="different number of parameter groups"):  # torch's own words
        two.load_state_dict(saved)


@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": False}])
def test_the_state_of_one_implementation_is_loaded_into_another(settings):
    p, q = parameter(9), parameter(9)
    one = AdEMAMix([p], **SETTINGS, foreach=True)
    other = AdEMAMix([q], **SETTINGS, foreach=True)
    step(one, 4)
    step(other, 4)
    saved = other.state_dict()
    saved["param_groups"][0] |= {"foreach": None, "fused": None, **settings}
    resumed = AdEMAMix([q], **SETTINGS)
    resumed.load_state_dict(saved)
    step(one, 4, seed=2)
    step(resumed, 4, seed=2)
    torch.testing.assert_close(p, q, rtol=0.0, atol=1e-14)


def test_numbers_of_numpy_become_plain_ones():
    numpy = pytest.importorskip("numpy")
    p = parameter(3)
    optimizer = AdEMAMix(
        [p], lr=numpy.float64(0.1), betas=(numpy.float64(0.9), 0.99, 0.999), alpha_warmup=numpy.int64(5)
    )
    optimizer.add_param_group({"params": [parameter(2)], "alpha": numpy.float32(0.5)})
    step(optimizer)
    loaded = through_a_file(optimizer.state_dict())["param_groups"]
    assert [type(loaded[0][name]) for name in ("lr", "alpha_warmup")] == [float, int]
    assert type(loaded[1]["alpha"]) is float


def test_a_scheduler_made_of_schedulers_goes_on_after_from_adamw():
    def rates(switches):
        before = adamw([parameter(3)])
        schedule = torch.optim.lr_scheduler.SequentialLR(
            before,
            [
                torch.optim.lr_scheduler.LinearLR(before, 0.1, total_iters=5),
                torch.optim.lr_scheduler.CosineAnnealingLR(before, 10),
            ],
            [5],
        )
        optimizer, used = before, []
        for i in range(12):
            if switches and i == 7:
                optimizer = AdEMAMix.from_adamw(before, alpha=1.0)
                for part in (schedule, *getattr(schedule, "_schedulers", ())):
                    part.optimizer = optimizer
            step(optimizer)
            schedule.step()
            used.append(optimizer.param_groups[0]["lr"])
        return used

    assert rates(switches=True) == rates(switches=False)


def test_state_dict_holds_plain_data_only():
    optimizer = AdEMAMix(OrderedDict(a=parameter(3)).items(), **SETTINGS)
    step(optimizer)
    saved = optimizer.state_dict()
    assert {type(v) for s in saved["state"].values() for v in s.values()} == {torch.Tensor}
    flat = [v for group in saved["param_groups"] for v in group.values()]
    assert {type(v) for v in flat} <= {int, float, bool, tuple, list, type(None)}
