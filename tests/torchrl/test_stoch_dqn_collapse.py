"""With all candidates the actor is TorchRL's QValueActor and the loss its DQNLoss."""

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.utils import unravel_key_list
from torch import nn
from torchrl.data import Categorical, Composite, MultiCategorical
from torchrl.modules import MLP, QValueActor
from torchrl.objectives import DQNLoss
from torchrl.objectives import HardUpdate as HostHardUpdate
from torchrl.objectives import SoftUpdate as HostSoftUpdate

from extensions.optim import RowAdam
from extensions.stochmax import MixedRadix
from extensions.torchrl import HardUpdate, SoftUpdate, StochDQNLoss, StochQNetwork, StochQValueActor

N, OBS = 7, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_trunk(*last):
    """Layers, of which those in ``last`` are the last."""
    layers = MLP(in_features=OBS, out_features=8, num_cells=[9], activate_last_layer=True)
    return nn.Sequential(*layers, *last)


def pair(
    head="linear",
    n=N,
    in_keys=("observation",),
    action_key="action",
    dtype=None,
    dueling=False,
    last=(),
    **kwargs,
):
    """Our actor and TorchRL's, of equal values."""
    trunk = make_trunk(*copy.deepcopy(last))
    head_kwargs = {"dueling": dueling} if head == "row" else {}
    network = StochQNetwork(trunk, n, head=head, head_kwargs=head_kwargs).to(dtype)
    layer = nn.Linear(8, n, dtype=dtype)
    with torch.no_grad():
        if head == "row":
            network.head.rows.assign(torch.arange(n), torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1))
        else:
            network.head.weight.copy_(layer.weight)
            network.head.bias.copy_(layer.bias)
    theirs_trunk = make_trunk(*copy.deepcopy(last)).to(dtype)
    theirs_trunk.load_state_dict(trunk.state_dict())
    spec = Categorical(n) if action_key == "action" else Composite(agents=Composite(action=Categorical(n)))
    ours = StochQValueActor(
        network, spec=spec, in_keys=list(in_keys), action_key=action_key, candidates="all", **kwargs
    )
    theirs = QValueActor(
        nn.Sequential(theirs_trunk, layer), spec=spec, in_keys=list(in_keys), action_key=action_key
    )
    return ours, theirs


def batch(*shape, n=N, dtype=torch.float32, observation="observation", action="action", one_more=False):
    flags = torch.rand(*shape, 1) < 0.3
    terminated = flags & (torch.rand(*shape, 1) < 0.5)
    data = TensorDict({}, shape)
    data[observation] = torch.randn(*shape, OBS, dtype=dtype)
    data[action] = torch.randint(n, (*shape, 1) if one_more else shape)
    data["next", observation] = torch.randn(*shape, OBS, dtype=dtype)
    data["next", "reward"] = torch.randn(*shape, 1, dtype=dtype)
    data["next", "done"], data["next", "terminated"] = flags, terminated
    return data


@pytest.mark.parametrize("shape", [(), (5,), (3, 2)])
def test_the_actor_is_the_hosts(shape):
    ours, theirs = pair()
    state = TensorDict({"observation": torch.randn(*shape, OBS)}, shape)
    a, b = ours(state.clone()), theirs(state.clone())
    assert torch.equal(a["action"], b["action"])
    assert a["action"].dtype == torch.int64
    assert torch.equal(a["chosen_action_value"], b["chosen_action_value"])
    assert "action_value" not in set(a.keys())
    assert ours.in_keys == theirs.in_keys
    assert set(ours.out_keys) == set(theirs.out_keys) - {"action_value"}


@pytest.mark.parametrize("delay_value", [True, False])
@pytest.mark.parametrize("double_dqn", [True, False])
@pytest.mark.parametrize("loss_function", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("estimator", [None, *DQNLoss.SUPPORTED_VALUE_ESTIMATORS])
def test_the_loss_is_the_hosts_exactly(delay_value, double_dqn, loss_function, estimator):
    if double_dqn and not delay_value:
        return
    kwargs = {"loss_function": loss_function, "delay_value": delay_value, "double_dqn": double_dqn}
    actors = pair()
    ours, theirs = StochDQNLoss(actors[0], **kwargs), DQNLoss(actors[1], **kwargs)
    for loss in (ours, theirs):
        if estimator is not None:
            loss.make_value_estimator(estimator, gamma=0.9)
    if delay_value:
        give_targets_of_their_own(ours, theirs)
    data = batch(4, 6)
    a, b = data.clone(), data.clone()
    la, lb = ours(a)["loss"], theirs(b)["loss"]
    assert torch.equal(la, lb)
    assert torch.equal(a["td_error"], b["td_error"])
    la.backward()
    lb.backward()
    ga, gb = gradients(ours), gradients(theirs)
    assert len(ga) == len(gb) == 6
    for x, y in zip(ga, gb, strict=True):
        assert torch.equal(x, y)


def give_targets_of_their_own(ours, theirs):
    """Both target networks the same values, which are not the online network's."""
    for x, y in zip(*(by_shape(loss.target_value_network_params) for loss in (ours, theirs)), strict=True):
        y.data.copy_(x.data.add_(torch.rand_like(x) * 0.3))


def by_shape(params):
    """Real tensors of both networks in one order: by shape, and of one shape as the layers have them."""
    tensors = [x for x in params.values(True, True) if x.is_floating_point()]
    assert len(tensors) >= 6
    return sorted(tensors, key=lambda x: tuple(x.shape))


def gradients(loss):
    return sorted((p.grad for p in loss.parameters()), key=lambda g: tuple(g.shape))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", None])
def test_reductions_and_weights_are_the_hosts(reduction):
    actors = pair()
    ours, theirs = (
        cls(actor, reduction=reduction, delay_value=False)
        for cls, actor in zip((StochDQNLoss, DQNLoss), actors, strict=True)
    )
    for weighted in (False, True):
        data = batch(6)
        if weighted:
            data["priority_weight"] = torch.rand(6)
        assert torch.equal(ours(data.clone())["loss"], theirs(data.clone())["loss"])


def test_keys_are_the_hosts():
    keys = {"in_keys": [("agents", "seen")], "action_key": ("agents", "action")}
    actors = pair(**keys)
    names = {
        "action": ("agents", "action"),
        "priority": "surprise",
        "reward": ("agents", "reward"),
        "terminated": "over",
    }
    data = batch(5, observation=("agents", "seen"), action=("agents", "action"))
    data["next", "agents", "reward"] = data["next", "reward"]
    data["next", "over"] = data["next", "terminated"]
    data = data.exclude(("next", "reward"), ("next", "terminated"))
    losses = []
    for cls, actor in zip((StochDQNLoss, DQNLoss), actors, strict=True):
        loss = cls(actor, delay_value=False)
        loss.set_keys(**names)
        out = data.clone()
        losses.append(loss(out)["loss"])
        assert out["surprise"].shape == (5, 1)
        assert {("next", "over"), ("next", "agents", "seen"), ("agents", "action")} <= set(
            unravel_key_list(loss.in_keys)
        )
    assert torch.equal(*losses)


def test_called_with_tensors_it_is_the_hosts():
    actors = pair()
    data = batch(5)
    tensors = {
        "observation": data["observation"],
        "next_observation": data["next", "observation"],
        "action": data["action"],
        "next_reward": data["next", "reward"],
        "next_done": data["next", "done"],
        "next_terminated": data["next", "terminated"],
    }
    a, b = (
        cls(actor, delay_value=False)(**tensors)
        for cls, actor in zip((StochDQNLoss, DQNLoss), actors, strict=True)
    )
    assert torch.equal(a, b)


UPDATERS = {
    "hard": (HardUpdate, HostHardUpdate, {"value_network_update_interval": 2}),
    "soft": (SoftUpdate, HostSoftUpdate, {"tau": 0.1}),
    "eps": (SoftUpdate, HostSoftUpdate, {"eps": 0.8}),
}


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("double_dqn", [True, False])
def test_training_is_the_hosts_exactly(updater, double_dqn):
    ours, theirs, kwargs = UPDATERS[updater]
    actors = pair()
    losses = StochDQNLoss(actors[0], double_dqn=double_dqn), DQNLoss(actors[1], double_dqn=double_dqn)
    for step, loss in enumerate(train(losses, (ours, theirs), kwargs, torch.optim.Adam, 12)):
        assert torch.equal(*loss), step


@pytest.mark.parametrize("double_dqn", [True, False])
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(8)], ids=["dropout", "batch_norm"])
def test_train_and_eval_mode_are_the_hosts(layer, double_dqn):
    """Of both networks, which in TorchRL are one module with other parameters."""
    actors = pair(last=[layer])
    losses = StochDQNLoss(actors[0], double_dqn=double_dqn), DQNLoss(actors[1], double_dqn=double_dqn)
    updaters = HardUpdate(losses[0]), HostHardUpdate(losses[1])
    give_targets_of_their_own(*losses)
    for training in (True, True, False, False, True):
        data, values = batch(8), []
        for loss, updater in zip(losses, updaters, strict=True):
            loss.value_network.train(training)
            torch.manual_seed(0)
            values.append(loss(data.clone())["loss"].detach())
            updater.step()
        assert torch.equal(*values)
    losses[0].value_network.eval()
    assert torch.equal(losses[0](data.clone())["loss"], losses[0](data.clone())["loss"])  # nothing is dropped
    for a, b in zip(*(norms_of(loss) for loss in losses), strict=True):
        assert torch.equal(a, b)


def norms_of(loss):
    """What batch norms of both networks count."""
    params = (loss.value_network_params, loss.target_value_network_params)
    return [
        x for tree in params for key, x in tree.items(True, True) if "running" in key[-1] or "num" in key[-1]
    ]


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("host_updater", [False, True])
@pytest.mark.parametrize("double_dqn", [True, False])
def test_training_with_rows_is_the_hosts_to_rounding(updater, double_dqn, host_updater):
    """All n actions are in every batch, as row Adam leaves the others alone and dense Adam does not."""
    ours, theirs, kwargs = UPDATERS[updater]
    actors = pair("row", dtype=torch.float64)
    losses = StochDQNLoss(actors[0], double_dqn=double_dqn), DQNLoss(actors[1], double_dqn=double_dqn)
    updaters = (theirs if host_updater else ours, theirs)
    for step, (a, b) in enumerate(train(losses, updaters, kwargs, RowAdam, 12)):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13), step


def train(losses, updaters, kwargs, optimizer_class, steps):
    """Losses of two agents that learn from the same batches."""
    dtype = next(losses[0].parameters()).dtype
    optimizers = [
        optimizer_class(losses[0].parameters(), lr=0.01),
        torch.optim.Adam(losses[1].parameters(), lr=0.01),
    ]
    updaters = [updater(loss, **kwargs) for updater, loss in zip(updaters, losses, strict=True)]
    for _ in range(steps):
        data = batch(N + 5, dtype=dtype)
        data["action"][:N] = torch.arange(N)
        values = []
        for loss, optimizer, updater in zip(losses, optimizers, updaters, strict=True):
            value = loss(data.clone())["loss"]
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            updater.step()
            values.append(value.detach())
        yield values


def test_digits_are_ids():
    """An actor of MultiCategorical actions writes digits, and the loss reads them, as of the flat id."""
    codec = MixedRadix([2, 3, 4])
    trunk = MLP(in_features=OBS, out_features=8, num_cells=[8])
    network = StochQNetwork(trunk, codec, head="feature")
    nn.init.normal_(network.head.out.weight)
    flat = StochQValueActor(network, spec=Categorical(24), candidates="all")
    digits = StochQValueActor(network, spec=MultiCategorical([2, 3, 4]), candidates="all")
    data = batch(5, n=24)
    a, b = flat(data.clone()), digits(data.clone())
    assert torch.equal(codec.decode(a["action"]), b["action"])
    in_digits = data.clone()
    in_digits["action"] = codec.decode(data["action"])
    a, b = StochDQNLoss(flat)(data), StochDQNLoss(digits)(in_digits)
    assert torch.equal(a["loss"], b["loss"])
