"""ScatterChain against brute force over all actions, and against its closed forms."""

import numpy as np
import pytest
import torch

from envs.dynamics.rollout import rollout, uniform_policy
from envs.dynamics.scatter_chain import ScatterChain

WORLDS = [
    ScatterChain(n=1000, kappa=1.0),
    ScatterChain(n=1000, kappa=20.0, contexts=3),
    ScatterChain(n=4096, kappa=3.5, slip=0.2, levels=4),
    ScatterChain(n=997, kappa=997.0),
    ScatterChain(n=1000, traps=0.2, advance=0.01),
    ScatterChain(n=1000, traps=0.0, horizon=7),
    ScatterChain(n=1000, horizon=6),  # too short to climb: traps pay best
    ScatterChain(n=2, levels=2),
    ScatterChain(n=100, levels=9),  # too many levels: looping over traps wins
]


def all_transitions(world, context=0):
    """Rewards ``(levels, n)`` and next levels by stepping every action at every level, without slips."""
    rewards, levels = np.empty((world.levels, world.n)), np.empty((world.levels, world.n), dtype=int)
    for level in range(world.levels):
        state = world.reset(np.zeros(world.n, dtype=np.int64))
        state = {**state, "level": state["level"] + level, "context": state["context"] * 0 + context}
        rewards[level], levels[level] = world._move(state, np.arange(world.n))
    return rewards, levels


def backup(world, rewards, levels, v, gamma):
    """Q ``(levels, n)`` of every action."""
    return rewards + gamma * ((1 - world.slip) * v[levels] + world.slip * v.mean())


@pytest.mark.parametrize("world", WORLDS, ids=str)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_oracles_equal_brute_force_over_all_actions(world, gamma):
    context = world.contexts - 1
    rewards, levels = all_transitions(world, context)
    best, random = np.zeros(world.levels), np.zeros(world.levels)
    key = np.zeros(world.levels, dtype=np.int64)
    for to_go in range(1, world.horizon + 1):
        q = backup(world, rewards, levels, best, gamma)
        state = {
            "key": key,
            "t": key + world.horizon - to_go,
            "level": np.arange(world.levels),
            "context": key + context,
        }
        actions = world.optimal_action(state, gamma)
        assert q[np.arange(world.levels), actions] == pytest.approx(q.max(axis=1), abs=1e-12)
        ids = np.arange(0, world.n, max(1, world.n // 7))
        for a in ids:
            assert world.q_star(state, key + a, gamma) == pytest.approx(q[:, a], abs=1e-9)
        best, random = q.max(axis=1), backup(world, rewards, levels, random, gamma).mean(axis=1)
        assert world.optimal_value(state, gamma) == pytest.approx(best, abs=1e-9)
        assert world.random_values(gamma)[to_go] == pytest.approx(random, abs=1e-9)
        if gamma == 1:
            assert world.random_value(state) == pytest.approx(random, abs=1e-9)
    if gamma == 1:
        assert world.optimal_return() == pytest.approx(best[0])
        assert world.random_return() == pytest.approx(random[0])


def test_stationary_values_equal_value_iteration():
    world = ScatterChain(n=1000, kappa=5.0)
    rewards, levels = all_transitions(world)
    v = np.zeros(world.levels)
    for _ in range(5000):
        v = backup(world, rewards, levels, v, 0.99).max(axis=1)
    assert world.stationary_values(0.99) == pytest.approx(v, abs=1e-8)


def test_default_optimum_climbs_and_stays():
    assert ScatterChain().optimal_return() == pytest.approx(46.0)
    assert ScatterChain(n=1000, horizon=6).optimal_return() == pytest.approx(3.6)  # six traps


@pytest.mark.parametrize("world", WORLDS[:6], ids=str)
def test_oracle_and_random_play_earn_what_they_should(world):
    returns, _ = rollout(world, world.optimal_action, 400)
    spread = returns.std() / 20
    assert abs(returns.mean() - world.optimal_return()) <= 5 * spread + 1e-9
    returns, lengths = rollout(world, uniform_policy(world), 4000)
    assert abs(returns.mean() - world.random_return()) < 5 * returns.std() / 4000**0.5
    assert (lengths == world.horizon).all()


@pytest.mark.parametrize("n", [10**6, 10**9, 2**62])
@pytest.mark.parametrize("kappa", [1.0, 20.0])
def test_oracle_action_pays_at_any_size(n, kappa):
    world = ScatterChain(n=n, kappa=kappa)
    returns, _ = rollout(world, world.optimal_action, 4)
    assert returns == pytest.approx([46.0] * 4)
    assert world.random_return() == pytest.approx(
        ScatterChain(n=10**6, kappa=kappa).random_return(), rel=1e-4
    )


@pytest.mark.parametrize("n", [10**5, 3_000_000])
@pytest.mark.parametrize("kappa", [0.5, 1.0, 20.0, 1e3, 1e5])
def test_sum_of_rewards_beyond_the_term_by_term_part(n, kappa):
    world = ScatterChain(n=n, kappa=kappa)
    for start, stop in [(0, n), (n // 10, n), (0, n - n // 10)]:
        exact = np.sum((1 - np.arange(start, stop) / (n - 1)) ** kappa)
        assert world._sum_g(start, stop) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("kappa", [1.0, 20.0])
@pytest.mark.parametrize("m", [1, 10, 100])
def test_best_of_m_equals_monte_carlo(kappa, m):
    world = ScatterChain(n=1000, kappa=kappa)
    rewards, levels = all_transitions(world)
    pays = np.where(levels[-1] == world.levels - 1, rewards[-1], 0.0)  # a trap leaves: it does not count
    rng = np.random.default_rng(0)
    best = np.array([pays[rng.choice(1000, m, replace=False)].max() for _ in range(4000)])
    assert abs(world.best_of(m) - best.mean()) < 5 * best.std() / 4000**0.5


def test_best_of_m_closed_forms():
    n, m = 1000, 10
    nearly_all_stay = ScatterChain(n=n, traps=0.0, advance=1e-9)  # one action advances
    assert nearly_all_stay.best_of(m) == pytest.approx(1 - (n - m) / ((m + 1) * (n - 1)), abs=1e-3)
    for kappa in (1.0, 20.0, 100.0):
        for size in (10**6, 10**9):
            assert ScatterChain(n=size, kappa=kappa).best_of(20) == pytest.approx(20 / (20 + kappa), rel=1e-4)
    assert ScatterChain(n=1000).best_of(1000) == pytest.approx(1.0)


def test_good_fraction_counts():
    for world in WORLDS[:5]:
        rewards, levels = all_transitions(world)
        stay = (levels[-1] == world.levels - 1) & (rewards[-1] > 0)
        for eps in (0.01, 0.1, 0.5):
            good = (stay & (rewards[-1] >= 1 - eps)).mean()
            assert world.good_fraction(eps) == pytest.approx(good, abs=1.1 / world.n)


def test_rewards_are_bounded_and_states_are_not_changed():
    rng = np.random.default_rng(0)
    for world in WORLDS:
        state = world.reset(rng.integers(2**62, size=64))
        for _ in range(world.horizon):
            before = {name: value.copy() for name, value in state.items()}
            new, rewards, terminated = world.step(state, rng.integers(world.n, size=64))
            assert all(np.array_equal(before[name], state[name]) for name in state)
            low, high = world.reward_range
            assert rewards.dtype == np.float64
            assert low <= rewards.min() <= rewards.max() <= high
            assert not terminated.any()
            state = new


@pytest.mark.parametrize("world", WORLDS[:4], ids=str)
def test_backends_agree(world, side_by_side):
    rng, games = np.random.default_rng(1), side_by_side(world, 5)
    for _ in range(world.horizon):
        ids = rng.integers(world.n, size=5)
        games.same(world.optimal_action)
        games.same(world.optimal_value, rtol=1e-15)
        games.same(world.q_star, ids, rtol=1e-12)
        games.step(ids, rtol=1e-13)


def test_contexts_and_layouts_have_permutations_of_their_own():
    world = ScatterChain(n=1000, contexts=2)
    state = {"level": 0, "context": 0}
    ids = np.arange(1000)
    ranks = [
        world.rank({"level": ids * 0 + level, "context": ids * 0 + context}, ids)
        for level in range(5)
        for context in range(2)
    ]
    ranks.append(ScatterChain(n=1000, contexts=2, layout=1).rank(dict.fromkeys(state, ids * 0), ids))
    correlations = np.corrcoef(ranks) - np.eye(len(ranks))
    assert np.abs(correlations).max() < 0.15


def test_slip_happens_as_often_as_it_should():
    world = ScatterChain(n=1000, slip=0.25)
    state = world.reset(np.arange(20_000))
    _, ka = world.bounds
    stay = world.action_of_rank(state, state["level"] + ka)
    after, _, _ = world.step(state, stay)
    assert (after["level"] > 0).mean() == pytest.approx(0.25 * 4 / 5, abs=0.02)


def test_features_tell_ids_apart():
    features = ScatterChain().action_features(np.arange(100_000))
    assert features.shape == (100_000, 16)
    assert features.dtype == np.float32
    assert len(np.unique(features, axis=0)) == 100_000
    assert np.abs(features).max() <= 1
    torch.testing.assert_close(ScatterChain().action_features(torch.arange(50)), torch.tensor(features[:50]))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"n": 1}, "n must be an int in"),
        ({"n": 2**62 + 1}, "n must be an int in"),
        ({"n": 1e6}, "n must be an int in"),
        ({"n": True}, "n must be an int in"),
        ({"kappa": 0.0}, "kappa must be positive"),
        ({"kappa": float("inf")}, "kappa must be a number"),
        ({"traps": 0.5, "advance": 0.5}, "together below 1"),
        ({"traps": -0.1}, "traps must be a number"),
        ({"advance": 0.0}, "advance > 0"),
        ({"levels": 1}, "levels must be"),
        ({"contexts": 0}, "contexts must be"),
        ({"slip": 1.5}, "slip must be"),
        ({"horizon": 0}, "horizon must be"),
        ({"layout": -1}, "layout must be"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        ScatterChain(**kwargs)
