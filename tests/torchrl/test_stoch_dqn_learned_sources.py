"""Sources that learn, in the actor and the loss: saved, moved, copied and compiled with them, and trained by
none but themselves."""

import copy
import pickle
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.collectors import MultiSyncCollector
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import MLP
from torchrl.objectives import ValueEstimators

from envs.torchrl import LargeActionEnv
from extensions.optim import RowAdam
from extensions.stochmax import AdaptiveUniform, LearnedProposals, MixedRadix, ReplayActions, Uniform
from extensions.torchrl import HardUpdate, SoftUpdate, StochDQNLoss, StochQNetwork, StochQValueActor

N = 10**6


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def sources():
    return [AdaptiveUniform(4, 32, 1e-6, interval=3), ReplayActions(), LearnedProposals(6, hidden=16)]


def make(n=N, candidates=None, head="low_rank", codec=None, **kwargs) -> StochDQNLoss:
    trunk = MLP(in_features=3, out_features=8, num_cells=[8], activate_last_layer=True)
    network = StochQNetwork(trunk, codec or n, head=head)
    return StochDQNLoss(StochQValueActor(network, candidates=candidates or sources()), **kwargs)


def agent(**kwargs):
    loss = make(**kwargs)
    return loss, RowAdam(loss.parameters(), lr=0.01), HardUpdate(loss, value_network_update_interval=3)


class OfTwo(nn.Module):
    """A trunk that reads two observations."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(4, 8)

    def forward(self, a, b):
        return self.a(a) + self.b(b)


def test_a_trunk_of_several_observations():
    network = StochQNetwork(OfTwo(), N, width=8, head="low_rank")
    data = TensorDict({"a": torch.randn(5, 3), "b": torch.randn(5, 4)}, [5])
    actor = StochQValueActor(network, in_keys=["a", "b"], candidates=[Uniform(), LearnedProposals()])
    with pytest.raises(ValueError, match=r"give LearnedProposals\(width=7\)"):
        actor(data)
    proposals = [Uniform(), LearnedProposals(width=7)]
    actor = StochQValueActor(network, in_keys=["a", "b"], candidates=proposals)
    assert actor(data)["action"].shape == (5,)


def learned(module) -> dict:
    return {k: x.clone() for k, x in module.state_dict().items() if k.startswith("learned.")}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(("double_dqn", "delay_value"), [(True, True), (False, True), (False, False)])
def test_each_update_is_one_of_the_proposals(double_dqn, delay_value, batch):
    loss = make(double_dqn=double_dqn, delay_value=delay_value)
    before = learned(loss)
    for _ in range(7):
        loss(batch(8, N))["loss"].backward()
    assert loss.learned["2"].steps == 7
    assert loss.learned["0"].maxima == 7
    assert not torch.equal(before["learned.2.weights"], learned(loss)["learned.2.weights"])
    actor, after = loss.value_network, learned(loss)
    for way in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC):
        with set_exploration_type(way):
            actor(TensorDict({"observation": torch.randn(4, 3)}, [4]))
    assert equal(learned(loss), after)


@pytest.mark.parametrize("updater", [HardUpdate, SoftUpdate])
def test_optimizer_and_target_have_no_part_in_it(updater, batch):
    loss = make()
    names = [name for name, _ in loss.named_parameters()]
    names += [k for k in loss.state_dict() if k.startswith(("target", "value_network_params"))]
    assert not any("learned" in name for name in names)
    kwargs = {"tau": 0.5} if updater is SoftUpdate else {"value_network_update_interval": 1}
    optimizer, moves = RowAdam(loss.parameters(), lr=0.1), updater(loss, **kwargs)
    loss(batch(8, N))["loss"].backward()
    before = learned(loss)
    optimizer.step()
    moves.step()
    moves.step()
    assert equal(learned(loss), before)


def test_a_loaded_loss_goes_on_as_the_saved_one(batch, update):
    saved, loaded = agent(), agent()
    for _ in range(5):
        update(*saved, batch(8, N))
    update(*loaded, batch(8, N))  # to be forgotten
    for a, b in zip(saved, loaded, strict=True):
        b.load_state_dict(copy.deepcopy(a.state_dict()))
    assert equal(learned(saved[0]), learned(loaded[0]))
    for step in range(8):
        data, values = batch(8, N), []
        for each in (saved, loaded):
            torch.manual_seed(step)
            values.append(update(*each, data.clone()))
        assert torch.equal(*values), step
    assert equal(learned(saved[0]), learned(loaded[0]))
    assert len(learned(saved[0])) == 6


def test_an_actors_state_dict_holds_it():
    actor, other = make().value_network, make().value_network
    actor.learned["2"].learn(torch.randn(8, 3), torch.randint(N, (8,)))
    actor.learned["0"].k.fill_(17)
    other.load_state_dict(actor.state_dict())
    assert equal(learned(other), learned(actor))
    assert other.maximum.sources[0].size == 17


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("of", [lambda loss: loss, lambda loss: loss.value_network], ids=["loss", "actor"])
def test_a_copy_learns_apart(how, of, batch):
    original = of(make())
    copied = how(original)
    actor = getattr(copied, "value_network", copied)
    assert actor.maximum.sources[2].module is copied.learned["2"] is actor.learned["2"]
    before = learned(original)
    assert equal(learned(copied), before)
    copied.learned["2"].learn(torch.randn(8, 3), torch.randint(N, (8,)))
    actor.bootstrap(batch(8, N).get("next"), torch.randint(N, (8,)), torch.zeros(8, dtype=torch.bool))
    assert equal(learned(original), before)
    assert copied.learned["2"].steps == 2


def test_it_moves_with_the_loss(batch):
    loss = make().to(torch.float64)
    assert loss.learned["2"].weights.dtype == torch.float64
    assert loss.value_network.maximum.sources[2].module.weights.dtype == torch.float64
    data = batch(8, N)
    loss(data.apply(lambda x: x.double() if x.is_floating_point() else x))["loss"].backward()
    assert loss.learned["2"].steps == 1


def test_several_inputs_are_read_together():
    network = StochQNetwork(MLP(in_features=5, out_features=8, num_cells=[8]), N)
    actor = StochQValueActor(network, in_keys=["position", ("goal", "place")], candidates=sources())
    out = actor(TensorDict({"position": torch.randn(4, 3), ("goal", "place"): torch.randn(4, 2)}, [4]))
    assert out["action"].shape == (4,)


@pytest.mark.parametrize(
    ("trunk", "width", "known"),
    [
        (None, 3, True),
        (nn.Linear(3, 8), 8, True),
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 8)), 8, True),
        (nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(6, 8)), 8, False),
        (MLP(out_features=8, num_cells=[8]), 8, False),
    ],
    ids=["none", "linear", "flatten", "conv", "lazy"],
)
def test_the_width_is_told_by_the_trunk_or_by_the_user(trunk, width, known):
    network = StochQNetwork(trunk, N, width=width)
    if known:
        made = StochQValueActor(network, candidates=[Uniform(), LearnedProposals()])
        assert made.learned["1"].width == 3
        return
    with pytest.raises(ValueError, match=r"give LearnedProposals\(width="):
        StochQValueActor(network, candidates=[Uniform(), LearnedProposals()])
    made = StochQValueActor(network, candidates=[Uniform(), LearnedProposals(width=3)])
    shape = (2, 1, 3) if isinstance(trunk[0], nn.Conv1d) else (2, 3)
    assert made(TensorDict({"observation": torch.randn(shape)}, [2]))["action"].shape == (2,)


def test_it_learns_where_the_best_actions_are():
    """A reward that counts the sevens among six digits: of 10^6 actions, chance rarely meets many."""
    codec = MixedRadix([10] * 6)
    chosen = {}
    for name, extra in (("without", []), ("with", [LearnedProposals(20, lr=3e-3)])):
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(1, 16), nn.ReLU())
        network = StochQNetwork(trunk, MixedRadix([10] * 6, one_hot=True), width=16)
        actor = StochQValueActor(network, candidates=[Uniform(20), *extra])
        loss = StochDQNLoss(actor)
        loss.make_value_estimator(ValueEstimators.TD0, gamma=0.0)
        optimizer, updater = RowAdam(loss.parameters(), lr=3e-3), SoftUpdate(loss, tau=0.05)
        for _ in range(200):
            data = TensorDict({"observation": torch.zeros(64, 1)}, [64])
            data["action"] = torch.randint(N, (64,))
            sevens = (codec.digits(data["action"]) == 7).sum(1, keepdim=True)
            data["next"] = TensorDict({"observation": torch.zeros(64, 1), "reward": sevens.float()}, [64])
            data["next", "done"] = data["next", "terminated"] = torch.zeros(64, 1, dtype=torch.bool)
            loss(data)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            updater.step()
        action = actor(TensorDict({"observation": torch.zeros(64, 1)}, [64]))["action"]
        chosen[name] = (codec.digits(action) == 7).sum(1).double().mean().item()
    assert chosen["without"] < 3.0
    assert chosen["with"] > 5.0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_it_is_one_graph_and_learns_the_same(backend, batch, update):
    torch._dynamo.reset()
    eager = make(n=2000, candidates=[Uniform(2000), LearnedProposals(1)])  # no draws that compiling changes
    compiled = copy.deepcopy(eager)
    agents = [(loss, RowAdam(loss.parameters(), lr=0.01), HardUpdate(loss)) for loss in (eager, compiled)]
    agents[1] = (torch.compile(compiled, fullgraph=True, backend=backend), *agents[1][1:])
    for _ in range(4):
        data = batch(8, 2000)
        a, b = (update(*each, data.clone()) for each in agents)
        assert torch.allclose(a, b, rtol=1e-5)
    assert compiled.learned["1"].steps == 4
    assert torch.allclose(compiled.learned["1"].weights, eager.learned["1"].weights, atol=1e-5)


@pytest.mark.slow
def test_compiled_an_adaptive_draw_is_refused(batch):
    torch._dynamo.reset()
    loss = torch.compile(make(), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"use Uniform\(k\) there"):
        loss(batch(8, N))


@pytest.mark.slow
def test_collectors_in_other_processes_are_sent_what_was_learned():
    world = partial(LargeActionEnv, "ScatterChain-v0", 2, seed=0, n=N, horizon=10)
    width = world().observation_spec["observation"].shape[-1]
    network = StochQNetwork(MLP(in_features=width, out_features=16, num_cells=[16]), N)
    with torch.no_grad():
        network.head.rows.weight.fill_(0.0)
    proposals = LearnedProposals(1, lr=0.05)
    # Proposals come first: with all values equal, the likeliest id is what is taken.
    actor = StochQValueActor(network, spec=world().action_spec_unbatched, candidates=[proposals, Uniform()])
    collector = MultiSyncCollector([world, world], actor, frames_per_batch=40, total_frames=80)
    taken = []
    try:
        for data in collector:
            taken.append(data["action"])
            for _ in range(100):
                actor.learned["0"].learn(torch.randn(64, width), torch.full((64,), 123_456))
            collector.update_policy_weights_()
    finally:
        collector.shutdown()
    assert not (taken[0] == 123_456).any()
    assert (taken[1] == 123_456).all()
