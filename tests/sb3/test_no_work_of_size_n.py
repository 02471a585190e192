"""Nothing in a step, an update, a sync or a prediction does work that grows with n."""

import gymnasium as gym
import numpy as np
import pytest

from extensions.sb3 import StochDDQN, StochDQN
from extensions.stochmax import (
    AdaptiveUniform,
    CachedArgmax,
    Elite,
    LearnedProposals,
    MixedRadix,
    Neighbours,
    RecentExploited,
    ReplayActions,
    Uniform,
    diagnostics,
)

N = 10**6
#: what diagnostics and checkpoints may do besides: read the one flag that each row has
READ_FLAGS = {"nonzero", "bitwise_or"}


class World(gym.Env):
    action_space = gym.spaces.Discrete(N)
    observation_space = gym.spaces.Box(-1, 1, (4,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), float(action % 7), False, False, {}


@pytest.mark.parametrize("algorithm", [StochDQN, StochDDQN])
@pytest.mark.parametrize("head", ["row", "low_rank", "feature"])
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_no_operation_sees_more_than_a_few_rows(
    tmp_path, monkeypatch, watching_work_of, algorithm, head, tau
):
    monkeypatch.setattr(diagnostics, "LARGE_SAMPLE", 16)  # of fixed size, but large beside n / 10
    remembering = [ReplayActions(), RecentExploited(), CachedArgmax(), Elite()]
    learning = [AdaptiveUniform(4, 8, interval=5), LearnedProposals()]
    sources = [Uniform(), *remembering, *learning, Neighbours()]
    model = algorithm(
        "MlpPolicy",
        World(),
        candidates=sources,
        eval_candidates=64,
        head=head,
        action_codec=MixedRadix([10] * 6),
        policy_kwargs={"net_arch": [16]},
        buffer_size=1000,
        learning_starts=20,
        target_update_interval=10,
        tau=tau,
        seed=0,
    )
    model.learn(60)  # moments, and the clocks of soft syncs, are allocated once
    with watching_work_of(N // 10) as watching:
        model.learn(60, reset_num_timesteps=False)
        model._on_step()
        model.predict(np.zeros(4, np.float32), deterministic=True)
    assert {"embedding", "randint"} & watching.seen
    assert watching.large == set()
    with watching_work_of(N // 10) as watching:
        # the diagnostics look at a large sample, not at all
        model.diagnostics_interval = 1
        model.train(1, 8)
        model.save(tmp_path / "model")
    assert watching.large <= READ_FLAGS


def test_the_watch_sees_work_of_size_n(watching_work_of):
    model = StochDQN("MlpPolicy", World(), head="linear", policy_kwargs={"net_arch": [2]}, buffer_size=100)
    with watching_work_of(N // 10) as watching:
        model.predict(np.zeros(4, np.float32), deterministic=True)
    assert "addmm" in watching.large
