"""An update: no work of size n, fixed shapes, and the lazy target against TorchRL's dense one."""

import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchrl.data import Categorical
from torchrl.modules import MLP, EGreedyModule
from torchrl.objectives import DQNLoss
from torchrl.objectives import HardUpdate as HostHardUpdate
from torchrl.objectives import SoftUpdate as HostSoftUpdate

from extensions.optim import RowAdam, clip_grad_norm_
from extensions.optim.row_adam import sum_repeats
from extensions.stochmax import (
    AdaptiveUniform,
    LearnedProposals,
    MixedRadix,
    Neighbours,
    ReplayActions,
    Uniform,
    diagnostics,
)
from extensions.stochmax.rows import RowTable
from extensions.torchrl import (
    HardUpdate,
    SoftUpdate,
    StochDQNLoss,
    StochEGreedyModule,
    StochQNetwork,
    StochQValueActor,
)

N = 10**6
UPDATERS = {
    "hard": (HardUpdate, HostHardUpdate, {"value_network_update_interval": 3}),
    "soft": (SoftUpdate, HostSoftUpdate, {"tau": 0.05}),
}
#: operations that read or write a few rows of a table that they are handed whole, or none
BY_ROW = {
    "embedding",
    "index",
    "index_select",
    "index_put_",
    "_index_put_impl_",
    "detach",
    "alias",
    "view",
    "unsqueeze",
    "index_fill_",
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(
    n=N,
    head="low_rank",
    double_dqn=False,
    candidates="log",
    codec=None,
    dtype=None,
    delay_value=True,
    **kwargs,
):
    trunk = MLP(in_features=3, out_features=8, num_cells=[8], activate_last_layer=True)
    network = StochQNetwork(trunk, codec or n, head=head)
    if dtype is not None:
        network.to(dtype)
    return StochDQNLoss(
        StochQValueActor(network, candidates=candidates, **kwargs),
        double_dqn=double_dqn,
        delay_value=delay_value,
    )


def batch(size, n):
    data = TensorDict({}, [size])
    data["observation"] = torch.randn(size, 3)
    data["action"] = torch.randint(n, (size,))
    data["next", "observation"] = torch.randn(size, 3)
    data["next", "reward"] = torch.randn(size, 1)
    data["next", "done"] = data["next", "terminated"] = torch.zeros(size, 1, dtype=torch.bool)
    return data


def update(loss, optimizer, updater, data):
    value = loss(data)["loss"]
    optimizer.zero_grad()
    value.backward()
    clip_grad_norm_(loss.parameters(), 10.0)
    optimizer.step()
    updater.step()
    return value.detach()


class Watching(TorchDispatchMode):
    """Notes every operation on a dense tensor of n / 10 numbers or more."""

    def __init__(self):
        super().__init__()
        self.seen, self.large = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.seen.add(name)
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        if name not in BY_ROW and any(not x.is_sparse and x.numel() >= N // 10 for x in tensors):
            self.large.add(name)
        return out


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("double_dqn", [True, False])
@pytest.mark.parametrize("head", ["row", "low_rank", "feature"])
def test_no_operation_sees_more_than_a_few_rows(updater, double_dqn, head, monkeypatch):
    monkeypatch.setattr(diagnostics, "LARGE_SAMPLE", 16)  # of fixed size, but large beside n / 10
    ours, _, kwargs = UPDATERS[updater]
    learning = [AdaptiveUniform(4, 8, interval=2), LearnedProposals()]
    sources = [Uniform(), ReplayActions(), ReplayActions(fresh=True), *learning, Neighbours()]
    loss = make(head=head, double_dqn=double_dqn, candidates=sources, codec=MixedRadix([10] * 6))
    actor, explore = loss.value_network, StochEGreedyModule(Categorical(N))
    optimizer, updater = RowAdam(loss.parameters()), ours(loss, **kwargs)
    update(loss, optimizer, updater, batch(16, N))  # moments are allocated once
    with Watching() as watching:
        for _ in range(5):
            update(loss, optimizer, updater, batch(16, N))
        explore.step(1)
        explore(actor(TensorDict({"observation": torch.randn(4, 3)}, [4])))
    assert "randint" in watching.seen
    assert watching.large == set()


def test_the_watch_sees_the_hosts_work_of_size_n():
    explore = EGreedyModule(Categorical(N, mask=torch.ones(N, dtype=torch.bool)))
    with Watching() as watching:
        explore(TensorDict({"action": torch.zeros((), dtype=torch.int64)}, []))
    assert watching.large


class Capturing(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: shapes that depend on data, and looks at it from the host."""

    REFUSED = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "coalesce", "equal", "bincount")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = (
            args[1]
            if name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple))
            else ()
        )
        if any(
            word in name and name != "is_coalesced"
            for word in self.REFUSED
            if word != "equal" or name == word
        ):
            raise RuntimeError(f"{name} cannot be captured")
        if any(x is not None and x.dtype == torch.bool for x in masks):
            raise RuntimeError(f"{name} by a mask cannot be captured")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("double_dqn", [True, False])
@pytest.mark.parametrize("legal", [None, [3, 5, 7], lambda obs: torch.arange(9).expand(len(obs), 9)])
def test_an_update_and_an_act_could_be_captured(updater, double_dqn, legal, monkeypatch):
    for module in (
        "stochmax.legal",
        "stochmax.rows",
        "torchrl.stoch_dqn.specs",
        "torchrl.stoch_dqn.updaters",
    ):
        monkeypatch.setattr(f"extensions.{module}.may_look", lambda x: False)  # as on a GPU
    # torch's own, for the other parameters, captures on a GPU alone.
    monkeypatch.setattr("extensions.optim.row_adam._adam_step", lambda optimizer: None)
    ours, _, kwargs = UPDATERS[updater]
    sources = [Uniform(), ReplayActions(), LearnedProposals()]
    loss = make(n=1000, double_dqn=double_dqn, legal_actions=legal, candidates=sources)
    actor, explore = loss.value_network, StochEGreedyModule(Categorical(1000), legal_actions=legal)
    optimizer, updater = RowAdam(loss.parameters()), ours(loss, **kwargs)
    data = batch(6, 1000).reshape(2, 3)
    update(loss, optimizer, updater, data)  # a soft updater settles when its tau is new
    with Capturing():
        for _ in range(5):
            update(loss, optimizer, updater, data)
            explore(actor(TensorDict({"observation": torch.randn(4, 3)}, [4])))
        with pytest.raises(RuntimeError, match="cannot be captured"):
            actor.memory.most(3)  # it would have been seen


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("looks", [True, False])
def test_the_lazy_target_is_the_hosts_dense_one(updater, looks, monkeypatch):
    monkeypatch.setattr("extensions.torchrl.stoch_dqn.updaters.may_look", lambda x: looks)
    ours, theirs, kwargs = UPDATERS[updater]
    lazy = make(n=40, dtype=torch.float64)
    dense = copy.deepcopy(lazy)
    agents = [
        (loss, RowAdam(loss.parameters(), lr=0.01), cls(loss, **kwargs))
        for loss, cls in ((lazy, ours), (dense, theirs))
    ]
    for step in range(25):
        data = batch(4, 40)
        data.update(data.select("observation", ("next", "observation"), ("next", "reward")).double())
        values = []
        for agent in agents:
            torch.manual_seed(step)
            values.append(update(*agent, data.clone()))
        assert torch.allclose(*values, rtol=1e-12, atol=1e-14), step
    assert same_targets(lazy, dense)


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


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_lazy_target_is_the_dense_one_in_other_orders(order, updater):
    """L: loss and gradient, O: optimizer, T: target, V: a loss of which nothing is learned."""
    ours, theirs, kwargs = UPDATERS[updater]
    lazy = make(n=40, dtype=torch.float64)
    dense = copy.deepcopy(lazy)
    agents = [
        (loss, RowAdam(loss.parameters(), lr=0.01), cls(loss, **kwargs))
        for loss, cls in ((lazy, ours), (dense, theirs))
    ]
    for step, what in enumerate(ORDERS[order].split() * 8):
        data = batch(4, 40)
        data.update(data.select("observation", ("next", "observation"), ("next", "reward")).double())
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
    assert same_targets(lazy, dense)


def same_targets(a, b):
    """Whether what the target networks say of all actions is equal."""
    states = torch.randn(5, 3, dtype=torch.float64)
    values = []
    for loss in (a, b):
        with loss.in_place(), torch.no_grad():
            network = loss.__dict__["_target_network"]
            values.append(network(states, torch.arange(40)))
    return torch.allclose(*values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("head", ["linear", "row", "low_rank"])
def test_parameters_drawn_anew(head):
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


def test_no_parameter_is_an_actors_memory():
    """What stands still while parameters change would not be one: TorchRL's own tests ask for that."""
    loss = make(n=40, head="linear", delay_value=False)
    before = loss.target_value_network_params.clone()
    for p in loss.parameters():
        p.data += torch.randn_like(p)
    assert not (before == loss.target_value_network_params).any()
    assert {"memory.ids", "memory.seen"} <= set(loss.state_dict())


def test_lazy_layers_are_refused_until_they_know_their_sizes():
    actor = StochQValueActor(StochQNetwork(MLP(out_features=8, num_cells=[8]), 40))
    with pytest.raises(ValueError, match="call the actor once"):
        StochDQNLoss(actor)
    actor(batch(2, 40))
    StochDQNLoss(actor)(batch(2, 40))


def test_a_loss_that_moves_takes_its_networks_along():
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


def test_an_updater_that_was_not_initialised():
    for updater in (HardUpdate(make(n=40)), SoftUpdate(make(n=40), tau=0.1)):
        updater.initialized = False
        with pytest.raises(RuntimeError, match="init_"):
            updater.step()


@pytest.mark.parametrize("n", [40, RowTable.DENSE_BELOW + 1])
@pytest.mark.parametrize("updater", UPDATERS)
def test_a_loaded_loss_goes_on_as_the_saved_one(n, updater):
    ours, _, kwargs = UPDATERS[updater]
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


def test_a_large_loss_is_saved_by_its_touched_rows():
    loss = make()
    optimizer, updater = RowAdam(loss.parameters()), HardUpdate(loss)
    update(loss, optimizer, updater, batch(8, N))
    assert sum(x.numel() for x in loss.state_dict().values()) < 200_000  # 131,072 of them in the memories
    assert sum(x.numel() for x in optimizer.state_dict()["state"][4].values()) < 8 * 70


@pytest.mark.parametrize("delay_value", [True, False])
def test_a_large_checkpoint_has_all_rows_that_were_trained(delay_value):
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


@pytest.mark.parametrize("n", [40, RowTable.DENSE_BELOW + 1])
def test_the_target_of_a_network_with_rows_of_its_own_is_a_copy(n):
    trunk = MLP(in_features=3, out_features=8, num_cells=[8], activate_last_layer=True)
    network = StochQNetwork(trunk, n, head="low_rank")
    torch.nn.init.normal_(network.head.rows.weight[:30])
    loss = StochDQNLoss(StochQValueActor(network))
    with loss.in_place():
        target = loss.__dict__["_target_network"].head.rows
        assert torch.equal(target(torch.arange(n)), network.head.rows.weight)


def test_a_checkpoint_of_another_loss_is_refused():
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
def test_a_copy_of_a_loss_is_apart(how):
    loss = make(n=40)
    copied = how(loss)
    optimizer, updater = (
        RowAdam(copied.parameters(), lr=0.1),
        HardUpdate(copied, value_network_update_interval=1),
    )
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    for _ in range(4):
        update(copied, optimizer, updater, batch(8, 40))
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    assert loss.value_network is not copied.value_network


@pytest.mark.slow
@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("double_dqn", [True, False])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_it_is_one_graph_and_the_same(updater, double_dqn, backend):
    if double_dqn and backend == "inductor":
        pytest.skip("its rounding decides between two actions of equal value, which the target tells apart")
    ours, _, kwargs = UPDATERS[updater]
    torch._dynamo.reset()
    eager = make(n=2000, candidates="all", double_dqn=double_dqn)
    compiled = copy.deepcopy(eager)
    agents = [(loss, RowAdam(loss.parameters(), lr=0.01), ours(loss, **kwargs)) for loss in (eager, compiled)]
    agents[1] = (torch.compile(compiled, fullgraph=True, backend=backend), *agents[1][1:])
    for _ in range(6):
        data = batch(8, 2000)
        a, b = (update(*agent, data.clone()) for agent in agents)
        assert torch.allclose(a, b, rtol=0.0 if backend == "aot_eager" else 1e-5, atol=0.0)


@pytest.mark.slow
def test_a_compiled_policy_is_one_graph():
    torch._dynamo.reset()
    loss = make()
    explore = StochEGreedyModule(Categorical(N))

    @torch.compile(fullgraph=True)
    def act(data):
        return explore(loss.value_network(data))

    with torch.no_grad():
        out = act(TensorDict({"observation": torch.randn(4, 3)}, [4]))
    assert out["action"].shape == (4,)


@pytest.mark.slow
@pytest.mark.parametrize("updater", UPDATERS)
def test_a_whole_update_compiled_is_the_same(updater):
    """Loss, gradients, optimizer and target, as the recipe compiles them."""
    ours, _, kwargs = UPDATERS[updater]
    torch._dynamo.reset()
    eager = make(n=2000, candidates="all")
    compiled = copy.deepcopy(eager)
    agents = [(loss, RowAdam(loss.parameters(), lr=0.01), ours(loss, **kwargs)) for loss in (eager, compiled)]
    step = torch.compile(update, backend="eager")
    for _ in range(6):
        data = batch(8, 2000)
        assert torch.allclose(update(*agents[0], data.clone()), step(*agents[1], data.clone()), rtol=1e-6)
    a, b = eager.state_dict(), compiled.state_dict()
    assert all(torch.allclose(x, b[name], rtol=1e-5, atol=1e-6) for name, x in a.items())


@pytest.mark.parametrize("updater", UPDATERS)
def test_a_move_of_the_target_is_one_graph(updater):
    """Where no gradient waits: one of rows is sparse, which torch.compile does not follow."""
    ours, _, kwargs = UPDATERS[updater]
    torch._dynamo.reset()
    agents = []
    for _ in range(2):
        torch.manual_seed(0)
        loss = make(n=2000, candidates="all")
        agents.append((loss, RowAdam(loss.parameters(), lr=0.01), ours(loss, **kwargs)))
    move = torch.compile(agents[1][2].step, fullgraph=True, backend="eager")
    for _ in range(6):
        data = batch(8, 2000)
        values = []
        for (loss, optimizer, _), moves in zip(agents, (agents[0][2].step, move), strict=True):
            value = loss(data.clone())["loss"]
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            moves()
            values.append(value.detach())
        assert torch.equal(*values)


def test_a_step_of_rows_is_one_graph():
    """Of the optimizer; torch's own part, for the other parameters, is torch's to compile."""
    torch._dynamo.reset()
    rows = [torch.nn.Parameter(torch.zeros(2000, 4)) for _ in range(2)]
    optimizers = [RowAdam([p], lr=0.01) for p in rows]
    for p, optimizer in zip(rows, optimizers, strict=True):  # moments are allocated once
        p.grad = torch.sparse_coo_tensor([[3]], torch.ones(1, 4), (2000, 4))
        optimizer.step()
    step = torch.compile(optimizers[1]._step_rows, fullgraph=True, backend="eager")
    for _ in range(4):
        ids, g = torch.randint(50, (30,)), torch.randn(30, 4)
        grad = torch.sparse_coo_tensor(ids.unsqueeze(0), g, (2000, 4))
        ids, g = sum_repeats(grad)
        optimizers[0]._step_rows(optimizers[0].param_groups[0], rows[0], ids, g)
        step(optimizers[1].param_groups[0], rows[1], ids, g)
        assert torch.allclose(*rows, rtol=1e-6)
    assert rows[0].any(1).sum() > 20


def test_dqn_loss_at_n_is_what_we_do_without():
    """The host's loss does work of size n in the same update: what the watch above would see."""
    from torchrl.modules import QValueActor

    actor = QValueActor(torch.nn.Linear(3, N), spec=Categorical(N))
    loss = DQNLoss(actor, delay_value=False)
    with Watching() as watching:
        loss(batch(2, N))
    assert {"addmm", "argmax"} <= watching.large
