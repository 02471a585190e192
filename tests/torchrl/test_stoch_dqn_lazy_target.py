"""The lazy target of rows against TorchRL's dense one, in every order of an update's steps."""

import copy

import pytest
import torch
from torchrl.modules import MLP

from extensions.optim import RowAdam
from extensions.stochmax.rows import RowTable
from extensions.torchrl import HardUpdate, SoftUpdate, StochDQNLoss, StochQNetwork, StochQValueActor


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def lazy_and_dense(make, updaters):
    """Loss, optimizer and updater, ours and the host's, that begin alike."""
    ours, theirs, kwargs = updaters
    lazy = make(n=40, dtype=torch.float64)
    dense = copy.deepcopy(lazy)
    return [
        (loss, RowAdam(loss.parameters(), lr=0.01), cls(loss, **kwargs))
        for loss, cls in ((lazy, ours), (dense, theirs))
    ]


def in_doubles(data):
    """Its numbers in float64."""
    return data.update(data.select("observation", ("next", "observation"), ("next", "reward")).double())


@pytest.mark.parametrize("looks", [True, False])
def test_the_lazy_target_is_the_hosts_dense_one(make, batch, update, updaters, looks, monkeypatch):
    monkeypatch.setattr("extensions.torchrl.stoch_dqn.updaters.may_look", lambda x: looks)
    agents = lazy_and_dense(make, updaters)
    for step in range(25):
        data = in_doubles(batch(4, 40))
        values = []
        for agent in agents:
            torch.manual_seed(step)
            values.append(update(*agent, data.clone()))
        assert torch.allclose(*values, rtol=1e-12, atol=1e-14), step
    assert same_targets(*(loss for loss, *_ in agents))


ORDERS = {
    "the target first": "T L O",
    "the target before the optimizer": "L T O",
    "the target after each of two gradients": "L T L T O",
    "gradients of two batches": "L L O T",
    "a target at every second update": "L O L O T",
    "a target that moves twice": "L O T T",
    "a look at the loss": "L O V T V",
    "a look before the optimizer": "L V O T",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_lazy_target_is_the_dense_one_in_other_orders(make, batch, update, updaters, order):
    """L: loss and gradient, O: optimizer, T: target, V: a loss of which nothing is learned."""
    agents = lazy_and_dense(make, updaters)
    for step, what in enumerate(ORDERS[order].split() * 8):
        data = in_doubles(batch(4, 40))
        values = []
        for loss, optimizer, updates in agents:
            torch.manual_seed(step)
            if what in "LV":
                value = loss(data.clone())["loss"]
                values.append(value.detach())
            if what == "L":
                value.backward()
            elif what == "O":
                optimizer.step()
                optimizer.zero_grad()
            elif what == "T":
                updates.step()
        assert not values or torch.allclose(*values, rtol=1e-12, atol=1e-14), (step, what)
    assert same_targets(*(loss for loss, *_ in agents))


def same_targets(a, b):
    """Whether what the target networks say of all actions is equal."""
    states = torch.randn(5, 3, dtype=torch.float64)
    values = []
    for loss in (a, b):
        with loss.in_place(), torch.no_grad():
            network = loss.__dict__["_target_network"]
            values.append(network(states, torch.arange(40)))
    return torch.allclose(*values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [40, RowTable.DENSE_BELOW + 1])
def test_the_target_of_a_network_with_rows_of_its_own_is_a_copy(n):
    trunk = MLP(in_features=3, out_features=8, num_cells=[8], activate_last_layer=True)
    network = StochQNetwork(trunk, n, head="low_rank")
    torch.nn.init.normal_(network.head.rows.weight[:30])
    loss = StochDQNLoss(StochQValueActor(network))
    with loss.in_place():
        target = loss.__dict__["_target_network"].head.rows
        assert torch.equal(target(torch.arange(n)), network.head.rows.weight)


def test_a_network_of_nothing_but_rows_has_a_target_that_moves(updaters):
    """There TorchRL's updater would find nothing to move."""
    ours, _, kwargs = updaters
    network = StochQNetwork(None, 40, width=3, head="row", head_kwargs={"dueling": False})
    loss = StochDQNLoss(StochQValueActor(network))
    updater = ours(loss, **kwargs)
    before, states = target_values(loss), torch.eye(3)
    with torch.no_grad():
        network.head.rows.assign(torch.arange(40), torch.randn(40, 4))
    for _ in range(4):
        updater.step()
    assert not torch.equal(target_values(loss), before)
    updater.init_()
    updater.step()
    assert torch.equal(target_values(loss), network(states, torch.arange(40)))


def target_values(loss):
    with loss.in_place(), torch.no_grad():
        return loss.__dict__["_target_network"](torch.eye(3), torch.arange(40))


def test_an_updater_that_was_not_initialised(make):
    for updater in (HardUpdate(make(n=40)), SoftUpdate(make(n=40), tau=0.1)):
        updater.initialized = False
        with pytest.raises(RuntimeError, match="init_"):
            updater.step()
