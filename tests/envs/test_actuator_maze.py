"""ActuatorMaze: its moves, its bounds and its oracle."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.dynamics.actuator_maze import ActuatorMaze, _vectors
from envs.dynamics.rollout import rollout, uniform_policy
from envs.dynamics.walls import LAYOUTS, longest_way, stop, way


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


def at(world, number, x, y, goal_x, goal_y, t=0):
    """``number`` episodes that are in one place."""
    state = world.reset(np.random.default_rng(1).integers(2**62, size=number))
    places = {"x": x, "y": y, "goal_x": goal_x, "goal_y": goal_y, "t": t}
    return {**state, **{name: state[name] * 0 + place for name, place in places.items()}}


def returns_from(world, state, policy):
    """Undiscounted returns to come, and steps."""
    returns, lengths = np.zeros(len(state["t"])), np.zeros(len(state["t"]))
    alive = state["t"] < world.horizon
    while alive.any():
        state, rewards, arrived = world.step(state, policy(state))
        returns, lengths = returns + rewards * alive, lengths + alive
        alive &= ~arrived & (state["t"] < world.horizon)
    return returns, lengths


@pytest.mark.parametrize("walls", [0, 2])
@pytest.mark.parametrize(("step_size", "horizon"), [(0.02, 10), (0.02, 150), (0.06, 30), (0.2, 4), (1.0, 1)])
@pytest.mark.parametrize("noise", [0.0, 0.28])
def test_no_policy_beats_the_bound_however_few_steps_are_left(walls, step_size, horizon, noise):
    world = ActuatorMaze(k=10, walls=walls, step_size=step_size, horizon=horizon, noise=noise)
    state = world.reset(np.arange(600))
    state = {**state, "t": state["t"] + np.arange(600) % horizon}
    bound = world.optimal_value(state)
    for policy in (world.optimal_action, lambda state: state["t"] * 0):  # go there, or stay
        returns, _ = returns_from(world, state, policy)
        for late in range(0, horizon, max(1, horizon // 5)):
            here = state["t"] >= late
            error = (returns - bound)[here].std() / here.sum() ** 0.5
            assert (returns - bound)[here].mean() <= 5 * error + 1e-12
        if noise == 0:
            assert (returns <= bound + 1e-12).all()
    least = world.least_steps(state)
    far = least > world.horizon - state["t"]
    np.testing.assert_allclose(bound[far], -0.05 * (world.horizon - state["t"])[far], atol=1e-12)


def test_nothing_is_left_at_the_horizon():
    world = ActuatorMaze()
    state = at(world, 3, 0.1, 0.1, 0.12, 0.1, t=world.horizon)
    assert world.optimal_value(state).tolist() == [0, 0, 0]


@pytest.mark.parametrize("walls", [0, 1, 2])
def test_no_way_is_longer_than_the_longest(walls):
    corners = np.array([(x, y) for x in (0.0, 0.5 - 1e-9, 0.5, 1.0) for y in (0.0, 0.4, 1.0)])
    points = np.concatenate([corners, np.random.default_rng(0).random((100, 2))])
    from_x, to_x = np.meshgrid(points[:, 0], points[:, 0])
    from_y, to_y = np.meshgrid(points[:, 1], points[:, 1])
    state = {"x": from_x, "y": from_y, "goal_x": to_x, "goal_y": to_y}
    ways = ActuatorMaze(walls=walls).distance(state)
    longest = longest_way(LAYOUTS[walls])
    assert 0.9 * longest < ways.max() <= longest + 1e-12


def test_a_lucky_step_may_arrive():
    """Where one step is not enough on average, and mostly two, no bound may say two."""
    world = ActuatorMaze(k=20, noise=0.28)
    state = at(world, 20_000, 0.1, 0.5, 0.1 + world.radius + 1.01 * world.step_size, 0.5)
    _, lengths = returns_from(world, state, world.optimal_action)
    assert 1.3 < lengths.mean() < 1.9
    assert world.steps_bound(state)[0] == pytest.approx(1.01)
    assert world.steps_bound(state)[0] <= lengths.mean()


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
        ({"walls": 3}, "walls must be an int in"),
        ({"walls": -1}, "walls must be an int in"),
        ({"walls": 1, "radius": 0.2}, "radius must be at most 0.15 with walls"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        ActuatorMaze(**kwargs)


# Walls

STEPS, RANDOM = {1: 3.475, 2: 4.175}, {1: -6.18, 2: -6.29}  # as documented


@pytest.mark.parametrize("walls", [1, 2])
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_no_move_passes_through_a_wall(walls, data):
    """Where the segment from the start to where a move stops meets the line of a wall, in exact fractions,
    there is no wall."""
    segments = LAYOUTS[walls]
    special = [0.0, 1.0, *(w.x for w in segments), *(w.tip for w in segments)]
    special += [w.x - 1e-9 for w in segments]
    special += [float(np.nextafter(z, 0)) for w in segments for z in (w.x, w.tip)]
    number = st.one_of(st.sampled_from(special), st.floats(0, 1))
    x, y, to_x, to_y = (data.draw(number) for _ in range(4))
    end_x, end_y = stop(segments, x, y, to_x, to_y)
    assert 0 <= end_x <= 1
    assert 0 <= end_y <= 1
    assert np.hypot(end_x - x, end_y - y) <= np.hypot(to_x - x, to_y - y) + 1e-12
    for wall in segments:
        if (x < wall.x) != (end_x < wall.x):
            share = (Fraction(wall.x) - Fraction(x)) / (Fraction(end_x) - Fraction(x))
            height = Fraction(y) + share * (Fraction(end_y) - Fraction(y))
            assert height > wall.tip - 1e-8 if wall.stands else height < wall.tip + 1e-8
    arrays = stop(segments, *(np.array([z]) for z in (x, y, to_x, to_y)))
    assert (arrays[0].item(), arrays[1].item()) == (end_x, end_y)
    if end_x == to_x and end_y == to_y:
        return
    faces = [face for wall in segments for face in (wall.x, wall.x - 1e-9, x)]
    assert end_x in faces  # what does not get there is stopped at a wall


@pytest.mark.parametrize("walls", [1, 2])
def test_moves_along_walls_and_at_their_tips(walls):
    for wall in LAYOUTS[walls]:
        inside = wall.tip / 2 if wall.stands else (1 + wall.tip) / 2
        outside = (1 + wall.tip) / 2 if wall.stands else wall.tip / 2
        left, right = wall.x - 1e-9, wall.x
        for near in (left, right):  # along each face, at its whole length and beyond the tip
            assert stop((wall,), near, inside, near, outside) == (near, outside)
            assert stop((wall,), near, outside, near, inside) == (near, inside)
        assert stop((wall,), left, inside, right, inside) == (left, inside)
        assert stop((wall,), right, inside, left, inside) == (right, inside)
        assert stop((wall,), left, outside, right + 0.1, outside) == (right + 0.1, outside)
        assert stop((wall,), 0.0, wall.tip, 1.0, wall.tip) == (wall.x - 1e-9, wall.tip)  # the tip is wall
        tiny = 1e-12 if wall.stands else -1e-12
        assert stop((wall,), 0.0, wall.tip + tiny, 1.0, wall.tip + tiny) == (1.0, wall.tip + tiny)


@pytest.mark.parametrize("walls", [1, 2])
def test_way_is_the_shortest_in_a_visibility_graph(walls):
    """Against a search over the points and the tips whose edges are tried by dense sampling."""
    segments = LAYOUTS[walls]
    rng = np.random.default_rng(0)
    along = np.linspace(0, 1, 4001)[:, None]

    def free(a, b):
        points = a + along * (b - a)
        for wall in segments:
            if a[0] == wall.x == b[0]:
                continue
            right = points[:, 0] >= wall.x
            i = np.flatnonzero(right[1:] != right[:-1])
            inside = points[i, 1] < wall.tip if wall.stands else points[i, 1] > wall.tip
            ends = (a[0], a[1]) == (wall.x, wall.tip) or (b[0], b[1]) == (wall.x, wall.tip)
            if inside.any() and not ends:
                return False
        return True

    points = rng.random((200, 2, 2))
    length, aim_x, aim_y = way(segments, *points[:, 0].T, *points[:, 1].T)
    for (start, goal), found, *aim in zip(points, length, aim_x, aim_y, strict=True):
        nodes = [start, goal, *(np.array([wall.x, wall.tip]) for wall in segments)]
        d = np.array([[np.hypot(*(a - b)) if free(a, b) else np.inf for a in nodes] for b in nodes])
        for middle in range(len(nodes)):
            d = np.minimum(d, d[:, middle, None] + d[None, middle])
        assert found == pytest.approx(d[0, 1], abs=1e-9)
        assert found >= np.hypot(*(goal - start)) - 1e-12
        if np.hypot(*(goal - start)) > found - 1e-12:
            assert aim == goal.tolist()
        else:
            assert min(np.hypot(aim[0] - w.x, aim[1] - w.tip) for w in segments) < 0.03


@pytest.mark.parametrize("walls", [1, 2])
def test_way_is_that_of_a_grid(walls):
    """Shortest ways on a grid whose edges, up to three cells long, are moves that no wall stops: longer by
    at most the coarseness of 16 directions."""
    size = 46
    axis = (np.arange(size) + 0.5) / size
    xs, ys = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    edges = []
    for i, j in [(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2)]:
        x, y = xs + i / size, ys + j / size
        end_x, end_y = stop(LAYOUTS[walls], xs, ys, x, y)
        a = np.flatnonzero((x < 1) & (y > 0) & (y < 1) & (end_x == x) & (end_y == y))
        edges += [(a, a + i * size + j, np.hypot(i, j) / size), (a + i * size + j, a, np.hypot(i, j) / size)]
    goals = np.random.default_rng(0).integers(size**2, size=20)
    on_grid, before = np.where(np.arange(size**2) == goals[:, None], 0.0, np.inf), None
    while before is None or not np.array_equal(before, on_grid):
        before = on_grid.copy()
        for a, b, weight in edges:
            on_grid[:, b] = np.minimum(on_grid[:, b], on_grid[:, a] + weight)
    for goal, found in zip(goals, on_grid, strict=True):
        length, _, _ = way(LAYOUTS[walls], xs, ys, xs * 0 + xs[goal], ys * 0 + ys[goal])
        assert (found >= length - 1e-9).all()
        assert (found <= 1.03 * length + 3 / size).all()
        assert (length > np.hypot(xs - xs[goal], ys - ys[goal]) + 0.01).any()  # some ways go around


@pytest.mark.parametrize("walls", [1, 2])
def test_starts_and_goals_are_legal_with_walls(walls):
    world = ActuatorMaze(walls=walls)
    state = world.reset(np.arange(20_000))
    for name in ("x", "y", "goal_x", "goal_y"):
        assert 0 <= state[name].min() <= state[name].max() < 1
    away = np.min([np.abs(state["goal_x"] - wall.x) for wall in LAYOUTS[walls]], axis=0)
    assert away.min() >= world.radius - 1e-12
    # uniform in what is left of the width
    left, right = (state["goal_x"] < LAYOUTS[walls][0].x).mean(), (state["goal_x"] > 1 / 2).mean()
    first = LAYOUTS[walls][0].x - world.radius
    assert left == pytest.approx(first / (1 - 2 * walls * world.radius), abs=0.02)
    assert right == pytest.approx(0.5, abs=0.02)
    # a disc around a goal has no wall in it: who is within the radius sees the goal
    angles = np.random.default_rng(0).random(20_000) * 2 * np.pi
    x = state["goal_x"] + 0.999 * world.radius * np.cos(angles)
    y = state["goal_y"] + 0.999 * world.radius * np.sin(angles)
    length, _, _ = way(LAYOUTS[walls], x, y, state["goal_x"], state["goal_y"])
    assert length.max() <= world.radius


@pytest.mark.parametrize("walls", [1, 2])
@pytest.mark.parametrize("noise", [0.1, 0.28])
def test_random_walks_stay_on_their_side(walls, noise):
    world = ActuatorMaze(k=10, walls=walls, step_size=1.0, noise=noise)  # moves longer than the room
    state = world.reset(np.random.default_rng(0).integers(2**62, size=4000))
    rng = np.random.default_rng(1)
    low, high = world.reward_range
    for _ in range(40):
        before, ids = state, rng.integers(world.n, size=4000)
        kept = {name: value.copy() for name, value in before.items()}
        state, rewards, _ = world.step(before, ids)
        assert all(np.array_equal(kept[name], before[name]) for name in kept)
        assert np.isin(rewards, [low, high]).all()
        assert (np.abs(world.observe(state)) <= world.high).all()
        # where the straight way is blocked nothing can have gone
        length, _, _ = way(LAYOUTS[walls], before["x"], before["y"], state["x"], state["y"])
        straight = np.hypot(state["x"] - before["x"], state["y"] - before["y"])
        np.testing.assert_allclose(length, straight, atol=1e-6)
        # no step shortens the way by more than the furthest move
        gain = world.distance(before) - world.distance(state)
        assert (gain <= np.hypot(*world.displacement(ids)) * (1 + 12**0.5 * noise) + 1e-9).all()


@pytest.mark.parametrize("walls", [1, 2])
@pytest.mark.parametrize("k", [7, 20])
def test_oracle_always_arrives_around_walls(walls, k):
    world = ActuatorMaze(k=k, walls=walls)
    state = world.reset(np.random.default_rng(0).integers(2**62, size=2000))
    returns, lengths = rollout(world, world.optimal_action, 2000)
    assert returns == pytest.approx(1 - 0.05 * lengths)  # all arrive
    assert lengths.max() <= 20
    assert lengths.mean() >= world.steps_bound(state).mean()
    surely = (world.distance(state) - world.radius) / (world.step_size * (1 + 12**0.5 * world.noise))
    assert (lengths >= np.ceil(surely)).all()
    if k == 20:
        assert lengths.mean() == pytest.approx(STEPS[walls], abs=5 * lengths.std() / 2000**0.5)


@pytest.mark.parametrize("walls", [1, 2])
def test_random_play_with_walls_is_as_bad_as_documented(walls):
    world = ActuatorMaze(walls=walls)
    returns, _ = rollout(world, uniform_policy(world), 2000)
    assert returns.mean() == pytest.approx(RANDOM[walls], abs=5 * returns.std() / 2000**0.5)


@pytest.mark.parametrize("walls", [1, 2])
def test_backends_agree_with_walls(walls):
    world = ActuatorMaze(k=10, walls=walls)
    rng = np.random.default_rng(0)
    keys = rng.integers(2**62, size=16)
    a, t, s = world.reset(keys), world.reset(torch.tensor(keys)), [world.reset(int(key)) for key in keys]
    for step in range(30):
        oracle = world.optimal_action(a)
        assert world.optimal_action(t).tolist() == oracle.tolist()
        assert [world.optimal_action(one) for one in s] == oracle.tolist()
        values = world.optimal_value(a)
        np.testing.assert_allclose(values, world.optimal_value(t).numpy(), rtol=1e-12)
        np.testing.assert_allclose(values, [world.optimal_value(one) for one in s], rtol=1e-12)
        ids = oracle if step % 3 == 0 else rng.integers(world.n, size=16)
        a, rewards, terminated = world.step(a, ids)
        t, tensor_rewards, tensor_terminated = world.step(t, torch.tensor(ids))
        stepped = [world.step(one, int(i)) for one, i in zip(s, ids, strict=True)]
        s = [one[0] for one in stepped]
        assert rewards.tolist() == tensor_rewards.tolist() == [one[1] for one in stepped]
        assert terminated.tolist() == tensor_terminated.tolist() == [one[2] for one in stepped]
        for name in a:
            assert a[name].tolist() == t[name].tolist() == [one[name] for one in s]
        np.testing.assert_array_equal(world.observe(a), world.observe(t).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("walls", [0, 2])
def test_step_compiles_whole(walls):
    world = ActuatorMaze(walls=walls)
    state, rng = world.reset(torch.arange(64)), np.random.default_rng(0)
    world.step(state, state["key"])  # fills the tables
    step = torch.compile(world.step, fullgraph=True)
    for _ in range(5):
        ids = torch.tensor(rng.integers(world.n, size=64))
        expected, compiled = world.step(state, ids), step(state, ids)
        for name in expected[0]:
            torch.testing.assert_close(expected[0][name], compiled[0][name], rtol=0, atol=1e-12)
        torch.testing.assert_close(expected[1], compiled[1], rtol=1e-12, atol=0)
        state = expected[0]
