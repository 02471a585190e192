"""Mastermind: its answers against the rule by hand, its bound and its oracle against the exact optimum."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from envs.dynamics import mastermind_search
from envs.dynamics.digits import split
from envs.dynamics.mastermind import Mastermind
from envs.dynamics.mastermind_search import (
    Rules,
    consistent,
    count,
    example,
    information,
    sample,
    shape_size,
    shapes,
    split_sizes,
)
from envs.dynamics.rollout import rollout, uniform_policy

# One word of colours and several, few pegs and many, ids up to 2^62.
RULES = [Rules(6, 4), Rules(10, 6), Rules(10, 9), Rules(100, 9), Rules(3, 39), Rules(2, 62), Rules(17, 1)]


def by_hand(rules, secret, guess):
    """Black and white as a person counts them: cross out what is right, then what is elsewhere."""
    a, b = split(secret, rules.sizes), split(guess, rules.sizes)
    black = sum(x == y for x, y in zip(a, b, strict=True))
    left = [x for x, y in zip(a, b, strict=True) if x != y]
    white = 0
    for y in (y for x, y in zip(a, b, strict=True) if x != y):
        if y in left:
            left.remove(y)
            white += 1
    return black, white


def near(rules, ids, rng):
    """Ids of which about half of the digits are those of ``ids``: answers with many pegs in common."""
    radix = np.array([rules.colours**i for i in range(rules.pegs)])
    digits = ids[:, None] // radix % rules.colours
    other = rng.permuted(digits, axis=1)
    return np.where(rng.random(digits.shape) < 0.5, digits, other) @ radix


def play(world, secrets, guesses):
    """State after ``guesses`` (each ``(B,)``) in games with given secrets."""
    state = {**world.reset(np.zeros(len(secrets), dtype=np.int64)), "secret": np.asarray(secrets)}
    for ids in guesses:
        state, _, _ = world.step(state, ids)
    return state


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_answers_are_those_by_hand(rules):
    rng = np.random.default_rng(0)
    world = Mastermind(rules.colours, rules.pegs)
    secrets = rng.integers(world.n, size=50)
    edges = [0, world.n - 1, *(x for x in (2**31 - 1, 2**31, 2**31 + 1) if x < world.n)]
    secrets[: len(edges)] = edges
    for guesses in (rng.integers(world.n, size=50), near(rules, secrets, rng), secrets, secrets[::-1].copy()):
        state = play(world, secrets, [])
        state, rewards, terminated = world.step(state, guesses)
        expected = [by_hand(rules, s, g) for s, g in zip(secrets.tolist(), guesses.tolist(), strict=True)]
        assert [row[0][1:] for row in world._histories(state)] == expected
        assert [row[0][0] for row in world._histories(state)] == guesses.tolist()
        assert rewards.tolist() == [-1.0] * 50
        assert terminated.tolist() == (secrets == guesses).tolist()
        whole = [b * (rules.pegs + 1) + w for b, w in expected]
        assert rules.answers(secrets, guesses).diagonal().tolist() == whole


def test_observation_is_the_board():
    world = Mastermind(colours=6, pegs=4, horizon=3)
    assert world.low.shape == (18,)
    state = play(world, [1 + 2 * 6 + 3 * 36 + 4 * 216], [np.array([2 + 2 * 6 + 3 * 36]), np.array([0])])
    rows = world.observe(state).reshape(3, 6)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[1], [3 / 6, 3 / 6, 4 / 6, 1 / 6, 3 / 5, 1 / 5])  # two black, no white
    np.testing.assert_allclose(rows[0], [1 / 6] * 4 + [1 / 5] * 2)
    assert not rows[2].any()
    state = play(world, [5 * 259], [np.array([5 * 259])])
    assert world.observe(state)[0, :6].tolist() == [1, 1, 1, 1, 1, np.float32(1 / 5)]


@pytest.mark.parametrize(
    ("colours", "pegs", "horizon"),
    [(2, 1, 1), (100, 1, 1), (7, 4, 7), (100, 9, 12), (2, 62, 5), (3, 39, 5), (10, 6, 1000)],
)
def test_observations_and_rewards_are_bounded_and_states_are_not_changed(colours, pegs, horizon):
    rng = np.random.default_rng(0)
    world = Mastermind(colours, pegs, horizon)
    state = world.reset(rng.integers(2**62, size=64))
    for t in range(min(horizon, 12)):
        before = {name: value.copy() for name, value in state.items()}
        ids = np.where(rng.random(64) < 0.1, state["secret"], rng.integers(world.n, size=64))
        ids[:2] = 0, world.n - 1
        new, rewards, terminated = world.step(state, ids)
        assert all(np.array_equal(before[name], state[name]) for name in state)
        assert (rewards.dtype, terminated.dtype) == (np.float64, bool)
        assert set(rewards.tolist()) == {world.reward_range[0]} == {-1.0}
        assert terminated.tolist() == (ids == state["secret"]).tolist()
        state, observation = new, world.observe(new)
        assert observation.shape == (64, horizon * (pegs + 2))
        assert (observation >= world.low).all()
        assert (observation <= world.high).all()
        rows = observation.reshape(64, horizon, pegs + 2)
        assert (rows[:, : t + 1] > 0).all()  # what has been asked
        assert not rows[:, t + 1 :].any()  # what has not


def test_secrets_are_uniform():
    world = Mastermind(colours=3, pegs=4)
    secrets = world.reset(np.arange(81_000))["secret"]
    counts = np.bincount(secrets, minlength=81)
    assert len(counts) == 81
    chi2 = ((counts - 1000) ** 2 / 1000).sum()  # 80 degrees of freedom
    assert abs(chi2 - 80) < 5 * 160**0.5
    far = Mastermind(colours=2, pegs=62).reset(np.arange(4000))["secret"]
    assert far.min() >= 0
    assert abs((far / 2**62).mean() - 0.5) < 5 * (1 / 12 / 4000) ** 0.5


@pytest.mark.parametrize("world", [Mastermind(2, 3, 4), Mastermind(3, 2, 30), Mastermind(5, 2)], ids=str)
def test_random_play_earns_what_it_should(world):
    returns, lengths = rollout(world, uniform_policy(world), 20_000)
    assert abs(returns.mean() - world.random_return()) < 5 * returns.std() / 20_000**0.5
    assert (returns == -lengths).all()
    assert lengths.max() == world.horizon
    assert Mastermind(10, 9).random_return() == pytest.approx(-12, abs=1e-6)
    assert Mastermind(10, 9).random_return() > -12


# The search


@pytest.mark.parametrize("rules", [Rules(6, 4), Rules(3, 5), Rules(40, 2), Rules(2, 9)], ids=str)
@pytest.mark.parametrize("block", [2, 1024])  # of one prefix or two, many of which lead nowhere
def test_search_finds_the_codes_that_fit_once_each(rules, block, monkeypatch):
    monkeypatch.setattr(mastermind_search, "BLOCK", block)
    rng = np.random.default_rng(0)
    for _ in range(10):
        secret = int(rng.integers(rules.n))
        asked = rng.integers(rules.n, size=3).tolist()
        history, fit = (), set(range(rules.n))
        for guess in [None, *asked]:
            if guess is not None:
                answer = by_hand(rules, secret, guess)
                history += ((guess, *answer),)
                fit = {code for code in fit if by_hand(rules, code, guess) == answer}
            found = np.concatenate(list(consistent(rules, history))).tolist()
            assert sorted(found) == sorted(fit)
            assert count(rules, history, rules.n) == len(fit)
            assert count(rules, history, 2) == min(2, len(fit))
            assert set(sample(rules, history, 5).tolist()) <= fit
            assert len(sample(rules, history, 5)) == min(5, len(fit))


def test_search_samples_from_everywhere():
    rules = Rules(10, 9)
    history = ((example(rules, (2, 2, 1, 1, 1, 1, 1)), 1, 3),)
    codes = sample(rules, history, 4000)
    assert len(np.unique(codes)) == 4000
    kept = rules.answers(codes, np.array([history[0][0]]))[:, 0]
    assert (kept == 1 * 10 + 3).all()
    assert len(np.unique(codes % 1000)) > 200  # not all from one corner


# The optimum


@cache
def answer_table(world):
    ids = np.arange(world.n)
    return world.rules.answers(ids, ids).tolist()


@cache
def fewest(world, codes, left):
    """Sum over ``codes`` of the guesses that the best strategy needs, at most ``left`` each; by trial."""
    if not codes or left == 0:
        return 0
    if len(codes) == 1:
        return 1
    table, best = answer_table(world), math.inf
    floor = 2 * len(codes) - 1  # one code may be right at once, the others take two guesses
    for guess in range(world.n):
        parts = {}
        for code in codes:
            parts.setdefault(table[code][guess], []).append(code)
        if len(parts) == 1 and guess not in codes:
            continue  # it tells nothing: some other guess is at least as good
        total = len(codes)
        for part in parts.values():
            if part != [guess]:
                total += fewest(world, tuple(part), left - 1)
        best = min(best, total)
        if best == floor:
            break
    return best


SMALL = [
    Mastermind(3, 2),
    Mastermind(2, 4),
    Mastermind(4, 2),
    Mastermind(5, 2),
    Mastermind(3, 3),
    Mastermind(3, 3, 3),
    Mastermind(2, 4, 2),
    Mastermind(9, 1),
]


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_bound_optimum_and_oracle_are_in_order_at_every_history(world):
    """All secrets at once, so that the means are exact."""
    state, everything = play(world, np.arange(world.n), []), tuple(range(world.n))
    spent, alive = np.zeros(world.n), np.ones(world.n, dtype=bool)
    groups = {(): everything}
    for t in range(world.horizon):
        values = world.optimal_value(state)
        for codes in groups.values():
            best = -fewest(world, codes, world.horizon - t) / len(codes)
            assert values[list(codes)] == pytest.approx([values[codes[0]]] * len(codes))
            assert best <= values[codes[0]] + 1e-12
        state, _, terminated = world.step(state, world.optimal_action(state))
        spent += alive
        alive &= ~terminated
        groups = {}
        for code, history in enumerate(world._histories(state)):
            if alive[code]:
                groups.setdefault(history, []).append(code)
        groups = {history: tuple(codes) for history, codes in groups.items()}
        assert (world.optimal_value(state)[~alive] == 0).all()
    assert (world.optimal_value(state) == 0).all()
    best = fewest(world, everything, world.horizon) / world.n
    assert best <= spent.mean() <= 1.04 * best  # the oracle is not the optimum, and near it


def test_bound_is_the_formula():
    state = play(Mastermind(6, 4), [0], [])
    # 13 answers are no hit: 1, 13, 169 and then the other 1113 codes at best
    assert Mastermind(6, 4).optimal_value(state).tolist() == pytest.approx(
        [-(1 + 2 * 13 + 3 * 169 + 4 * 1113) / 1296]
    )
    assert Mastermind(6, 4, 2).optimal_value(state).tolist() == pytest.approx([-(1 + 1295 / 1296)])


@pytest.mark.parametrize(("pegs", "games"), [(6, 40), (9, 2)])
def test_oracle_is_as_good_as_documented(pegs, games):
    world = Mastermind(10, pegs)
    returns, lengths = rollout(world, world.optimal_action, games)
    documented, spread = {6: (6.692, 0.8), 9: (8.34, 1.0)}[pegs]
    assert abs(lengths.mean() - documented) < 5 * spread / games**0.5
    assert (returns == -lengths).all()
    assert (lengths < world.horizon).all()
    first = world.optimal_value(world.reset(np.arange(3)))
    assert returns.mean() < first[0] == first[2]


def test_oracle_on_all_secrets_of_the_game_as_it_is_sold():
    world = Mastermind(6, 4)
    state, total, alive = play(world, np.arange(1296), []), 0, np.ones(1296, dtype=bool)
    for _ in range(7):
        total += alive.sum()
        state, _, terminated = world.step(state, world.optimal_action(state))
        alive &= ~terminated
    assert not alive.any()
    assert 5625 <= total == 5664  # 5625 is the optimum of Koyama and Lai


def test_oracle_asks_what_fits_and_the_bound_holds_on_the_way():
    world = Mastermind(10, 6)
    state = world.reset(np.arange(4))
    to_go = []
    for _ in range(8):
        to_go.append(world.optimal_value(state))
        guesses = world.optimal_action(state)
        for guess, history in zip(guesses, world._histories(state), strict=True):
            for asked, black, white in history:
                assert by_hand(world.rules, int(guess), asked) == (black, white)
        state, _, _ = world.step(state, guesses)
    assert (np.diff(np.array(to_go), axis=0) >= -1e-12).mean() > 0.7  # what is known grows
    again = world.optimal_action({name: torch.tensor(value) for name, value in state.items()})
    assert again.dtype == torch.int64
    assert again.tolist() == world.optimal_action(state).tolist()


def test_good_fraction_counts():
    for world in (Mastermind(6, 4), Mastermind(3, 5)):
        ids = np.arange(world.n)
        bits = information(split_sizes(world.rules, ids, ids))
        for eps in (0.0, 0.03, 0.1, 0.5, 1.0):
            good = (bits >= (1 - eps) * bits.max() - 1e-9).mean()
            assert world.good_fraction(eps) == pytest.approx(good)
    for rules in RULES:
        assert sum(shape_size(rules, shape) for shape in shapes(rules)) == rules.n
    assert 0 < Mastermind(10, 9).good_fraction(0.01) < Mastermind(10, 9).good_fraction(0.1) < 1


def test_features_are_the_digits():
    world = Mastermind(6, 4)
    ids = np.arange(world.n).reshape(36, 36)
    features = world.action_features(ids)
    assert features.shape == (36, 36, 24)
    assert features.dtype == np.float32
    assert (features.reshape(36, 36, 4, 6).argmax(-1) @ 6 ** np.arange(4) == ids).all()
    assert (features.sum(-1) == 4).all()
    np.testing.assert_array_equal(features, world.action_features(torch.tensor(ids)).numpy())


# Backends


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_backends_agree_to_the_last_bit(rules, side_by_side):
    world = Mastermind(rules.colours, rules.pegs, 7)
    rng, games = np.random.default_rng(1), side_by_side(world, 6)
    assert games.numpy["board"].dtype == np.int8
    for _ in range(6):
        games.step(near(rules, games.numpy["secret"], rng))
    assert games.step(games.numpy["secret"]).all()
    games.check_features(games.numpy["secret"])


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"colours": 1}, "colours must be an int in"),
        ({"colours": 101}, "colours must be an int in"),
        ({"colours": 6.0}, "colours must be an int in"),
        ({"pegs": 0}, "pegs must be an int in"),
        ({"pegs": 63}, "pegs must be an int in"),
        ({"pegs": 19}, "at most 18 pegs"),
        ({"colours": 4, "pegs": 32}, "at most 31 pegs"),
        ({"horizon": 0}, "horizon must be an int in"),
        ({"horizon": 1001}, "horizon must be an int in"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        Mastermind(**kwargs)


def test_there_is_no_exact_value():
    world = Mastermind()
    assert not world.exact
    assert world.optimal_return() is None
    state = world.reset(np.arange(2))
    with pytest.raises(NotImplementedError, match="optimal_value"):
        world.q_star(state, np.arange(2))
