"""An update and an act are one graph of fixed shapes, for torch.compile and CUDA graphs."""

import copy

import pytest
import torch
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.data import Categorical

from extensions.optim import RowAdam
from extensions.optim.row_adam import sum_repeats
from extensions.stochmax import LearnedProposals, ReplayActions, Uniform
from extensions.torchrl import StochEGreedyModule


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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


@pytest.mark.parametrize("double_dqn", [True, False])
@pytest.mark.parametrize("legal", [None, [3, 5, 7], lambda obs: torch.arange(9).expand(len(obs), 9)])
def test_an_update_and_an_act_could_be_captured(
    make, batch, update, updaters, double_dqn, legal, monkeypatch
):
    for module in (
        "stochmax.legal",
        "stochmax.rows",
        "torchrl.stoch_dqn.specs",
        "torchrl.stoch_dqn.updaters",
    ):
        monkeypatch.setattr(f"extensions.{module}.may_look", lambda x: False)  # as on a GPU
    # torch's own, for the other parameters, captures on a GPU alone.
    monkeypatch.setattr("extensions.optim.row_adam._adam_step", lambda optimizer: None)
    ours, _, kwargs = updaters
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


@pytest.mark.slow
@pytest.mark.parametrize("double_dqn", [True, False])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_it_is_one_graph_and_the_same(make, batch, update, updaters, double_dqn, backend):
    if double_dqn and backend == "inductor":
        pytest.skip("its rounding decides between two actions of equal value, which the target tells apart")
    ours, _, kwargs = updaters
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
def test_a_compiled_policy_is_one_graph(make):
    torch._dynamo.reset()
    loss = make()
    explore = StochEGreedyModule(Categorical(10**6))

    @torch.compile(fullgraph=True)
    def act(data):
        return explore(loss.value_network(data))

    with torch.no_grad():
        out = act(TensorDict({"observation": torch.randn(4, 3)}, [4]))
    assert out["action"].shape == (4,)


@pytest.mark.slow
def test_a_whole_update_compiled_is_the_same(make, batch, update, updaters):
    """Loss, gradients, optimizer and target, as the recipe compiles them."""
    ours, _, kwargs = updaters
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


def test_a_move_of_the_target_is_one_graph(make, batch, updaters):
    """Where no gradient waits: one of rows is sparse, which torch.compile does not follow."""
    ours, _, kwargs = updaters
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
