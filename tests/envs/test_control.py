"""Continuous control cut into a flat Discrete(n)."""

import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import envs  # noqa: F401  (registers the ids)
from envs.control import DiscretizeFlat

pytest.importorskip("mujoco")

CASES = [
    ("LargeAction/InvertedPendulum-1M-v5", {}),
    ("LargeAction/HalfCheetah-1M-v5", {}),
    ("LargeAction/Hopper-1M-v5", {}),
    ("LargeAction/Walker2d-1M-v5", {}),
    ("LargeAction/Ant-6p8-v5", {}),
    ("LargeAction/Humanoid-3p17-v5", {}),
    ("LargeAction/DiscretizedMujoco-v5", {"env_id": "Hopper-v5", "bins": 101}),
]


def play(env, actions):
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append((observation.tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            seen.append(env.reset()[0].tobytes())
    return seen


def sample(env, number):
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(number)]


def check_env_quietly(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # MuJoCo's own observations are unbounded, and its pictures need a graphics library.
        warnings.filterwarnings("ignore", message=r".*A Box observation space m\w+ value is -?infinity")
        check_env(env, skip_render_check=True)


@pytest.mark.parametrize(("id", "kwargs"), CASES)
def test_check_env(id, kwargs):
    check_env_quietly(gym.make(id, **kwargs).unwrapped)


@pytest.mark.parametrize(("id", "kwargs"), CASES[:2])
def test_stable_baselines3_check_env(id, kwargs):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    sb3.check_env(gym.make(id, **kwargs))


def test_sizes():
    pendulum, cheetah = (gym.make(id).unwrapped for id, _ in CASES[:2])
    assert pendulum.action_space == cheetah.action_space == gym.spaces.Discrete(1_000_000)
    assert pendulum.nvec.tolist() == [1_000_000]
    assert cheetah.nvec.tolist() == [10] * 6
    assert cheetah.low.tolist() == [-1] * 6
    assert cheetah.high.tolist() == [1] * 6
    assert pendulum.horizon == cheetah.horizon == 1000


@pytest.mark.parametrize(
    ("name", "original", "controls", "n"),
    [
        ("Hopper-1M", "Hopper-v5", 3, 1_000_000),
        ("Walker2d-1M", "Walker2d-v5", 6, 1_000_000),
        ("Ant-6p8", "Ant-v5", 8, 1_679_616),
        ("Humanoid-3p17", "Humanoid-v5", 17, 129_140_163),
    ],
)
def test_registered_sizes_and_thresholds(name, original, controls, n):
    env = gym.make(f"LargeAction/{name}-v5")
    assert env.action_space == gym.spaces.Discrete(n)
    assert len(env.unwrapped.nvec) == controls
    assert env.unwrapped.horizon == gym.spec(original).max_episode_steps
    assert env.spec.reward_threshold == gym.spec(original).reward_threshold


def test_grid_has_the_ends_and_the_middle():
    env = gym.make("LargeAction/DiscretizedMujoco-v5", env_id="HalfCheetah-v5", bins=11).unwrapped
    assert env.decode(0).tolist() == [-1] * 6
    assert env.decode(env.n - 1).tolist() == [1] * 6
    assert env.decode(env.n // 2).tolist() == [0] * 6
    assert env.decode(1) == pytest.approx(
        [-0.8, -1, -1, -1, -1, -1]
    )  # the least significant digit is the first
    assert env.decode(11) == pytest.approx([-1, -0.8, -1, -1, -1, -1])
    assert env.decode(0).dtype == np.float32
    assert env.decode(np.zeros((2, 3), dtype=np.int64)).shape == (2, 3, 6)


@pytest.fixture(scope="module")
def mixed():
    """Bins of several sizes, and more than 2^31 actions."""
    return DiscretizeFlat("HalfCheetah-v5", bins=[2, 3, 1000, 7, 101, 1001])


@given(where=st.floats(0, 1, exclude_max=True))
def test_ids_and_points_round_trip(mixed, where):
    id = int(where * mixed.n)
    assert mixed.encode(mixed.decode(id)) == id


def test_round_trip_at_the_edges(mixed):
    ids = np.array([0, 1, mixed.n - 1, 2**31 - 1, 2**31, 2**31 + 1])
    assert mixed.n > 2**31
    assert mixed.encode(mixed.decode(ids)).tolist() == ids.tolist()
    assert mixed.encode([5.0] * 6) == mixed.n - 1  # beyond the box: the nearest corner


def test_steps_are_those_of_the_original():
    env, original = gym.make("LargeAction/HalfCheetah-1M-v5"), gym.make("HalfCheetah-v5")
    assert env.reset(seed=3)[0].tolist() == original.reset(seed=3)[0].tolist()
    for action in sample(env, 50):
        a, b = env.step(action), original.step(env.unwrapped.decode(action))
        assert a[0].tolist() == b[0].tolist()
        assert a[1:4] == b[1:4]


@pytest.mark.parametrize(("id", "kwargs"), CASES)
def test_get_state_resumes_exactly(id, kwargs):
    env, fresh = gym.make(id, horizon=40, **kwargs), gym.make(id, horizon=40, **kwargs)
    env.reset(seed=1)
    actions = sample(env, 120)
    play(env, actions[:33])
    state = env.unwrapped.get_state()
    assert all(isinstance(value, np.ndarray) and value.dtype != object for value in state.values())
    fresh.unwrapped.set_state(state)
    assert play(env, actions) == play(fresh, actions)


def test_horizon_pickle_and_text():
    env = pickle.loads(
        pickle.dumps(gym.make("LargeAction/InvertedPendulum-1M-v5", horizon=2, render_mode="ansi"))
    )
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(0)
    env.reset(seed=0)
    assert env.step(500_000)[3] is False
    assert "action 500000: controls +0.000" in env.render()
    assert env.step(500_000)[3] is True
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(0)
    env.reset()
    for action in (-1, 1_000_000, 0.5, np.array([3])):
        with pytest.raises(InvalidAction, match="one integer in"):
            env.step(action)
    env.close()


def test_actions_as_digits():
    """They do what the same actions do as ids, also after pickling."""
    flat = gym.make("LargeAction/HalfCheetah-1M-v5")
    factored = gym.make("LargeAction/HalfCheetah-1M-v5", action_format="factored")
    assert factored.action_space == gym.spaces.MultiDiscrete([10] * 6)
    check_env_quietly(factored.unwrapped)
    factored = pickle.loads(pickle.dumps(factored))
    assert factored.action_space == gym.spaces.MultiDiscrete([10] * 6)
    assert flat.reset(seed=3)[0].tolist() == factored.reset(seed=3)[0].tolist()
    for digits in sample(factored, 20):
        a, b = flat.step(int(digits @ 10 ** np.arange(6))), factored.step(digits)
        assert a[0].tolist() == b[0].tolist()
        assert a[1:4] == b[1:4]
    for action in (7, np.full(6, 10), np.full(6, -1), np.zeros(5, dtype=int), np.zeros(6)):
        with pytest.raises(InvalidAction, match="Actions are"):
            factored.step(action)


def test_digits_of_several_sizes_in_text():
    env = DiscretizeFlat("Swimmer-v5", bins=[3, 5], action_format="factored", render_mode="ansi")
    env.reset(seed=0)
    env.step(np.array([1, 4]))
    assert "action 13: controls +0.000 +1.000" in env.render()


def test_by_torchrls_own_door():
    envs_of_torchrl = pytest.importorskip("torchrl.envs")
    env = envs_of_torchrl.GymEnv("LargeAction/Hopper-1M-v5", categorical_action_encoding=True)
    data = env.rollout(5)
    assert data["action"].dtype.is_floating_point is False
    assert data["action"].shape == (5,)
    assert data["next", "observation"].shape == (5, 11)
    assert env.action_spec.space.n == 1_000_000
    env.close()


def test_vector_of_the_mujoco_ids():
    vector = gym.make_vec("LargeAction/InvertedPendulum-1M-v5", num_envs=2)
    vector.reset(seed=0)
    observations, *_ = vector.step(vector.action_space.sample())
    assert observations.shape == (2, 4)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"env_id": "HalfCheetah-v5", "bins": 1}, ValueError, "bins must be an int >= 2, or 6 of them"),
        ({"env_id": "HalfCheetah-v5", "bins": 2.0}, ValueError, "bins must be an int >= 2"),
        ({"env_id": "HalfCheetah-v5", "bins": [3, 3]}, ValueError, "or 6 of them"),
        ({"env_id": "Humanoid-v5", "bins": 16}, ValueError, r"more than 2\^62: take at most 12 bins"),
        ({"env_id": "InvertedPendulum-v5", "bins": 2**62 + 1}, ValueError, f"at most {2**62} bins"),
        ({"env_id": "HalfCheetah-v5", "bins": 1291}, ValueError, "at most 1290 bins"),
        ({"env_id": "HalfCheetah-v5", "bins": 3, "action_format": "digits"}, ValueError, "action_format"),
        ({"env_id": "CartPole-v1", "bins": 3}, ValueError, "Box of actions"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        DiscretizeFlat(**kwargs)


def test_without_mujoco_the_ids_are_there_and_making_one_says_what_to_install():
    code = (
        "import sys; sys.modules['mujoco'] = None\n"
        "import gymnasium as gym, envs\n"
        "assert 'LargeAction/HalfCheetah-1M-v5' in gym.registry\n"
        "try: gym.make('LargeAction/HalfCheetah-1M-v5')\n"
        "except gym.error.DependencyNotInstalled as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "rl-extensions[mujoco]"' in done.stdout
