"""DiagonalGrid against a plain grid, value iteration over all its cells, and its closed forms."""

from itertools import product
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from envs.dynamics.diagonal_grid import DiagonalGrid
from envs.dynamics.rollout import rollout, uniform_policy

SMALL = [
    DiagonalGrid(dims=2, side=4, horizon=9),
    DiagonalGrid(dims=3, side=5, horizon=12),
    DiagonalGrid(dims=3, side=3, horizon=2),  # the goal is too far
    DiagonalGrid(dims=4, side=3, horizon=7),
    DiagonalGrid(dims=5, side=2, horizon=4),
    DiagonalGrid(dims=1, side=8, horizon=20),
    DiagonalGrid(dims=6, side=2, horizon=3),
]
LARGE = [
    DiagonalGrid(),
    DiagonalGrid(dims=15, side=8),
    DiagonalGrid(dims=20, side=3),
    DiagonalGrid(dims=7, side=6, pits=0.3, layout=2**62 - 1),
    DiagonalGrid(dims=16, pits=0.1, layout=3),
]


def pack(left):
    """Packed cells ``(B,)`` of the cells that are left in each dimension, ``(B, dims)``."""
    return (left << 3 * np.arange(left.shape[-1])).sum(-1)


def unpack(away, dims):
    return away[:, None] >> 3 * np.arange(dims) & 7


def all_cells(world):
    """What is left in each dimension, for every cell, the first one fastest: ``(side^dims, dims)``."""
    return np.array(list(product(range(world.side), repeat=world.dims)))[:, ::-1]


def state_at(away, t):
    return {"key": away * 0, "t": away * 0 + t, "away": away}


def by_hand(world, left, actions):
    """The step as the docstring tells it, on positions: what is left after, rewards, ends."""
    x = world.side - 1 - left
    bits = actions[:, None] >> np.arange(2 * world.dims) & 1
    x = np.clip(x + bits[:, 0::2] - bits[:, 1::2], 0, world.side - 1)
    left = world.side - 1 - x
    distance = np.sqrt((left**2).sum(-1))
    goal, pit = distance == 0, np.zeros(len(left), dtype=bool)
    if world.pits > 0:
        pit = world.is_pit(pack(left))
    rewards = np.where(goal, 10.0, -distance)
    rewards = np.where(pit, -10.0 * world.dims**0.5 * (world.side - 1), rewards)
    return left, rewards, goal | pit


@pytest.mark.parametrize("world", [*SMALL, *LARGE], ids=str)
def test_steps_are_those_of_a_plain_grid(world):
    rng = np.random.default_rng(0)
    left = rng.integers(world.side, size=(2000, world.dims))
    actions = rng.integers(world.n, size=2000)
    actions[:2] = 0, world.n - 1
    state = state_at(pack(left), 3)
    kept = {name: value.copy() for name, value in state.items()}
    after, rewards, ends = world.step(state, actions)
    expected, expected_rewards, expected_ends = by_hand(world, left, actions)
    assert all(np.array_equal(kept[name], state[name]) for name in kept)
    np.testing.assert_array_equal(unpack(after["away"], world.dims), expected)
    np.testing.assert_allclose(rewards, expected_rewards, rtol=1e-14)
    np.testing.assert_array_equal(ends, expected_ends)
    assert (after["t"] == 4).all()
    observation = world.observe(after)
    assert observation.dtype == np.float32
    np.testing.assert_allclose(observation, 1 - 2 * expected / (world.side - 1), atol=1e-6)
    low, high = world.reward_range
    assert low <= rewards.min() <= rewards.max() <= high
    assert (np.abs(observation) <= 1).all()


def test_reward_bounds_are_met():
    for world in (*SMALL, DiagonalGrid(dims=3, pits=0.4, horizon=60)):
        rewards = [world.pay(pack(all_cells(world)))]
        if world.pits > 0:
            rewards.append(world.step(*_every_step(world))[1])
        rewards = np.concatenate(rewards)
        assert (rewards.min(), rewards.max()) == world.reward_range


@pytest.mark.parametrize("pits", [0.0, 0.999])
def test_reward_bounds_are_the_least_rewards_of_all_sizes(pits):
    for dims, side in product(range(1, 21), range(2, 9)):
        world = DiagonalGrid(dims, side, pits)
        state = world.reset(0)
        rewards = [world.step(state, action)[1] for action in (0, world.n // 3)]  # stay, and the diagonal
        if pits == 0 or dims == 1:  # stay at the start, where it is furthest
            assert rewards[0] == -np.sqrt(dims * (side - 1) ** 2) == DiagonalGrid(dims, side).reward_range[0]
        assert world.reward_range[0] <= min(rewards)
        assert max(rewards) <= world.reward_range[1] == 10
        assert (np.abs([world.observe(state), world.observe({**state, "away": 0})]) <= 1).all()


def _every_step(world):
    """Every cell with every action: a state ``(cells n,)`` and the ids."""
    away = pack(all_cells(world))
    return state_at(np.repeat(away, world.n), 0), np.tile(np.arange(world.n), len(away))


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_optimum_is_that_of_value_iteration_from_every_cell(world):
    away = pack(all_cells(world))
    place = {cell: i for i, cell in enumerate(away.tolist())}
    state, ids = _every_step(world)
    after, rewards, ends = world.step(state, ids)
    then = np.array([place[cell] for cell in after["away"].tolist()])
    values, over = np.zeros(len(away)), away == 0
    for t in reversed(range(world.horizon)):
        q = (rewards + np.where(ends, 0.0, values[then])).reshape(-1, world.n)
        values = np.where(over, 0.0, q.max(axis=1))
        here = state_at(away, t)
        np.testing.assert_allclose(world.optimal_value(here), values, atol=1e-10)
        q_star = world.q_star({**state, "t": state["t"] + t}, ids).reshape(-1, world.n)
        np.testing.assert_allclose(q_star[~over], q[~over], atol=1e-10)
        best = q[np.arange(len(away)), world.optimal_action(here)]
        np.testing.assert_allclose(best[~over], values[~over], atol=1e-10)
        regret = world.regret(here, world.optimal_action(here))
        np.testing.assert_allclose(regret[~over], 0.0, atol=1e-10)
    assert world.exact
    assert world.optimal_return() == pytest.approx(values[-1])


@pytest.mark.parametrize("dims", [1, 10, 15, 20])
@pytest.mark.parametrize("side", [2, 5, 8])
def test_optimal_return_has_the_closed_form(dims, side):
    world = DiagonalGrid(dims=dims, side=side)
    expected = 10 - dims**0.5 * sum(range(1, side - 1))
    assert world.optimal_return() == pytest.approx(expected)
    returns, lengths = rollout(world, world.optimal_action, 2)
    assert returns == pytest.approx([expected] * 2)
    assert lengths.tolist() == [side - 1] * 2


@pytest.mark.parametrize(
    "world", [DiagonalGrid(), *SMALL[:2], DiagonalGrid(dims=2, side=3), DiagonalGrid(dims=1, side=2)], ids=str
)
def test_random_return_equals_monte_carlo(world):
    returns, _ = rollout(world, uniform_policy(world), 4000, seed=1)
    assert abs(returns.mean() - world.random_return()) < 5 * returns.std() / 4000**0.5
    assert world.random_value() == world.random_return()


@pytest.mark.parametrize("world", SMALL[:5], ids=str)
def test_random_return_is_that_of_value_iteration(world):
    away = pack(all_cells(world))
    place = {cell: i for i, cell in enumerate(away.tolist())}
    after, rewards, ends = world.step(*_every_step(world))
    then = np.array([place[cell] for cell in after["away"].tolist()])
    values = np.zeros(len(away))
    for _ in range(world.horizon):
        values = (rewards + np.where(ends, 0.0, values[then])).reshape(-1, world.n).mean(axis=1)
    assert world.random_return() == pytest.approx(values[-1], abs=1e-10)


def plan(world):
    """Values of every cell with pits, by value iteration over the net moves, for horizon .. 0 steps."""
    cells = all_cells(world)
    away, places = pack(cells), world.side ** np.arange(world.dims)
    pit = world.is_pit(away)
    pay = np.where(pit, world.reward_range[0], world.pay(away))
    over = pit | (away == 0)
    moves = product([-1, 0, 1], repeat=world.dims)
    then = np.stack([np.clip(cells + move, 0, world.side - 1) @ places for move in moves])
    values = [np.zeros(len(away))]
    for _ in range(world.horizon):
        q = pay + np.where(over, 0.0, values[-1])
        values.append(np.where(over, 0.0, q[then].max(axis=0)))
    return away, over, values


@pytest.mark.parametrize(("dims", "side", "horizon"), [(2, 5, 20), (3, 4, 12), (4, 4, 8), (4, 4, 3)])
@pytest.mark.parametrize("pits", [0.1, 0.3, 0.7])
def test_with_pits_the_optimum_is_bounded_and_found(dims, side, horizon, pits):
    for layout in range(4):
        world = DiagonalGrid(dims, side, pits, horizon, layout)
        away, over, values = plan(world)
        assert not world.exact
        assert world.random_return() is None
        assert world.optimal_return() == pytest.approx(values[-1][-1], abs=1e-9)
        returns, _ = rollout(world, world.optimal_action, 1)
        assert returns[0] <= values[-1][-1] + 1e-9
        for t in range(horizon):
            bound = world.optimal_value(state_at(away, t))
            assert (bound[~over] >= values[horizon - t][~over] - 1e-9).all()


def test_with_pits_the_policy_is_near_the_best_at_a_million_actions():
    gaps, detours = [], 0
    for layout in range(8):
        world = DiagonalGrid(pits=0.3, layout=layout)
        (value,), (length,) = rollout(world, world.optimal_action, 1)
        best = world.optimal_return()
        assert best <= world.optimal_value(world.reset(0))
        gaps.append(best - value)
        detours += length > 4
    assert detours >= 2  # in some layouts the diagonal is blocked
    assert min(gaps) >= -1e-9
    assert np.mean(gaps) < 0.4


def test_the_policy_looks_two_steps_ahead_past_pits():
    """By hand, over positions: the best of the moves that differ from the straight one in one dimension."""
    world = DiagonalGrid(dims=3, side=4, pits=0.4, horizon=50)

    def look(left, depth):
        options = []
        for i in range(-1, 3):
            after = np.maximum(left - 1, 0)
            if i >= 0:
                after[i] += 1
            cell = pack(after[None])
            if world.is_pit(cell)[0]:
                options.append((world.reward_range[0], after))
            elif (after == 0).all():
                options.append((10.0, after))
            else:
                more = look(after, depth - 1)[0] if depth > 1 else world.optimal_value(state_at(cell, 0))[0]
                options.append((-np.sqrt((after**2).sum()) + more, after))
        return max(options, key=lambda option: option[0])

    cells = all_cells(world)
    cells = cells[~world.is_pit(pack(cells)) & (cells.sum(-1) > 0)]
    state = state_at(pack(cells), 0)
    after, _, _ = world.step(state, world.optimal_action(state))
    for left, found in zip(cells, unpack(after["away"], 3), strict=True):
        value, best = look(left, 2)
        if found.tolist() != best.tolist():  # two may be equally good
            assert not world.is_pit(pack(found[None]))[0]
            assert value == pytest.approx(-np.sqrt((found**2).sum()) + look(found, 1)[0])


def test_the_best_may_be_to_end_in_a_pit():
    world = DiagonalGrid(dims=8, pits=0.999)  # the way along the edges costs more
    state, along_edges = world.reset(0), 0.0
    for i in range(32):
        state, reward, _ = world.step(state, 1 << 2 * (i // 4))
        along_edges += reward
    assert along_edges < world.reward_range[0]
    assert world.optimal_return() == pytest.approx(world.reward_range[0])


def test_the_search_gives_up_where_it_would_be_long():
    assert DiagonalGrid(dims=13, pits=0.1).optimal_return() is None
    world = DiagonalGrid(pits=0.1)
    with pytest.raises(NotImplementedError, match="not known exactly"):
        world.q_star(world.reset(0), 0)


@pytest.mark.parametrize("pits", [0.05, 0.3, 0.99])
def test_pits_are_as_many_as_they_should_be_and_leave_a_way(pits):
    world = DiagonalGrid(dims=6, side=6, pits=pits)
    cells = all_cells(world)
    pit = world.is_pit(pack(cells))
    spread = (pits * (1 - pits) / len(cells)) ** 0.5
    assert pit.mean() == pytest.approx(pits, abs=5 * spread + 31 / len(cells))
    state = world.reset(0)  # one dimension after the other, the first one first
    for i in range(world.dims):
        for _ in range(world.side - 1):
            assert not world.is_pit(state["away"])
            state, reward, terminated = world.step(state, 1 << 2 * i)
            assert reward > world.reward_range[0]
    assert state["away"] == 0
    assert terminated
    assert reward == 10
    x = world.side - 1 - cells
    on_edges = np.array([(row[1:][row[:-1] < world.side - 1] == 0).all() for row in x])
    assert on_edges.sum() == world.dims * (world.side - 1) + 1
    assert not pit[on_edges].any()
    other = DiagonalGrid(dims=6, side=6, pits=pits, layout=1).is_pit(pack(cells))
    assert abs(np.corrcoef(pit[~on_edges], other[~on_edges])[0, 1]) < 5 / len(cells) ** 0.5


@pytest.mark.parametrize("world", [*SMALL[:3], *LARGE], ids=str)
def test_backends_agree(world, side_by_side):
    rng, games = np.random.default_rng(1), side_by_side(world, 5)
    for step in range(30):
        if step % 10 == 0 or world.pits == 0:
            games.same(world.optimal_action)
        games.same(world.optimal_value, rtol=1e-14)
        # forward more often
        games.step(rng.integers(world.n, size=5) | int(rng.integers(2)) * (world.n // 3))


@pytest.mark.parametrize("world", LARGE, ids=str)
def test_large_ids_decode(world):
    ids = np.array(
        [0, 1, world.n // 3, world.n - 1, min(world.n - 1, 2**31 - 1), min(world.n - 1, 2**31 + 1)]
    )
    features = world.action_features(ids)
    assert features.dtype == np.float32
    assert features.shape == (6, world.dims)
    digits = [[action // 4**i % 4 for i in range(world.dims)] for action in ids.tolist()]
    np.testing.assert_array_equal(features, np.array([0, 1, -1, 0])[digits])
    assert (features[2] == 1).all()  # 1/3 = 0.1111... in base 4: the diagonal
    torch.testing.assert_close(world.action_features(torch.tensor(ids)), torch.tensor(features))
    middle = state_at(pack(np.ones((6, world.dims), dtype=np.int64)), 0)
    after, _, _ = world.step(middle, ids)
    left = np.clip(1 - features, 0, world.side - 1)
    np.testing.assert_array_equal(unpack(after["away"], world.dims), left)


def test_good_fraction_counts():
    world = DiagonalGrid(dims=5)
    forward = (world.action_features(np.arange(world.n)) == 1).sum(-1)
    for eps in (0.0, 0.2, 0.4, 1.0):
        assert world.good_fraction(eps) == pytest.approx((forward >= 5 * (1 - eps) - 1e-9).mean())
    value = world.q_star(world.reset(np.zeros(world.n, dtype=np.int64)), np.arange(world.n))
    assert (value == value.max()).sum() == 1  # exactly one optimal action at the start


def test_pictures_show_the_pits_that_one_dimension_leads_into():
    world = DiagonalGrid(dims=4, side=6, pits=0.4)
    ahead = set()
    for left in np.random.default_rng(0).integers(6, size=(60, 4)):
        (away,), canvas = pack(left[None]).tolist(), Mock()
        state = state_at(away, 0)
        world.draw(canvas, state, None)
        boxes = [call.args for call in canvas.box.call_args_list if call.args[-1] == "black"]
        black = {(int(4 * x), int((y - 0.14) * 6 / 0.84)) for x, y, *_ in boxes}
        pits = set()
        for i, j in product(range(4), range(6)):
            other = left.copy()
            other[i] = 5 - j
            if j != 5 - left[i] and world.is_pit(pack(other[None]))[0]:
                pits.add((i, j))
        assert black == pits
        straight = world.is_pit(pack(np.maximum(left - 1, 0)[None]))[0]
        text = world.describe(state, None)[-1]
        if world.is_pit(away):
            assert text == "in a pit"
        else:
            assert (text == "a pit straight ahead") == straight
            ahead.add(bool(straight))
    assert len(ahead) == 2


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"dims": 0}, "dims must be an int in"),
        ({"dims": 21}, "dims must be an int in"),
        ({"dims": 10.0}, "dims must be an int in"),
        ({"side": 1}, "side must be an int in"),
        ({"side": 9}, "side must be an int in"),
        ({"pits": -0.1}, "pits must be a number in"),
        ({"pits": 1.0}, "pits must be below 1"),
        ({"pits": float("nan")}, "pits must be a number in"),
        ({"horizon": 0}, "horizon must be"),
        ({"layout": -1}, "layout must be"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        DiagonalGrid(**kwargs)
