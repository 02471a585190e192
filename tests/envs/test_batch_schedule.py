"""BatchSchedule against brute force over all orders, with and without set-ups."""

import itertools
import math

import numpy as np
import pytest
import torch

from envs.dynamics.batch_schedule import BatchSchedule, _mean_values, _setups
from envs.dynamics.held_karp import best_orders
from envs.dynamics.lehmer import decode, encode
from envs.dynamics.rollout import rollout, uniform_policy


def permutation(action, jobs):
    """The order that an id names, by taking jobs out of a list."""
    left, order = list(range(jobs)), []
    for size in range(jobs, 0, -1):
        order.append(left.pop(action % size))
        action //= size
    return order


def all_orders(world, state, i=0):
    """The ``i``-th environment of ``state`` n times, and all ids."""
    return {name: np.repeat(x[i : i + 1], world.n) for name, x in state.items()}, np.arange(world.n)


def cost_of(times, weights, order, families=None, setups=None, before=None):
    """Sum of weight x completion time, job by job."""
    clock, cost = 0.0, 0.0
    for job in order:
        if families is not None:
            clock += setups[before, families[job]]
            before = families[job]
        clock += times[job]
        cost += clock * weights[job]
    return cost


@pytest.mark.parametrize("jobs", [2, 3, 6, 7])
def test_ids_are_the_orders(jobs):
    world = BatchSchedule(jobs=jobs)
    orders = decode(np.arange(world.n), jobs).T
    assert orders.tolist() == [permutation(action, jobs) for action in range(world.n)]
    assert len({tuple(order) for order in orders.tolist()}) == world.n
    assert encode(orders.astype(np.int64).argsort(axis=1).T).tolist() == list(range(world.n))
    features = world.action_features(np.arange(world.n))
    assert features.dtype == np.float32
    for order, feature in zip(orders[:50], features[:50], strict=True):
        assert (feature[order] * (jobs - 1)).tolist() == pytest.approx(list(range(jobs)))


@pytest.mark.parametrize("jobs", [10, 12, 13, 20])
def test_large_ids_decode_and_encode(jobs):
    world = BatchSchedule(jobs=jobs)
    assert world.n == math.factorial(jobs)
    ids = [0, 1, world.n - 1, world.n // 2, 2**31 - 1, 2**31, 2**31 + 1, 2**53 + 1, 2**61 + 12345]
    ids = [action for action in ids if action < world.n]
    for orders in (decode(np.array(ids), jobs), decode(torch.tensor(ids), jobs).numpy()):
        assert orders.T.tolist() == [permutation(action, jobs) for action in ids]
        assert encode(orders.astype(np.int64).argsort(axis=0)).tolist() == ids


@pytest.mark.parametrize("jobs", [2, 6, 7])
def test_smiths_rule_is_the_best_of_all_orders(jobs):
    world = BatchSchedule(jobs=jobs)
    assert world.exact
    for t in range(8):
        state = world.reset(np.array([11]))
        state = {**state, "t": state["t"] + t}
        times, weights, _ = (None if x is None else x[:, 0].tolist() for x in world._jobs(state))
        costs = np.array([cost_of(times, weights, order) for order in itertools.permutations(range(jobs))])
        best, worst = world._bounds(*world._jobs(state)[:2])
        assert (best[0], worst[0]) == (costs.min(), costs.max())
        alike, ids = all_orders(world, state)
        q = world.q_star(alike, ids)
        expected = [
            -(cost_of(times, weights, permutation(a, jobs)) - best[0]) / (worst[0] - best[0]) for a in ids
        ]
        np.testing.assert_allclose(q, expected, atol=1e-12)
        assert q.max() == 0 == q[world.optimal_action(state)[0]]
        assert q.min() == -1
        assert q.mean() == pytest.approx(-0.5, abs=1e-12)
        np.testing.assert_allclose(world.regret(alike, ids), -q)


def test_where_all_orders_are_equal_the_reward_is_zero():
    world = BatchSchedule(jobs=2)
    keys = np.arange(20_000)
    state = world.reset(keys)
    times, weights, _ = world._jobs(state)
    equal = times[0] * weights[1] == times[1] * weights[0]
    share = -world.random_return() / (0.5 * world.horizon)
    assert 0 < equal.sum() < 20_000
    assert abs(equal.mean() - (1 - share)) < 5 * (equal.mean() / 20_000) ** 0.5
    for action in (0, 1):
        rewards = world.step(state, keys * 0 + action)[1]
        assert (rewards[equal] == 0).all()
        assert np.isin(rewards[~equal], [-1.0, 0.0]).all()


@pytest.mark.parametrize("jobs", [2, 7, 10, 13])
def test_random_play_brings_what_it_should(jobs):
    world = BatchSchedule(jobs=jobs)
    returns, lengths = rollout(world, uniform_policy(world), 4000)
    assert abs(returns.mean() - world.random_return()) < 5 * returns.std() / 4000**0.5
    assert (lengths == world.horizon).all()
    returns, _ = rollout(world, world.optimal_action, 100)
    assert (returns == 0).all()
    assert world.optimal_return() == 0 == world.optimal_value(world.reset(np.arange(1)))[0]


@pytest.mark.parametrize("jobs", [2, 3, 6])
def test_orders_with_setups_are_the_best_of_all(jobs):
    """Held and Karp's programme: what is left to pay depends on the set done and the last family alone."""
    rng = np.random.default_rng(jobs)
    times, weights = rng.integers(1, 21, size=(2, 6, jobs)).astype(float)
    families, first = rng.integers(3, size=(6, jobs)), rng.integers(3, size=6)
    setups, after = rng.integers(11, size=(3, 3)), rng.normal(size=(6, 3)) * 500
    costs, orders = best_orders(times, weights, families, setups, first, after)
    for i in range(6):
        for before in range(3):
            every = [
                cost_of(times[i], weights[i], order, families[i], setups, before)
                + after[i, families[i, order[-1]]]
                for order in itertools.permutations(range(jobs))
            ]
            assert costs[i, before] == pytest.approx(min(every))
        order = orders[i]
        assert sorted(order) == list(range(jobs))
        own = (
            cost_of(times[i], weights[i], order, families[i], setups, first[i])
            + after[i, families[i, order[-1]]]
        )
        assert own == pytest.approx(costs[i, first[i]])


@pytest.mark.parametrize(("jobs", "families"), [(2, 2), (6, 3), (7, 4)])
def test_a_step_with_setups_is_what_it_says(jobs, families):
    world = BatchSchedule(jobs=jobs, families=families, horizon=4)
    assert not world.exact
    setups = _setups(families, 0).reshape(families, families)
    assert (np.diag(setups) == 0).all()
    assert setups[~np.eye(families, dtype=bool)].min() >= 1
    state = world.reset(np.array([3]))
    for _ in range(4):
        times, weights, kinds = (x[:, 0] for x in world._jobs(state))
        alike, ids = all_orders(world, state)
        after, rewards, _ = world.step(alike, ids)
        pairs = itertools.combinations(range(jobs), 2)
        most = 10 * (weights.sum() + sum(max(weights[i], weights[j]) for i, j in pairs))
        plain = [cost_of(times, weights, order) for order in itertools.permutations(range(jobs))]
        best, spread = min(plain), max(plain) + most - min(plain)
        for action in range(0, world.n, max(1, world.n // 100)):
            order = permutation(action, jobs)
            cost = cost_of(times, weights, order, kinds, setups, state["family"][0])
            assert rewards[action] == pytest.approx((best - cost) / spread)
            assert after["family"][action] == kinds[order[-1]]
        later = _mean_values(world)[world.horizon - 1 - state["t"][0]]
        q = rewards + later[after["family"]]
        choice = world.optimal_action(state)[0]
        assert q[choice] == pytest.approx(q.max(), abs=1e-12)
        state = {name: x[choice : choice + 1] for name, x in after.items()}


def test_a_layout_has_set_up_times_of_its_own():
    one, other = (BatchSchedule(jobs=6, families=3, layout=layout) for layout in (0, 2**61 + 1))
    times = [_setups(world.families, world.layout) for world in (one, other)]
    assert (times[0] != times[1]).any()
    state, ids = one.reset(np.arange(50)), np.arange(50)
    again = other.reset(np.arange(50))
    assert all(np.array_equal(state[name], again[name]) for name in state)  # the jobs are the same
    jobs = [np.stack(world._jobs(state)) for world in (one, other)]
    np.testing.assert_array_equal(*jobs)
    assert (one.step(state, ids)[1] != other.step(state, ids)[1]).mean() > 0.9
    assert (one.optimal_action(state) != other.optimal_action(state)).mean() > 0.5
    assert (one.optimal_value(state) != other.optimal_value(state)).all()


def test_hindsight_is_the_best_sequence_of_orders():
    world = BatchSchedule(jobs=4, families=3, horizon=3)
    keys = np.arange(5)
    for family in range(3):
        state = {**world.reset(keys), "family": keys * 0 + family}
        for i, bound in enumerate(world.optimal_value(state)):
            paths, _ = all_orders(world, state, i)
            best = {family: 0.0}  # by the family of the last job
            for t in range(3):
                found: dict[int, float] = {}
                for before, value in best.items():
                    here = {**paths, "t": paths["t"] * 0 + t, "family": paths["family"] * 0 + before}
                    after, rewards, _ = world.step(here, np.arange(world.n))
                    for last, reward in zip(after["family"].tolist(), rewards, strict=True):
                        found[last] = max(found.get(last, -9.0), value + reward)
                best = found
            assert bound == pytest.approx(max(best.values()), abs=1e-12)


def test_bound_and_oracle_with_setups():
    world = BatchSchedule(families=4)
    returns, _ = rollout(world, world.optimal_action, 60)
    bound = world.optimal_value(world.reset(np.random.default_rng(0).integers(2**62, size=60)))
    assert (returns <= bound + 1e-12).all()
    assert returns.mean() == pytest.approx(-1.198, abs=5 * returns.std() / 60**0.5)
    assert bound.mean() == pytest.approx(-1.07, abs=5 * bound.std() / 60**0.5)
    # each at its own time: the bound of what is left
    state = world.reset(np.arange(4))
    for t, value in enumerate(world.optimal_value({**state, "t": state["t"] + np.arange(17, 21)})):
        assert value == world.optimal_value({**state, "t": state["t"] + 17 + t})[t]
        assert (value == 0) == (t == 3)
    assert world.optimal_return() is world.random_return() is None
    with pytest.raises(NotImplementedError, match="not known exactly"):
        world.q_star(state, np.arange(4))


def test_jobs_are_spread_as_they_should():
    world = BatchSchedule(families=4)
    state = world.reset(np.arange(4000))
    counts = np.bincount(state["family"])
    drawn = [world._jobs({**state, "t": state["t"] + t}) for t in range(3)]
    for values, low, high in [
        (np.stack([times for times, _, _ in drawn]), 1, 20),
        (np.stack([weights for _, weights, _ in drawn]), 1, 20),
        (np.stack([families for _, _, families in drawn]), 0, 3),
    ]:
        counts = np.bincount(values.astype(np.int64).ravel())[low:]
        expected = values.size / (high - low + 1)
        assert len(counts) == high - low + 1
        assert np.abs(counts - expected).max() < 5 * expected**0.5
    columns = np.concatenate([np.concatenate(part) for part in drawn])  # (90, 4000)
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 6 / 4000**0.5


@pytest.mark.parametrize("eps", [0.0, 0.05, 1.0])
def test_good_fraction(eps):
    world = BatchSchedule(jobs=5)
    shares = []
    for key in range(16):
        alike, ids = all_orders(world, world.reset(np.array([key])))
        shares.append((world.step(alike, ids)[1] >= -eps - 1e-12).mean())
    assert world.good_fraction(eps) == pytest.approx(np.mean(shares))
    assert 1 / 120 <= BatchSchedule(jobs=5, families=2).good_fraction(eps) <= 1


def test_good_fraction_of_samples():
    world = BatchSchedule(jobs=13)
    assert 0.45 < world.good_fraction(0.5) < 0.55  # rewards are symmetric around -1/2
    assert world.good_fraction(1.0) == 1


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"jobs": 2},
        {"jobs": 20},
        {"jobs": 12, "families": 16},
        {"jobs": 3, "families": 2, "layout": 5},
        {"jobs": 2, "families": 16, "horizon": 1, "layout": 2**62 - 1},
    ],
)
def test_rewards_and_observations_are_bounded_and_states_are_not_changed(kwargs):
    world = BatchSchedule(**{"horizon": 12, **kwargs})
    rng = np.random.default_rng(0)
    state = world.reset(rng.integers(2**62, size=200))
    for t in range(world.horizon):
        before = {name: value.copy() for name, value in state.items()}
        after, rewards, terminated = world.step(state, rng.integers(world.n, size=200))
        assert all(np.array_equal(before[name], state[name]) for name in state)
        assert rewards.dtype == np.float64
        assert -1 <= rewards.min() <= rewards.max() <= 0
        assert not terminated.any()
        observation = world.observe(after)
        assert observation.shape == (200, len(world.low))
        assert observation.dtype == np.float32
        assert (observation >= world.low).all()
        assert (observation <= world.high).all()
        assert (after["t"] == t + 1).all()
        state = after


def test_the_observation_is_the_jobs_to_come():
    world = BatchSchedule(jobs=3, families=2)
    state = world.reset(np.arange(6))
    times, weights, families = world._jobs(state)
    for i, row in enumerate(world.observe(state)):
        np.testing.assert_allclose(row[:3] * 20, times[:, i], rtol=1e-6)
        np.testing.assert_allclose(row[3:6] * 20, weights[:, i], rtol=1e-6)
        assert row[6:12].reshape(2, 3).argmax(axis=0).tolist() == families[:, i].tolist()
        assert row[6:12].sum() == 3
        assert row[12:].tolist() == np.eye(2)[state["family"][i]].tolist()


@pytest.mark.parametrize(
    "world",
    [BatchSchedule(), BatchSchedule(jobs=20), BatchSchedule(jobs=6, families=3, layout=2)],
    ids=str,
)
def test_backends_agree(world, side_by_side):
    rng, games = np.random.default_rng(1), side_by_side(world, 9)
    for step in range(world.horizon):
        oracle = games.same(world.optimal_action)
        if step > world.horizon - 4:
            games.same(world.optimal_value, rtol=1e-12)
        ids = oracle if step % 3 == 0 else rng.integers(world.n, size=9)
        if world.exact:
            games.same(world.q_star, ids)
        games.step(ids)
    games.check_features(ids)


def test_text_has_the_family_that_the_machine_is_set_up_for():
    world = BatchSchedule(jobs=5, families=3)
    state = world.reset(np.array([3]))
    _, weights, families = world._jobs(state)
    text = world.describe(state, None)
    assert f"set up for family {state['family'][0]}" in text
    assert f":{weights[0, 0]:.0f}:{families[0, 0]} " in text[-1]
    after, reward, _ = world.step(state, np.array([7]))
    text = world.describe(after, (state, 7, reward.item()))
    assert f"set up for family {after['family'][0]}" in text
    assert text[-1].endswith(f":{after['family'][0]}")  # that of the last job


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"jobs": 1}, "jobs must be an int in"),
        ({"jobs": 21}, "jobs must be an int in"),
        ({"jobs": 10.0}, "jobs must be an int in"),
        ({"families": 1}, "families must be 0"),
        ({"families": 17}, "families must be an int in"),
        ({"families": True}, "families must be an int in"),
        ({"jobs": 13, "families": 2}, "jobs must be at most 12"),
        ({"horizon": 0}, "horizon must be an int in"),
        ({"layout": -1}, "layout must be an int in"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        BatchSchedule(**kwargs)
