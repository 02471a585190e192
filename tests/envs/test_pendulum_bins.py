"""PendulumBins: gymnasium's physics, the bound against brute force, and the oracle."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch

from envs.dynamics.pendulum_bins import PendulumBins
from envs.dynamics.pendulum_grid import (
    ANGLE_UNIT,
    CELL,
    CELLS,
    FASTEST,
    GRAVITY,
    HARDEST,
    MIDDLE,
    PULLS,
    SPEED_UNIT,
    STRIDE,
    TURN,
    WIDE,
    WORST,
    bounds,
    pulls,
    reached,
    values,
)
from envs.dynamics.rollout import rollout, uniform_policy


def anywhere(world, number, seed=0):
    """States from all over the state space."""
    rng = np.random.default_rng(seed)
    state = world.reset(rng.integers(2**62, size=number))
    velocity = rng.integers(-5 * 10**9, 5 * 10**9, number)
    return {
        **state,
        "angle": rng.integers(TURN, size=number),
        "velocity": np.clip(velocity, -FASTEST, FASTEST),  # some at the ends
    }


def in_radians(state):
    """The angle in [-pi, pi) and the velocity in rad/s."""
    angle = np.where(state["angle"] < TURN // 2, state["angle"], state["angle"] - TURN)
    return np.array([angle * (2 * np.pi / 2**32), state["velocity"] * (2 * np.pi / 2**32 / 0.05 / 16)])


def play(world, state, policy, steps):
    """The state and the sum of the rewards after some steps."""
    total = 0.0
    for _ in range(steps):
        state, rewards, _ = world.step(state, policy(state))
        total = total + rewards
    return state, total


@pytest.mark.parametrize("n", [2, 9, 1_000_001])
def test_steps_are_those_of_pendulum_v1(n):
    world, theirs = PendulumBins(n=n), gym.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    rng = np.random.default_rng(0)
    starts = [anywhere(world, 20), world.reset(np.arange(20))]
    for i, start in itertools.product(range(20), starts):
        state = {name: x[i].item() for name, x in start.items()}
        for _ in range(60):
            theirs.state = in_radians(state)
            action = int(rng.integers(n))
            observation, reward, *_ = theirs.step(np.array([world.torque(action)]))
            state, ours, terminated = world.step(state, action)
            after = in_radians(state)
            assert abs(np.sin((after[0] - theirs.state[0]) / 2)) < 2e-9  # half the distance on the circle
            assert abs(after[1] - theirs.state[1]) < 2e-8
            assert ours == pytest.approx(reward / 16.2736044, abs=1e-8)
            np.testing.assert_allclose(world.observe(state), observation, atol=1e-6)
            assert not terminated


def test_steps_of_the_oracle_are_those_of_pendulum_v1():
    """All of an episode, from the same state at every step: upright, what is not corrected grows."""
    world, theirs = PendulumBins(), gym.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    state = world.reset(3)
    for _ in range(world.horizon):
        theirs.state = in_radians(state)
        action = world.optimal_action(state)
        observation, reward, *_ = theirs.step(np.array([world.torque(action)]))
        state, ours, _ = world.step(state, action)
        assert ours == pytest.approx(reward / 16.2736044, abs=1e-8)
        np.testing.assert_allclose(world.observe(state), observation, atol=1e-6)
    assert ours > -1e-3  # it stands


def test_starts_and_bounds():
    world = PendulumBins()
    state = world.reset(np.arange(20_000))
    assert state["angle"].dtype == state["velocity"].dtype == np.int64
    assert len(np.unique(state["velocity"])) > 19_990  # not from a coarser lattice
    for x, furthest in zip(in_radians(state), (np.pi, 1.0), strict=True):
        assert 0.999 * furthest < np.abs(x).max() <= furthest
        assert x.mean() == pytest.approx(0, abs=5 * furthest / 60_000**0.5)
        assert x.std() == pytest.approx(furthest / 3**0.5, rel=0.02)
    assert abs(np.corrcoef(in_radians(state))[0, 1]) < 0.04
    state = anywhere(world, 2000)
    state["angle"][:4] = [TURN // 2, TURN // 2 - 1, TURN // 2, TURN // 2 - 1]
    state["velocity"][:4] = [FASTEST, FASTEST, -FASTEST, -FASTEST]
    for step in range(30):
        observation = world.observe(state)
        assert ((observation >= world.low) & (observation <= world.high)).all()
        state, rewards, _ = world.step(state, np.full(2000, [0, world.n - 1][step % 2]))
        assert rewards.min() >= -1.0
        assert rewards.max() <= 0.0
        assert (state["angle"] & (TURN - 1) == state["angle"]).all()
        assert np.abs(state["velocity"]).max() <= FASTEST
        assert step > 0 or rewards.min() < -1 + 1e-9
    assert 8 - SPEED_UNIT < FASTEST * SPEED_UNIT <= 8


@pytest.mark.parametrize("n", [2, 3, 4, 50, 1_000_001, 1_000_000_001, 2**31 + 1, 2**53 - 1, 2**53])
def test_torques_are_even_with_both_ends(n):
    world = PendulumBins(n=n)
    ids = [i for i in (0, 1, n - 1, n // 2, 2**31 - 1, 2**31, 2**31 + 1) if i < n]
    exact = [4 * i / (n - 1) - 2 for i in ids]
    for torques in (
        world.torque(np.array(ids)),
        world.torque(torch.tensor(ids)).numpy(),
        np.array([world.torque(i) for i in ids]),
    ):
        np.testing.assert_allclose(torques, exact, atol=1e-15)
        assert torques[0] == -2
        assert torques[2] == 2
        assert n % 2 == 0 or torques[3] == 0
    assert world.torque(0) < world.torque(1)
    np.testing.assert_allclose(world.action_features(np.array(ids))[:, 0], np.array(exact) / 2, atol=1e-7)
    _, reward, _ = world.step(world.reset(1), world.optimal_action(world.reset(1)))
    assert reward < 0


def test_gravity_is_a_sine():
    table = pulls()
    assert (table[0], table[PULLS // 4], table[PULLS]) == (0, round(GRAVITY / SPEED_UNIT), 0)
    exact = GRAVITY / SPEED_UNIT * np.sin(2 * np.pi / PULLS * np.arange(PULLS + 1))
    # No entry is close to a half: a sine that differs in its last bits gives the same integers
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-5
    world = PendulumBins(n=3)
    state = anywhere(world, 200_000)
    state = {**state, "velocity": state["velocity"] * 0}
    after, _, _ = world.step(state, np.ones(200_000, dtype=np.int64))  # torque 0
    pull = GRAVITY * np.sin(state["angle"] * ANGLE_UNIT)
    assert np.abs(after["velocity"] * SPEED_UNIT - pull).max() < 1.8e-8


def cells(state):
    """By floats: the angle from -pi on in cells of 2 pi / 2048, the velocity in cells of that by 0.05 s."""
    theta, velocity = in_radians(state)
    i = np.floor((theta + np.pi) / (2 * np.pi / CELLS)).astype(int)
    return i, np.floor(velocity / (2 * np.pi / CELLS / 0.05)).astype(int) + MIDDLE


@pytest.mark.parametrize("torque", ["least", "most", "any"])
def test_a_step_leads_to_the_cells_that_the_proof_says(torque):
    world, (first, last) = PendulumBins(), reached()
    before = anywhere(world, 200_000)
    rng = np.random.default_rng(1)
    # Some where gravity is largest, and some at the corners of cells, or one unit beside
    before["angle"][:50_000] = (rng.integers(-3 * CELL, 3 * CELL, 50_000) + TURN // 4) % (TURN // 2)
    before["angle"][:25_000] += TURN // 2
    i, j = rng.integers(CELLS, size=50_000), rng.integers(2 - MIDDLE, MIDDLE - 2, 50_000)
    before["angle"][50_000:100_000] = (i * CELL - rng.integers(2, size=50_000)) % TURN
    before["velocity"][50_000:100_000] = j * WIDE - rng.integers(2, size=50_000)
    ids = {"least": np.zeros(200_000, dtype=int), "most": np.full(200_000, world.n - 1)}
    actions = ids.get(torque, np.random.default_rng(2).integers(world.n, size=200_000))
    after, _, _ = world.step(before, actions)
    i, j = cells(after)
    here = cells(before)
    assert ((first[here] <= j) & (j <= last[here])).all()
    assert np.isin((i - here[0] - (j - MIDDLE)) % CELLS, [0, 1]).all()
    assert (last - first).max() <= 2 * HARDEST / WIDE + 3  # and to few others


@pytest.mark.parametrize("policy", ["oracle", "random"])
def test_bounds_grow_as_the_dynamic_programme_says(policy):
    """From anywhere, ten steps of any torques cost at least what the bound shrinks by."""
    world, tables = PendulumBins(), bounds()
    before = anywhere(world, 20_000, seed=1)
    act = world.optimal_action if policy == "oracle" else uniform_policy(world)
    after, rewards = play(world, before, act, STRIDE)

    for m in (1, 2, 5, len(tables) - 1):
        least, left = tables[m][cells(before)], tables[m - 1][cells(after)]
        assert (least <= -rewards * WORST + left + 1e-4).all()
    assert (tables[0] == 0).all()
    assert (np.diff(tables, axis=0) >= 0).all()  # more steps never cost less


def test_bound_against_all_sequences_of_torques():
    world = PendulumBins(n=3, horizon=10)
    start = {name: x[:12] for name, x in anywhere(world, 12, seed=2).items()}
    sequences = np.array(list(itertools.product(range(3), repeat=10)))
    best = np.empty(12)
    for i in range(12):
        state, total = {name: np.repeat(x[i], len(sequences)) for name, x in start.items()}, 0.0
        for t in range(10):
            state, rewards, _ = world.step(state, sequences[:, t])
            total = total + rewards
        best[i] = total.max()
    bound = world.optimal_value(start)
    assert bound.dtype == np.float64
    assert (best <= bound + 1e-9).all()
    assert best.sum() >= 1.1 * bound.sum()  # not far from it
    _, oracle = play(world, start, world.optimal_action, 10)
    assert (oracle <= best + 1e-12).all()
    assert oracle.sum() >= 1.01 * best.sum()


def test_bound_holds_along_episodes():
    world = PendulumBins()
    state, expected, rewards = anywhere(world, 500, seed=3), [], []
    for _ in range(world.horizon):
        expected.append(world.optimal_value(state))
        state, reward, _ = world.step(state, world.optimal_action(state))
        rewards.append(reward)
    to_come = np.cumsum(rewards[::-1], axis=0)[::-1]
    assert (to_come <= np.array(expected) + 1e-9).all()


@pytest.mark.parametrize("t", [200, 201, 500])
def test_nothing_is_left_at_the_end(t):
    world = PendulumBins()
    state = {**anywhere(world, 500), "t": np.full(500, t)}
    one = {name: x[0].item() for name, x in state.items()}
    tensors = {name: torch.tensor(x) for name, x in state.items()}
    for value in (world.optimal_value(state), world.optimal_value(tensors), [world.optimal_value(one)]):
        assert (np.asarray(value) == 0.0).all()
    for action in (world.optimal_action(state), world.optimal_action(tensors), world.optimal_action(one)):
        assert (np.asarray(action) == world.n // 2).all()


@pytest.mark.parametrize(("n", "oracle"), [(2, -8.58), (5, -8.50), (11, -8.49), (1_000_001, -8.49)])
def test_oracle_and_bound_are_as_documented(n, oracle):
    world = PendulumBins(n=n)
    returns, lengths = rollout(world, world.optimal_action, 500, seed=4)
    starts = world.reset(np.random.default_rng(4).integers(2**62, size=500))
    error = 5 * returns.std() / 500**0.5
    assert returns.mean() == pytest.approx(oracle, abs=error)
    bound = world.optimal_value(starts)
    assert bound.mean() == pytest.approx(-7.64, abs=error)
    assert (returns <= bound + 1e-9).all()
    assert 1.08 < returns.mean() / bound.mean() < 1.15
    assert (lengths == 200).all()


def test_the_last_torque_is_none():
    """It changes no reward but its own."""
    world = PendulumBins(horizon=7)
    state = anywhere(world, 50)
    assert (world.optimal_action({**state, "t": state["t"] + 6}) == world.n // 2).all()
    assert (world.optimal_action({**state, "t": state["t"] + 4}) != world.n // 2).any()


def test_random_play_and_no_torque_are_as_documented():
    world = PendulumBins()
    for policy, documented in (
        (uniform_policy(world), -75.53),
        (lambda state: np.full(2000, world.n // 2), -74.92),
    ):
        returns, _ = rollout(world, policy, 2000, seed=5)
        assert returns.mean() == pytest.approx(documented, abs=5 * returns.std() / 2000**0.5)


def test_values_are_close_to_what_the_oracle_gets():
    table = values()
    assert (table[0] == 0).all()
    # At the bottom at rest, and upright at rest: (angle, speed) = (-pi, 0) and (0, 0)
    world = PendulumBins()
    state = world.reset(np.zeros(2, dtype=np.int64))
    state = {**state, "angle": np.array([TURN // 2, 0]), "velocity": state["t"], "t": state["t"] + 100}
    _, total = play(world, state, world.optimal_action, 100)
    middle = table.shape[2] // 2
    estimate = table[100, [0, table.shape[1] // 2], middle]
    np.testing.assert_allclose(-total * WORST, estimate, rtol=0.02, atol=0.01)


def test_backends_agree():
    world = PendulumBins()
    rng = np.random.default_rng(0)
    keys = rng.integers(2**62, size=5)
    a, t, s = world.reset(keys), world.reset(torch.tensor(keys)), [world.reset(int(key)) for key in keys]
    for step in range(100):
        oracle = world.optimal_action(a)
        tensor = {name: torch.tensor(x) for name, x in a.items()}
        assert world.optimal_action(tensor).tolist() == oracle.tolist()
        one = {name: x[0].item() for name, x in a.items()}
        assert world.optimal_action(one) == oracle[0]
        assert world.optimal_value(tensor).tolist() == world.optimal_value(a).tolist()
        assert world.optimal_value(one) == world.optimal_value(a)[0]
        ids = oracle if step % 2 else rng.integers(world.n, size=5)
        kept, before = {name: x.copy() for name, x in a.items()}, a
        a, rewards, terminated = world.step(a, ids)
        assert all(np.array_equal(kept[name], before[name]) for name in kept)
        t, tensor_rewards, tensor_terminated = world.step(t, torch.tensor(ids))
        stepped = [world.step(one, int(i)) for one, i in zip(s, ids, strict=True)]
        s = [one[0] for one in stepped]
        assert rewards.dtype == np.float64
        np.testing.assert_allclose(rewards, tensor_rewards.numpy(), atol=1e-15)
        np.testing.assert_allclose(rewards, [one[1] for one in stepped], atol=1e-15)
        assert terminated.tolist() == tensor_terminated.tolist() == [one[2] for one in stepped]
        for name in a:
            assert a[name].tolist() == t[name].tolist() == [one[name] for one in s]
            assert a[name].dtype == np.int64
            assert t[name].dtype == torch.int64
            assert all(type(one[name]) is int for one in s)
        observation = world.observe(a)
        assert observation.dtype == np.float32
        np.testing.assert_allclose(observation, world.observe(t).numpy(), atol=1e-7)
        np.testing.assert_allclose(observation, np.stack([world.observe(one) for one in s]), atol=1e-7)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("n", [3, 21, 1001])
def test_good_fraction_counts(n, eps):
    world = PendulumBins(n=n)
    torques = world.torque(np.arange(n))
    assert world.good_fraction(eps) == pytest.approx((np.abs(torques) <= 4 * eps + 1e-9).mean())


@pytest.mark.parametrize("backend", ["torch", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("n", [2, 1_000_001])
def test_an_episode_of_the_oracle_is_the_same_to_the_last_bit(n, backend):
    """Upright, a difference in the last bit grows by many powers of ten within an episode."""
    world = PendulumBins(n=n)
    keys = np.random.default_rng(6).integers(2**62, size=300)
    a, t, one = world.reset(keys), world.reset(torch.tensor(keys)), world.reset(int(keys[0]))
    step = world.step
    if backend == "compiled":
        step(t, t["t"])
        step = torch.compile(step, fullgraph=True)
    for _ in range(world.horizon):
        ids = world.optimal_action(a)
        a, rewards, _ = world.step(a, ids)
        t, tensor_rewards, _ = step(t, torch.tensor(ids))
        one, reward, _ = world.step(one, int(ids[0]))
        for name, x in a.items():
            assert (x == t[name].numpy()).all()
            assert one[name] == x[0]
        single = rewards.astype(np.float32)
        np.testing.assert_array_max_ulp(single, tensor_rewards.to(torch.float32).numpy(), maxulp=1)
        np.testing.assert_array_max_ulp(single[0], np.float32(reward), maxulp=1)
    assert np.median(rewards) > -1e-3  # they stand


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"n": 1}, "n must be an int in"),
        ({"n": 2**53 + 1}, "n must be an int in"),
        ({"n": 1e6}, "n must be an int in"),
        ({"horizon": 0}, "horizon must be an int in"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        PendulumBins(**kwargs)
