"""What the parameters of a loss are: drawn anew, moved, and known before there is a loss."""

import pytest
import torch
from torchrl.modules import MLP

from extensions.optim import RowAdam
from extensions.torchrl import HardUpdate, SoftUpdate, StochDQNLoss, StochQNetwork, StochQValueActor


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("head", ["linear", "row", "low_rank"])
def test_parameters_drawn_anew(make, batch, update, head):
    loss = make(n=40, head=head)
    optimizer, updater = RowAdam(loss.parameters(), lr=0.1), SoftUpdate(loss, tau=0.5)
    for _ in range(4):
        update(loss, optimizer, updater, batch(8, 40))
    before = {k: v.clone() for k, v in loss.named_parameters()}
    loss.reset_parameters_recursive()
    assert not any(torch.equal(v, before[k]) for k, v in loss.named_parameters())
    if head != "linear":
        with loss.in_place():
            for rows in (loss.value_network.network.head.rows, loss.__dict__["_target_network"].head.rows):
                assert not rows(torch.arange(40)).any()
    updater.init_()
    update(loss, optimizer, updater, batch(8, 40))


def test_no_parameter_is_an_actors_memory(make):
    """What stands still while parameters change would not be one: TorchRL's own tests ask for that."""
    loss = make(n=40, head="linear", delay_value=False)
    before = loss.target_value_network_params.clone()
    for p in loss.parameters():
        p.data += torch.randn_like(p)
    assert not (before == loss.target_value_network_params).any()
    assert {"memory.ids", "memory.seen"} <= set(loss.state_dict())


def test_lazy_layers_are_refused_until_they_know_their_sizes(batch):
    actor = StochQValueActor(StochQNetwork(MLP(out_features=8, num_cells=[8]), 40))
    with pytest.raises(ValueError, match="call the actor once"):
        StochDQNLoss(actor)
    actor(batch(2, 40))
    StochDQNLoss(actor)(batch(2, 40))


def test_a_loss_that_moves_takes_its_networks_along(make, batch, update):
    loss = make(n=40)
    updater = HardUpdate(loss)
    updater.counter = 7
    assert int(updater.counter) == 7
    loss.to(torch.float64)
    in_loss = {x.data_ptr() for x in [*loss.parameters(), *loss.buffers()]}
    for network in (loss.value_network, loss.__dict__["_target_network"]):
        for x in [*network.parameters(), *network.buffers()]:
            assert x.data_ptr() in in_loss
            assert not x.is_floating_point() or x.dtype == torch.float64
    data = batch(8, 40).apply(lambda x: x.double() if x.is_floating_point() else x)
    update(loss, RowAdam(loss.parameters()), updater, data)
