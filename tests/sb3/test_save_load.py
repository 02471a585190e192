"""A model, its replay and its policy come back as they were saved, in files that do not grow with n."""

import copy
import os
import time

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv

from extensions.optim import RowAdam
from extensions.sb3 import StochDDQN, StochDQN
from extensions.sb3.stoch_dqn import MlpPolicy
from extensions.stochmax import (
    ActionFeatures,
    BoxBins,
    CachedArgmax,
    Elite,
    MixedRadix,
    Neighbours,
    RecentExploited,
    ReplayActions,
    Uniform,
)

SMALL = {"buffer_size": 500, "learning_starts": 20, "train_freq": 4, "target_update_interval": 20, "seed": 0}
OBS = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)


class Lottery(gym.Env):
    """n actions; the reward of a is (a mod 7) / 7. Observations are random."""

    def __init__(self, n=5000):
        self.action_space = gym.spaces.Discrete(n)
        self.observation_space = gym.spaces.Box(-1, 1, (4,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), float(action % 7) / 7, self.t == 10, False, {}

    def _obs(self):
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)


CODECS = {
    5000: MixedRadix([50, 100]),
    10**6: MixedRadix([10] * 6),
    10**9: MixedRadix([10] * 9),
}
HEADS = [(5000, "linear"), (5000, "row"), (10**6, "low_rank"), (10**6, "feature"), (10**9, "feature")]


def trained(n=5000, head="row", algorithm=StochDQN, steps=200, **kwargs):
    kwargs.setdefault("action_codec", CODECS.get(n))
    kwargs.setdefault("tau", 0.5)  # so that the target's rows are behind when they are saved
    return algorithm("MlpPolicy", Lottery(n), head=head, **SMALL, **kwargs).learn(steps)


def states_equal(a, b):
    """Whether two state dicts, of tensors at any depth, are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(states_equal(x, y) for x, y in zip(a, b, strict=True))
    return th.equal(a, b) if isinstance(a, th.Tensor) else a == b


def same_model(a, b):
    return all(
        states_equal(a.get_parameters()[name], b.get_parameters()[name]) for name in a.get_parameters()
    )


@pytest.mark.parametrize("algorithm", [StochDQN, StochDDQN])
@pytest.mark.parametrize(("n", "head"), HEADS)
def test_a_model_predicts_as_before(tmp_path, algorithm, n, head):
    model = trained(n, head, algorithm)
    before = model.predict(OBS, deterministic=True)[0]
    path = tmp_path / "model.zip"
    model.save(path)
    loaded = algorithm.load(path)  # without environment and replay
    assert isinstance(loaded, algorithm)
    assert np.array_equal(loaded.predict(OBS, deterministic=True)[0], before)
    assert same_model(model, loaded)
    assert model.predict(OBS, deterministic=True)[0].tolist() == before.tolist()
    assert path.stat().st_size < (3e6 if n > 5000 else 6e6)  # linear: four tables of 5000 x 65


@pytest.mark.parametrize(("n", "head"), HEADS)
def test_training_goes_on_as_without_the_file(tmp_path, n, head):
    """Loaded with its replay and random state, a model makes the same updates as the one that was saved."""
    model = trained(n, head)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = StochDQN.load(tmp_path / "model", env=Lottery(n))
    loaded.load_replay_buffer(tmp_path / "replay")
    assert same_model(model, loaded)  # the optimizer's moments and counts too
    assert type(loaded.policy.optimizer) is (RowAdam if head in ("row", "low_rank") else th.optim.Adam)
    for m in (model, loaded):
        m.set_random_seed(5)
        m.set_logger(model.logger)
        for _ in range(3):
            m.train(4, 16)
            m._on_step()
    assert same_model(model, loaded)


def test_the_replay_of_cached_maxima_goes_on(tmp_path):
    sources = [Uniform(), ReplayActions(), CachedArgmax(), RecentExploited(), Elite(), Neighbours()]
    model = trained(candidates=sources)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = StochDQN.load(tmp_path / "model", env=Lottery())
    loaded.load_replay_buffer(tmp_path / "replay")
    assert np.array_equal(loaded.replay_buffer.actions, model.replay_buffer.actions)
    recent, elite = loaded.policy.maximum.sources[3:5]
    assert recent._states == model.policy.maximum.sources[3]._states  # what was remembered
    assert len(recent._states) > 5
    assert th.equal(elite._actions, model.policy.maximum.sources[4]._actions)
    loaded.learn(40, reset_num_timesteps=False)


def test_a_replay_of_the_other_kind_is_refused(tmp_path):
    plain, caching = trained(), trained(candidates=[Uniform(), CachedArgmax()])
    for model, other, says in ((plain, caching, "leave it out|made with a"), (caching, plain, "without")):
        other.save_replay_buffer(tmp_path / "replay")
        buffer = model.replay_buffer
        with pytest.raises(ValueError, match=says):
            model.load_replay_buffer(tmp_path / "replay")
        assert model.replay_buffer is buffer
        model.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize(("n", "head"), HEADS)
def test_a_policy_by_itself_predicts_as_before(tmp_path, n, head):
    model = trained(n, head)
    before = model.predict(OBS, deterministic=True)[0]
    model.policy.save(tmp_path / "policy")
    policy = MlpPolicy.load(tmp_path / "policy")
    assert np.array_equal(policy.predict(OBS, deterministic=True)[0], before)
    sampled = policy.predict(OBS, deterministic=False)[0]  # there is no replay to draw from
    assert sampled.shape == (40,)
    assert states_equal(policy.state_dict(), model.policy.state_dict())


def test_set_env_and_go_on(tmp_path):
    model = trained()
    model.save(tmp_path / "model")
    model.set_env(make_vec_env(Lottery, n_envs=1))
    model.learn(40)
    more = make_vec_env(Lottery, n_envs=3)
    loaded = StochDQN.load(tmp_path / "model", env=more)
    loaded.learn(60)
    assert loaded.n_envs == 3


def test_parameters_out_and_in_again():
    model, other = trained(), trained(steps=40)
    assert not same_model(model, other)
    other.set_parameters(model.get_parameters())
    assert same_model(model, other)
    assert np.array_equal(*(m.predict(OBS, deterministic=True)[0] for m in (model, other)))


def test_arguments_come_back(tmp_path):
    model = trained(
        head="low_rank",
        head_kwargs={"rank": 8},
        candidates=[Uniform(3), ReplayActions(2, fresh=True)],
        eval_candidates=77,
        epsilon_per_env=False,
        diagnostics_interval=7,
        legal_actions=list(range(100)),
        policy_kwargs={"net_arch": [8], "optimizer_kwargs": {"row_lr_scale": 3.0}},
    )
    model.save(tmp_path / "model")
    loaded = StochDQN.load(tmp_path / "model")
    assert [type(s) for s in loaded.candidates] == [Uniform, ReplayActions]
    assert [s.k for s in loaded.candidates] == [3, 2]
    for name in ("head", "head_kwargs", "eval_candidates", "epsilon_per_env", "diagnostics_interval"):
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.policy_kwargs == {"net_arch": [8], "optimizer_kwargs": {"row_lr_scale": 3.0}}
    assert loaded.policy.optimizer.param_groups[0]["row_lr_scale"] == 3.0
    assert loaded.q_net.head.rows.weight.shape == (5000, 8)
    assert loaded.predict(OBS, deterministic=True)[0].max() < 100


def test_features_and_legal_functions_of_the_user_come_back(tmp_path):
    codec = ActionFeatures(5000, lambda ids: th.stack([ids / 5000, ids % 7 / 7], -1))
    model = trained(
        head="feature", action_codec=codec, legal_actions=lambda obs: th.arange(9).expand(len(obs), 9)
    )
    model.save(tmp_path / "model")
    loaded = StochDQN.load(tmp_path / "model", env=Lottery())
    assert np.array_equal(*(m.predict(OBS, deterministic=True)[0] for m in (model, loaded)))
    loaded.learn(40)


def test_the_zip_holds_nothing_of_the_policys_device():
    model = trained(candidates=[Uniform(), Neighbours()], action_codec=BoxBins([-1], [1], 5000))
    assert model.policy.head_args["action_codec"] is not model.action_codec
    assert all("codec" not in s.__getstate__() for s in model.candidates)


def test_two_models_may_be_given_the_same_sources():
    sources = [Uniform(), RecentExploited(), ReplayActions()]
    small = StochDQN("MlpPolicy", Lottery(100), candidates=sources, **SMALL)
    large = StochDQN("MlpPolicy", Lottery(10**6), candidates=sources, head="row", head_kwargs={}, **SMALL)
    sizes = [[s.k for s in m.policy.maximum.sources] for m in (small, large)]
    assert sizes == [[7, 7, 7], [20, 20, 20]]
    assert [s.k for s in sources] == [None, None, None]
    small.learn(60)
    assert not large.policy.maximum.sources[1]._states


def test_a_million_rows_save_fast_and_small(tmp_path):
    model = StochDQN("MlpPolicy", Lottery(10**6), head="low_rank", **SMALL).learn(100)
    start = time.process_time()
    model.save(tmp_path / "model")
    # a table written whole would be 128 MB, and there are four
    assert os.path.getsize(tmp_path / "model.zip") < 1e6
    assert time.process_time() - start < 1.0


def test_what_a_large_model_exploited_is_bounded(tmp_path):
    model = StochDQN("MlpPolicy", IdentityEnv(3000), head="row", eval_candidates=16, **SMALL)
    model.learn(300)
    assert len(model.policy.exploited.ids()) <= 16


@pytest.mark.parametrize("ours", [{"eval_candidates": "all"}, {"candidates": "all"}, {"eval_candidates": 64}])
def test_a_model_loads_with_other_candidates(tmp_path, ours):
    model = trained(5000, "row")
    model.save(tmp_path / "model")
    loaded = StochDQN.load(tmp_path / "model", env=Lottery(), **ours)
    assert same_model(model, loaded)
    if "all" in ours.values():
        q = loaded.q_net(th.as_tensor(OBS))
        assert np.array_equal(loaded.predict(OBS, deterministic=True)[0], q.argmax(1).numpy())
    loaded.learn(20, reset_num_timesteps=False)


def test_a_copy_of_a_model_has_a_replay_to_draw_from():
    model = trained(candidates=[ReplayActions()])
    copied = copy.deepcopy(model)
    copied.policy.exploited._recent.clear()
    copied.policy.exploited._count.clear()
    copied.policy.exploited._most = None
    copied.learn(20, reset_num_timesteps=False)
    assert copied.policy.sample_replay.__self__ is copied


def test_the_target_follows_weights_put_into_the_online_network():
    theirs, ours = trained(100_000, "row", tau=1.0), trained(100_000, "row", tau=1.0, steps=10)
    ours.q_net.load_state_dict(theirs.q_net.state_dict())
    ours.policy.sync_rows(1.0)
    everything = th.arange(100_000)
    assert theirs.q_net.head.rows.weight.any()
    assert th.equal(ours.q_net_target.head.rows(everything), theirs.q_net.head.rows(everything))


def test_rows_that_were_never_touched_are_not_after_loading(tmp_path):
    model = trained(5000, "row")
    before = model.policy.rows_touched()
    model.save(tmp_path / "model")
    assert StochDQN.load(tmp_path / "model").policy.rows_touched() == pytest.approx(before, abs=0.002)
    assert before < 0.1
