"""JointReplenishment: its demand, its dynamic programmes against brute force, its bound and its policies."""

import itertools

import numpy as np
import pytest
import torch

from envs.dynamics.inventory import COLUMN, STOCKS, TOP, Product, alias_table, demand_words, solve
from envs.dynamics.joint_replenishment import JointReplenishment
from envs.dynamics.rollout import rollout, uniform_policy

PRODUCTS = Product(20, 7, 1.0, 19.0), Product(10, 5, 1.0, 19.0)
SEPARABLE = [
    JointReplenishment(products=1, fixed_cost=0.0, horizon=12),
    JointReplenishment(products=2, fixed_cost=0.0, horizon=5),
    JointReplenishment(products=3, fixed_cost=0.0, horizon=4, holding=2.5, backlog=4.0),
    JointReplenishment(products=1, fixed_cost=80.0, horizon=12),
]


def transition(mean):
    """Probabilities of the next stock by the stock after ordering, ``(127, 127)``; from the pmf, by loops."""
    probability = np.zeros((127, 127))
    for y in range(TOP + 1):
        for demand, words in enumerate(demand_words(mean)):
            probability[y + TOP, y - demand + TOP] += words / 2**32
    return probability


def states(stocks, t):
    stocks = np.asarray(stocks)
    key = np.zeros(len(stocks), dtype=np.int64)
    return {"key": key, "t": key + t, "stock": stocks}


@pytest.mark.parametrize("mean", [10, 20])
def test_demand_is_poisson(mean):
    poisson = pytest.importorskip("scipy.stats").poisson(mean)
    words = demand_words(mean)
    assert words.sum() == 2**32
    np.testing.assert_allclose(words, poisson.pmf(range(64)) * 2**32, atol=1.0)
    assert poisson.sf(TOP) < 1e-14  # what is cut off
    kept, alias = alias_table(words.tolist())
    back = np.array(kept)
    np.add.at(back, alias, COLUMN - np.array(kept))
    assert back.tolist() == words.tolist()  # the columns hold every word once


def test_every_word_has_the_demand_that_its_column_says(monkeypatch):
    world = JointReplenishment(products=2)
    tables = [alias_table(demand_words(mean).tolist()) for mean in (20, 10)]
    for column in range(64):
        ends = [(kept[column] - 1, kept[column]) for kept, _ in tables]  # the last word kept, the next one
        words = np.array([[column * COLUMN + end[i] for end in ends] for i in range(2)])
        inside = [[0 <= end[i] < COLUMN for end in ends] for i in range(2)]
        monkeypatch.setattr("envs.dynamics.joint_replenishment.draw", lambda h, t, words=words: words)
        expected = np.array([[column, column], [alias[column] for _, alias in tables]])
        demand = world.demand(world.reset(np.arange(2)))
        assert (demand == expected)[np.array(inside)].all()


def test_drawn_demand_is_poisson_and_independent():
    stats = pytest.importorskip("scipy.stats")
    world = JointReplenishment(products=4)
    state = world.reset(np.arange(20_000))
    drawn = [world.demand({**state, "t": state["t"] + t}) for t in range(5)]
    demand = np.stack(drawn)  # (5, 20_000, 4)
    for i, mean in enumerate([20, 10, 20, 10]):
        values = demand[:, :, i].ravel()
        edges = [mean // 2 + 1, *range(mean // 2 + 2, 2 * mean - 1)]
        cells = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        cdf = np.array([0.0, *stats.poisson(mean).cdf(np.array(edges) - 1), 1.0])
        assert stats.chisquare(cells, np.diff(cdf) * values.size).pvalue > 1e-5
    columns = demand.transpose(1, 0, 2).reshape(20_000, 20)  # products and periods
    correlation = np.corrcoef(columns.T) - np.eye(20)
    assert np.abs(correlation).max() < 5 / 20_000**0.5


def test_a_step_is_what_it_says():
    world = JointReplenishment(products=3, fixed_cost=50.0, holding=2.0, backlog=7.0)
    rng = np.random.default_rng(0)
    stocks, ids = rng.integers(-20, 40, size=(500, 3)), rng.integers(world.n, size=500)
    ids[:100] = 0
    state = {**states(stocks, 3), "key": rng.integers(2**62, size=500)}
    demand = world.demand(state)
    after, rewards, terminated = world.step(state, ids)
    for i, (stock, action) in enumerate(zip(stocks.tolist(), ids.tolist(), strict=True)):
        cost, ordered = 0.0, False
        for j, step in enumerate([7, 5, 7]):
            level = action // 10**j % 10 * step
            ordered |= level > stock[j]
            left = max(stock[j], level) - int(demand[i, j])
            assert after["stock"][i, j] == left
            cost += 2.0 * max(left, 0) + 7.0 * max(-left, 0)
        assert rewards[i] == pytest.approx(-0.01 * (cost + 50.0 * ordered))
    assert not terminated.any()
    assert 0 < (stocks[:100].min(axis=1) >= 0).sum() < 100  # orders of nothing among them, and forced ones


@pytest.mark.parametrize("world", SEPARABLE, ids=str)
def test_exact_optimum_equals_brute_force_over_all_actions(world):
    assert world.exact
    d = world.products
    rng = np.random.default_rng(0)
    stocks = STOCKS[:, None] if d == 1 else rng.integers(-TOP, TOP + 1, size=(6, d))
    ids = np.arange(world.n)
    probability = [transition((20, 10)[i % 2]) for i in range(d)]
    for t in reversed(range(world.horizon)):
        for stock in stocks:
            # the value after every action: an expectation over the joint demand, of the optimum from there on
            grid = np.array(list(itertools.product(STOCKS, repeat=d))) if d < 3 else None
            raised = np.maximum(stock, world.levels(ids))
            if grid is None:  # too many next stocks: the sum over products, with one product at a time
                base = np.zeros(d, dtype=np.int64)
                zero = world.optimal_value(states([base], t + 1))[0]
                ahead = np.full(world.n, zero)
                for i in range(d):
                    alone = np.tile(base, (127, 1))
                    alone[:, i] = STOCKS
                    gain = world.optimal_value(states(alone, t + 1)) - zero
                    ahead += (probability[i] @ gain)[raised[:, i] + TOP]
            else:
                v = world.optimal_value(states(grid, t + 1)).reshape((127,) * d)
                for i in range(d):
                    v = np.moveaxis(np.tensordot(probability[i], v, axes=(1, i)), 0, i)
                ahead = v[tuple(raised.T + TOP)]
            cost = world.fixed_cost * (raised > stock).any(axis=1)
            for i in range(d):
                unit = np.where(STOCKS > 0, world.holding * STOCKS, -world.backlog * STOCKS)
                cost = cost + (probability[i] @ unit)[raised[:, i] + TOP]
            q = world.scale * cost + ahead
            state = states(np.tile(stock, (world.n, 1)), t)
            np.testing.assert_allclose(world.q_star(state, ids), q, atol=1e-9)
            assert world.optimal_value(state)[0] == pytest.approx(q.max(), abs=1e-9)
            assert q[world.optimal_action(state)[0]] == pytest.approx(q.max(), abs=1e-9)
            assert world.regret(state, ids).min() == pytest.approx(0, abs=1e-9)


def test_base_stocks_and_costs_without_a_fixed_cost():
    for product, base, cost in zip(PRODUCTS, (28, 15), (9.7655, 7.0696), strict=True):
        solution = solve(product, np.zeros(1), 100)
        assert product.step * solution.digits[:, 0, TOP] == pytest.approx(base)
        assert solution.costs[0, 0, TOP] == pytest.approx(100 * cost, abs=0.01)
    world = JointReplenishment(fixed_cost=0.0)
    assert world.optimal_return() == pytest.approx(-0.005 * 100 * 50.505, abs=0.005)
    assert world.optimal_action(world.reset(np.arange(2))).tolist() == [343434, 343434]


@pytest.mark.parametrize("fixed_cost", [0.0, 50.0, 200.0])
def test_two_products_have_their_joint_optimum_between_bound_and_policy(fixed_cost):
    """The whole programme of two products over their 127^2 joint stocks."""
    world = JointReplenishment(products=2, fixed_cost=fixed_cost, horizon=20)
    p, q = transition(20), transition(10)
    unit = np.where(STOCKS > 0, STOCKS, -19 * STOCKS)
    now = (p @ unit)[:, None] + (q @ unit)
    raised = [np.maximum(STOCKS[:, None], product.step * np.arange(10)) + TOP for product in PRODUCTS]
    v = np.zeros((127, 127))
    grid = np.array(list(itertools.product(range(-20, 64, 9), repeat=2)))
    for t in reversed(range(20)):
        filled = now + p @ v @ q.T
        best = filled[raised[0]].min(axis=1)[:, raised[1]].min(axis=2) + fixed_cost
        v = best.copy()
        v[TOP:, TOP:] = np.minimum(best[TOP:, TOP:], filled[TOP:, TOP:])
        exact = world.scale * v[tuple(grid.T + TOP)]
        bound = world.optimal_value(states(grid, t))
        assert (bound >= exact - 1e-9).all()
        if fixed_cost == 0:
            np.testing.assert_allclose(bound, exact, atol=1e-9)
    optimum = world.scale * v[TOP, TOP]
    bound = world.optimal_value(world.reset(np.zeros(1, dtype=np.int64)))[0]
    assert bound >= 1.05 * optimum  # costs of at least 95 % of the optimum: both are negative
    returns, _ = rollout(world, world.optimal_action, 4000)
    error = returns.std() / 4000**0.5
    assert returns.mean() <= optimum + 5 * error
    assert returns.mean() >= 1.02 * optimum - 5 * error


@pytest.mark.parametrize(
    "world",
    [
        JointReplenishment(fixed_cost=0.0),
        JointReplenishment(fixed_cost=75.0),
        JointReplenishment(),
        JointReplenishment(products=9),
        JointReplenishment(products=1, fixed_cost=100.0),
    ],
    ids=str,
)
def test_bound_oracle_and_random_play(world):
    bound = world.optimal_value(world.reset(np.zeros(1, dtype=np.int64)))[0]
    returns, lengths = rollout(world, world.optimal_action, 1000)
    error = returns.std() / 1000**0.5
    assert (lengths == world.horizon).all()
    assert returns.mean() <= bound + 5 * error
    if world.exact:
        assert world.optimal_return() == bound
        assert returns.mean() >= bound - 5 * error
    else:
        assert world.optimal_return() is None
        assert returns.mean() >= (1.001 if world.fixed_cost == 75 else 1.07) * bound - 5 * error
    returns, _ = rollout(world, uniform_policy(world), 1000)
    assert abs(returns.mean() - world.random_return()) < 5 * returns.std() / 1000**0.5


def test_who_owes_orders_as_if_the_fixed_cost_were_paid():
    world = JointReplenishment()
    stocks = [[30, 1, 30, 15, 30, 15], [30, -1, 30, 12, 30, 15]]
    waits, orders = world.levels(world.optimal_action(states(stocks, 99)))  # the last period
    assert waits.tolist() == [0] * 6
    assert orders.tolist() == [0, 15, 0, 15, 0, 0]


def test_no_q_star_where_the_optimum_is_not_known():
    world = JointReplenishment()
    with pytest.raises(NotImplementedError, match="not known exactly"):
        world.q_star(world.reset(np.arange(2)), np.arange(2))


@pytest.mark.parametrize("world", SEPARABLE, ids=str)
@pytest.mark.parametrize("eps", [0.001, 0.1, 1.0])
def test_good_fraction_counts(world, eps):
    ids = np.arange(world.n)
    state = world.reset(np.zeros(world.n, dtype=np.int64))
    assert world.good_fraction(eps) == pytest.approx((world.regret(state, ids) <= eps + 1e-12).mean())


def test_good_fraction_of_all():
    for d in (1, 2, 7, 18):
        assert JointReplenishment(products=d, fixed_cost=0.0).good_fraction(1e9) == pytest.approx(1)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"products": 1},
        {"products": 18},
        {"fixed_cost": 0.0, "holding": 30.0},
        {"holding": 0, "backlog": 0.3},
    ],
)
def test_rewards_and_observations_are_bounded_and_states_are_not_changed(kwargs):
    world = JointReplenishment(horizon=30, **kwargs)
    rng = np.random.default_rng(0)
    state = world.reset(rng.integers(2**62, size=300))
    assert (state["stock"] == 0).all()
    low, high = world.reward_range
    for t in range(30):
        before = {name: value.copy() for name, value in state.items()}
        ids = rng.integers(world.n, size=300)
        ids[:100], ids[100:150] = 0, world.n - 1  # never more than backlog, and always full
        after, rewards, terminated = world.step(state, ids)
        assert all(np.array_equal(before[name], state[name]) for name in state)
        assert rewards.dtype == np.float64
        assert low <= rewards.min() <= rewards.max() <= high
        assert not terminated.any()
        assert np.abs(after["stock"]).max() <= TOP
        observation = world.observe(after)
        assert observation.dtype == np.float32
        assert observation.shape == (300, world.products)
        assert (world.low <= observation).all()
        assert (observation <= world.high).all()
        assert (after["t"] == t + 1).all()
        state = after
    # The bound is what the most backlog costs, or full shelves
    backlog, full = world.backlog * TOP * world.products, world.levels(np.array([world.n - 1])).sum()
    assert low == pytest.approx(world.scale * (world.fixed_cost + max(backlog, world.holding * full)))


@pytest.mark.parametrize(
    "world",
    [
        JointReplenishment(horizon=25),
        JointReplenishment(products=5, fixed_cost=0.0, holding=0.7, backlog=3.3, horizon=25),
        JointReplenishment(products=18, horizon=25),
    ],
    ids=str,
)
def test_backends_agree(world, side_by_side):
    rng, games = np.random.default_rng(1), side_by_side(world, 7)
    for step in range(world.horizon):
        oracle = games.same(world.optimal_action)
        games.same(world.optimal_value, rtol=1e-12)
        ids = oracle if step % 3 == 0 else rng.integers(world.n, size=7)
        if world.exact:
            games.same(world.q_star, ids, rtol=1e-12)
        games.step(ids, rtol=1e-12)
    games.check_features(ids)


@pytest.mark.parametrize("d", [6, 9, 10, 18])
def test_large_ids_decode(d):
    world = JointReplenishment(products=d)
    ids = [i for i in (0, 1, world.n - 1, 2**31 - 1, 2**31, 2**31 + 1, 9 * 10**17) if i < world.n]
    steps = [7, 5] * 9
    for levels, features, action in zip(
        world.levels(np.array(ids)), world.action_features(np.array(ids)), ids, strict=True
    ):
        digits = [int(x) for x in reversed(str(action).zfill(d))]
        assert levels.tolist() == [x * y for x, y in zip(digits, steps, strict=False)]
        np.testing.assert_allclose(features, np.array(digits) / 9, rtol=1e-6)
    assert world.action_features(np.array(ids)).dtype == np.float32
    assert torch.equal(world.levels(torch.tensor(ids)), torch.tensor(world.levels(np.array(ids))))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"products": 0}, "products must be an int in"),
        ({"products": 19}, "products must be an int in"),
        ({"products": 6.0}, "products must be an int in"),
        ({"fixed_cost": -1.0}, "fixed_cost must be a number in"),
        ({"fixed_cost": float("nan")}, "fixed_cost must be a number in"),
        ({"holding": float("inf")}, "holding must be a number in"),
        ({"backlog": 0.0}, "backlog must be a number in"),
        ({"horizon": 0}, "horizon must be an int in"),
        ({"horizon": 10_001}, "horizon must be an int in"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        JointReplenishment(**kwargs)


@pytest.mark.parametrize("products", [1, 2, 5, 18])
def test_the_worst_step_is_within_the_range_to_the_last_bit(products, monkeypatch):
    rng = np.random.default_rng(products)
    for _ in range(100):
        costs = {name: float(rng.uniform(0.01, 50)) for name in ("fixed_cost", "holding", "backlog")}
        world = JointReplenishment(products=products, **costs)
        full = [(9 * (7, 5)[i % 2]) * world.holding > 63 * world.backlog for i in range(products)]
        action = world.to_ids(np.array([[9 if one else 0 for one in full]]))
        demand = np.array([[0 if one else 63 for one in full]])
        monkeypatch.setattr(JointReplenishment, "demand", lambda self, state, demand=demand: demand)
        state = world.reset(np.array([0]))
        state = {**state, "stock": state["stock"] - 1}  # so that something is ordered
        _, rewards, _ = world.step(state, action)
        assert rewards[0] >= world.reward_range[0]
        assert rewards[0] == pytest.approx(world.reward_range[0])
