"""Acting: what predict returns, the coins of epsilon-greedy, and what the replay carries beside an action."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, IdentityEnv, SimpleMultiObsEnv

from extensions.sb3 import StochDDQN, StochDQN
from extensions.sb3.stoch_dqn import policies
from extensions.stochmax import CachedArgmax, RecentExploited, ReplayActions, Uniform
from extensions.stochmax.hashing import hash_observations

SMALL = {"buffer_size": 200, "learning_starts": 20, "train_freq": 4, "target_update_interval": 20, "seed": 0}


class World(gym.Env):
    def __init__(self, n=3000):
        self.action_space = gym.spaces.Discrete(n)
        self.observation_space = gym.spaces.Box(-1, 1, (4,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), float(action % 7), self.t == 10, False, {}

    def _obs(self):
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)


# -- predict --

ENVS = {
    "mlp": ("MlpPolicy", World),
    "discrete": ("MlpPolicy", lambda: IdentityEnv(5)),
    "cnn": ("CnnPolicy", lambda: FakeImageEnv(40, 40, n_channels=1, discrete=True)),
    "multi": ("MultiInputPolicy", lambda: SimpleMultiObsEnv(discrete_actions=True)),
}


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_predict_returns_what_dqns_does(env, deterministic, epsilon):
    policy, make = ENVS[env]
    one, many = make(), make_vec_env(make, n_envs=3)
    results = []
    for algorithm in (DQN, StochDQN):
        model = algorithm(policy, one, **SMALL)
        model.exploration_rate = epsilon
        for obs in (one.reset(seed=0)[0], many.reset()):
            for _ in range(3):
                action, state = model.predict(obs, deterministic=deterministic)
                assert state is None
                results.append((type(action), action.shape, action.dtype))
                many_or_one = np.atleast_1d(action)
                assert ((many_or_one >= 0) & (many_or_one < one.action_space.n)).all()
    assert results[:6] == results[6:]
    one.step(int(model.predict(one.reset()[0])[0]))


def test_the_wrong_observation_is_refused_as_by_dqn():
    for algorithm in (DQN, StochDQN):
        model = algorithm("MlpPolicy", World(), **SMALL)
        for deterministic in (True, False):
            with pytest.raises(ValueError, match="Unexpected observation shape"):
                model.predict(np.zeros(3, np.float32), deterministic=deterministic)


def test_deterministic_means_the_same_at_every_call():
    model = StochDQN("MlpPolicy", World(), head="linear", eval_candidates=64, **SMALL)
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    before = th.get_rng_state(), np.random.get_state()[1].copy()
    actions = [model.predict(obs, deterministic=True)[0].tolist() for _ in range(3)]
    assert actions[0] == actions[1] == actions[2]
    assert th.equal(th.get_rng_state(), before[0])
    th.manual_seed(123)
    assert model.predict(obs, deterministic=True)[0].tolist() == actions[0]
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_deterministic_is_exact_when_there_are_few_actions_or_all_are_asked_for():
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    for n, eval_candidates in ((1000, 1024), (5000, "all")):
        model = StochDQN("MlpPolicy", World(n), head="linear", eval_candidates=eval_candidates, **SMALL)
        with th.no_grad():
            best = model.q_net(th.as_tensor(obs)).argmax(1).tolist()
        assert model.predict(obs, deterministic=True)[0].tolist() == best
        assert model.q_net.predict(obs, deterministic=True)[0].tolist() == best


def test_more_candidates_find_better_actions():
    model = StochDQN("MlpPolicy", World(50_000), head="linear", policy_kwargs={"net_arch": [8]}, **SMALL)
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    with th.no_grad():
        q = model.q_net(th.as_tensor(obs))
        found = [
            q.gather(1, th.as_tensor(model.predict(obs, deterministic=d)[0]).unsqueeze(1)).mean()
            for d in (False, True)
        ]
    assert found[0] < found[1] <= q.max(1).values.mean()


# -- epsilon --


def explored(model, n_envs, calls=400):
    """Whether each of ``calls`` x ``n_envs`` actions was drawn at random."""
    obs = np.zeros((n_envs, 4), np.float32)
    out = []
    for _ in range(calls):
        model.predict(obs)
        out.append(model._exploring.copy())
    return np.array(out)


def test_each_environment_has_its_coin():
    model = StochDQN("MlpPolicy", make_vec_env(World, n_envs=8), **SMALL)
    model.exploration_rate = 0.3
    coins = explored(model, 8)
    assert abs(coins.mean() - 0.3) < 0.04
    assert abs(np.corrcoef(coins.T)[np.triu_indices(8, 1)]).max() < 0.2
    model.epsilon_per_env = False
    coins = explored(model, 8)
    assert abs(coins.mean() - 0.3) < 0.1
    assert (coins.all(1) == coins.any(1)).all()  # one coin for all, as in SB3's DQN


def test_explored_actions_are_uniform_and_the_others_greedy():
    model = StochDQN("MlpPolicy", make_vec_env(lambda: World(4), n_envs=2), candidates="all", **SMALL)
    with th.no_grad():
        model.q_net.head.weight.zero_()
        model.q_net.head.bias.copy_(th.tensor([0.0, 0.0, 9.0, 0.0]))
    model.exploration_rate = 0.5
    actions, coins = [], []
    for _ in range(2000):
        actions.append(model.predict(np.zeros((2, 4), np.float32))[0])
        coins.append(model._exploring.copy())
    actions, coins = np.array(actions), np.array(coins)
    assert (actions[~coins] == 2).all()
    counts = np.bincount(actions[coins], minlength=4)
    expected = counts.sum() / 4
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees, p = 0.001


def test_memories_hear_of_greedy_actions_only():
    class Listening(Uniform):
        def executed(self, obs, actions):
            heard.append((len(obs), actions.tolist()))

    heard = []
    env = make_vec_env(World, n_envs=4)
    model = StochDQN("MlpPolicy", env, candidates=[Listening(5)], exploration_fraction=0.01, **SMALL)
    model.learn(16)
    assert heard == []  # warm-up
    model.exploration_schedule = lambda _: 0.5
    model.learn(200, reset_num_timesteps=False)
    assert all(n == len(actions) for n, actions in heard)
    assert 60 < sum(n for n, _ in heard) < 140  # half of 200
    assert heard[-1][1][0] in model.policy.exploited.ids()


# -- what the replay carries --


@pytest.mark.parametrize("algorithm", [StochDQN, StochDDQN])
@pytest.mark.parametrize("kind", ["plain", "n_step", "dict", "her"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_cached_arg_max_lies_beside_its_transition(algorithm, kind, n_envs):
    make = World if kind in ("plain", "n_step") else lambda: SimpleMultiObsEnv(discrete_actions=True)
    kwargs = {"n_steps": 3} if kind == "n_step" else {}
    if kind == "her":
        make = lambda: BitFlippingEnv(n_bits=6, continuous=False)  # noqa: E731
        kwargs = {"replay_buffer_class": HerReplayBuffer}
    policy = "MultiInputPolicy" if kind in ("dict", "her") else "MlpPolicy"
    env = make_vec_env(make, n_envs=n_envs)
    sources = [Uniform(), ReplayActions(), CachedArgmax()]
    model = algorithm(policy, env, candidates=sources, **{**SMALL, "learning_starts": 1000}, **kwargs)
    model.learn(90)  # no update yet
    buffer = model.replay_buffer
    assert buffer.actions.shape == (200 // n_envs, n_envs, 3)
    played = buffer.actions[: buffer.pos]
    assert (played[..., 0] == played[..., 1]).all()  # at first the action itself
    slots = np.arange(buffer.pos * n_envs).reshape(buffer.pos, n_envs)
    assert (played[..., 2] == slots).all()

    # one update refreshes the transitions that were replayed, and these alone
    before = buffer.actions.copy()
    seen = {}
    sample, maximise = buffer.sample, model._maximise_next

    def recording_sample(*args, **kwargs):
        seen["batch"] = sample(*args, **kwargs)
        return seen["batch"]

    def recording_maximise(head, states, data):
        seen["best"] = maximise(head, states, data)
        return seen["best"]

    buffer.sample, model._maximise_next = recording_sample, recording_maximise
    model.train(1, 16)
    slots, best = seen["batch"].actions[:, 2].numpy(), seen["best"].action.numpy()
    after = buffer.actions.reshape(-1, 3)
    for slot in slots:
        assert after[slot, 1] in best[slots == slot]  # a transition may be replayed twice in a batch
    rest = np.setdiff1d(np.arange(len(after)), slots)
    assert np.array_equal(after[rest], before.reshape(-1, 3)[rest])
    assert np.array_equal(after[:, [0, 2]], before.reshape(-1, 3)[:, [0, 2]])


def test_the_cache_keeps_its_slots_when_the_replay_wraps_around():
    env = make_vec_env(World, n_envs=2)
    model = StochDQN("MlpPolicy", env, candidates=[Uniform(), CachedArgmax()], **SMALL).learn(700)
    assert model.replay_buffer.full
    slots = model.replay_buffer.actions[..., 2]
    assert np.array_equal(slots, np.arange(200).reshape(100, 2))


def test_a_cached_arg_max_is_a_candidate_of_its_transition():
    """With a single uniform candidate, the value carried along can only grow while the network rests."""
    model = StochDQN(
        "MlpPolicy",
        World(),
        candidates=[Uniform(1), CachedArgmax()],
        head="linear",
        learning_rate=0.0,
        **SMALL,
    )
    model.learn(40)
    buffer = model.replay_buffer
    data = buffer.sample(1)
    carried = buffer.actions.reshape(-1, 3)[int(data.actions[0, 2])]  # a view of the replay
    with th.no_grad():
        q = model.q_net_target(data.next_observations)[0]
    carried[1] = q.argmin()
    values = []
    for _ in range(100):
        row = th.as_tensor(carried.copy()).unsqueeze(0)
        values.append(model._next_q_values(data._replace(actions=row)).item())
        assert q[carried[1]] == values[-1]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_replay_actions_are_drawn_from_what_was_stored():
    model = StochDQN("MlpPolicy", make_vec_env(World, n_envs=3), **SMALL)
    assert model._sample_replay_actions(5).shape == (0,)  # an empty replay
    model.learn(30)
    drawn = model._sample_replay_actions(3000)
    stored = model.replay_buffer.actions[: model.replay_buffer.pos].flatten()
    assert set(drawn.tolist()) == set(stored.tolist())  # and none of the zeros beyond


@pytest.mark.parametrize(
    "make",
    [
        lambda: IdentityEnv(5),
        lambda: BitFlippingEnv(n_bits=3, continuous=False),
        lambda: BitFlippingEnv(n_bits=3, continuous=False, discrete_obs_space=True),
        lambda: SimpleMultiObsEnv(discrete_actions=True, random_start=False),
    ],
    ids=["discrete", "dict", "dict_of_discrete", "images"],
)
def test_a_state_is_the_same_in_acting_and_in_the_replay(make):
    """The memory by state hears of observations as they come, and is asked by those of the replay."""
    env = make_vec_env(make, n_envs=2)
    policy = "MultiInputPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpPolicy"
    sources = [Uniform(), RecentExploited()]
    model = StochDQN(policy, env, candidates=sources, exploration_fraction=0.01, **SMALL).learn(100)
    known = model.policy.maximum.sources[1]._states
    keys = hash_observations(model.replay_buffer.sample(32).next_observations).tolist()
    assert sum(key in known for key in keys) > 20


def test_a_policy_is_copied_without_its_model():
    model = StochDQN("MlpPolicy", World(), head="row", **SMALL).learn(60)
    policy = copy.deepcopy(model.policy)
    assert policy.sample_replay is None
    assert model.policy.sample_replay is not None
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    actions = [p.predict(obs, deterministic=True)[0].tolist() for p in (policy, model.policy)]
    assert actions[0] == actions[1]
    policy.predict(obs)
    online = policy.q_net.head.rows
    assert policy.q_net_target.head.rows._online[0] is online is not model.q_net.head.rows


def test_without_a_replay_what_was_exploited_stands_in(tmp_path):
    model = StochDQN("MlpPolicy", World(), exploration_fraction=0.01, **SMALL).learn(100)
    model.save(tmp_path / "model")
    loaded = StochDQN.load(tmp_path / "model", env=World())
    assert loaded.replay_buffer.pos == 0
    assert loaded._sample_replay_actions(5).tolist() == model.policy.exploited.ids()[:5].tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
@pytest.mark.parametrize("head", ["row", "linear"])
def test_actions_of_any_integer_type(dtype, head):
    env = World(100)
    env.action_space = gym.spaces.Discrete(100, dtype=dtype)
    model = StochDQN("MlpPolicy", env, head=head, eval_candidates=16, **SMALL).learn(60)
    assert 0 <= model.predict(np.zeros(4, np.float32), deterministic=True)[0] < 100


def test_prediction_leaves_the_streams_of_other_devices_alone(monkeypatch):
    model = StochDQN("MlpPolicy", World(), eval_candidates=16, **SMALL)
    monkeypatch.setattr(th.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded every GPU"))
    before = th.get_rng_state()
    model.predict(np.zeros(4, np.float32), deterministic=True)
    assert th.equal(th.get_rng_state(), before)


def test_memory_is_asked_of_the_device_that_trains(monkeypatch):
    asked = []
    monkeypatch.setattr(policies, "available_bytes", lambda device: asked.append(str(device)))
    StochDQN("MlpPolicy", World(), device="meta", _init_setup_model=False, **SMALL)
    policies.StochDQNPolicy(
        gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(3000), lambda _: 1e-3, training_device="meta"
    )
    assert asked == ["meta"]
