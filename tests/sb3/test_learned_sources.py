"""Sources that learn: saved and copied with the policy, and trained by nothing of the policy's own."""

import contextlib
import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from extensions.sb3 import StochDDQN, StochDQN
from extensions.sb3.stoch_dqn import MlpPolicy
from extensions.stochmax import AdaptiveUniform, IdCodec, LearnedProposals, MixedRadix, ReplayActions, Uniform
from extensions.stochmax.adaptive import AdaptiveSize
from extensions.stochmax.digit_policy import DigitPolicy

SMALL = {"buffer_size": 500, "learning_starts": 20, "train_freq": 4, "target_update_interval": 20, "seed": 0}
OBS = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)


class Lottery(gym.Env):
    """n actions; the reward of a is (a mod 7) / 7. Observations are random."""

    observation_space = gym.spaces.Box(-1, 1, (4,))

    def __init__(self, n=5000, observation_space=None):
        self.action_space = gym.spaces.Discrete(n)
        self.observation_space = copy.deepcopy(observation_space or self.observation_space)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(action % 7) / 7, self.t == 10, False, {}


def sources():
    return [AdaptiveUniform(4, 64, 1e-6, interval=10), ReplayActions(), LearnedProposals(hidden=16)]


def trained(steps=200, algorithm=StochDQN, **kwargs):
    options = {"candidates": sources(), "head": "row", "tau": 0.5, **SMALL, **kwargs}
    return algorithm("MlpPolicy", Lottery(), **options).learn(steps)


def learned(model) -> dict:
    """A copy of what the sources of a model have learned."""
    return {k: x.clone() for k, x in model.policy.state_dict().items() if k.startswith("learned.")}


def equal(a, b):
    """Whether two state dicts, of tensors at any depth, are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return th.equal(a, b) if isinstance(a, th.Tensor) else a == b


@pytest.mark.parametrize("algorithm", [StochDQN, StochDDQN])
def test_each_update_is_one_of_the_proposals(algorithm):
    model = trained(algorithm=algorithm, head="linear")
    adaptive, _, proposals = model.policy.maximum.sources
    assert isinstance(adaptive.module, AdaptiveSize)
    assert isinstance(proposals.module, DigitPolicy)
    assert int(proposals.module.steps) == int(adaptive.module.maxima) == model._n_updates == 45
    assert adaptive.size == 64  # no beta is as small as the tolerance
    before = learned(model)
    model.predict(OBS, deterministic=True)
    model.predict(OBS, deterministic=False)
    assert equal(learned(model), before)
    model.train(1, 8)
    assert not th.equal(learned(model)["learned.2.weights"], before["learned.2.weights"])


def test_the_policys_own_optimizer_and_target_have_no_part_in_it():
    model = trained()
    assert not any(name.startswith("learned") for name, _ in model.policy.named_parameters())
    assert not any("learned" in name for name in model.q_net_target.state_dict())
    before = learned(model)
    model.policy.optimizer.step()
    model._on_step()
    assert equal(learned(model), before)


@pytest.mark.parametrize(
    ("space", "width"),
    [
        (gym.spaces.Box(-1, 1, (2, 3)), 6),
        (gym.spaces.Discrete(5), 5),
        (gym.spaces.MultiDiscrete([3, 4]), 7),
        (gym.spaces.MultiBinary(4), 4),
        (gym.spaces.Dict({"b": gym.spaces.Discrete(3), "a": gym.spaces.Box(0, 1, (2,))}), 5),
    ],
    ids=lambda x: type(x).__name__,
)
def test_observations_are_read_as_the_network_reads_them(space, width):
    policy = "MultiInputPolicy" if isinstance(space, gym.spaces.Dict) else "MlpPolicy"
    env = DummyVecEnv([lambda: Lottery(observation_space=space)])
    model = StochDQN(policy, env, candidates=sources(), **SMALL).learn(40)
    obs, _ = model.policy.obs_to_tensor(env.reset())
    flat = model.policy.flatten(obs)
    assert flat.shape == (1, width)
    assert model.policy.learned["2"].width == width
    if isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
        assert set(flat.flatten().tolist()) == {0.0, 1.0}


def test_images_are_read_in_zero_to_one():
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True)
    model = StochDQN("CnnPolicy", env, candidates=sources(), **SMALL).learn(40)
    obs, _ = model.policy.obs_to_tensor(np.full((2, 1, 40, 40), 255, np.uint8))
    assert th.equal(model.policy.flatten(obs), th.ones(2, 1600))


def test_several_inputs():
    model = StochDQN("MultiInputPolicy", SimpleMultiObsEnv(random_start=False), candidates=sources(), **SMALL)
    model.learn(60)
    assert int(model.policy.learned["2"].steps) == model._n_updates > 5


def test_training_goes_on_as_without_the_file(tmp_path):
    model = trained()
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = StochDQN.load(tmp_path / "model", env=Lottery())
    loaded.load_replay_buffer(tmp_path / "replay")
    assert equal(model.get_parameters(), loaded.get_parameters())
    assert len(learned(model)) == 6
    for m in (model, loaded):
        m.set_random_seed(5)
        m.set_logger(model.logger)
        for _ in range(5):
            m.train(4, 16)
            m._on_step()
    assert equal(model.get_parameters(), loaded.get_parameters())
    assert np.array_equal(*(m.predict(OBS, deterministic=True)[0] for m in (model, loaded)))


def test_a_policy_by_itself_predicts_as_before(tmp_path):
    model = trained()
    model.policy.save(tmp_path / "policy")
    policy = MlpPolicy.load(tmp_path / "policy")
    assert equal(policy.state_dict(), model.policy.state_dict())
    assert policy.maximum.sources[2].module is policy.learned["2"]
    assert np.array_equal(*(p.predict(OBS, deterministic=True)[0] for p in (policy, model.policy)))


def test_parameters_out_and_in_again():
    model, other = trained(), trained(steps=40)
    other.set_parameters(model.get_parameters())
    assert equal(learned(other), learned(model))
    assert other.policy.maximum.sources[0].size == model.policy.maximum.sources[0].size


@pytest.mark.parametrize("theirs", [sources(), [Uniform()], "all"], ids=["learn", "uniform", "all"])
@pytest.mark.parametrize("ours", ["all", [Uniform()], [Uniform(), LearnedProposals(hidden=8)], sources()])
def test_a_model_loads_with_other_candidates(tmp_path, theirs, ours):
    """What sources have learned comes along where they are the same; others begin anew."""
    model = trained(candidates=theirs)
    model.save(tmp_path / "model")
    lost = len(learned(model)) > 0 and len(ours) == 2  # others learn
    told = pytest.warns(UserWarning, match="is left out") if lost else contextlib.nullcontext()
    with told:
        loaded = StochDQN.load(tmp_path / "model", env=Lottery(), candidates=ours)
    assert equal(dict(loaded.q_net.state_dict()), dict(model.q_net.state_dict()))
    same = len(ours) == 3 and len(theirs) == 3 and "all" not in (ours, theirs)
    if "learned.2.steps" in learned(loaded):
        assert int(learned(loaded)["learned.2.steps"]) == (45 if same else 0)
    loaded.learn(20, reset_num_timesteps=False)


def test_a_copy_learns_apart():
    model = trained()
    copied = copy.deepcopy(model)
    assert copied.policy.maximum.sources[2].module is copied.policy.learned["2"]
    assert copied.policy.eval_maximum.sources[2] is copied.policy.maximum.sources[2]
    assert equal(learned(copied), learned(model))
    before = learned(model)
    copied.learn(40, reset_num_timesteps=False)
    assert equal(learned(model), before)
    assert not equal(learned(copied), before)


def test_two_models_may_be_given_the_same_sources():
    shared = sources()
    a, b = (trained(candidates=shared, seed=seed) for seed in (0, 1))
    assert not equal(learned(a), learned(b))
    assert shared[2].module is None


def test_without_them_a_policy_is_as_it_was():
    model = trained(candidates="log")
    assert not learned(model)
    assert len(model.policy.learned) == 0


def test_seeded_twice_it_is_the_same():
    assert equal(*(trained().get_parameters() for _ in range(2)))


def test_they_propose_what_is_worth_most():
    """After some training on one state, the likeliest of a million actions is one of the best: its first
    digit is 9, its last 0."""

    class Best(Lottery):
        observation_space = gym.spaces.Box(0, 0, (1,))

        def step(self, action):
            reward = (action % 10) / 10 - (action // 100_000) / 10
            return np.zeros(1, np.float32), reward, True, False, {}

    codec = MixedRadix([10] * 6)
    model = StochDQN(
        "MlpPolicy",
        Best(10**6),
        learning_rate=1e-2,
        action_codec=codec,
        candidates=[Uniform(10), LearnedProposals(10, lr=1e-2)],
        **{**SMALL, "train_freq": 1},
    ).learn(500)
    query_of = model.policy.maximum.sources[1]._policy.propose
    likeliest = codec.digits(query_of(th.zeros(1, 1), 1)[0, 0])
    assert (likeliest[0] >= 8, likeliest[5] <= 1) == (True, True)


def test_legal_actions_bind_them():
    model = trained(legal_actions=[3, 50, 700])
    assert set(model.predict(OBS, deterministic=False)[0].tolist()) <= {3, 50, 700}
    assert int(model.policy.learned["2"].steps) == 45


def test_plain_ids_up_to_a_billion():
    policy = DigitPolicy(4, IdCodec(10**9), 16, 1e-3, 0.0, 0.5)
    assert policy.weights.numel() < 10_000
