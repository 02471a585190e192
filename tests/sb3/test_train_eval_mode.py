"""Dropout and batch norm: on in updates, off in acting and in the target, as SB3 has it for DQN."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from extensions.sb3 import StochDDQN, StochDQN

ALGORITHMS = [StochDQN, StochDDQN]


class Dropout(BaseFeaturesExtractor):
    def __init__(self, observation_space, features_dim=1):
        super().__init__(observation_space, get_flattened_obs_dim(observation_space))
        self.layers = th.nn.Sequential(th.nn.Flatten(), th.nn.Dropout(0.5))

    def forward(self, observations):
        return self.layers(observations)


class BatchNorm(Dropout):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.layers = th.nn.Sequential(th.nn.Flatten(), th.nn.BatchNorm1d(self.features_dim))


def model_with(extractor, algorithm, head="linear", **kwargs):
    env = gym.make("CartPole-v1")
    policy_kwargs = {"net_arch": [16, 16], "features_extractor_class": extractor}
    return algorithm(
        "MlpPolicy", env, policy_kwargs=policy_kwargs, head=head, seed=1, learning_starts=0, **kwargs
    )


def running(net):
    layer = net.features_extractor.layers[1]
    return layer.running_mean.clone(), layer.running_var.clone()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("head", ["linear", "row"])
def test_training_moves_the_statistics_of_the_online_net_alone(algorithm, head):
    model = model_with(BatchNorm, algorithm, head, tau=0.0, target_update_interval=1, train_freq=1)
    before = running(model.q_net), running(model.q_net_target)
    model.learn(200)
    after = running(model.q_net), running(model.q_net_target)
    assert not any(th.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    # _on_step copies the statistics whole whatever tau, see SB3's issue 996; between two it leaves them
    model.train(4, 32)
    assert all(th.equal(a, b) for a, b in zip(after[1], running(model.q_net_target), strict=True))
    model._on_step()
    assert all(th.equal(a, b) for a, b in zip(running(model.q_net), running(model.q_net_target), strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_collecting_and_predicting_leave_the_statistics(algorithm):
    model = model_with(BatchNorm, algorithm)
    model.learning_starts = 1000
    before = running(model.q_net)
    model.learn(100)
    model.predict(model.get_env().reset(), deterministic=True)
    model.exploration_rate = 0.0
    model.predict(model.get_env().reset(), deterministic=False)
    assert all(th.equal(a, b) for a, b in zip(before, running(model.q_net), strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dropout_is_off_when_predicting(algorithm):
    model = model_with(Dropout, algorithm).learn(100)
    obs = model.get_env().reset()
    model.exploration_rate = 0.0
    for deterministic in (True, False):
        model.candidates = "all"
        values = []
        for _ in range(5):
            model.predict(obs, deterministic=deterministic)
            assert not model.policy.training
            with th.no_grad():
                values.append(model.q_net(model.policy.obs_to_tensor(obs)[0]))
        assert all(th.equal(values[0], v) for v in values)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dropout_is_on_in_updates_and_never_in_the_target(algorithm):
    model = model_with(Dropout, algorithm).learn(60)
    modes = []
    for net in (model.q_net, model.q_net_target):
        net.features_extractor.register_forward_pre_hook(lambda m, _: modes.append((m, m.training)))
    model.train(1, 16)
    assert {training for m, training in modes if m is model.q_net.features_extractor} == {True}
    assert {training for m, training in modes if m is model.q_net_target.features_extractor} == {False}
    model.predict(np.zeros(4, np.float32), deterministic=True)
    assert modes[-1][1] is False
