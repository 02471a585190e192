"""DiscreteLQR: its system, its bounds from both sides, and its oracle against brute force."""

import itertools

import numpy as np
import pytest
import torch

from envs.dynamics.discrete_lqr import DiscreteLQR
from envs.dynamics.linear_quadratic import EFFORT, REACH, riccati, system
from envs.dynamics.rollout import rollout, uniform_policy

WORLDS = [
    DiscreteLQR(bins=5),
    DiscreteLQR(bins=11, noise=0.3),
    DiscreteLQR(dims=1, bins=101, states=3, noise=0.1, layout=7),
    DiscreteLQR(dims=3, bins=7, states=4),
    DiscreteLQR(dims=4, bins=3, states=2, layout=1),
    DiscreteLQR(dims=6, bins=11, states=6, horizon=9),
    DiscreteLQR(dims=1, bins=9, states=1),
]
EXTREME = [
    DiscreteLQR(dims=1, bins=3, states=1, noise=1.0, horizon=1),
    DiscreteLQR(dims=16, bins=13, states=16, noise=1.0, layout=2**62 - 1),
    DiscreteLQR(dims=16, bins=3, states=1, layout=5),
    DiscreteLQR(dims=1, bins=2**53 - 1, states=16, noise=1e-9),
]


def points(world, state):
    """The state as rows, ``(B, states)``."""
    return np.stack([state[name] for name in world.names], axis=-1)


def random_state(world, number, seed=0):
    """States of all steps, somewhat further out than episodes start."""
    rng = np.random.default_rng(seed)
    state = world.reset(rng.integers(2**62, size=number))
    state["t"] = rng.integers(world.horizon, size=number)
    return {name: x if name in ("key", "t") else 1.5 * x for name, x in state.items()}


@pytest.mark.parametrize("layout", [0, 1, 2**61])
@pytest.mark.parametrize(("dims", "states"), [(1, 1), (2, 2), (2, 5), (6, 6), (16, 16), (5, 2)])
def test_the_system_is_as_documented(dims, states, layout):
    a, b = system(dims, states, layout)
    np.testing.assert_allclose(a @ a.T, 0.95**2 * np.eye(states), atol=1e-12)
    if states >= dims:
        np.testing.assert_allclose(b.T @ b, 0.2**2 * (0.5 * np.eye(dims) + 0.5), atol=1e-12)
    assert np.linalg.matrix_rank(b) == min(dims, states)
    assert (np.abs(b) > 1e-6).all()
    angles = [np.arctan2(a[i + 1, i], a[i, i]) for i in range(0, states - 1, 2)]
    assert all(0.3 <= angle <= 1.2 for angle in angles)
    assert layout == 0 or not np.allclose(b, system(dims, states, 0)[1]) or (dims, states) == (1, 1)


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_a_step_is_what_the_formulas_say(world):
    a, b = system(world.dims, world.states, world.layout)
    state = random_state(world, 200)
    ids = np.random.default_rng(1).integers(world.n, size=200)
    grid = np.linspace(-REACH, REACH, world.bins)
    u = np.stack([grid[ids // world.bins**i % world.bins] for i in range(world.dims)], axis=-1)
    np.testing.assert_allclose(np.stack(world.inputs(ids), axis=-1), u, atol=1e-14)
    after, rewards, terminated = world.step(state, ids)
    x = points(world, after)
    moved = points(world, state) @ a.T + u @ b.T
    if world.noise == 0:
        np.testing.assert_allclose(x, moved, atol=1e-12)
    else:
        assert np.abs(x - moved).max() < 12**0.5 * world.noise
        assert (x != moved).any()
    cost = (x**2).sum(axis=-1) + EFFORT * (u**2).sum(axis=-1)
    np.testing.assert_allclose(rewards, -cost / world.states, rtol=1e-12)
    assert not terminated.any()
    np.testing.assert_allclose(world.action_features(ids), u / 2, atol=1e-7)


def test_noise_is_new_for_each_component_and_step():
    world = DiscreteLQR(noise=0.25, states=3)
    still = np.full(50_000, world.n // 2)
    state = world.reset(np.arange(50_000))
    a, _ = system(2, 3, 0)
    seen = []
    for _ in range(2):
        after, _, _ = world.step(state, still)
        seen.append(points(world, after) - points(world, state) @ a.T)
        state = after
    noise = np.concatenate([np.concatenate(seen, axis=1), points(world, world.reset(np.arange(50_000)))], 1)
    assert noise[:, :6].std(axis=0) == pytest.approx(0.25, abs=0.005)
    assert np.abs(noise[:, :6].mean(axis=0)).max() < 5 * 0.25 / 50_000**0.5
    assert np.abs(np.corrcoef(noise.T) - np.eye(9)).max() < 0.025  # of the starts as well


@pytest.mark.parametrize(("dims", "states"), [(1, 2), (2, 2), (2, 4), (3, 2)])
def test_optimal_value_is_the_least_squares_optimum(dims, states):
    """Without noise the best real inputs of all steps are one least-squares problem."""
    world = DiscreteLQR(dims=dims, states=states, horizon=5)
    a, b = system(dims, states, 0)
    state = world.reset(np.arange(8))
    for to_go in (1, 2, 5):
        rows = []  # x after each step as a linear function of the start and of all inputs
        power = np.eye(states)
        for step in range(to_go):
            power = a @ power
            blocks = [np.linalg.matrix_power(a, step - s) @ b if s <= step else 0 * b for s in range(to_go)]
            rows.append((power, np.concatenate(blocks, axis=1)))
        matrix = np.concatenate([*(row for _, row in rows), EFFORT**0.5 * np.eye(dims * to_go)])
        starts = np.concatenate([row for row, _ in rows] + [np.zeros((dims * to_go, states))])
        target = -points(world, state) @ starts.T
        inputs = np.linalg.lstsq(matrix, target.T, rcond=None)[0]
        least = ((matrix @ inputs - target.T) ** 2).sum(axis=0)
        here = {**state, "t": state["t"] + 5 - to_go}
        np.testing.assert_allclose(world.optimal_value(here), -least / states, rtol=1e-10)
    assert world.optimal_value({**state, "t": state["t"] + 5}).tolist() == [0.0] * 8


@pytest.mark.parametrize(
    ("world", "gap"),
    [(DiscreteLQR(bins=3, horizon=4), 0.6), (DiscreteLQR(bins=5, states=3, horizon=3), 0.2)],
)
def test_all_sequences_of_actions(world, gap):
    """The costs of the bound, of the best of all sequences and of the oracle are in this order, the last two
    close together."""
    number = 12
    state = world.reset(np.arange(number))
    sequences = np.array(list(itertools.product(range(world.n), repeat=world.horizon)))  # (S, horizon)
    best = np.empty(number)
    for i in range(number):
        one = {name: np.repeat(x[i], len(sequences)) for name, x in state.items()}
        total = 0.0
        for t in range(world.horizon):
            one, rewards, _ = world.step(one, sequences[:, t])
            total = total + rewards
        best[i] = total.max()
    bound, oracle, here = world.optimal_value(state), 0.0, state
    for _ in range(world.horizon):
        here, rewards, _ = world.step(here, world.optimal_action(here))
        oracle = oracle + rewards
    assert (best <= bound + 1e-12).all()
    assert (oracle <= best + 1e-12).all()
    assert best.mean() >= (1 + gap) * bound.mean()
    assert oracle.mean() >= 1.03 * best.mean()


@pytest.mark.parametrize(
    "world",
    [
        DiscreteLQR(bins=63),
        DiscreteLQR(bins=5, states=4),
        DiscreteLQR(dims=1, bins=4095),
        DiscreteLQR(dims=3, bins=15, states=3),
        DiscreteLQR(dims=5, bins=5, states=5),
    ],
    ids=str,
)
def test_oracle_finds_the_best_of_all_actions(world):
    """The one whose next state is worth most by the bound, within 0.2 % on average and mostly exactly."""
    number = 60
    state = random_state(world, number)
    state["t"][:20] = world.horizon - 1  # one step to go: then this is the optimum
    q = np.empty((number, world.n))
    for i in range(number):
        one = {name: np.repeat(x[i], world.n) for name, x in state.items()}
        after, rewards, _ = world.step(one, np.arange(world.n))
        q[i] = rewards + world.optimal_value(after)
    found = q[np.arange(number), world.optimal_action(state)]
    assert (q.max(axis=1) <= world.optimal_value(state) + 1e-12).all()
    assert (found >= q.max(axis=1) - 1e-12).mean() >= 0.9
    assert (found / q.max(axis=1) - 1).mean() < 2e-3


@pytest.mark.parametrize(
    ("kwargs", "oracle", "gap"),
    [
        ({"bins": 5}, -0.963, 0.52),
        ({"bins": 11}, -0.697, 0.099),
        ({"bins": 101}, -0.635, 0.0014),
        ({"bins": 1001}, -0.635, 1.6e-5),
        ({"dims": 1, "bins": 1_000_001}, -0.909, 1e-6),
        ({"dims": 3, "states": 3}, -0.689, 1.5e-5),
        ({"dims": 6, "states": 6, "bins": 11}, -0.797, 0.079),
        ({"states": 4}, -1.066, 2.7e-4),
    ],
)
def test_the_sandwich_is_as_tight_as_documented(kwargs, oracle, gap):
    world = DiscreteLQR(**kwargs)
    bound = world.optimal_value(world.reset(np.random.default_rng(0).integers(2**62, size=4000)))
    returns, _ = rollout(world, world.optimal_action, 4000)
    assert (returns <= bound + 1e-12).all()  # without noise, of every episode
    assert returns.mean() / bound.mean() - 1 <= 1.15 * gap
    assert returns.mean() / bound.mean() - 1 >= 0.85 * gap or gap == 1e-6
    error = 5 * returns.std() / 4000**0.5
    assert returns.mean() == pytest.approx(oracle, abs=error + 5e-4)
    assert bound.mean() == pytest.approx(world.return_bound(), abs=error)
    still, _ = rollout(world, lambda state: np.full(4000, world.n // 2), 4000)
    assert still.mean() < 2.4 * returns.mean()  # doing nothing costs much more


@pytest.mark.parametrize("states", [2, 3])
def test_the_bound_counts_the_noise(states):
    world = DiscreteLQR(noise=0.3, states=states, bins=10_001)
    returns, _ = rollout(world, world.optimal_action, 20_000)
    assert abs(returns.mean() - world.return_bound()) < 5 * returns.std() / 20_000**0.5
    silent = DiscreteLQR(states=states, bins=10_001)
    assert world.return_bound() < 2 * silent.return_bound()


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_random_play_earns_what_it_should(world):
    returns, lengths = rollout(world, uniform_policy(world), 6000)
    assert abs(returns.mean() - world.random_return()) < 5 * returns.std() / 6000**0.5
    assert (lengths == world.horizon).all()


@pytest.mark.parametrize("world", [*WORLDS, *EXTREME], ids=str)
def test_bounds_hold_and_can_be_reached(world, monkeypatch):
    """For each component, the start, the inputs and the noise that push it furthest."""
    a, b = system(world.dims, world.states, world.layout)
    powers = np.stack([np.linalg.matrix_power(a, s) for s in range(201)])
    for i in range(world.states):
        start, noise = np.abs(powers[:, i]).sum(-1), 12**0.5 * world.noise * np.abs(powers[:, i]).sum(-1)
        more = np.cumsum(REACH * np.abs(powers[:, i] @ b).sum(-1) + noise)  # by pushes in 1, 2, .. steps
        reach = start[1:] + more[:-1]
        steps = 1 + int(reach.argmax())
        pushes = powers[steps::-1, i].ravel()  # of the start, then of the noise
        words = np.where(pushes > 0, 2**32 - 1, 0)
        monkeypatch.setattr("envs.dynamics.discrete_lqr.draw", lambda h, place, words=words: words[place])
        state, low = world.reset(np.arange(1)), 0.0
        for power in powers[steps - 1 :: -1]:
            digits = np.where((power @ b)[i] > 0, world.bins - 1, 0).tolist()
            action = sum(digit * world.bins**j for j, digit in enumerate(digits))
            state, rewards, _ = world.step(state, np.array([action]))
            low = min(low, rewards[0])
            assert (np.abs(world.observe(state)) <= world.high).all()
        assert world.reward_range[0] <= low
        assert reach.max() >= 1  # or it starts as far out as it gets
        assert state[f"x{i}"][0] == pytest.approx(world.high[i], rel=5e-3)  # noise ends at 3.45, not at 3.46
    assert world.reward_range[1] == 0
    np.testing.assert_array_equal(world.low, -world.high)


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_backends_agree_to_the_last_bit(world, side_by_side):
    rng, games = np.random.default_rng(1), side_by_side(world, 4)
    for _ in range(world.horizon):
        games.same(world.optimal_action)
        games.same(world.optimal_value, rtol=1e-12)
        ids = rng.integers(world.n, size=4)
        games.step(ids)
    games.check_features(ids)


@pytest.mark.parametrize(("dims", "bins"), [(1, 2**53 - 1), (2, 2**31 - 1), (3, 1001), (16, 13), (6, 1289)])
def test_large_ids_decode(dims, bins):
    world = DiscreteLQR(dims=dims, bins=bins)
    n = bins**dims
    assert world.n == n
    ids = [0, 1, n - 1, n // 2, *(i for i in (2**31 - 1, 2**31, 2**31 + 1, 2**61 + 12345) if i < n)]
    for made in (np.array(ids), torch.tensor(ids)):
        inputs = [np.asarray(u) for u in world.inputs(made)]
        for place, i in enumerate(ids):
            exact = [4 * (i // bins**j % bins) / (bins - 1) - 2 for j in range(dims)]
            np.testing.assert_allclose([u[place] for u in inputs], exact, atol=1e-15)
            assert world.inputs(i) == [u[place] for u in inputs]
    np.testing.assert_allclose([u[0] for u in world.inputs(np.array(ids))], -2, rtol=1e-15)
    np.testing.assert_allclose([u[2] for u in world.inputs(np.array(ids))], 2, rtol=1e-15)
    assert [u[3] for u in world.inputs(np.array(ids))] == [0.0] * dims  # exactly
    state = world.reset(np.arange(3))
    action = world.optimal_action(state)
    assert ((action >= 0) & (action < n)).all()
    _, rewards, _ = world.step(state, action)
    assert (rewards > world.step(state, action * 0)[1]).all()


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_good_fraction_counts(eps):
    world = DiscreteLQR(bins=21)
    u = np.stack(world.inputs(np.arange(world.n)))
    assert world.good_fraction(eps) == pytest.approx((np.abs(u) <= 4 * eps + 1e-9).all(axis=0).mean())


def test_gains_move_the_inputs_out_of_their_range_seldom():
    for kwargs, most in (({}, 0.0), ({"dims": 6, "states": 6}, 0.01), ({"states": 4}, 0.05)):
        world = DiscreteLQR(**kwargs)
        _, gain, _, _ = riccati(world.dims, world.states, 0, 0.0, world.horizon)
        x = points(world, world.reset(np.arange(10_000)))
        assert (np.abs(x @ gain[-1].T) > REACH).any(axis=1).mean() <= most


@pytest.mark.slow
def test_a_compiled_step_is_the_same():
    world = DiscreteLQR(noise=0.1, states=3)
    keys, ids = torch.arange(64), torch.randint(world.n, (64,))
    state = world.reset(keys)
    eager = world.step(state, ids)
    compiled = torch.compile(world.step, fullgraph=True)(state, ids)
    for name, x in eager[0].items():
        torch.testing.assert_close(compiled[0][name], x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compiled[1], eager[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"dims": 0}, "dims must be an int in"),
        ({"dims": 17}, "dims must be an int in"),
        ({"bins": 1}, "bins must be an int in"),
        ({"bins": 1000}, "999 or 1001 instead of 1000"),
        ({"bins": 1001.0}, "bins must be an int in"),
        ({"bins": 2**53 + 1, "dims": 1}, "bins must be an int in"),
        ({"bins": 1291, "dims": 6}, "bins at most 1289 for dims=6"),
        ({"states": 0}, "states must be an int in"),
        ({"noise": -0.1}, "noise must be a number in"),
        ({"noise": float("nan")}, "noise must be a number in"),
        ({"horizon": 0}, "horizon must be an int in"),
        ({"layout": -1}, "layout must be an int in"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        DiscreteLQR(**kwargs)
