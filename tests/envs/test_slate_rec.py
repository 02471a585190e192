"""SlateRec: its oracle against brute force, its users and choices, its bounds."""

import itertools

import numpy as np
import pytest
import torch

from envs.dynamics.rollout import rollout, uniform_policy
from envs.dynamics.slate_rec import SlateRec
from envs.dynamics.slate_search import best_slates, top
from envs.dynamics.slate_user import LIMIT, PRICES, UNIT, catalogue, drifted

ROOT21 = 21**0.5
SMALL = [  # at most 4096 slates; the catalogues of 4096 and 200 are scanned in classes
    SlateRec(items=16, slate=3),
    SlateRec(items=64, slate=2),
    SlateRec(items=64, slate=2, satiation=True, beta=1.0),
    SlateRec(items=8, slate=4, satiation=True),
    SlateRec(items=2, slate=12),
    SlateRec(items=3, slate=5, beta=6.0, layout=2**61),
    SlateRec(items=4096, slate=1),
    SlateRec(items=200, slate=1, satiation=True, drift=1.0),
]
FUZZ = [
    SlateRec(),
    SlateRec(items=10, slate=2, satiation=True, beta=20.0, drift=0.5),
    SlateRec(items=100, slate=3, satiation=True),
    SlateRec(items=10**9, slate=1, drift=1.0),
    SlateRec(items=2**31, slate=2),
    SlateRec(items=2, slate=62, drift=0.0),
    SlateRec(items=2, slate=1, beta=1e-9, satiation=True, horizon=1),
    SlateRec(items=463, slate=7, beta=20.0, drift=0.001, layout=2**62 - 1),
]


def keys(number, seed=0):
    return np.random.default_rng(seed).integers(2**62, size=number)


def walked(world, number, steps=8, seed=0):
    """States some steps into episodes of the oracle, where satiation has built up."""
    state = world.reset(keys(number, seed))
    for _ in range(steps):
        state, _, _ = world.step(state, world.optimal_action(state))
    return state


def utilities(world, user, satiation=None):
    """Utilities of all items for one user, in plain words, and their revenues."""
    digits, price = catalogue(np.arange(world.items), world.layout)
    e, r = (2 * digits.T.astype(float) - 7) / (4 * ROOT21), (price + 1) / 32
    v = e @ (user / 512) - 3 * r
    return (v if satiation is None else v - np.maximum(0, e @ (satiation / 512))), r


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_oracle_equals_brute_force_over_all_slates(world):
    state = walked(world, 12)
    value, action = world.best(state["user"], state.get("satiation"))
    assert action.dtype == np.int64
    slates = [set(items) for items in itertools.product(range(world.items), repeat=world.slate)]
    ids = np.arange(world.n)
    for i in range(12):
        sated = state["satiation"][i] if world.satiation else None
        v, r = utilities(world, state["user"][i], sated)
        w = np.exp(world.beta * v)
        shares = [list(slate) for slate in slates]
        direct = np.array([(w[s] * r[s]).sum() / (1 + w[s].sum()) for s in shares])
        one = {name: np.repeat(x[i : i + 1], world.n, axis=0) for name, x in state.items()}
        earned = world.expected_reward(one, ids)
        # itertools counts the first digit as the most significant, a slate is the same either way round
        np.testing.assert_allclose(earned, direct, rtol=1e-10)
        assert value[i] == pytest.approx(direct.max(), rel=1e-12)
        assert earned[action[i]] == pytest.approx(direct.max(), rel=1e-12)


def test_oracle_of_a_large_catalogue_needs_no_chunk_to_be_lucky():
    world = SlateRec(items=150_001, slate=1)  # five chunks, the last one short
    state = world.reset(keys(6))
    value, action = world.best(state["user"])
    for i in range(6):
        v, r = utilities(world, state["user"][i])
        alone = r / (1 + np.exp(-world.beta * v))
        assert action[i] == alone.argmax()
        assert value[i] == pytest.approx(alone.max(), rel=1e-12)
    pairs = SlateRec(items=40_000, slate=3)
    value, action = pairs.best(state["user"])
    for i in range(6):  # Dinkelbach over all the items at once
        v, r = utilities(pairs, state["user"][i])
        assert value[i] == pytest.approx(best_slates(np.exp(2 * v)[None], r, 3)[0][0], rel=1e-12)
    assert value == pytest.approx(pairs.expected_reward(state, action), rel=1e-12)


def test_many_users_are_scanned_in_blocks():
    world = SlateRec(items=120, slate=2)
    user = world.reset(keys(4100))["user"]
    value, action = world.best(user)
    for part in (slice(0, 5), slice(4095, 4100)):
        again = world.best(user[part])
        assert value[part].tolist() == again[0].tolist()
        assert action[part].tolist() == again[1].tolist()


def test_best_slates_may_be_smaller_and_beat_their_neighbours():
    rng = np.random.default_rng(0)
    weights, revenues = np.exp(3 * rng.normal(size=(300, 9))), rng.random(9) + 0.01
    value, columns, member = best_slates(weights, revenues, 4)
    sizes = member.sum(axis=1)
    assert sizes.min() == 1
    assert sizes.max() == 4
    for w, v, chosen, inside in zip(weights, value, columns, member, strict=True):
        direct = [
            (w[list(s)] @ revenues[list(s)]) / (1 + w[list(s)].sum())
            for k in range(1, 5)
            for s in itertools.combinations(range(9), k)
        ]
        mine = chosen[inside]
        assert v == pytest.approx(max(direct), rel=1e-12)
        assert v == pytest.approx((w[mine] @ revenues[mine]) / (1 + w[mine].sum()), rel=1e-12)


def test_top_takes_the_first_of_equals_and_says_when_there_are_no_more():
    values, places = top(np.array([[1.0, 3.0, 3.0], [2.0, 0.0, 2.0]]), 2)
    assert places.tolist() == [[1, 2], [0, 2]]
    assert values.tolist() == [[3, 3], [2, 2]]
    assert top(np.array([[5.0]]), 2)[0].tolist() == [[5.0, -np.inf]]


@pytest.mark.parametrize("satiation", [False, True])
def test_choices_have_their_probabilities(satiation):
    world = SlateRec(items=12, slate=3, satiation=satiation)
    one = walked(world, 1, seed=3)
    number = 100_000
    state = {name: np.repeat(x, number, axis=0) for name, x in one.items()} | {"key": np.arange(number)}
    v, r = utilities(world, one["user"][0], one["satiation"][0] if satiation else None)
    best = world.optimal_action(one)[0]
    for action in (best, 0, 5 + 12 * 5 + 144 * 7, 5 + 12 * 7 + 144 * 5, 3 + 12 * 4 + 144 * 5):
        items = sorted({action % 12, action // 12 % 12, action // 144})
        w = np.exp(world.beta * v[items])
        after, rewards, _ = world.step(state, np.full(number, action))
        if action == best:  # words of their own: what is chosen says nothing of the tastes to come
            moved = np.corrcoef(np.column_stack([rewards, after["user"]]).T)[0, 1:]
            assert np.abs(moved).max() < 5 / number**0.5
        for revenue in {0.0, *r[items]}:
            p = (np.append(w, 1.0) / (1 + w.sum()))[np.append(r[items], 0.0) == revenue].sum()
            assert abs((rewards == revenue).mean() - p) < 5 * (p * (1 - p) / number) ** 0.5 + 1e-12
        assert set(rewards) <= {0.0, *r[items]}


def test_users_drift_to_a_normal_of_their_own():
    world = SlateRec(drift=0.25)
    state = world.reset(np.arange(20_000))
    first, actions = state["user"] / UNIT, np.zeros(20_000, dtype=np.int64)
    for _ in range(3):
        state, _, _ = world.step(state, actions)
    later = state["user"] / UNIT
    for user in (first, later):
        assert np.abs(user.mean(axis=0)).max() < 5 / 20_000**0.5
        assert user.var(axis=0) == pytest.approx(np.ones(16), abs=0.05)
        assert np.abs(np.corrcoef(user.T) - np.eye(16)).max() < 0.04  # coordinates go their own ways
    assert (first * later).mean() == pytest.approx(0.75**3, abs=0.01)
    still = SlateRec(drift=0.0)
    state = still.reset(np.arange(5))
    assert still.step(state, actions[:5])[0]["user"].tolist() == state["user"].tolist()


def test_tastes_stay_within_their_limits():
    t, user = np.arange(4), np.array([[LIMIT], [-LIMIT], [0], [1000]]) + np.zeros(16, dtype=np.int64)
    for drift in (0.0, 0.001, 0.3, 1.0):
        after = user
        for _ in range(50):
            after = drifted(np.arange(4) * 977, t, after, drift)  # the same noise again and again
        assert np.abs(after).max() <= LIMIT


def test_actions_do_not_move_the_tastes_but_satiate():
    world = SlateRec(items=30, slate=2, satiation=True)
    a = b = world.reset(keys(50))
    rng = np.random.default_rng(0)
    digits, price = catalogue(np.arange(30), 0)
    for _ in range(15):
        before, ids = b["satiation"], rng.integers(world.n, size=50)
        a, _, _ = world.step(a, rng.integers(world.n, size=50))
        b, rewards, _ = world.step(b, ids)
        assert a["user"].tolist() == b["user"].tolist()
        for i in range(50):
            kept = 0.9 * before[i]
            taken = [j for j in (ids[i] % 30, ids[i] // 30) if (price[j] + 1) / 32 == rewards[i]]
            expected = [kept + 512 * (2 * digits[:, j] - 7) / (4 * ROOT21) for j in taken] or [kept]
            assert (rewards[i] > 0) == bool(taken)
            assert min(np.abs(b["satiation"][i] - e).max() for e in expected) < 0.6


def test_satiation_only_lowers_weights():
    world, plain = SlateRec(items=50, slate=1, satiation=True), SlateRec(items=50, slate=1)
    state = walked(world, 50)
    ids = np.arange(50)
    fresh = {name: x for name, x in state.items() if name != "satiation"}
    with_it, without = world.expected_reward(state, ids), plain.expected_reward(fresh, ids)
    assert (with_it <= without).all()
    assert (with_it < without - 0.01).any()
    loved = world.best(state["user"])[1]  # what one has had of late pays less
    more = {**state, "satiation": state["satiation"] + 28 * (2 * catalogue(loved, 0)[0].T - 7).astype(int)}
    more["satiation"] = np.clip(more["satiation"], -LIMIT, LIMIT)
    assert world.expected_reward(more, loved).mean() < world.expected_reward(state, loved).mean() - 0.05


@pytest.mark.parametrize("world", [SMALL[0], SMALL[1], SlateRec(items=100, slate=3)], ids=str)
def test_values_are_what_the_oracle_earns_on_the_same_path(world):
    state = world.reset(keys(400))
    value, total = world.optimal_value(state), 0.0
    for step in range(world.horizon):
        best = world.optimal_action(state)
        ids = np.random.default_rng(step).integers(world.n, size=400)
        if step % 7 == 0:
            left = world.optimal_value(state)
            np.testing.assert_allclose(left, value - total, atol=1e-10)
            np.testing.assert_allclose(world.q_star(state, best), left, atol=1e-10)
            np.testing.assert_allclose(left - world.q_star(state, ids), world.regret(state, ids), atol=1e-10)
            assert world.regret(state, ids).min() >= -1e-12
        total = total + world.expected_reward(state, best)
        state, _, _ = world.step(state, ids)  # whatever is done, the tastes go the same way
    assert world.optimal_value(state).tolist() == [0.0] * 400
    returns, _ = rollout(world, world.optimal_action, 400)  # the same keys
    assert abs((returns - value).mean()) < 5 * (returns - value).std() / 20


def test_values_where_the_times_differ():
    world = SlateRec(items=20, horizon=5)
    state = world.reset(keys(6))
    states = [state]
    for _ in range(5):
        states.append(world.step(states[-1], np.zeros(6, dtype=np.int64))[0])
    mixed = {name: np.stack([states[i][name][i] for i in range(6)]) for name in state}
    expected = [world.optimal_value(states[i])[i] for i in range(6)]
    np.testing.assert_allclose(world.optimal_value(mixed), expected, atol=1e-12)


def test_bound_with_satiation_is_one():
    world = SlateRec(items=30, slate=2, satiation=True)
    state = walked(world, 1000, steps=12)
    bound, total, path = world.optimal_value(state), np.zeros(1000), state
    for step in range(8):
        greedy = world.optimal_action(path)
        total += world.expected_reward(path, greedy)
        if step == 7:  # at the last step nothing is lost
            np.testing.assert_allclose(world.optimal_value(path), world.expected_reward(path, greedy))
        path, _, _ = world.step(path, greedy)
    assert (total <= bound + 1e-9).all()  # satiation lowers every step of the same path
    assert total.mean() < bound.mean() - 0.1
    assert not world.exact
    for ask in (world.q_star, world.regret):
        with pytest.raises(NotImplementedError, match="not known exactly"):
            ask(state, state["t"])


@pytest.mark.parametrize(
    ("kwargs", "oracle", "random"),
    [
        ({"items": 100, "slate": 3}, 8.80, 2.25),
        ({}, 11.69, 1.69),
        ({"items": 1000, "slate": 3}, 12.27, 2.24),
        ({"items": 100, "slate": 3, "satiation": True}, 6.42, 1.95),
    ],
)
def test_returns_are_those_that_are_documented(kwargs, oracle, random):
    world = SlateRec(**kwargs)
    for policy, documented in ((world.optimal_action, oracle), (uniform_policy(world), random)):
        returns, lengths = rollout(world, policy, 1000, seed=1)
        assert returns.mean() == pytest.approx(documented, abs=5 * returns.std() / 1000**0.5 + 0.02)
        assert (lengths == 20).all()


@pytest.mark.parametrize("world", FUZZ, ids=str)
def test_bounds_hold_and_states_are_not_changed(world):
    rng = np.random.default_rng(0)
    state = world.reset(keys(64))
    low, high = world.reward_range
    for step in range(world.horizon):
        before = {name: value.copy() for name, value in state.items()}
        ids = rng.integers(world.n, size=64)
        ids[:2], ids[2:32] = [0, world.n - 1], ids[2] if step else 0  # some see the same slate all along
        new, rewards, terminated = world.step(state, ids)
        assert all(np.array_equal(before[name], state[name]) for name in state)
        assert rewards.dtype == np.float64
        assert low <= rewards.min() <= rewards.max() <= high
        assert not terminated.any()
        observation = world.observe(new)
        assert observation.dtype == np.float32
        assert observation.shape == (64, 32 if world.satiation else 16)
        assert (observation >= world.low).all()
        assert (observation <= world.high).all()
        state = new


@pytest.mark.parametrize("world", [*SMALL[:4], *FUZZ], ids=str)
def test_backends_agree(world, side_by_side):
    rng, games = np.random.default_rng(1), side_by_side(world, 8)
    for _ in range(world.horizon):
        ids = rng.integers(world.n, size=8)
        if world.items < 10**6:
            games.same(world.optimal_action)
        games.same(world.expected_reward, ids, rtol=1e-12)
        games.step(ids, rtol=1e-12)
    games.check_features(ids)
    if world.items < 10**6:
        side_by_side(world, 3).same(world.optimal_value, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("world", [FUZZ[2], FUZZ[4]], ids=str)
def test_compiled_steps_are_the_same(world):
    state, ids = world.reset(torch.tensor(keys(64))), torch.tensor(keys(64, seed=1) % world.n)
    eager = world.step(state, ids)
    compiled = torch.compile(world.step, fullgraph=True)
    for _ in range(3):
        eager, again = world.step(state, ids), compiled(state, ids)
        assert all(torch.equal(eager[0][name], again[0][name]) for name in state)
        torch.testing.assert_close(eager[1], again[1], rtol=1e-12, atol=1e-12)
        state = eager[0]


@pytest.mark.parametrize(("items", "slate"), [(2**31, 2), (2, 62), (10**9, 1), (100, 3), (1000, 3)])
def test_features_are_those_of_the_items(items, slate):
    world = SlateRec(items=items, slate=slate, layout=5)
    ids = [0, world.n - 1, world.n // 3, *(i for i in (2**31 - 1, 2**31, 2**31 + 1) if i < world.n)]
    features = world.action_features(np.array(ids).reshape(1, -1))
    assert features.shape == (1, len(ids), slate * 17)
    for i, row in zip(ids, features[0], strict=True):
        for k in range(slate):
            digits, price = catalogue(np.array([i // items**k % items]), 5)
            np.testing.assert_allclose(
                row[17 * k : 17 * k + 16], (2 * digits[:, 0] - 7.0) / ROOT21, rtol=1e-6
            )
            assert row[17 * k + 16] == (price[0] + 1) / 32


def test_the_catalogue_is_uniform_and_of_its_layout():
    digits, price = catalogue(np.arange(100_000), 0)
    for values, number in ((digits, 8), (price[None], PRICES)):
        for row in values:
            counts = np.bincount(row, minlength=number)
            assert len(counts) == number
            assert ((counts - 1e5 / number) ** 2).sum() / (1e5 / number) < number + 6 * (2 * number) ** 0.5
    assert np.abs(np.corrcoef(np.vstack([digits, price])) - np.eye(17)).max() < 0.02
    assert np.abs(np.corrcoef(digits[:, :-1].ravel(), digits[:, 1:].ravel())[0, 1]) < 0.01
    assert (catalogue(np.arange(1000), 1)[0] != digits[:, :1000]).mean() == pytest.approx(7 / 8, abs=0.02)


def test_good_fraction():
    world = SlateRec(items=64, slate=2)
    state = world.reset(np.arange(64))
    values, shares = world.optimal_value({**state, "t": state["t"] + 19}), []
    for i in range(64):
        one = {name: np.repeat(x[i : i + 1], 4096, axis=0) for name, x in state.items()}
        shares.append((world.expected_reward(one, np.arange(4096)) >= values[i] - 0.05).mean())
    assert world.good_fraction(0.05) == pytest.approx(np.mean(shares))
    assert 1 / 4096 <= world.good_fraction(0.0) < 4 / 4096  # the best slate, and the ways to write it
    assert world.good_fraction(1.0) == 1
    large = [SlateRec(items=100, slate=3).good_fraction(eps) for eps in (0.02, 0.1, 0.3)]
    assert 0 < large[0] < large[1] < large[2] < 1


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"items": 1}, "items must be an int in"),
        ({"items": 2**31 + 1, "slate": 1}, "items must be an int in"),
        ({"items": 100.0}, "items must be an int in"),
        ({"slate": 0}, "slate must be an int in"),
        ({"slate": 7}, "at most 2\\^62: with slate=7 at most 463 items"),
        ({"items": 3, "slate": 62}, "with slate=62 at most 2 items"),
        ({"beta": 0.0}, "beta must be"),
        ({"beta": 21.0}, "beta must be"),
        ({"beta": float("nan")}, "beta must be"),
        ({"drift": -0.1}, "drift must be"),
        ({"drift": 1.1}, "drift must be"),
        ({"drift": 1e-5}, "drift must be 0 or at least"),
        ({"satiation": 1}, "satiation must be a bool"),
        ({"horizon": 0}, "horizon must be"),
        ({"layout": -1}, "layout must be"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        SlateRec(**kwargs)
