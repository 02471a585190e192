"""A loss that is saved, loaded or copied goes on as it would have."""

import copy
import pickle

import pytest
import torch

from extensions.optim import RowAdam
from extensions.stochmax.rows import RowTable
from extensions.torchrl import HardUpdate


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("n", [40, RowTable.DENSE_BELOW + 1])
def test_a_loaded_loss_goes_on_as_the_saved_one(make, batch, update, updaters, n):
    ours, _, kwargs = updaters
    agents = []
    for _ in range(2):
        loss = make(n=n)
        agents.append((loss, RowAdam(loss.parameters(), lr=0.01), ours(loss, **kwargs)))
    for _ in range(5):
        update(*agents[0], batch(8, n))
    update(*agents[1], batch(8, n))  # to be forgotten
    for saved, loaded in zip(*agents, strict=True):
        loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    for step in range(5):
        data = batch(8, n)
        values = []
        for agent in agents:
            torch.manual_seed(step)
            values.append(update(*agent, data.clone()))
        assert torch.equal(*values), step


def test_a_large_loss_is_saved_by_its_touched_rows(make, batch, update):
    loss = make()
    optimizer, updater = RowAdam(loss.parameters()), HardUpdate(loss)
    update(loss, optimizer, updater, batch(8, 10**6))
    assert sum(x.numel() for x in loss.state_dict().values()) < 200_000  # 131,072 of them in the memories
    assert sum(x.numel() for x in optimizer.state_dict()["state"][4].values()) < 8 * 70


@pytest.mark.parametrize("delay_value", [True, False])
def test_a_large_checkpoint_has_all_rows_that_were_trained(make, batch, delay_value):
    n = RowTable.DENSE_BELOW + 1
    losses = [make(n=n, delay_value=delay_value) for _ in range(2)]
    optimizer = RowAdam(losses[0].parameters(), lr=0.1)
    for _ in range(3):
        losses[0](batch(8, n))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    losses[1].load_state_dict(losses[0].state_dict())
    trained, loaded = (loss.value_network.network.head.rows.weight for loss in losses)
    assert trained.any(1).sum() > 10
    assert torch.equal(trained, loaded)


def test_a_checkpoint_of_another_loss_is_refused(make):
    n = RowTable.DENSE_BELOW + 1
    loss = make(n=n)
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    with pytest.raises(RuntimeError, match="in the checkpoint, this table"):
        loss.load_state_dict(make(n=n + 1).state_dict())
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items() if "row" in k)
    online_alone = {k: v for k, v in loss.state_dict().items() if not k.startswith("target")}
    with pytest.raises(RuntimeError, match="target_value_network_params"):
        loss.load_state_dict(online_alone)
    loss.load_state_dict(before)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("n", [40, RowTable.DENSE_BELOW + 1])
def test_a_copy_of_a_loss_is_apart(make, batch, update, how, n):
    loss = make(n=n)
    copied = how(loss)
    optimizer, updater = (
        RowAdam(copied.parameters(), lr=0.1),
        HardUpdate(copied, value_network_update_interval=1),
    )
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    for _ in range(4):
        update(copied, optimizer, updater, batch(8, n))
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    assert loss.value_network is not copied.value_network
    # Nor is it in two: the networks have the parameters that were trained.
    data = batch(8, n)
    with copied.in_place():
        values = copied.value_network.values(data, data["action"])
    assert torch.equal(copied.value_network.values(data, data["action"]), values)
    assert not torch.equal(loss.value_network.values(data, data["action"]), values)


@pytest.mark.parametrize("head", ["linear", "low_rank"])
def test_parameters_go_out_by_a_network_and_come_back(make, batch, update, head):
    loss, other = make(n=40, head=head), make(n=40, head=head)
    optimizer, updater = RowAdam(loss.parameters(), lr=0.1), HardUpdate(loss)
    for _ in range(4):
        update(loss, optimizer, updater, batch(8, 40))
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    network = loss.get_stateful_net("value_network")
    loss.from_stateful_net("value_network", network)
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    data = batch(8, 40)
    target = of_target(loss, data)
    loss.from_stateful_net("value_network", other.get_stateful_net("value_network"))
    assert torch.equal(of_target(loss, data), target)  # the target stays until it is moved
    for k, v in other.value_network_params.items(True, True):
        assert torch.equal(loss.value_network_params[k], v)
    updater.init_()
    assert torch.equal(of_target(loss, data), of_target(other, data))
    with pytest.raises(RuntimeError, match="keys of params and provided module differ"):
        loss.from_stateful_net("value_network", make(n=40, head="row").value_network)


def of_target(loss, data):
    """What the target network says of some actions."""
    with loss.in_place(), torch.no_grad():
        return loss.value_network.values(data, data["action"], loss.__dict__["_target_network"])
