"""Everything SB3's DQN runs with: policies, environments, replay buffers, callbacks, loggers."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, IdentityEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from extensions.sb3 import StochDDQN, StochDQN
from extensions.stochmax import (
    BoxBins,
    CachedArgmax,
    Elite,
    MixedRadix,
    Neighbours,
    RecentExploited,
    ReplayActions,
    Uniform,
)

ALGORITHMS = [StochDQN, StochDDQN]
SMALL = {"buffer_size": 500, "learning_starts": 20, "train_freq": 4, "target_update_interval": 20, "seed": 0}


class Lottery(gym.Env):
    """n actions; the reward of a is (a mod 7) / 7. Observations are random."""

    def __init__(self, n=5000, dtype=np.int64, steps=10):
        self.action_space = gym.spaces.Discrete(n, dtype=dtype)
        self.observation_space = gym.spaces.Box(-1, 1, (4,))
        self.steps = steps

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        assert 0 <= action < self.action_space.n
        self.t += 1
        return self._obs(), float(action % 7) / 7, self.t == self.steps, False, {}

    def _obs(self):
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)


def images():
    return FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True)


def dicts():
    return SimpleMultiObsEnv(random_start=True, discrete_actions=True)


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize(
    ("policy", "env"),
    [("MlpPolicy", Lottery), ("CnnPolicy", images), ("MultiInputPolicy", dicts)],
    ids=["mlp", "cnn", "multi"],
)
def test_policies(algorithm, n_envs, n_steps, policy, env):
    if env is dicts and n_steps > 1:
        pytest.skip("SB3 has no n-step replay of dict observations")
    env = make_vec_env(env, n_envs=n_envs)
    kwargs = {"policy_kwargs": {"net_arch": [16]}} if policy != "CnnPolicy" else {}
    model = algorithm(policy, env, n_steps=n_steps, batch_size=8, **SMALL, **kwargs)
    before = snapshot(model)
    model.learn(80 if n_envs == 1 else 200)
    assert model._n_updates > 5
    for name, p in model.policy.named_parameters():
        assert bool(th.isfinite(p).all()), name
        if "target" not in name:
            assert not th.equal(p, before[name]), f"{name} did not move"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("head", ["linear", "row", "low_rank", "feature"])
@pytest.mark.parametrize("candidates", ["log", "all", "auto", "paper", "authors_code"])
def test_heads_and_candidates(algorithm, head, candidates):
    codec = MixedRadix([50, 60])
    model = algorithm(
        "MlpPolicy",
        Lottery(3000),
        head=head,
        candidates=candidates,
        action_codec=codec,
        policy_kwargs={"net_arch": [16]},
        tau=0.5,
        **SMALL,
    )
    before = snapshot(model)
    model.learn(60)
    for name, p in model.policy.named_parameters():
        assert not th.equal(p, before[name]), f"{name} did not move"


@pytest.mark.parametrize(
    "sources",
    [
        [Uniform(5), RecentExploited(3, capacity=50)],
        [Uniform(5), CachedArgmax()],
        [Uniform(5), Elite(4, window=32), ReplayActions(2, fresh=True)],
        [Uniform(5), ReplayActions(), CachedArgmax(), Neighbours(8, rounds=2)],
        [Uniform(7, shared=True)],
    ],
    ids=lambda sources: "+".join(type(s).__name__ for s in sources),
)
@pytest.mark.parametrize("n_envs", [1, 3])
def test_sources(sources, n_envs):
    env = make_vec_env(Lottery, n_envs=n_envs, env_kwargs={"n": 3000})
    codec = BoxBins([-1, -1], [1, 1], [50, 60])
    model = StochDQN("MlpPolicy", env, candidates=sources, action_codec=codec, **SMALL).learn(150)
    obs = model.get_env().reset()
    assert model.predict(obs, deterministic=True)[0].shape == (n_envs,)


def test_only_rows_of_replayed_actions_are_touched():
    model = StochDQN("MlpPolicy", Lottery(3000), head="row", head_kwargs={"dueling": False}, **SMALL)
    model.learn(120)
    rows = model.q_net.head.rows
    played = set(model.replay_buffer.actions[: model.replay_buffer.pos].flatten().tolist())
    touched = set(rows.weight.detach().abs().sum(1).nonzero().flatten().tolist())
    assert touched
    assert touched <= played
    assert touched == set(rows.touched_ids().tolist())
    assert touched == set(model.policy.optimizer.rows_touched(rows.weight).tolist())
    assert model.policy.rows_touched() == len(touched) / 3000


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("head", ["linear", "row"])
@pytest.mark.parametrize("cached", [False, True])
def test_hindsight(algorithm, head, cached):
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=4, continuous=False), n_envs=2)
    sources = [Uniform(), ReplayActions(), *([CachedArgmax()] if cached else [])]
    model = algorithm(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 2, "goal_selection_strategy": "future"},
        head=head,
        candidates=sources,
        **SMALL,
    ).learn(150)
    assert model._n_updates > 5
    assert model.replay_buffer.actions.shape[-1] == (3 if cached else 1)


@pytest.mark.parametrize("norm_reward", [False, True])
def test_vec_normalize(norm_reward):
    env = VecNormalize(make_vec_env(Lottery, n_envs=2), norm_reward=norm_reward)
    model = StochDQN("MlpPolicy", env, candidates=[Uniform(), CachedArgmax()], **SMALL).learn(100)
    assert np.abs(model.replay_buffer.observations).max() <= 1.0  # stored as the environment gave them


def test_optimized_memory():
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    StochDQN("MlpPolicy", Lottery(), **SMALL, **kwargs).learn(600)  # wraps around


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_any_action(n):
    for head in ("auto", "row", "low_rank"):
        model = StochDQN("MlpPolicy", Lottery(n), head=head, **SMALL).learn(50)
        assert 0 <= model.predict(np.zeros(4, np.float32), deterministic=True)[0] < n


@pytest.mark.parametrize("head", ["linear", "low_rank"])
def test_actions_of_32_bits(head):
    sources = [Uniform(), ReplayActions(), CachedArgmax()]
    for candidates in ("log", "all", sources, [ReplayActions(fresh=True), Uniform()]):
        model = StochDQN("MlpPolicy", Lottery(3000, np.int32), head=head, candidates=candidates, **SMALL)
        model.learn(60)


def test_a_billion_actions():
    codec = MixedRadix([10] * 9)
    model = StochDDQN("MlpPolicy", Lottery(10**9), action_codec=codec, **SMALL).learn(60)
    assert model.policy.head_args["head"] == "feature"
    assert model.replay_buffer.actions.max() > 10**8


def test_discrete_observations_and_no_hidden_layer():
    model = StochDQN("MlpPolicy", IdentityEnv(4), head="row", policy_kwargs={"net_arch": []}, **SMALL).learn(
        60
    )
    assert model.predict(2, deterministic=True)[0].shape == ()


# -- callbacks and loggers --


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_callbacks_and_progress_bar(tmp_path, algorithm):
    callback = CallbackList(
        [
            EvalCallback(Monitor(Lottery()), eval_freq=50, n_eval_episodes=2, best_model_save_path=tmp_path),
            CheckpointCallback(60, str(tmp_path), save_replay_buffer=True),
            StopTrainingOnMaxEpisodes(18),
        ]
    )
    model = algorithm("MlpPolicy", Lottery(), **SMALL)
    model.learn(1000, callback=callback, progress_bar=True)
    assert model.num_timesteps == 180
    assert (tmp_path / "best_model.zip").exists()
    assert (tmp_path / "rl_model_120_steps.zip").exists()
    algorithm.load(tmp_path / "rl_model_120_steps.zip").load_replay_buffer(
        tmp_path / "rl_model_replay_buffer_120_steps.pkl"
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tensorboard(tmp_path, algorithm):
    model = algorithm("MlpPolicy", Lottery(), tensorboard_log=str(tmp_path), diagnostics_interval=5, **SMALL)
    model.learn(100)
    folder = tmp_path / f"{algorithm.__name__}_1"
    assert any(folder.iterdir())


# -- learning --


def test_learns_the_identity():
    env = DummyVecEnv([lambda: IdentityEnv(6)])
    model = StochDQN(
        "MlpPolicy",
        env,
        seed=1,
        learning_rate=3e-3,
        learning_starts=200,
        gamma=0.0,
        train_freq=2,
        buffer_size=2000,
        target_update_interval=100,
        exploration_fraction=0.5,
    ).learn(2500)
    assert evaluate_policy(model, env, n_eval_episodes=5)[0] > 90


class Peak(gym.Env):
    """One of four states; the reward of a falls with its distance to the state's peak among n actions."""

    def __init__(self, n=5000):
        self.action_space = gym.spaces.Discrete(n)
        self.observation_space = gym.spaces.Box(0, 1, (4,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(4))
        return np.eye(4, dtype=np.float32)[self.state], {}

    def step(self, action):
        peak = (2 * self.state + 1) / 8
        reward = 1.0 - abs(action / self.action_space.n - peak)
        return np.eye(4, dtype=np.float32)[self.state], reward, True, False, {}


@pytest.mark.parametrize(
    ("head", "least"), [pytest.param("row", 0.9, marks=pytest.mark.slow), ("feature", 0.95)]
)
def test_learns_among_five_thousand_actions_with_log_candidates(head, least):
    model = StochDQN(
        "MlpPolicy",
        Peak(),
        head=head,
        action_codec=BoxBins([0.0], [1.0], 5000),
        learning_rate=3e-3,
        learning_starts=200,
        gamma=0.0,
        train_freq=1,
        exploration_fraction=0.5,
        seed=0,
        policy_kwargs={"net_arch": [64]},
    ).learn(1500 if head == "feature" else 2500)
    # uniform play has 0.69 on average
    assert evaluate_policy(model, Monitor(Peak()), n_eval_episodes=40)[0] > least


# -- repeatability --


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("candidates", ["log", "paper", "authors_code", "memories"])
def test_two_seeded_runs_are_equal(algorithm, candidates):
    if candidates == "memories":
        candidates = [Uniform(), CachedArgmax(), RecentExploited(), Elite(), Neighbours()]
    runs = []
    for k in range(2):
        env = make_vec_env(Lottery, n_envs=2, env_kwargs={"n": 3000})
        codec = MixedRadix([50, 60])
        sources = candidates if isinstance(candidates, str) else [type(s)() for s in candidates]
        model = algorithm(
            "MlpPolicy", env, candidates=sources, head="low_rank", action_codec=codec, **{**SMALL, "seed": 11}
        )
        if k:
            model.predict(np.zeros((2, 4), np.float32), deterministic=True)  # takes no draw from the run
        model.learn(200)
        runs.append(model)
    assert np.array_equal(runs[0].replay_buffer.actions, runs[1].replay_buffer.actions)
    assert len(np.unique(runs[0].replay_buffer.actions)) > 20
    states = [m.policy.state_dict() for m in runs]
    assert all(th.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
