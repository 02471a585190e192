"""One clear error for each bad input, and a training state that it leaves as it was."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from extensions.sb3 import StochDDQN, StochDQN
from extensions.stochmax import (
    ActionFeatures,
    CachedArgmax,
    IdCodec,
    MixedRadix,
    Neighbours,
    RecentExploited,
    ReplayActions,
    Uniform,
)

SMALL = {"buffer_size": 500, "learning_starts": 20, "train_freq": 4, "target_update_interval": 20, "seed": 0}


class World(gym.Env):
    """n actions; what is wrong comes at step ``when`` of the second episode of ten steps."""

    def __init__(self, n=3000, action_space=None, wrong=None, obs="box", when=5):
        self.action_space = spaces.Discrete(n) if action_space is None else action_space
        box = spaces.Box(-1, 1, (4,))
        self.observation_space = spaces.Dict({"a": box, "b": box}) if obs == "dict" else box
        self.wrong, self.obs, self.when, self.episode, self.t = wrong, obs, when, 0, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return self._obs(self.wrong == "reset"), {}

    def step(self, action):
        self.t += 1
        now = self.episode == 2 and self.t == self.when
        reward = float("nan") if now and self.wrong == "reward" else 1.0
        reward = float("inf") if now and self.wrong == "infinite" else reward
        done = self.t == 10
        wrong = (now and self.wrong == "obs") or (self.episode == 2 and done and self.wrong == "terminal")
        return self._obs(wrong), reward, done, False, {}

    def _obs(self, wrong):
        x = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        if wrong:
            x[2] = np.nan
        return {"a": np.zeros(4, np.float32), "b": x} if self.obs == "dict" else x


def state_of(model):
    """Everything that training changes, copied."""
    buffer = model.replay_buffer
    return copy.deepcopy(
        {
            "parameters": model.get_parameters(),
            "replay": (buffer.pos, buffer.full, buffer.actions, buffer.rewards),
            "updates": model._n_updates,
        }
    )


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, th.Tensor):
        return th.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


# -- spaces --


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([3, 3]), spaces.MultiBinary(4)], ids=str
)
def test_spaces_that_are_not_discrete(space):
    with pytest.raises(AssertionError, match=r"only supports.*Discrete") as error:
        StochDQN("MlpPolicy", World(action_space=space))
    assert "action_codec=MixedRadix(nvec) for MultiDiscrete" in error.value.__notes__[0]


@pytest.mark.parametrize("codec", [[20, 10], MixedRadix])
def test_a_codec_that_is_none(codec):
    with pytest.raises(TypeError, match=r"action_codec must be a codec, such as MixedRadix"):
        StochDQN("MlpPolicy", World(), action_codec=codec)


def test_a_source_is_not_a_list_of_sources():
    with pytest.raises(ValueError, match=r"a list of sources such as \[Uniform\(\)\]"):
        StochDQN("MlpPolicy", World(), candidates=Uniform())


@pytest.mark.parametrize("start", [1, -1])
def test_actions_that_do_not_start_at_zero(start):
    with pytest.raises(ValueError, match=f"starts at {start}.*Discrete\\(9\\)"):
        StochDQN("MlpPolicy", World(action_space=spaces.Discrete(9, start=start)))


def test_gymnasium_itself_refuses_no_actions():
    with pytest.raises(ValueError, match="positive"):
        spaces.Discrete(0)


def test_a_codec_of_another_number_of_actions():
    with pytest.raises(ValueError, match="action_codec has 100 actions, the environment has 3000"):
        StochDQN("MlpPolicy", World(), action_codec=MixedRadix([10, 10]))


# -- arguments --


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"head": "rows"}, ValueError, "unknown head 'rows'"),
        ({"candidates": "lgo"}, ValueError, "unknown candidates 'lgo'"),
        ({"candidates": ["log"]}, ValueError, "list of sources"),
        ({"candidates": []}, ValueError, "at least one source"),
        ({"candidates": [Uniform(), Neighbours()]}, TypeError, "MixedRadix or BoxBins"),
        ({"head": "feature"}, TypeError, "no action features"),
        ({"head_kwargs": {"rnk": 8}}, TypeError, "rnk"),
        ({"legal_actions": []}, ValueError, "legal_actions is empty"),
        ({"legal_actions": [3000]}, ValueError, r"in \[0, 2999\], got \[3000\]"),
        ({"legal_actions": [0.5]}, ValueError, "must be integers"),
        ({"legal_actions": [1], "candidates": [ReplayActions()]}, ValueError, r"need Uniform\(\)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("algorithm", [StochDQN, StochDDQN])
def test_arguments(algorithm, kwargs, error, message):
    with pytest.raises(error, match=message):
        algorithm("MlpPolicy", World(), **kwargs)


@pytest.mark.parametrize("eval_candidates", ["alll", 0, -3, 1.5])
def test_eval_candidates(eval_candidates):
    with pytest.raises(ValueError, match="eval_candidates"):
        StochDQN("MlpPolicy", World(), eval_candidates=eval_candidates)


@pytest.mark.parametrize("function", [lambda ids: ids.float(), lambda ids: th.zeros(len(ids), 3)])
def test_a_feature_function_of_the_wrong_shape(function):
    with pytest.raises(ValueError, match=r"shape \(B, C, d\)"):
        StochDQN("MlpPolicy", World(), action_codec=ActionFeatures(3000, function))


@pytest.mark.parametrize(
    ("optimizer", "kwargs"),
    [
        (th.optim.Adam, {}),
        (th.optim.AdamW, {}),
        (th.optim.RMSprop, {}),
        (th.optim.SGD, {"momentum": 0.9}),
        (th.optim.SGD, {"weight_decay": 0.1}),
    ],
)
def test_optimizers_that_do_not_keep_to_the_rows_of_a_gradient(optimizer, kwargs):
    policy_kwargs = {"optimizer_class": optimizer, "optimizer_kwargs": kwargs}
    with pytest.raises(ValueError, match=f"sparse gradients, which {optimizer.__name__} does not take"):
        StochDQN("MlpPolicy", World(), head="row", policy_kwargs=policy_kwargs)
    StochDQN("MlpPolicy", World(), head="linear", policy_kwargs=policy_kwargs)


def test_plain_sgd_keeps_to_the_rows_of_a_gradient():
    policy_kwargs = {"optimizer_class": th.optim.SGD}
    model = StochDQN("MlpPolicy", World(), head="row", policy_kwargs=policy_kwargs, **SMALL).learn(60)
    executed = set(model.replay_buffer.actions[:60].flatten().tolist())
    trained = model.q_net.head.rows.weight.any(1).nonzero().flatten().tolist()
    assert trained
    assert set(trained) <= executed


def test_a_head_that_does_not_fit_in_memory():
    before = th.get_rng_state()
    with pytest.raises(MemoryError, match=r"head='low_rank' with 1,000,000,000,000 actions needs 512,000 GB"):
        StochDQN("MlpPolicy", World(10**12))
    with pytest.raises(MemoryError, match=r"head='feature' would fit \("):
        StochDQN("MlpPolicy", World(10**12), head="row", action_codec=MixedRadix([10**6, 10**6]))
    assert th.equal(th.get_rng_state(), before)  # no layer was even drawn


# -- what environments return --


@pytest.mark.parametrize(
    ("wrong", "says", "stored"),
    [
        ("reward", "returned a reward that is NaN", 14),
        ("infinite", "returned a reward that is NaN or infinite", 14),
        ("obs", "returned a observation that is NaN", 14),
        ("terminal", "returned a observation that is NaN", 19),
        ("reset", "returned a observation that is NaN", 0),
    ],
)
@pytest.mark.parametrize("obs", ["box", "dict"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_nan_is_not_stored(wrong, says, stored, obs, n_envs):
    # the first environment is sound, the last is not
    wrongs = [None] * (n_envs - 1) + [wrong]
    env = make_vec_env(lambda: World(wrong=wrongs.pop(0), obs=obs), n_envs=n_envs)
    policy = "MultiInputPolicy" if obs == "dict" else "MlpPolicy"
    model = StochDQN(policy, env, candidates=[Uniform(), CachedArgmax()], head="row", **SMALL)
    if obs == "dict":
        says = says.replace("observation", "observation 'b'")
    with pytest.raises(ValueError, match=f"Environment {n_envs - 1} {says}"):
        model.learn(600)
    assert model.replay_buffer.pos == stored
    stored_obs = model.replay_buffer.observations
    for values in stored_obs.values() if obs == "dict" else [stored_obs]:
        assert np.isfinite(values).all()
    assert all(bool(th.isfinite(p).all()) for p in model.policy.parameters())


def test_nan_leaves_the_training_state_as_it_was():
    model = StochDQN(
        "MlpPolicy", World(wrong="reward", when=6), head="row", **{**SMALL, "learning_starts": 3}
    )
    states = []
    store = model._store_transition

    def recording(*args, **kwargs):
        states.append(state_of(model))
        store(*args, **kwargs)

    model._store_transition = recording
    with pytest.raises(ValueError, match="reward that is NaN"):
        model.learn(600)
    assert states[-1]["updates"] > 0
    assert same(states[-1], state_of(model))


def test_nan_behind_vec_normalize():
    env = VecNormalize(make_vec_env(lambda: World(wrong="obs")))
    model = StochDQN("MlpPolicy", env, **SMALL)
    with pytest.raises(ValueError, match="NaN"):
        model.learn(600)
    assert np.isfinite(model.replay_buffer.observations).all()


# -- legal actions --


class Strict(World):
    """Raises on illegal actions: in a state x, those but round(|x_0| * 10), + 10, + 20, ..."""

    def reset(self, seed=None, options=None):
        self.x, info = super().reset(seed=seed)
        return self.x, info

    def step(self, action):
        assert action in legal_in(self.x), f"action {action} is illegal"
        self.x, *rest = super().step(action)
        return self.x, *rest


def legal_in(x):
    first = round(abs(float(x[0])) * 10)
    return [first + 10 * j for j in range(1 + first % 4)]


def legal(obs):
    lists = [legal_in(x) for x in obs]
    return th.tensor([ids + [-1] * (4 - len(ids)) for ids in lists])


@pytest.mark.parametrize("algorithm", [StochDQN, StochDDQN])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    "candidates",
    ["log", "all", "authors_code", [RecentExploited(), Uniform(), CachedArgmax(), Neighbours()]],
    ids=str,
)
def test_no_illegal_action_is_ever_executed(algorithm, n_envs, candidates):
    """Not in warm-up, not in exploration, not by any memory, not in greedy evaluation."""
    env = make_vec_env(Strict, n_envs=n_envs)
    model = algorithm(
        "MlpPolicy",
        env,
        candidates=candidates,
        legal_actions=legal,
        head="row",
        action_codec=MixedRadix([30, 100]),
        exploration_final_eps=0.4,
        diagnostics_interval=3,
        **SMALL,
    )
    model.learn(240)
    assert model.num_timesteps >= 240  # Strict raises at an illegal action
    obs = env.reset()
    for deterministic in [True] * 20 + [False] * 20:
        actions = model.predict(obs, deterministic=deterministic)[0]
        assert all(a in legal_in(o) for a, o in zip(actions, obs, strict=True))
        obs = env.step(actions)[0]


def test_a_list_of_legal_actions():
    allowed = [5, 17, 2999]
    model = StochDQN("MlpPolicy", World(), legal_actions=allowed, head="row", **SMALL).learn(100)
    buffer = model.replay_buffer
    assert set(buffer.actions[: buffer.pos].flatten().tolist()) == set(allowed)
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert set(model.predict(obs, deterministic=True)[0].tolist()) <= set(allowed)


def test_a_state_without_a_legal_action():
    def none_sometimes(obs):
        calls.append(1)
        return legal(obs) if len(calls) < 60 else th.full((len(obs), 4), -1)

    calls = []
    model = StochDQN("MlpPolicy", World(), legal_actions=none_sometimes, head="row", **SMALL)
    with pytest.raises(ValueError, match=r"no id.*for state 0"):
        model.learn(600)
    assert 0 < model.replay_buffer.pos < 100
    assert all(bool(th.isfinite(p).all()) for p in model.policy.parameters())


@pytest.mark.parametrize("algorithm", [StochDQN, StochDDQN])
def test_where_an_episode_ends_no_action_needs_to_be_legal(algorithm):
    class Ends(Strict):
        """Terminates in a state without legal actions."""

        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return (np.full_like(obs, 99) if terminated else obs), reward, terminated, truncated, info

    def none_at_the_end(obs):
        over = obs[:, 0] == 99
        ends.append(int(over.sum()))
        return th.where(over.unsqueeze(1), -1, legal(th.where(over.unsqueeze(1), 0.0, obs)))

    ends = []
    model = algorithm("MlpPolicy", Ends(), legal_actions=none_at_the_end, head="row", **SMALL).learn(200)
    assert sum(ends) > 10
    assert all(bool(th.isfinite(p).all()) for p in model.policy.parameters())


# -- checkpoints --


def small(n=3000, **kwargs):
    return StochDQN("MlpPolicy", World(n), **{"head": "row", **SMALL, **kwargs}).learn(60)


def test_a_model_does_not_load_onto_another_number_of_actions(tmp_path):
    small().save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"Action spaces do not match: Discrete\(3000\) != Discrete\(3001\)"):
        StochDQN.load(tmp_path / "model", env=World(3001))


@pytest.mark.parametrize(
    "other",
    [
        {"n": 3001},
        {"head": "low_rank"},
        {"head": "linear"},
        {"head_kwargs": {"dueling": False}},
        {"policy_kwargs": {"net_arch": [64, 32]}},
    ],
    ids=str,
)
@pytest.mark.parametrize("through_file", [False, True])
def test_parameters_of_another_network_are_not_half_loaded(tmp_path, other, through_file):
    model, stranger = small(), small(**other)
    before = state_of(model)
    parameters = stranger.get_parameters()
    if through_file:
        stranger.save(tmp_path / "stranger.zip")
        parameters = tmp_path / "stranger.zip"
    with pytest.raises(RuntimeError, match=r"checkpoint is of another network.*n=3000"):
        model.set_parameters(parameters)
    assert same(before, state_of(model))
    model.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize(("n", "m"), [(10**6, 2 * 10**6), (2 * 10**6, 10**6), (10**6, 3000)])
def test_a_large_table_does_not_load_into_one_of_another_size(n, m):
    """Tables of a million rows are saved by their touched rows, which would fit into many a table."""
    model, stranger = small(n, head="low_rank"), small(m, head="low_rank")
    before = state_of(model)
    with pytest.raises(RuntimeError, match="another network"):
        model.set_parameters(stranger.get_parameters())
    assert same(before, state_of(model))


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_truncated_zip(tmp_path, keep):
    model = small()
    path = tmp_path / "model.zip"
    model.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"zip|whole model file"):
        StochDQN.load(path)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"zip|whole model file"):
        model.set_parameters(path)
    assert same(before, state_of(model))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        StochDQN.load(tmp_path / "nothing.zip")


def test_ids_are_checked_where_users_give_them():
    codec = IdCodec(3000)
    for ids in ([0.5], [3000], [-1]):
        with pytest.raises(ValueError, match="action ids must be"):
            codec.decode(ids)


@pytest.mark.parametrize("argument", ["head", "candidates", "action_codec"])
def test_arguments_in_the_wrong_place(argument):
    with pytest.raises(ValueError, match=rf"{argument} is an argument of StochDQN itself"):
        StochDQN("MlpPolicy", World(), policy_kwargs={argument: None}, **SMALL)


@pytest.mark.parametrize(
    "ours",
    [{"legal_actions": lambda obs: obs[:, :1].long() * 0}, {"candidates": [Uniform(), RecentExploited()]}],
)
def test_what_goes_by_observations_under_vec_normalize(ours):
    env = make_vec_env(World, n_envs=1)
    with pytest.raises(ValueError, match="those of VecNormalize drift"):
        StochDQN("MlpPolicy", VecNormalize(env), **SMALL, **ours)
    StochDQN("MlpPolicy", VecNormalize(env, norm_obs=False), **SMALL, **ours)


def test_row_adam_says_what_it_does_not_take():
    kwargs = {"optimizer_kwargs": {"weight_decay": 1e-4}}
    with pytest.raises(ValueError, match=r"takes no weight_decay.*head='linear' or 'feature'"):
        StochDQN("MlpPolicy", World(), head="row", policy_kwargs=kwargs, **SMALL)
    model = StochDQN("MlpPolicy", World(), head="linear", policy_kwargs=kwargs, **SMALL)
    assert model.policy.optimizer.defaults["weight_decay"] == 1e-4


def test_parameters_of_another_number_of_actions_are_refused_by_a_head_that_fits_any():
    theirs, ours = (
        StochDQN("MlpPolicy", World(n**4), action_codec=MixedRadix([n] * 4), **SMALL) for n in (10, 11)
    )
    before = state_of(ours)
    with pytest.raises(RuntimeError, match=r"n_actions is \(10000,\) there and \(14641,\) here"):
        ours.set_parameters(theirs.get_parameters())
    assert same(before, state_of(ours))


def test_a_replay_of_another_number_of_actions(tmp_path):
    theirs = StochDQN("MlpPolicy", World(9000), **SMALL).learn(50)
    theirs.save_replay_buffer(tmp_path / "replay")
    ours = StochDQN("MlpPolicy", World(20), **SMALL)
    buffer = ours.replay_buffer
    with pytest.raises(ValueError, match=r"another action space: it holds action \d+, and there are 20"):
        ours.load_replay_buffer(tmp_path / "replay")
    assert ours.replay_buffer is buffer


def test_features_that_are_not_finite_anywhere():
    table = np.ones((5, 2))
    table[2, 1] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        ActionFeatures(5, table)
