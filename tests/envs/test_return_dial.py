"""The return dial: every return can be had, by a formula, and flipping it is what tells models apart."""

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import envs
from envs.return_dial import ReturnDial, ReturnDialVector, best_action, flip

ID = "Align/ReturnDial-v0"
VARIANTS = [{}, {"horizon": 7, "distractors": 0}, {"horizon": 2, "distractors": 3}]


def play(env, steps, seed=0):
    """Everything that is seen of random play, in bytes."""
    rng, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 1).astype(np.float32))
        seen.append((observation.tobytes(), reward, terminated, truncated))
        if truncated:
            seen.append(env.reset()[0].tobytes())
    return seen


def collect(env, target, steps, left):
    """What the best policy brings in ``steps`` steps, with ``left`` to go before them."""
    total = 0.0
    for i in range(steps):
        action = best_action(target - total, left - i)
        total += env.step(np.array([action], dtype=np.float32))[1]
    return total


def test_registered_but_no_world_of_many_actions():
    assert ID not in envs.world_ids()
    assert isinstance(gym.make(f"envs:{ID}").unwrapped, ReturnDial)
    assert isinstance(gym.make_vec(f"envs:{ID}", num_envs=2), ReturnDialVector)


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_check_env_without_a_warning(kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(ID, render_mode="rgb_array", **kwargs).unwrapped)


def test_stable_baselines3_check_env():
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3.check_env(gym.make(ID))


@pytest.mark.parametrize("target", [0.0, 0.013, 3.7, 10.0, 19.99, 20.0])
def test_the_best_policy_reaches_every_target(target):
    env = ReturnDial()
    env.reset(seed=0)
    assert collect(env, target, 20, 20) == pytest.approx(target, abs=1e-6)
    assert env.achieved == pytest.approx(target, abs=1e-6)


@pytest.mark.parametrize(("target", "end"), [(-3.0, 0.0), (31.0, 20.0)])
def test_targets_out_of_reach_end_at_the_nearest_return(target, end):
    env = ReturnDial()
    env.reset(seed=0)
    assert collect(env, target, 20, 20) == pytest.approx(end)


@pytest.mark.parametrize("target", [0.0, 4.0, 17.0])
def test_the_best_policy_follows_a_flip(target):
    env = ReturnDial()
    env.reset(seed=0)
    left = target - collect(env, target, 10, 20)
    assert left == pytest.approx(target / 2, abs=1e-6)
    assert collect(env, flip(left, 10), 10, 10) == pytest.approx(10 - target / 2, abs=1e-6)


def test_formulas_take_arrays():
    targets, left = np.array([[0.0], [5.0], [99.0]]), np.array([10, 5])
    np.testing.assert_array_equal(best_action(targets, left), [[-1, -1], [0, 1], [1, 1]])
    np.testing.assert_array_equal(flip(targets[:2], left), [[10, 5], [5, 0]])
    with pytest.raises(ValueError, match="steps_left must be at least 1"):
        best_action(1.0, 0)


@pytest.mark.parametrize(
    ("action", "reward"), [(-1.0, 0.0), (0.0, 0.5), (0.5, 0.75), (1.0, 1.0), (-7.0, 0.0), (2.0, 1.0)]
)
def test_rewards(action, reward):
    env = ReturnDial()
    env.reset(seed=0)
    _, paid, terminated, truncated, _ = env.step([action])
    assert type(paid) is float
    assert paid == reward
    assert terminated is False
    assert truncated is False


def test_observations_keep_their_bounds_and_tell_the_time():
    envs_ = ReturnDialVector(num_envs=20_000, horizon=4, distractors=8)
    observations, _ = envs_.reset(seed=0)
    assert observations.dtype == np.float32
    space = envs_.single_observation_space
    assert np.isfinite([space.low, space.high]).all()
    for t in range(1, 5):
        before = observations
        observations, *_ = envs_.step(np.zeros((20_000, 1), dtype=np.float32))
        assert (observations[:, 0] == t / 4).all()
        assert (np.abs(observations[:, 1:]) <= 5).all()
        assert abs(observations[:, 1:].mean()) < 0.01
        assert observations[:, 1:].std() == pytest.approx(1, abs=0.01)
        assert not np.shares_memory(before, observations)
        assert (before[:, 1:] != observations[:, 1:]).mean() > 0.99


def test_truncated_at_the_horizon_and_reset_needed_after():
    env = ReturnDial(horizon=3)
    with pytest.raises(ResetNeeded, match="reset"):
        env.step([0.0])
    env.reset(seed=0)
    assert [env.step([0.0])[3] for _ in range(3)] == [False, False, True]
    with pytest.raises(ResetNeeded, match="reset"):
        env.step([0.0])


def test_same_seed_same_episodes():
    first, again, other = ReturnDial(), ReturnDial(), ReturnDial()
    for env, seed in ((first, 5), (again, 5), (other, 6)):
        env.reset(seed=seed)
    seen = play(first, 50)
    assert seen == play(again, 50)
    assert seen != play(other, 50)


def test_pickle_and_get_state_go_on_where_they_were():
    env = ReturnDial(horizon=6)
    env.reset(seed=0)
    play(env, 9)
    copy, other = pickle.loads(pickle.dumps(env)), ReturnDial(horizon=6)
    other.set_state(env.get_state())
    assert other.achieved == env.achieved
    seen = play(env, 20)
    assert seen == play(copy, 20) == play(other, 20)


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_a_vector_of_one_equals_the_single_env(kwargs):
    single, vector = ReturnDial(**kwargs), ReturnDialVector(1, **kwargs)
    np.testing.assert_array_equal(single.reset(seed=3)[0][None], vector.reset(seed=3)[0])
    rng = np.random.default_rng(0)
    for _ in range(25):
        action = rng.uniform(-1.5, 1.5, (1, 1))
        if single.t == single.horizon:  # the vector spends a step on its reset
            expected = single.reset()[0], 0.0, False, False
        else:
            expected = single.step(action[0])[:4]
        for one, batch in zip(expected, vector.step(action)[:4], strict=True):
            np.testing.assert_array_equal(np.asarray(one)[None], batch)
        assert vector.achieved[0] == single.achieved


def test_a_vector_goes_on_from_its_state():
    vector, other = (ReturnDialVector(3, horizon=4) for _ in range(2))
    vector.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        vector.step(rng.uniform(-1, 1, (3, 1)))
    other.set_state(vector.get_state())
    for _ in range(6):
        actions = rng.uniform(-1, 1, (3, 1))
        for mine, its in zip(vector.step(actions), other.step(actions), strict=True):
            np.testing.assert_array_equal(mine, its)
    with pytest.raises(ValueError, match="the state of 3 environments, and there are 2"):
        ReturnDialVector(2, horizon=4).set_state(vector.get_state())


def test_a_vector_fits_its_spaces_and_says_how_it_resets():
    vector = gym.make_vec(ID, num_envs=5, horizon=2)
    assert vector.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert vector.reset(seed=0)[0] in vector.observation_space
    vector.action_space.seed(0)
    for _ in range(4):
        observations, rewards, terminated, truncated, _ = vector.step(vector.action_space.sample())
        assert observations in vector.observation_space
        assert rewards.dtype == np.float64
        assert terminated.dtype == truncated.dtype == bool
    assert gym.make_vec(ID, num_envs=2, vectorization_mode="sync").reset(seed=0)[0].shape == (2, 17)


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_pictures(mode):
    env, vector = ReturnDial(render_mode=mode), ReturnDialVector(2, render_mode=mode)
    with pytest.raises(ResetNeeded, match="reset"):
        env.render()
    env.reset(seed=0)
    vector.reset(seed=0)
    first = env.render()
    env.step([0.5])
    vector.step([[0.5], [-1.0]])
    frame, (same, other) = env.render(), vector.render()
    np.testing.assert_array_equal(frame, same)
    if mode == "ansi":
        assert frame == "step 1 of 20\nreturn 0.75, and 19.75 at most\nlast action +0.50: reward 0.75\n"
        assert first == "step 0 of 20\nreturn 0.00, and 20.00 at most\n"
    else:
        assert frame.dtype == np.uint8
        assert frame.shape == first.shape == other.shape
        assert (frame != first).any()
        assert (frame != other).any()


@pytest.mark.parametrize(
    "action", [0.5, [0.5, 0.5], [], [float("nan")], [float("inf")], "high", None, [[0.5]]]
)
def test_bad_actions(action):
    env = ReturnDial()
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"finite numbers of shape \(1,\), got"):
        env.step(action)
    assert env.t == 0


@pytest.mark.parametrize("actions", [np.zeros(3), np.zeros((2, 1)), np.full((3, 1), np.nan)])
def test_bad_vector_actions(actions):
    vector = ReturnDialVector(3)
    with pytest.raises(ResetNeeded, match="reset"):
        vector.step(np.zeros((3, 1)))
    vector.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"finite numbers of shape \(3, 1\), got"):
        vector.step(actions)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"horizon": 0}, "horizon must be an int in"),
        ({"horizon": 20.0}, "write 20"),
        ({"distractors": -1}, "distractors must be an int in"),
        ({"render_mode": "human"}, "render_mode must be None or one of"),
    ],
)
def test_bad_arguments(kwargs, message):
    for make in (ReturnDial, ReturnDialVector):
        with pytest.raises(ValueError, match=message):
            make(**kwargs)


def test_a_vector_has_at_least_one_environment():
    with pytest.raises(ValueError, match="num_envs must be an int in"):
        ReturnDialVector(0)
