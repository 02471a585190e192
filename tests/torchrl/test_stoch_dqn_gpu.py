"""StochDQN on a GPU: the same numbers as on the CPU, and in a CUDA graph the same as out of it."""

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import CudaGraphModule, TensorDictSequential
from torchrl.data import Categorical
from torchrl.modules import MLP

from envs.torchrl import LargeActionEnv
from extensions.optim import RowAdam
from extensions.stochmax import ReplayActions, Uniform
from extensions.torchrl import (
    HardUpdate,
    SoftUpdate,
    StochDQNLoss,
    StochEGreedyModule,
    StochQNetwork,
    StochQValueActor,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
N = 10**6
UPDATERS = {
    "hard": lambda loss: HardUpdate(loss, value_network_update_interval=3),
    "soft": lambda loss: SoftUpdate(loss, tau=0.1),
}


def make(candidates="log", head="low_rank", n=N, **kwargs):
    torch.manual_seed(0)
    trunk = MLP(in_features=3, out_features=16, num_cells=[16], activate_last_layer=True)
    network = StochQNetwork(trunk, n, head=head)
    return StochDQNLoss(StochQValueActor(network, candidates=candidates), **kwargs)


def batch(size, n=N):
    data = TensorDict({}, [size])
    data["observation"], data["action"] = torch.randn(size, 3), torch.randint(n, (size,))
    data["next", "observation"], data["next", "reward"] = torch.randn(size, 3), torch.randn(size, 1)
    data["next", "done"] = data["next", "terminated"] = torch.rand(size, 1) < 0.2
    return data


def trainer(loss, updater, capturable=False):
    optimizer = RowAdam(loss.parameters(), lr=0.01, capturable=capturable)
    target = UPDATERS[updater](loss)

    def update(data):
        value = loss(data)["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        target.step()
        return value.detach()

    return update


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("double_dqn", [False, True])
def test_updates_are_those_of_the_cpu(updater, double_dqn):
    """Candidates are the minibatch's own actions, so that nothing is drawn at random."""
    cpu = make([ReplayActions(16)], double_dqn=double_dqn)
    gpu = make([ReplayActions(16)], double_dqn=double_dqn).cuda()
    updates = [trainer(loss, updater) for loss in (cpu, gpu)]
    for _ in range(10):
        data = batch(32)
        devices = zip(updates, ("cpu", "cuda"), strict=True)
        values = [update(data.to(device)).cpu() for update, device in devices]
        assert torch.allclose(*values, rtol=1e-4)


@pytest.mark.parametrize("updater", UPDATERS)
def test_in_a_cuda_graph_an_update_is_the_same(updater):
    eager = make([ReplayActions(16)]).cuda()
    captured = copy.deepcopy(eager)
    plain = trainer(eager, updater, capturable=True)
    graph = CudaGraphModule(trainer(captured, updater, capturable=True), warmup=3)
    for _ in range(15):  # captured at the fourth; then replayed over several copies of the target
        data = batch(32).cuda()
        assert torch.allclose(plain(data.clone()), graph(data.clone()), rtol=1e-4)


def test_in_a_cuda_graph_acting_draws_anew():
    loss = make([Uniform(20), ReplayActions(20)]).cuda()
    spec = Categorical(N, device="cuda")
    explore = StochEGreedyModule(spec, 0.5, 0.5, device="cuda")
    policy = TensorDictSequential(loss.value_network, explore)
    with torch.no_grad():
        act = CudaGraphModule(policy, warmup=2)
        data = TensorDict({"observation": torch.randn(64, 3, device="cuda")}, [64])
        actions = [act(data.clone())["action"].clone() for _ in range(6)]
    assert not torch.equal(actions[-1], actions[-2])
    assert all(((a >= 0) & (a < N)).all() for a in actions)


def test_a_world_and_an_agent_on_the_device():
    env = LargeActionEnv("ScatterChain-v0", 256, device="cuda", seed=0, n=N, horizon=10)
    torch.manual_seed(0)
    spec = env.action_spec_unbatched
    actor = StochQValueActor(StochQNetwork(None, N, width=5, head="row", device="cuda"), spec=spec).cuda()
    policy = TensorDictSequential(actor, StochEGreedyModule(spec, device="cuda"))
    data = env.rollout(20, policy, break_when_any_done=False)
    assert data["action"].device.type == "cuda"
    loss = StochDQNLoss(actor)
    assert trainer(loss, "hard")(data.exclude("world", ("next", "world")).reshape(-1)).isfinite()
