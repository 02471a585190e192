"""Losses over real steps, against loops by hand and against TorchRL's own where no step is padding."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F
from torchrl.data import Bounded
from torchrl.modules import OneHotCategorical, ProbabilisticActor, TanhDelta, TanhNormal
from torchrl.objectives import DTLoss, OnlineDTLoss

from extensions.torchrl import OnlineRADTActor, OnlineRADTLoss, RADTActor, RADTLoss

B, T, S, A = 4, 6, 3, 2
CONFIG = {"n_embd": 8, "n_layer": 1, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
WINDOW = ["observation", "action", "return_to_go", "timestep", "mask"]
DISTANCES = ("l2", "l1", "smooth_l1")
SPEC = Bounded(-torch.ones(A), torch.ones(A))


def make_actor(in_keys=WINDOW, seed=0):
    torch.manual_seed(seed)
    module = TensorDictModule(RADTActor(S, A, CONFIG).double(), in_keys, ["param"])
    return ProbabilisticActor(module, in_keys=["param"], distribution_class=TanhDelta)


def make_online_actor(in_keys=WINDOW):
    torch.manual_seed(0)
    module = TensorDictModule(OnlineRADTActor(S, A, CONFIG).double(), in_keys, ["loc", "scale"])
    return ProbabilisticActor(module, spec=SPEC, in_keys=["loc", "scale"], distribution_class=TanhNormal)


def make_discrete_actor(distribution=Categorical, n=5):
    torch.manual_seed(0)
    module = TensorDictModule(RADTActor(S, n, CONFIG, discrete=True).double(), WINDOW, ["logits"])
    return ProbabilisticActor(module, in_keys=["logits"], distribution_class=distribution)


def make_batch(real=(6, 2, 5, 3), n=None, seed=1):
    """Windows of which the last ``real`` steps are not padding; actions are indices below n if given."""
    torch.manual_seed(seed)
    mask = torch.arange(T) >= T - torch.tensor(real)[:, None]
    action = torch.rand(B, T, A).double() * 1.8 - 0.9
    if n is not None:
        action = torch.where(mask, torch.randint(n, (B, T)), -1)
    return TensorDict(
        {
            "observation": torch.randn(B, T, S).double(),
            "action": action,
            "return_to_go": torch.randn(B, T, 1).double(),
            "timestep": torch.arange(T).expand(B, T),
            "mask": mask,
        },
        [B, T],
    )


def with_mask(batch, shape):
    """The same batch with a mask (B, T) or (B, T, 1)."""
    return batch.clone().set("mask", batch["mask"].reshape(B, T, *shape))


def gradients(loss_module, batch, key="loss"):
    loss_module.zero_grad()
    loss_module(batch)[key].backward()
    return {name: p.grad.clone() for name, p in loss_module.named_parameters() if p.grad is not None}


def by_hand(distance, predicted, target, mask):
    """The mean over features of real steps, one at a time."""
    losses = []
    for b, t in mask.nonzero().tolist():
        for p, y in zip(predicted[b, t].tolist(), target[b, t].tolist(), strict=True):
            d = abs(p - y)
            losses.append({"l2": d * d, "l1": d, "smooth_l1": d * d / 2 if d < 1 else d - 0.5}[distance])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("mask_shape", [(), (1,)])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_is_that_of_real_steps(distance, mask_shape):
    actor, batch = make_actor(), make_batch()
    with torch.no_grad():
        predicted = actor(batch.clone())["action"]
    expected = by_hand(distance, predicted, batch["action"], batch["mask"])
    loss = RADTLoss(actor, loss_function=distance)(with_mask(batch, mask_shape))["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert abs(DTLoss(actor, loss_function=distance)(batch)["loss"].item() - expected) > 1e-3


@pytest.mark.parametrize("mask_shape", [(), (1,)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", None])
@pytest.mark.parametrize("distance", DISTANCES)
def test_reductions(distance, reduction, mask_shape):
    actor, batch = make_actor(), make_batch()
    with torch.no_grad():
        predicted = actor(batch.clone())["action"]
    real = batch["mask"]
    single = {"l2": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[distance](
        predicted, batch["action"], reduction="none"
    )
    expected = {
        "none": torch.where(real[..., None], single, 0.0),
        "mean": single[real].mean(),
        "sum": single[real].sum(),
        None: single[real].mean(),
    }[reduction]
    loss = RADTLoss(actor, loss_function=distance, reduction=reduction)(with_mask(batch, mask_shape))
    torch.testing.assert_close(loss["loss"].detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["continuous", "discrete", "online"])
def test_what_is_padded_changes_neither_loss_nor_gradient(kind):
    """It may be anything, NaN too."""
    torch.manual_seed(0)
    if kind == "discrete":
        loss_module = RADTLoss(make_discrete_actor(), loss_function="cross_entropy")
        batch, other = make_batch(n=5), torch.randint(5, (B, T))
    elif kind == "continuous":
        loss_module, batch = RADTLoss(make_actor()), make_batch()
        other = torch.full((B, T, A), math.nan).double()
    else:
        loss_module, batch = OnlineRADTLoss(make_online_actor(), fixed_alpha=True), make_batch()
        other = torch.full((B, T, A), math.nan).double()
    padded = batch.clone()
    mask = batch["mask"]
    padded["action"][~mask] = other[~mask]
    padded["observation"][~mask] = math.nan
    padded["return_to_go"][~mask] = -math.inf
    padded["timestep"] = torch.where(mask, batch["timestep"], 77)
    key = "loss_log_likelihood" if kind == "online" else "loss"
    before, after = gradients(loss_module, batch, key), gradients(loss_module, padded, key)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: n + m)


def test_a_batch_without_a_real_step_teaches_nothing():
    batch = make_batch(real=(0, 0, 0, 0))
    loss_module = RADTLoss(make_actor())
    assert loss_module(batch)["loss"].item() == 0
    assert not any(gradient.any() for gradient in gradients(loss_module, batch).values())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_without_a_mask_it_is_torchrls(distance, reduction):
    actor, batch = make_actor(WINDOW[:4]), make_batch().exclude("mask")
    ours = RADTLoss(actor, loss_function=distance, reduction=reduction)
    theirs = DTLoss(actor, loss_function=distance, reduction=reduction)
    assert torch.equal(ours(batch)["loss"], theirs(batch)["loss"])
    if reduction == "mean":
        before, after = gradients(theirs, batch), gradients(ours, batch)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_without_a_mask_the_online_loss_is_torchrls(reduction):
    actor, batch = make_online_actor(WINDOW[:4]), make_batch().exclude("mask")
    kwargs = {
        "alpha_init": 0.3,
        "target_entropy": -1.5,
        "samples_mc_entropy": 3,
        "reduction": reduction,
        "scalar_output_mode": "non_tensor" if reduction == "none" else None,
    }
    outputs = []
    for kind in (OnlineRADTLoss, OnlineDTLoss):
        torch.manual_seed(5)
        outputs.append(kind(actor, **kwargs)(batch))
    ours, theirs = outputs
    assert ours.batch_size == theirs.batch_size
    assert set(ours.keys()) == set(theirs.keys())
    for key in set(theirs.keys()):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-14, atol=0)


@pytest.mark.parametrize("mask_shape", [(), (1,)])
@pytest.mark.parametrize("one_hot", [None, torch.int64, torch.float64, torch.bool])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy_is_that_of_real_steps(reduction, one_hot, mask_shape):
    n = 5
    actor = make_discrete_actor(OneHotCategorical if one_hot else Categorical, n)
    batch = make_batch(n=n)
    mask, index = batch["mask"], batch["action"]
    with torch.no_grad():
        logits = actor.module[0](batch.clone())["logits"]
    single = torch.zeros(B, T).double()
    for b, t in mask.nonzero().tolist():
        row = logits[b, t].tolist()
        single[b, t] = math.log(sum(math.exp(x) for x in row)) - row[index[b, t]]
    expected = {"none": single, "mean": single.sum() / mask.sum(), "sum": single.sum()}[reduction]
    torch.testing.assert_close(
        F.cross_entropy(logits[mask], index[mask], reduction="sum"), single.sum(), rtol=1e-12, atol=0
    )
    if one_hot:  # padding has no action
        batch["action"] = F.one_hot(index + 1, n + 1)[..., 1:].to(one_hot)
    loss_module = RADTLoss(actor, loss_function="cross_entropy", reduction=reduction)
    loss = loss_module(with_mask(batch, mask_shape))["loss"]
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=1e-12)


def test_cross_entropy_falls_as_the_actor_learns():
    actor = make_discrete_actor()
    loss_module = RADTLoss(actor, loss_function="cross_entropy")
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=0.01)
    batch = make_batch(n=5)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_module(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.2
    assert losses[-1] < 0.3


def test_the_mask_may_be_elsewhere_or_nowhere():
    actor, batch = make_actor(WINDOW[:4]), make_batch()
    loss_module = RADTLoss(actor)
    masked = loss_module(batch)["loss"]
    moved = batch.clone().exclude("mask").set(("collector", "real"), batch["mask"])
    assert loss_module(moved)["loss"] != masked
    loss_module.loss_mask_key = ("collector", "real")
    assert loss_module(moved)["loss"] == masked
    loss_module.loss_mask_key = None
    assert loss_module(batch)["loss"] == DTLoss(actor)(batch)["loss"]


def online_terms(actor, batch, samples=1, seed=5):
    """Log-likelihood and the entropy's estimate of each step, from the distribution itself."""
    with torch.no_grad():
        out = actor.module[0](batch.clone())
    policy = TanhNormal(out["loc"], out["scale"], low=SPEC.space.low, high=SPEC.space.high)
    torch.manual_seed(seed)
    drawn = policy.rsample((samples,))
    return policy.log_prob(batch["action"]), -policy.log_prob(drawn).mean(0)


@pytest.mark.parametrize("mask_shape", [(), (1,)])
def test_the_online_loss_counts_real_steps_alone(mask_shape):
    actor, batch = make_online_actor(), make_batch()
    likelihood, entropy = online_terms(actor, batch, samples=4)
    loss_module = OnlineRADTLoss(actor, alpha_init=0.3, target_entropy=-1.5, samples_mc_entropy=4)
    torch.manual_seed(5)
    out = loss_module(with_mask(batch, mask_shape)).detach()
    real = batch["mask"]
    expected = {
        "loss_log_likelihood": -likelihood[real].mean(),
        "loss_entropy": -0.3 * entropy[real].mean(),
        "loss_alpha": 0.3 * (entropy[real].mean() + 1.5),
        "entropy": entropy[real].mean(),
        "alpha": torch.tensor(0.3),
    }
    assert set(out.keys()) == set(expected)
    for key, value in expected.items():
        assert out[key].item() == pytest.approx(value.item(), rel=1e-5), key
    assert abs(entropy[~real].mean() - entropy[real].mean()) > 1e-4  # padding would have been seen


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_reductions_of_the_online_loss(reduction):
    actor, batch = make_online_actor(), make_batch()
    likelihood, entropy = online_terms(actor, batch)
    mode = "non_tensor" if reduction == "none" else None
    loss_module = OnlineRADTLoss(actor, alpha_init=1.0, reduction=reduction, scalar_output_mode=mode)
    torch.manual_seed(5)
    out = loss_module(batch).detach()
    real = batch["mask"]
    reduce = {
        "none": lambda x: torch.where(real, x, 0.0),
        "sum": lambda x: x[real].sum(),
        "mean": lambda x: x[real].mean(),
    }[reduction]
    for key, single in {"loss_log_likelihood": -likelihood, "loss_entropy": -entropy}.items():
        torch.testing.assert_close(out[key], reduce(single), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out["entropy"], entropy[real].mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("target", "rises"), [(100.0, True), (-100.0, False)])
def test_alpha_rises_while_the_entropy_is_too_low(target, rises):
    loss_module = OnlineRADTLoss(make_online_actor(), target_entropy=target)
    optimizer = torch.optim.SGD([loss_module.log_alpha], lr=1e-3)
    before = loss_module.alpha.item()
    loss_module(make_batch())["loss_alpha"].backward()
    optimizer.step()
    assert (loss_module.alpha.item() > before) == rises


def test_gradients_go_where_they_belong():
    loss_module = OnlineRADTLoss(make_online_actor())
    batch = make_batch()
    for key in ("loss_log_likelihood", "loss_entropy"):
        assert not any("alpha" in name for name in gradients(loss_module, batch, key))
    assert list(gradients(loss_module, batch, "loss_alpha")) == ["log_alpha"]
    with pytest.raises(RuntimeError, match="target action cannot be part of a graph"):
        loss_module(make_batch().set("action", torch.zeros(B, T, A).double().requires_grad_()))


def test_target_entropy_is_less_the_dimension_of_actions():
    assert OnlineRADTLoss(make_online_actor()).target_entropy.item() == -A


@pytest.mark.parametrize("kind", ["continuous", "discrete", "online"])
def test_arguments_one_by_one(kind):
    """``dispatch``: keyword arguments instead of a tensordict; keys are those of the actor and the target."""
    loss_module = {
        "continuous": lambda: RADTLoss(make_actor()),
        "discrete": lambda: RADTLoss(make_discrete_actor(), loss_function="cross_entropy"),
        "online": lambda: OnlineRADTLoss(make_online_actor()),
    }[kind]()
    batch = make_batch(n=5 if kind == "discrete" else None)
    assert loss_module.in_keys == sorted(WINDOW)
    torch.manual_seed(3)
    expected = loss_module(batch)
    torch.manual_seed(3)
    got = loss_module(**batch.to_dict())
    got = got if isinstance(got, tuple) else (got,)
    assert loss_module.out_keys == list(expected.keys()) if kind != "online" else True
    for key, value in zip(loss_module.out_keys, got, strict=True):
        torch.testing.assert_close(value, expected[key])
    loss_module.select_out_keys(loss_module.out_keys[0])
    torch.manual_seed(3)
    torch.testing.assert_close(loss_module(**batch.to_dict()), got[0])


def test_other_keys():
    actor, batch = make_actor(), make_batch()
    expected = RADTLoss(actor)(batch)["loss"]
    loss_module = RADTLoss(actor)
    loss_module.set_keys(action_target=("data", "action"))
    moved = batch.clone().set(("data", "action"), batch["action"])
    assert loss_module(moved)["loss"] == expected
    assert ("data", "action") in loss_module.in_keys
    loss_module.set_keys(action_pred="param")
    assert loss_module(moved)["loss"] != expected
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        loss_module.set_keys(value="value")


def test_the_batch_is_left_as_it_was():
    for loss_module in (RADTLoss(make_actor()), OnlineRADTLoss(make_online_actor())):
        batch = make_batch()
        before = batch.clone()
        loss_module(batch)
        assert set(batch.keys()) == set(before.keys())
        assert bool((batch == before).all())


@pytest.mark.parametrize("online", [False, True])
def test_states_are_loaded(online):
    make = (lambda: OnlineRADTLoss(make_online_actor())) if online else (lambda: RADTLoss(make_actor()))
    one, other = make(), make()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.1)
    assert not any(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_reset_parameters_gives_what_a_new_actor_has():
    loss_module = RADTLoss(make_actor())
    params = loss_module.actor_network_params
    with torch.no_grad():
        for parameter in loss_module.parameters():
            parameter.add_(1000)
    loss_module.reset_parameters_recursive()
    weights = params.flatten_keys(".").to_dict()
    fresh = RADTActor(S, A, CONFIG).state_dict()
    assert fresh.keys() == {k.removeprefix("module.0.module.") for k in weights} - {
        "transformer.embed_time.pairs"
    }
    for name, x in fresh.items():
        now = weights[f"module.0.module.{name}"]
        if not x.any() or bool((x == 1).all()):  # zeros and ones are there again
            assert torch.equal(now, x.double()), name
        else:  # numbers drawn again
            assert now.std().item() == pytest.approx(x.std().item(), rel=0.7), name
            assert not torch.equal(now, x.double())
    head = weights["module.0.module.action_layer.weight"]
    torch.testing.assert_close(head @ head.T, torch.eye(A).double(), rtol=0, atol=1e-6)


def test_an_actor_that_takes_observations_alone():
    """Neither timestep nor mask nor returns are demanded."""
    torch.manual_seed(0)
    module = TensorDictModule(nn.Linear(S, A).double(), ["observation"], ["param"])
    actor = ProbabilisticActor(module, in_keys=["param"], distribution_class=TanhDelta)
    batch = make_batch()
    assert RADTLoss(actor)(batch.select("observation", "action"))["loss"] > 0
    assert RADTLoss(actor).in_keys == ["action", "observation"]


@pytest.mark.parametrize("loss_function", ["l3", None, "L2"])
def test_an_unknown_loss(loss_function):
    with pytest.raises(ValueError, match="one of l2, l1, smooth_l1, cross_entropy; got"):
        RADTLoss(make_actor(), loss_function=loss_function)


def test_actions_that_do_not_fit_the_loss():
    with pytest.raises(ValueError, match=r"the actor writes 'param', 'action', and no 'logits'; .*set_keys"):
        RADTLoss(make_actor(), loss_function="cross_entropy")(make_batch())
    with pytest.raises(ValueError, match=r'torch.int64 are discrete .*"cross_entropy"'):
        RADTLoss(make_discrete_actor())(make_batch(n=5))
    loss_module = RADTLoss(make_discrete_actor(), loss_function="cross_entropy")
    loss_module.set_keys(action_target="target")
    batch = make_batch(n=5).set("target", torch.zeros(B, T, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"indices \(4, 6\) or one-hot \(4, 6, 5\); got \(4, 6, 1\)"):
        loss_module(batch)


def test_no_action_at_a_real_step_is_an_error():
    batch = make_batch(n=5)
    batch["action"][0, -1] = -1
    with pytest.raises(IndexError, match="out of bounds"):
        RADTLoss(make_discrete_actor(), loss_function="cross_entropy")(batch)


@pytest.mark.parametrize("key", ["mask", ("collector", "mask")])
def test_the_masks_of_torchrl_count_too(key):
    actor, batch = make_actor(WINDOW[:4]), make_batch().exclude("mask")
    real = torch.ones(batch.batch_size, dtype=torch.bool)
    real[:, 0] = False
    batch["action"][:, 0] = 1e3
    batch[key] = real.unsqueeze(-1)
    assert torch.equal(RADTLoss(actor)(batch)["loss"], by_theirs(actor, batch, key))
    loss = RADTLoss(actor)
    loss.loss_mask_key = None
    assert loss(batch)["loss"] > 1e3


def by_theirs(actor, batch, key):
    loss = DTLoss(actor)
    loss.loss_mask_key = key
    return loss(batch)["loss"]
