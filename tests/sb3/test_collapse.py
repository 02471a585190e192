"""StochDQN over all actions is SB3's DQN: exactly with a linear head, to rounding with rows."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch.nn import functional as F

from extensions.optim import RowAdam
from extensions.sb3 import StochDDQN, StochDQN

EVERYTHING = {"candidates": "all", "head": "linear", "epsilon_per_env": False}
ADAM = {"optimizer_class": th.optim.Adam}


def trained(algorithm, n_envs=1, steps=1000, policy_kwargs=ADAM, **kwargs):
    """A model after ``steps`` steps of CartPole, and the loss of every call of ``train``."""
    env = make_vec_env("CartPole-v1", n_envs=n_envs, seed=7)
    model = algorithm(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        buffer_size=2000,
        learning_starts=100,
        train_freq=1,
        target_update_interval=50,
        exploration_fraction=0.5,
        max_grad_norm=1.0,  # so that clipping happens
        policy_kwargs={"net_arch": [32, 32], **policy_kwargs},
        seed=3,
        **kwargs,
    )
    losses, train = [], model.train

    def recording_train(*args, **kwargs):
        train(*args, **kwargs)
        losses.append(model.logger.name_to_value["train/loss"])

    model.train = recording_train
    model.learn(steps)
    return model, losses


def parameters(model):
    return [p.detach() for net in (model.q_net, model.q_net_target) for p in net.parameters()]


@pytest.mark.parametrize(
    ("n_envs", "kwargs"),
    [(1, {}), (4, {}), (1, {"n_steps": 3}), (4, {"n_steps": 3, "tau": 0.3, "gradient_steps": 2})],
    ids=["1_env", "4_envs", "3_steps", "4_envs_3_steps_polyak"],
)
def test_equals_dqn_for_a_thousand_steps(n_envs, kwargs):
    theirs, their_losses = trained(DQN, n_envs, **kwargs)
    ours, our_losses = trained(StochDQN, n_envs, **EVERYTHING, **kwargs)
    assert np.array_equal(ours.replay_buffer.actions, theirs.replay_buffer.actions)
    assert np.array_equal(ours.replay_buffer.observations, theirs.replay_buffer.observations)
    assert len(our_losses) > 200
    assert our_losses == their_losses
    for a, b in zip(parameters(ours), parameters(theirs), strict=True):
        assert th.equal(a, b)
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    actions = [m.predict(obs, deterministic=True)[0] for m in (ours, theirs)]
    assert np.array_equal(*actions)


def test_row_adam_on_dense_layers_changes_nothing():
    theirs, their_losses = trained(DQN, steps=400)
    row_adam = {"optimizer_kwargs": {"row_lr_scale": 1.0}}  # otherwise it is Adam where there are no rows
    ours, our_losses = trained(StochDQN, steps=400, **EVERYTHING, policy_kwargs=row_adam)
    assert isinstance(ours.policy.optimizer, RowAdam)
    assert our_losses == their_losses
    assert all(th.equal(a, b) for a, b in zip(parameters(ours), parameters(theirs), strict=True))


def test_two_candidates_of_two_actions_are_all_of_them():
    """The default, R and M of log n, covers n = 2: it differs from the exact maximum by its draws alone."""
    model, _ = trained(StochDQN, steps=300)
    data = model.replay_buffer.sample(64)
    with th.no_grad():
        expected = model.q_net_target(data.next_observations).max(1, keepdim=True).values
        candidates = model._next_q_values(data)
    # R is one of two actions and M one of the minibatch: at most the maximum, and often it
    assert bool((candidates <= expected + 1e-6).all())
    assert 0.4 < (candidates >= expected - 1e-6).float().mean() <= 1.0


def test_the_double_target_by_hand():
    model, _ = trained(StochDDQN, steps=300, **EVERYTHING)
    data = model.replay_buffer.sample(64)
    with th.no_grad():
        chosen = model.q_net(data.next_observations).argmax(1, keepdim=True)
        expected = model.q_net_target(data.next_observations).gather(1, chosen)
        assert th.equal(model._next_q_values(data), expected)
        greedy = model.q_net_target(data.next_observations).max(1, keepdim=True).values
    assert bool((expected <= greedy).all())
    assert not th.equal(expected, greedy)


def test_the_double_loss_by_hand(monkeypatch):
    model, _ = trained(StochDDQN, steps=300, **EVERYTHING, n_steps=3)
    seen = []
    smooth_l1_loss = F.smooth_l1_loss

    def spy(current, target):
        seen.append((current.detach().clone(), target.clone()))
        return smooth_l1_loss(current, target)

    monkeypatch.setattr(F, "smooth_l1_loss", spy)
    data = model.replay_buffer.sample(32)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *args, **kwargs: data)
    with th.no_grad():
        chosen = model.q_net(data.next_observations).argmax(1, keepdim=True)
        bootstrap = model.q_net_target(data.next_observations).gather(1, chosen)
        target = data.rewards + (1 - data.dones) * data.discounts * bootstrap
        current = model.q_net(data.observations).gather(1, data.actions)
    model.train(gradient_steps=1, batch_size=32)
    assert len(data.discounts.unique()) > 1  # n-step: shorter where an episode ended
    assert th.equal(seen[0][0], current)
    assert th.equal(seen[0][1], target)


# -- online and target disagree --


@pytest.mark.parametrize("head", ["linear", "row", "low_rank"])
@pytest.mark.parametrize("candidates", ["all", "log"])
def test_who_selects_and_who_evaluates(head, candidates):
    """Online prefers action 5, the target action 2: DQN takes 30, Double DQN what the target says of 5."""
    online, target = th.zeros(8), th.zeros(8)
    online[2], online[5] = 1.0, 2.0
    target[2], target[5] = 30.0, 10.0
    for algorithm, expected in ((StochDQN, 30.0), (StochDDQN, 10.0)):
        model = algorithm("MlpPolicy", EightArms(), head=head, candidates=candidates, seed=0)
        for net, values in ((model.q_net, online), (model.q_net_target, target)):
            set_values(net.head, values)
        data = batch_of(actions=th.tensor([[2], [5]] * 8))
        if candidates == "log":  # M, the minibatch's actions, has both
            assert model.policy.maximum.proposers[1].k == 3
        assert th.equal(model._next_q_values(data), th.full((16, 1), expected))


class EightArms(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (3,))
    action_space = gym.spaces.Discrete(8)

    def reset(self, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, True, False, {}


def set_values(head, values):
    """Make Q(s, a) = values[a] in every state."""
    with th.no_grad():
        for p in head.parameters():
            p.zero_()
        if head.tables:
            table = head.tables[0]
            table.assign(th.arange(8), th.zeros(8, table.weight.shape[1]))
            table.weight[:, -1] = values
            if hasattr(head, "project"):
                head.project.bias[-1] = 1.0
        else:
            head.bias.copy_(values)


def batch_of(actions):
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    b = len(actions)
    zeros = th.zeros(b, 1)
    return ReplayBufferSamples(th.zeros(b, 3), actions, th.zeros(b, 3), zeros, zeros)


# -- rows --


class DoubleFlatten(FlattenExtractor):
    def forward(self, observations):
        return super().forward(observations).double()


@pytest.mark.parametrize("clip", [1e-3, 10.0])
def test_one_update_of_rows_is_dqns_in_float64(clip):
    def make(algorithm, **kwargs):
        policy_kwargs = {"net_arch": [32], "features_extractor_class": DoubleFlatten}
        policy_kwargs["optimizer_class"] = RowAdam if algorithm is StochDQN else th.optim.Adam
        if algorithm is StochDQN:
            policy_kwargs["optimizer_kwargs"] = {"row_lr_scale": 1.0}
        model = algorithm(
            "MlpPolicy", Corridor(), seed=0, policy_kwargs=policy_kwargs, max_grad_norm=clip, **kwargs
        )
        model.policy.double()
        return model

    theirs = make(DQN)
    ours = make(StochDQN, candidates="all", head="row", head_kwargs={"dueling": False})
    theirs.learn(50)  # fills the replay; no update before learning_starts
    ours.learn(50)
    ours.replay_buffer = theirs.replay_buffer
    with th.no_grad():
        for mine, its in ((ours.q_net, theirs.q_net), (ours.q_net_target, theirs.q_net_target)):
            *trunk, last = [m for m in its.q_net if isinstance(m, th.nn.Linear)]
            for a, b in zip([m for m in mine.q_net if isinstance(m, th.nn.Linear)], trunk, strict=True):
                a.load_state_dict(b.state_dict())
            rows = th.cat([last.weight, last.bias.unsqueeze(1)], 1)
            mine.head.rows.assign(th.arange(len(rows)), rows)
        # so that online and target differ
        for model in (ours, theirs):
            for p in model.q_net_target.parameters():
                p.mul_(1.5)
    before = [p.detach().clone() for p in ours.q_net.parameters()]
    for model in (ours, theirs):
        np.random.seed(5)
        model.train(gradient_steps=1, batch_size=32)
    assert all(p.dtype == th.float64 for p in ours.q_net.parameters())

    a = [m for m in ours.q_net.q_net if isinstance(m, th.nn.Linear)]
    *b, last = [m for m in theirs.q_net.q_net if isinstance(m, th.nn.Linear)]
    pairs = [(x, y) for m, k in zip(a, b, strict=True) for x, y in ((m.weight, k.weight), (m.bias, k.bias))]
    rows = th.cat([last.weight, last.bias.unsqueeze(1)], 1)
    pairs.append((ours.q_net.head.rows.weight, rows))
    for x, y in pairs:
        assert th.allclose(x, y, rtol=0, atol=1e-12)
    assert all(bool((p != q).any()) for p, q in zip(ours.q_net.parameters(), before, strict=True))
    losses = [m.logger.name_to_value["train/loss"] for m in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)


class Corridor(gym.Env):
    """Fifty actions, five numbers, rewards of all sizes."""

    observation_space = gym.spaces.Box(-5, 5, (5,))
    action_space = gym.spaces.Discrete(50)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.normal(size=5).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        obs = self.np_random.normal(size=5).astype(np.float32)
        return obs, float(self.np_random.normal()), self.t == 10, False, {}
