"""What a CUDA graph asks of a step, checked without a GPU, on tensors of the device "meta".

Those have a shape, a dtype and no values, and are not on the CPU: whatever looks at a value raises, and so
does an operation that mixes devices.
"""

import gymnasium as gym
import pytest
import torch

import envs
from envs.dynamics import arrays

WORLD_IDS = envs.world_ids()


@pytest.mark.parametrize("id", WORLD_IDS)
def test_a_step_neither_looks_nor_copies(id, monkeypatch):
    world = gym.make(id).unwrapped.dynamics
    monkeypatch.setattr(arrays, "_TABLES", {})
    keys = torch.zeros(8, dtype=torch.int64, device="meta")
    world.observe(world.step(world.reset(keys), keys)[0])  # fills the tables

    def refuse(values, like):
        raise AssertionError("moved to the device on the way of a step")

    monkeypatch.setattr(arrays, "constant", refuse)
    state, reward, terminated = world.step(world.reset(keys), keys)
    observation = world.observe(state)
    assert {x.device.type for x in (*state.values(), reward, terminated, observation)} == {"meta"}
    assert reward.dtype == torch.float64
    assert terminated.dtype == torch.bool
    assert observation.dtype == torch.float32
    assert observation.shape == (8, *world.low.shape)
    assert all(x.shape[0] == 8 for x in state.values())


def test_looking_and_mixing_are_noticed():
    with pytest.raises(RuntimeError, match="meta tensors"):
        bool(torch.zeros(3, device="meta").any())
    with pytest.raises(RuntimeError, match=r"same device|expected device"):
        torch.zeros(3, device="meta") + torch.zeros(3)
