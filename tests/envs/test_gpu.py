"""The same episodes on a GPU: integers equal numpy's to the last bit, rewards to an ulp; and CUDA graphs."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs
from envs.dynamics.actuator_maze import ActuatorMaze
from envs.dynamics.scatter_chain import ScatterChain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
WORLD_IDS = envs.world_ids()


def worlds():
    for id in WORLD_IDS:
        yield pytest.param(gym.make(id).unwrapped.dynamics, id=id)
    yield pytest.param(ScatterChain(n=10**9, contexts=4, slip=0.1, kappa=20.0), id="contexts and slips")
    yield pytest.param(ScatterChain(n=997), id="a walk")
    yield pytest.param(ScatterChain(n=2**62), id="2^62")
    yield pytest.param(ActuatorMaze(k=62), id="2^62 subsets")


def assert_close(ours, theirs, what):
    """Integers and flags equal, the rest to rounding."""
    theirs = theirs.cpu().numpy()
    if ours.dtype.kind in "iub":
        np.testing.assert_array_equal(ours, theirs, err_msg=what)
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11, err_msg=what)


@pytest.mark.parametrize("world", list(worlds()))
def test_episodes_are_equal(world):
    rng = np.random.default_rng(0)
    keys = rng.integers(2**62, size=4096)
    a, b = world.reset(keys), world.reset(torch.tensor(keys, device="cuda"))
    for step in range(min(50, world.horizon)):
        for name in a:
            assert b[name].is_cuda
            assert_close(a[name], b[name], f"{name} at step {step}")
        np.testing.assert_allclose(world.observe(a), world.observe(b).cpu().numpy(), rtol=2e-7, atol=1e-7)
        ids = rng.integers(world.n, size=4096)
        a, rewards, terminated = world.step(a, ids)
        b, gpu_rewards, gpu_terminated = world.step(b, torch.tensor(ids, device="cuda"))
        np.testing.assert_array_max_ulp(
            rewards.astype(np.float32), gpu_rewards.to(torch.float32).cpu().numpy(), maxulp=1
        )
        np.testing.assert_array_equal(terminated, gpu_terminated.cpu().numpy())


@pytest.mark.parametrize("world", list(worlds()))
def test_a_step_in_a_cuda_graph(world):
    """Captured once and replayed: nothing in a step waits for the device or comes from the host."""
    state = world.reset(torch.arange(64, device="cuda"))
    actions = torch.randint(world.n, (64,), device="cuda")
    world.observe(world.step(state, actions)[0])  # fills the tables
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        after, rewards, terminated = world.step(state, actions)
        observation = world.observe(after)
    actions.copy_(torch.randint(world.n, (64,), device="cuda"))
    graph.replay()
    expected, expected_rewards, expected_terminated = world.step(state, actions)
    for name in expected:
        assert torch.equal(after[name], expected[name]), name
    assert torch.equal(rewards, expected_rewards)
    assert torch.equal(terminated, expected_terminated)
    assert torch.equal(observation, world.observe(expected))


@pytest.mark.parametrize("id", WORLD_IDS)
def test_the_torchrl_door(id):
    torchrl = pytest.importorskip("torchrl.envs")
    from envs.torchrl import LargeActionEnv

    torchrl.check_env_specs(
        LargeActionEnv(id, batch_size=[8], device="cuda"), seed=0, break_when_any_done="both"
    )
    host, device = (LargeActionEnv(id, batch_size=[8], device=d, seed=3) for d in ("cpu", "cuda"))
    a, b = host.reset(), device.reset()
    for name, x in a["world"].items():
        assert_close(x.numpy(), b["world", name], name)


@pytest.mark.parametrize("moved", [False, True])
def test_torchrls_step_in_a_cuda_graph(moved):
    pytest.importorskip("torchrl")
    from tensordict.nn import CudaGraphModule

    from envs.torchrl import LargeActionEnv

    env = LargeActionEnv(
        "LargeAction/ActuatorMaze-2p20-v0", batch_size=[64], device="cpu" if moved else "cuda", seed=0
    )
    env = env.to("cuda")
    step = CudaGraphModule(env._step)
    td = env.rand_action(env.reset())
    for _ in range(6):  # warm-up, capture, replay
        out = step(td.clone())
        expected = env._step(td)
        assert (out == expected).all()
        td = env.rand_action(expected.exclude("reward"))
