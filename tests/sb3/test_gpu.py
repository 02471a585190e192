"""StochDQN with device="cuda": learns, saves, and loads where there is no GPU."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import IdentityEnv

from extensions.sb3 import StochDDQN, StochDQN
from extensions.stochmax import CachedArgmax, MixedRadix, Neighbours, ReplayActions, Uniform

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU"),
]
SMALL = {"buffer_size": 500, "learning_starts": 20, "train_freq": 4, "target_update_interval": 20, "seed": 0}
WAYS = {
    "rows": {"head": "row", "candidates": [Uniform(), ReplayActions(), CachedArgmax()]},
    "low rank, polyak": {"head": "low_rank", "tau": 0.1},
    "features": {
        "head": "feature",
        "action_codec": MixedRadix([10, 10, 10]),
        "candidates": [Uniform(), ReplayActions(), Neighbours()],
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("algorithm", [StochDQN, StochDDQN])
def test_learns_and_moves_to_the_cpu(algorithm, way, tmp_path):
    model = algorithm("MlpPolicy", IdentityEnv(1000), device="cuda", **SMALL, **WAYS[way]).learn(200)
    assert all(p.is_cuda and bool(p.isfinite().all()) for p in model.policy.parameters())
    obs = np.arange(5)
    actions, _ = model.predict(obs, deterministic=True)
    model.save(tmp_path / "model")
    on_gpu = algorithm.load(tmp_path / "model", env=IdentityEnv(1000), device="cuda")
    assert on_gpu.predict(obs, deterministic=True)[0].tolist() == actions.tolist()
    on_gpu.learn(50, reset_num_timesteps=False)
    on_cpu = algorithm.load(tmp_path / "model", env=IdentityEnv(1000), device="cpu")
    for a, b in zip(on_cpu.policy.parameters(), model.policy.parameters(), strict=True):
        assert th.equal(a, b.cpu())
    on_cpu.learn(50, reset_num_timesteps=False)
