"""ActuatorMaze: its moves, its bounds and its oracle."""

import numpy as np
import pytest
import torch

from envs.dynamics.actuator_maze import ActuatorMaze, _vectors
from envs.dynamics.rollout import rollout, uniform_policy


@pytest.mark.parametrize("k", [7, 8, 11, 12])
def test_moves_are_the_sum_of_the_bits(k):
    world = ActuatorMaze(k=k)
    ids = np.arange(world.n)
    bits = world.action_features(ids)
    assert bits.dtype == np.float32
    assert (bits @ 2.0 ** np.arange(k)).tolist() == ids.tolist()
    moves = np.stack(world.displacement(ids), axis=-1)
    np.testing.assert_allclose(moves, bits @ _vectors(k, 0.2), atol=1e-12)
    assert np.hypot(*moves.T).max() == pytest.approx(0.2)  # the scale is exact for even and odd k


@pytest.mark.parametrize("k", [20, 30, 31, 32, 62])
def test_large_ids_decode(k):
    world = ActuatorMaze(k=k)
    ids = np.array(
        [0, 1, world.n - 1, world.n // 2, min(world.n - 1, 2**31 + 1), 0x5A5A5A5A5A5A5A5A % world.n]
    )
    bits = world.action_features(ids)
    assert [sum(int(b) << i for i, b in enumerate(row)) for row in bits] == ids.tolist()
    moves = np.stack(world.displacement(ids), axis=-1)
    np.testing.assert_allclose(moves, bits @ _vectors(k, 0.2), atol=1e-12)
    assert moves[2] == pytest.approx([0, 0], abs=1e-12)  # all on cancel
    for action, (dx, dy) in zip(ids.tolist(), moves, strict=True):
        assert world.displacement(action) == (dx, dy)


@pytest.mark.parametrize("k", [10, 20, 62])
def test_backends_agree_to_the_last_bit(k):
    world = ActuatorMaze(k=k)
    rng = np.random.default_rng(0)
    keys = rng.integers(2**62, size=4)
    a, t, s = world.reset(keys), world.reset(torch.tensor(keys)), [world.reset(int(key)) for key in keys]
    for _ in range(50):
        oracle = world.optimal_action(a)
        assert [world.optimal_action(one) for one in s] == oracle.tolist()
        assert world.optimal_action(t).tolist() == oracle.tolist()
        np.testing.assert_allclose(world.optimal_value(a), world.optimal_value(t).numpy(), rtol=1e-12)
        ids = rng.integers(world.n, size=4)
        a, rewards, terminated = world.step(a, ids)
        t, tensor_rewards, tensor_terminated = world.step(t, torch.tensor(ids))
        stepped = [world.step(one, int(i)) for one, i in zip(s, ids, strict=True)]
        s = [one[0] for one in stepped]
        assert rewards.tolist() == tensor_rewards.tolist() == [one[1] for one in stepped]
        assert terminated.tolist() == tensor_terminated.tolist() == [one[2] for one in stepped]
        for name in a:
            assert a[name].tolist() == t[name].tolist() == [one[name] for one in s]
        observation = world.observe(a)
        assert observation.dtype == np.float32
        np.testing.assert_array_equal(observation, world.observe(t).numpy())
        np.testing.assert_array_equal(observation, np.stack([world.observe(one) for one in s]))


@pytest.mark.parametrize("k", [10, 20, 30])
def test_oracle_needs_the_steps_that_are_documented(k):
    world = ActuatorMaze(k=k)
    returns, lengths = rollout(world, world.optimal_action, 2000)
    documented = {10: 3.03, 20: 2.90, 30: 2.88}[k]
    assert lengths.mean() == pytest.approx(documented, abs=5 * lengths.std() / 2000**0.5)
    assert returns == pytest.approx(1 - 0.05 * lengths)  # all arrive


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.28])
def test_bounds_hold(noise):
    world = ActuatorMaze(noise=noise)
    state = world.reset(np.random.default_rng(0).integers(2**62, size=2000))
    returns, lengths = rollout(world, world.optimal_action, 2000)
    distance = np.hypot(state["goal_x"] - state["x"], state["goal_y"] - state["y"])
    surely = np.ceil((distance - world.radius) / (world.step_size * (1 + 12**0.5 * noise)))
    assert (lengths >= surely).all()
    assert lengths.mean() >= world.steps_bound(state).mean()
    assert returns.mean() <= world.optimal_value(state).mean()
    if noise == 0:  # then the bound is nearly met: what is missing is the grid of directions
        assert lengths.mean() <= 1.1 * np.maximum(np.ceil(surely), 1).mean()


def test_random_play_is_as_bad_as_documented():
    world = ActuatorMaze()
    returns, lengths = rollout(world, uniform_policy(world), 4000)
    assert returns.mean() == pytest.approx(-6.04, abs=5 * returns.std() / 4000**0.5)
    assert (lengths < 150).mean() == pytest.approx(0.27, abs=0.035)


def test_noise_is_centred_bounded_and_of_the_stated_size():
    world = ActuatorMaze(noise=0.25)
    state = world.reset(np.arange(100_000))
    state = {**state, "x": state["x"] * 0 + 0.5, "y": state["y"] * 0 + 0.5}
    action = np.full(100_000, (1 << 10) - 1)
    after, _, _ = world.step(state, action)
    dx, dy = world.displacement(action)
    scale = ((after["x"] - 0.5) * dx + (after["y"] - 0.5) * dy) / (dx**2 + dy**2)
    z = (scale - 1) / 0.25
    assert abs(z.mean()) < 5 / 100_000**0.5
    assert z.std() == pytest.approx(1, abs=0.01)
    assert np.abs(z).max() < 12**0.5
    later, _, _ = world.step({**after, "x": state["x"], "y": state["y"]}, action)
    assert abs(np.corrcoef(later["x"], after["x"])[0, 1]) < 0.02  # new noise at each step


def test_starts_are_uniform_and_stay_in_the_room():
    world = ActuatorMaze(k=10, horizon=30)
    state = world.reset(np.arange(5000))
    for name in ("x", "y", "goal_x", "goal_y"):
        assert state[name].mean() == pytest.approx(0.5, abs=0.025)
        assert state[name].std() == pytest.approx(12**-0.5, abs=0.01)
    rng = np.random.default_rng(0)
    low, high = world.reward_range
    for _ in range(30):
        state, rewards, _ = world.step(state, rng.integers(world.n, size=5000))
        assert np.isin(rewards, [low, high]).all()
        assert min(state["x"].min(), state["y"].min()) >= 0
        assert max(state["x"].max(), state["y"].max()) <= 1


def test_good_fraction():
    assert ActuatorMaze(k=12).good_fraction(0.1) == pytest.approx(0.0088, abs=1e-4)
    assert ActuatorMaze(k=20).good_fraction(1.0) == 1
    sampled, exact = ActuatorMaze(k=21).good_fraction(0.5), ActuatorMaze(k=20).good_fraction(0.5)
    assert 0.7 * exact < sampled < exact


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"k": 6}, "k must be an int in"),
        ({"k": 63}, "k must be an int in"),
        ({"k": 20.0}, "k must be an int in"),
        ({"step_size": 0.0}, "step_size must be"),
        ({"radius": 0.0}, "radius must be"),
        ({"noise": 0.5}, "noise must be"),
        ({"horizon": 0}, "horizon must be"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        ActuatorMaze(**kwargs)
