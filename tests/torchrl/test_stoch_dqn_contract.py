"""What TorchRL's own tests ask of DQNLoss, asked of StochDQNLoss."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.utils import unravel_key_list
from torch import nn
from torchrl.data import Categorical
from torchrl.data.postprocs import MultiStep
from torchrl.modules import MLP
from torchrl.objectives import DQNLoss, ValueEstimators

from extensions.optim import RowAdam
from extensions.stochmax import MixedRadix
from extensions.torchrl import HardUpdate, SoftUpdate, StochDQNLoss, StochQNetwork, StochQValueActor

N, OBS = 24, 4
HEADS = ["linear", "row", "low_rank", "feature"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(head="linear", candidates="log", trunk=None, width=None, **kwargs):
    """A loss whose rows are as after some training, and whose target network is apart from the online one."""
    if trunk is None:
        trunk = MLP(in_features=OBS, out_features=8, num_cells=[8], activate_last_layer=True)
    network = StochQNetwork(trunk, MixedRadix([2, 3, 4]), head=head, width=width)
    with torch.no_grad():
        if head == "feature":
            nn.init.normal_(network.head.out.weight)
        for rows in network.head.tables:
            rows.assign(torch.arange(N), torch.randn(rows.weight.shape))
    return StochDQNLoss(StochQValueActor(network, candidates=candidates, spec=Categorical(N)), **kwargs)


def batch(*shape, dtype=None):
    flags = torch.rand(*shape, 1) < 0.3
    data = TensorDict({}, shape)
    data["observation"] = torch.randn(*shape, OBS, dtype=dtype)
    data["action"] = torch.randint(N, shape)
    data["next", "observation"] = torch.randn(*shape, OBS, dtype=dtype)
    data["next", "reward"] = torch.randn(*shape, 1, dtype=dtype)
    data["next", "done"], data["next", "terminated"] = flags, flags & (torch.rand(*shape, 1) < 0.5)
    return data


def weights(loss, target=False):
    """What a network of a loss says of all actions in some states, (5, N)."""
    states = torch.linspace(-1, 1, 5 * OBS, dtype=next(loss.parameters()).dtype).reshape(5, OBS)
    with loss.in_place(), torch.no_grad():
        network = loss.__dict__["_target_network"] if target else loss.value_network.network
        return network(states, torch.arange(N))


def learn(loss, optimizer, *updaters):
    loss(batch(16, dtype=next(loss.parameters()).dtype))["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    for updater in updaters:
        updater.step()


# -- gradients --


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("delay_value", [True, False])
@pytest.mark.parametrize("double_dqn", [True, False])
def test_every_parameter_has_a_gradient(head, delay_value, double_dqn):
    if double_dqn and not delay_value:
        return
    loss = make(head, delay_value=delay_value, double_dqn=double_dqn)
    out = loss(batch(64))
    out["loss"].backward()
    parameters = dict(loss.named_parameters())
    assert parameters
    assert not any(name.startswith("target_") for name in parameters)
    for name, p in parameters.items():
        assert p.grad is not None, name
        norm = p.grad.coalesce().values().norm() if p.grad.is_sparse else p.grad.norm()
        assert norm > 0, name
    assert set(out.keys()) == set(loss.out_keys) == {"loss"}


# -- the target network --


@pytest.mark.parametrize("head", HEADS)
def test_the_target_is_equal_at_first_and_then_moves_by_the_updater_alone(head):
    loss = make(head)
    assert torch.equal(weights(loss), weights(loss, target=True))
    updater = HardUpdate(loss, value_network_update_interval=2)
    optimizer = RowAdam(loss.parameters(), lr=0.05)
    first = weights(loss)
    for _ in range(3):
        learn(loss, optimizer)
    assert not torch.allclose(weights(loss), first)
    assert torch.allclose(weights(loss, target=True), first, rtol=1e-6)
    for _ in range(2):
        updater.step()
        assert torch.allclose(weights(loss, target=True), first, rtol=1e-6)
    updater.step()
    assert torch.allclose(weights(loss, target=True), weights(loss), rtol=1e-6)


def test_without_a_target_network_the_online_one_bootstraps():
    loss = make(delay_value=False, candidates="all")
    optimizer = RowAdam(loss.parameters(), lr=0.05)
    learn(loss, optimizer)
    assert "target_value_network_params" not in loss._modules
    online = dict(loss.value_network_params.items(True, True))
    for key, target in loss.target_value_network_params.items(True, True):
        assert target.data_ptr() == online[key].data_ptr()
        assert not target.requires_grad


@pytest.mark.parametrize("head", ["linear", "row"])
def test_a_soft_update_is_the_recursion(head):
    """With Q linear in the head, what the target says is the same average as its parameters'."""
    loss = make(head, trunk=nn.Identity(), width=OBS)
    updater, optimizer = SoftUpdate(loss, tau=0.25), RowAdam(loss.parameters(), lr=0.05)
    expected = weights(loss, target=True)
    for _ in range(6):
        learn(loss, optimizer, updater)
        expected = 0.75 * expected + 0.25 * weights(loss)
        assert torch.allclose(weights(loss, target=True), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_a_loss_is_moved_to_another_dtype_after_its_updater_was_made(head):
    loss = make(head)
    updater = SoftUpdate(loss, tau=0.5)
    loss.to(torch.float64)
    optimizer = RowAdam(loss.parameters(), lr=0.05)
    assert {p.dtype for p in loss.parameters()} == {torch.float64}
    for _ in range(3):
        learn(loss, optimizer, updater)
    old, online = weights(loss, target=True), weights(loss)
    assert old.dtype == torch.float64
    for _ in range(60):
        updater.step()
    assert not torch.allclose(old, online, rtol=1e-3)
    assert torch.allclose(weights(loss, target=True), online, rtol=1e-12)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("delay_value", [True, False])
def test_reset_parameters(head, delay_value):
    loss = make(head, delay_value=delay_value)
    optimizer = RowAdam(loss.parameters(), lr=0.05)
    learn(loss, optimizer, *([SoftUpdate(loss, tau=0.5)] if delay_value else []))
    networks = (False, True) if delay_value else (False,)
    before = [weights(loss, target) for target in networks]
    loss.reset_parameters_recursive()
    for target, values in zip(networks, before, strict=True):
        assert (weights(loss, target) - values).abs().min() > 0
    for key, x in loss.named_parameters():
        if key.endswith(("rows.weight", "out.weight")):
            assert not x.any()  # no phantom advantages, as at first
    drawn = weights(loss)
    learn(loss, RowAdam(loss.parameters(), lr=0.05))
    assert not torch.allclose(weights(loss), drawn)


# -- checkpoints --


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("delay_value", [True, False])
def test_a_state_dict_makes_the_same_loss(head, delay_value):
    saved, loaded = make(head, delay_value=delay_value), make(head, delay_value=delay_value)
    optimizer = RowAdam(saved.parameters(), lr=0.05)
    for _ in range(3):
        learn(saved, optimizer)
    state = {k: v.clone() for k, v in saved.state_dict().items()}
    loaded.load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())
    data = batch(9)
    values = []
    for loss in (saved, loaded):
        torch.manual_seed(1)
        values.append(loss(data.clone())["loss"])
    assert torch.equal(*values)


# -- several steps --


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize("double_dqn", [True, False])
def test_several_steps_by_the_postprocessing_of_collectors(n_steps, double_dqn):
    """One step is the transitions as they are; of more the target is the recursion's.

    Without ends of episodes: TorchRL 0.14 leaves the flags of the first step, whatever ends after it.
    """
    gamma = 0.9
    loss = make(candidates="all", double_dqn=double_dqn, reduction="none")
    loss.make_value_estimator(gamma=gamma)
    data = batch(3, 7)
    data["next", "done"].zero_()
    data["next", "terminated"].zero_()
    stepped = MultiStep(gamma=gamma, n_steps=n_steps)(data.clone())
    if n_steps == 1:
        assert torch.equal(loss(stepped)["loss"], loss(data)["loss"])
        return
    best = weights_at(loss, data["next", "observation"]).max(-1).values  # target equals online: (3, 7)
    taken = weights_at(loss, data["observation"]).gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)
    expected = torch.zeros(3, 7)
    for row in range(3):
        for t in range(7):
            target, k = 0.0, 0
            while True:
                target += gamma**k * data["next", "reward"][row, t + k, 0]
                last = t + k
                k += 1
                if k == n_steps or last == 6:
                    break
            target += gamma**k * best[row, last]
            expected[row, t] = (taken[row, t] - target) ** 2
    assert torch.allclose(loss(stepped)["loss"], expected, rtol=1e-4, atol=1e-5)


def weights_at(loss, observation):
    with loss.in_place(), torch.no_grad():
        return loss.value_network.network(observation, torch.arange(N))


# -- keys, calls and reductions --


def test_keys_are_the_hosts_by_default_and_as_set():
    loss = make()
    defaults = DQNLoss.default_keys()
    assert vars(loss.tensor_keys) == vars(defaults)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.5)
    new = {"reward": ("a", "pay"), "done": ("a", "end"), "terminated": ("a", "over")}
    loss.set_keys(action=("a", "act"), priority="surprise", **new)
    for name, key in new.items():
        assert getattr(loss.value_estimator.tensor_keys, name) == key
    assert {("a", "act"), ("next", "a", "pay"), ("next", "a", "end"), ("next", "a", "over")} <= set(
        unravel_key_list(loss.in_keys)
    )
    loss.set_keys(action=None)
    assert loss.tensor_keys.action == "action"
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        loss.set_keys(wrong="x")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_called_with_tensors(reduction):
    data = batch(6)
    loss = make(reduction=reduction)
    names = {key: key if isinstance(key, str) else "_".join(key) for key in unravel_key_list(loss.in_keys)}
    values = []
    for call in (
        lambda: loss(data)["loss"],
        lambda: loss(**{name: data[key] for key, name in names.items()}),
    ):
        torch.manual_seed(3)
        values.append(call())
    assert torch.equal(*values)
    assert values[0].shape == ((6,) if reduction == "none" else ())


def test_reductions_are_those_of_one_another():
    data = batch(6)
    loss = make(candidates="all", reduction="none")
    each = loss(data.clone())["loss"]
    for reduction, expected in (("mean", each.mean()), ("sum", each.sum())):
        loss.reduction = reduction
        assert torch.allclose(loss(data.clone())["loss"], expected)


@pytest.mark.parametrize("used", ["auto", True, False])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_weights_of_priorities(used, reduction):
    data = batch(6)
    data["priority_weight"] = torch.rand(6)
    loss = make(candidates="all", reduction="none", use_prioritized_weights=used)
    alone = loss(data.exclude("priority_weight"))["loss"]
    loss.reduction = reduction
    w = data["priority_weight"]
    expected = {
        "none": alone * w,
        "mean": (alone * w).sum() / w.sum(),
        "sum": (alone * w).sum(),
    }[reduction]
    if used is False:
        expected = {"none": alone, "mean": alone.mean(), "sum": alone.sum()}[reduction]
    assert torch.allclose(loss(data)["loss"], expected)
    assert data["td_error"].shape == (6, 1)
    assert torch.allclose(data["td_error"].squeeze(1), alone)  # l2: of the transition, without its weight
