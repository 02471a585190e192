"""The same episodes on a GPU: state equal to numpy's to the last bit, rewards to rounding."""

import numpy as np
import pytest
import torch

from envs.dynamics.actuator_maze import ActuatorMaze
from envs.dynamics.scatter_chain import ScatterChain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize(
    "world",
    [
        ScatterChain(n=10**9, contexts=4, slip=0.1, kappa=20.0),
        ScatterChain(n=2**62),
        ActuatorMaze(k=20),
        ActuatorMaze(k=62),
    ],
    ids=str,
)
def test_episodes_are_equal(world):
    rng = np.random.default_rng(0)
    keys = rng.integers(2**62, size=4096)
    a, b = world.reset(keys), world.reset(torch.tensor(keys, device="cuda"))
    for step in range(50):
        for name in a:
            assert b[name].is_cuda
            np.testing.assert_array_equal(a[name], b[name].cpu().numpy(), err_msg=f"{name} at step {step}")
        np.testing.assert_array_equal(world.observe(a), world.observe(b).cpu().numpy())
        np.testing.assert_allclose(world.optimal_value(a), world.optimal_value(b).cpu().numpy(), rtol=1e-12)
        ids = rng.integers(world.n, size=4096)
        if step % 10 == 0 and isinstance(world, ScatterChain):
            ids = world.optimal_action(a)
            np.testing.assert_array_equal(ids, world.optimal_action(b).cpu().numpy())
        a, rewards, terminated = world.step(a, ids)
        b, gpu_rewards, gpu_terminated = world.step(b, torch.tensor(ids, device="cuda"))
        np.testing.assert_allclose(rewards, gpu_rewards.cpu().numpy(), rtol=1e-12, atol=1e-300)
        np.testing.assert_array_equal(terminated, gpu_terminated.cpu().numpy())
