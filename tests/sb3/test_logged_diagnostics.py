"""What the logger hears of omega, beta, memory and rows, and the warning about the bias."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from extensions.sb3 import StochDDQN, StochDQN
from extensions.stochmax import Uniform

KEYS = {"train/omega", "train/beta", "train/memory_hit_rate"}
SMALL = {"buffer_size": 200, "learning_starts": 20, "train_freq": 1, "target_update_interval": 20, "seed": 0}


class World(gym.Env):
    def __init__(self, n=3000):
        self.action_space = gym.spaces.Discrete(n)
        self.observation_space = gym.spaces.Box(-1, 1, (4,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), 1.0, False, False, {}


def recorded(model, steps):
    """{key: updates after which it was recorded}"""
    model.learn(model._total_timesteps or 30)
    out = {}
    record = model.logger.record

    def recording(key, value, *args, **kwargs):
        out.setdefault(key, []).append((model._n_updates, value))
        record(key, value, *args, **kwargs)

    model.logger.record = recording
    for _ in range(steps):
        model.train(1, 8)
    return out


@pytest.mark.parametrize("algorithm", [StochDQN, StochDDQN])
@pytest.mark.parametrize("head", ["linear", "row"])
def test_logged_at_the_interval(algorithm, head):
    log = recorded(algorithm("MlpPolicy", World(), head=head, diagnostics_interval=7, **SMALL), 40)
    assert set(log) >= KEYS
    assert ("train/rows_touched" in log) == (head == "row")
    for key in KEYS:
        assert [n % 7 for n, _ in log[key]] == [0] * len(log[key])
        assert 5 <= len(log[key]) <= 6
    assert all(beta >= 0 for _, beta in log["train/beta"])
    assert all(0 <= rate <= 1 for _, rate in log["train/memory_hit_rate"])
    if head == "row":
        assert all(0 < share < 0.1 for _, share in log["train/rows_touched"])


def test_never_with_interval_zero_or_exact_maximum():
    for kwargs in ({"diagnostics_interval": 0}, {"diagnostics_interval": 5, "candidates": "all"}):
        assert not KEYS & set(recorded(StochDQN("MlpPolicy", World(), **kwargs, **SMALL), 20))


def test_figures_of_a_table_made_by_hand():
    """One action in 3000 is worth 8, all others 2: one uniform candidate falls short by 6, at omega 1/4."""
    model = StochDQN(
        "MlpPolicy", World(), head="linear", candidates=[Uniform(1)], diagnostics_interval=1, **SMALL
    )
    model.learn(25)
    with th.no_grad():
        model.q_net_target.head.weight.zero_()
        model.q_net_target.head.bias.fill_(2.0)
        model.q_net_target.head.bias[1234] = 8.0
    model._warned_of_bias = False
    with pytest.warns(UserWarning, match=r"beta=6 on average.*up to beta\*gamma/\(1-gamma\)=594.*about 8\."):
        model.train(1, 8)
    values = model.logger.name_to_value
    assert values["train/omega"] == pytest.approx(0.25)
    assert values["train/beta"] == pytest.approx(6.0)
    assert values["train/memory_hit_rate"] == 0.0


def test_the_warning_comes_once():
    model = StochDQN(
        "MlpPolicy", World(), head="linear", candidates=[Uniform(1)], diagnostics_interval=5, **SMALL
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with th.no_grad():
            model.q_net_target.head.bias[1234] = 100.0
        model.learn(80)
    assert len([w for w in caught if "falls short" in str(w.message)]) == 1


def test_no_warning_when_the_bias_is_small():
    model = StochDQN(
        "MlpPolicy",
        World(),
        head="linear",
        candidates=[Uniform(1)],
        diagnostics_interval=5,
        gamma=0.1,
        **SMALL,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.learn(80)


def test_looking_does_not_change_the_run():
    """Diagnostics draw candidates, and give the random streams back."""
    weights = []
    for interval in (0, 1):
        model = StochDQN("MlpPolicy", World(), head="row", **{**SMALL, "diagnostics_interval": interval})
        model.learn(80)
        weights.append([p.detach().clone() for p in model.policy.parameters()])
    assert all(th.equal(a, b) for a, b in zip(*weights, strict=True))
