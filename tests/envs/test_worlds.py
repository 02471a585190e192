"""What every world owes its users, over all registered ids: bounds, references, digits, memory."""

import subprocess
import sys
import typing

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs
from envs.dynamics.digits import join, split
from envs.dynamics.rollout import rollout, uniform_policy
from envs.dynamics.world import Structure, World

WORLD_IDS = envs.world_ids()
BILLIONS = [id for id in WORLD_IDS if gym.make(id).unwrapped.dynamics.n >= 10**8]
# Oracles that search: fewer episodes, and none where a step takes minutes.
SLOW_ORACLES = {"Catalogue-1M": 4, "Mastermind-6x10": 8, "Mastermind-9x10": 2, "BatchScheduleSetup-10": 4}
NO_ORACLE = {"Catalogue-1G"}


def name_of(id):
    return id.removeprefix("LargeAction/").removesuffix("-v0")


def world_of(id, **kwargs) -> World:
    return gym.make(id, **kwargs).unwrapped.dynamics


def keys(number, seed=0):
    return np.random.default_rng(seed).integers(2**62, size=number)


@pytest.mark.parametrize("id", WORLD_IDS)
def test_says_what_it_is(id):
    world = world_of(id)
    assert world.structure in typing.get_args(Structure)
    low, high = world.reward_range
    assert -np.inf < low < high < np.inf
    assert world.low.dtype == world.high.dtype == np.float32
    assert (world.low < world.high).all()
    assert np.isfinite([*world.low, *world.high]).all()
    assert np.prod([float(size) for size in world.sizes]) == pytest.approx(world.n)
    docstring = type(world).__doc__
    for heading in ("Description", "Action Space", "Observation Space", "Starting State", "Rewards"):
        assert f"## {heading}" in docstring
    for heading in ("Episode End", "Arguments", "Optimum", "Version History"):
        assert f"## {heading}" in docstring
    assert "**Structure of the action space: " in " ".join(docstring.split())


@pytest.mark.parametrize("id", WORLD_IDS)
def test_sized_ids_have_a_threshold(id):
    threshold, sized = gym.spec(id).reward_threshold, "-" in name_of(id)
    assert (threshold is not None) == (sized and name_of(id) not in NO_ORACLE)
    if threshold is not None:
        assert threshold > world_of(id).random_value()


@pytest.mark.parametrize("id", WORLD_IDS)
def test_rewards_and_observations_keep_their_bounds(id):
    world = world_of(id)
    (low, high), rng = world.reward_range, np.random.default_rng(0)
    state = world.reset(keys(256))
    for step in range(min(world.horizon, 60)):
        observation = world.observe(state)
        assert observation.dtype == np.float32
        assert observation.shape == (256, *world.low.shape)
        assert (observation >= world.low).all()
        assert (observation <= world.high).all()
        ids = rng.integers(world.n, size=256)
        ids[:64], ids[64:128] = 0, world.n - 1  # the same corner again and again
        if step % 2:
            ids[128:160] = world.n - 1 - ids[128:160]
        before = {name: value.copy() for name, value in state.items()}
        after, rewards, terminated = world.step(state, ids)
        for name, value in before.items():
            np.testing.assert_array_equal(value, state[name])
        assert rewards.dtype == np.float64
        assert terminated.dtype == bool
        assert rewards.min() >= low
        assert rewards.max() <= high
        alive = ~terminated
        fresh = world.reset(keys(256, seed=step + 1))
        state = {
            name: np.where(alive.reshape(-1, *[1] * (value.ndim - 1)), value, fresh[name])
            for name, value in after.items()
        }


@pytest.mark.parametrize("id", WORLD_IDS)
def test_digits_and_ids(id):
    world = world_of(id)
    ids = [0, 1, world.n - 1, world.n // 2, 2**31 - 1, 2**31, 2**31 + 1]
    ids = np.array([i for i in ids if i < world.n])
    digits = split(ids, world.sizes)
    assert all((d >= 0).all() and (d < size).all() for d, size in zip(digits, world.sizes, strict=True))
    assert join(digits, world.sizes).tolist() == ids.tolist()
    assert [d.tolist() for d in split(torch.tensor(ids), world.sizes)] == [d.tolist() for d in digits]
    assert [split(int(i), world.sizes) for i in ids] == np.stack(digits, axis=-1).tolist()


@pytest.mark.parametrize("id", WORLD_IDS)
def test_features(id):
    world = world_of(id)
    ids = np.random.default_rng(0).integers(world.n, size=(3, 4))
    features = world.action_features(ids)
    assert features.dtype == np.float32
    assert features.shape[:2] == (3, 4)
    assert np.isfinite(features).all()
    assert len(np.unique(features.reshape(12, -1), axis=0)) > 6  # they tell actions apart
    torch.testing.assert_close(world.action_features(torch.tensor(ids)), torch.tensor(features))


@pytest.mark.parametrize("id", WORLD_IDS)
def test_good_fraction_is_a_share_and_grows(id):
    world = world_of(id)
    shares = [world.good_fraction(eps) for eps in (0.01, 0.1, 0.5)]
    assert 0 <= shares[0] <= shares[1] <= shares[2] <= 1


@pytest.mark.parametrize("id", WORLD_IDS)
def test_random_play_earns_the_random_value(id):
    world = world_of(id)
    assert np.isfinite(world.random_value())
    if world.random_return() is None:
        return
    assert world.random_value() == world.random_return()
    returns, _ = rollout(world, uniform_policy(world, seed=1), 2000, seed=1)
    error = returns.std() / 2000**0.5
    # Where luck is rarer than a million to one, no sample has it.
    assert abs(returns.mean() - world.random_return()) <= 5 * error + 1e-4 * abs(world.random_return())


@pytest.mark.parametrize("id", [id for id in WORLD_IDS if name_of(id) not in NO_ORACLE])
def test_the_oracle_earns_what_it_says(id):
    world, episodes = world_of(id), SLOW_ORACLES.get(name_of(id), 100)
    state = world.reset(np.random.default_rng(3).integers(2**62, size=episodes))  # rollout's own starts
    values = world.optimal_value(state)
    assert values.shape == (episodes,)
    returns, _ = rollout(world, world.optimal_action, episodes, seed=3)
    error = (returns - values).std() / episodes**0.5
    assert returns.mean() <= values.mean() + 5 * error + 1e-9
    if world.exact:
        assert abs(returns.mean() - values.mean()) <= 5 * error + 1e-9
        best = world.optimal_action(state)
        np.testing.assert_allclose(world.q_star(state, best), values, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(world.regret(state, best), 0, atol=1e-9)
        rng = np.random.default_rng(0)
        for _ in range(20):
            ids = rng.integers(world.n, size=episodes)
            assert (world.q_star(state, ids) <= values + 1e-9).all()
    else:
        with pytest.raises(NotImplementedError, match="not known exactly"):
            world.q_star(state, world.optimal_action(state))
    if world.optimal_return() is not None:
        assert abs(returns.mean() - world.optimal_return()) <= 5 * returns.std() / episodes**0.5 + 1e-9
    assert returns.mean() > world.random_value()


@pytest.mark.parametrize("id", [id for id in WORLD_IDS if name_of(id) not in NO_ORACLE])
def test_oracles_at_and_after_the_end_of_an_episode(id):
    """When no step is left every value is 0; and a vector of environments asks on for those that are over."""
    world = world_of(id, horizon=4)
    state = world.reset(keys(3))
    for _ in range(world.horizon):
        state = world.step(state, np.zeros(3, dtype=np.int64))[0]
    assert (world.optimal_value(state) == 0).all()
    actions = world.optimal_action(state)
    assert ((actions >= 0) & (actions < world.n)).all()
    if world.exact:
        assert (world.q_star(state, np.arange(3)) == 0).all()
        assert (world.regret(state, np.arange(3)) == 0).all()
    vector = gym.make_vec(id, num_envs=2, horizon=3)
    vector.reset(seed=0)
    over = 0
    for _ in range(9):
        *_, terminated, truncated, _ = vector.step(vector.optimal_action())
        over += (terminated | truncated).sum()
    assert over >= 2


@pytest.mark.parametrize("id", [id for id in WORLD_IDS if name_of(id) not in NO_ORACLE])
def test_one_state_and_one_action_alone(id):
    """Of Python integers: the same as in a batch."""
    world = world_of(id, horizon=3)
    one, many = world.reset(12345), world.reset(np.array([12345, 7]))

    def same(a, b):
        np.testing.assert_allclose(np.asarray(a).reshape(np.shape(b)), b, rtol=1e-12, atol=1e-12)

    same(world.observe(one), world.observe(many)[0])
    for method in (world.optimal_value, world.optimal_action):
        same(method(one), method(many)[0])
    same(world.step(one, 3)[1], world.step(many, np.array([3, 3]))[1][0])
    same(world.action_features(3), world.action_features(np.array([3]))[0])
    if world.exact:
        same(world.q_star(one, 3), world.q_star(many, np.array([3, 3]))[0])
        same(world.regret(one, 3), world.regret(many, np.array([3, 3]))[0])


@pytest.mark.parametrize("id", [id for id in WORLD_IDS if name_of(id) not in NO_ORACLE])
@pytest.mark.parametrize("form", ["flat", "factored"])
def test_the_oracle_plays_through_both_doors(id, form):
    env = gym.make(id, action_format=form).unwrapped
    vector = gym.make_vec(id, num_envs=2, action_format=form)
    for door in (env, vector):
        with pytest.raises(gym.error.ResetNeeded, match="optimal_action"):
            door.optimal_action()
        door.reset(seed=0)
        for _ in range(2):
            action = door.optimal_action()
            assert action in door.action_space
            door.step(action)
            if door is env and env._done:
                break


@pytest.mark.parametrize("id", WORLD_IDS)
def test_to_digits_and_back(id):
    world = world_of(id)
    ids = np.random.default_rng(0).integers(world.n, size=(2, 3))
    digits = world.to_digits(ids)
    assert digits.shape == (2, 3, len(world.sizes))
    assert (digits < np.array(world.sizes)).all()
    np.testing.assert_array_equal(world.to_ids(digits), ids)
    assert world.to_digits(int(ids[0, 0])).tolist() == digits[0, 0].tolist()
    assert torch.equal(world.to_digits(torch.tensor(ids)), torch.tensor(digits))


@pytest.mark.parametrize("id", WORLD_IDS)
@pytest.mark.parametrize("number", [None, 3])
def test_digits_and_ids_are_the_same_actions(id, number):
    made = []
    for form in ("flat", "factored"):
        if number is None:
            made.append(gym.make(id, action_format=form))
        else:
            made.append(gym.make_vec(id, num_envs=number, action_format=form))
    flat, factored = made
    sizes = (factored.unwrapped if number is None else factored).dynamics.sizes
    shape = (len(sizes),) if number is None else (number, len(sizes))
    assert factored.action_space.shape == shape
    np.testing.assert_array_equal(flat.reset(seed=0)[0], factored.reset(seed=0)[0])
    factored.action_space.seed(0)
    for _ in range(5):
        digits = factored.action_space.sample()
        ids = join(list(np.moveaxis(digits, -1, 0)), sizes)
        a, b = flat.step(int(ids) if number is None else ids), factored.step(digits)
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
        if np.any(a[2]) or np.any(a[3]):
            break


@pytest.mark.parametrize("action", [[0] * 9, [2] + [0] * 9, [-1] + [0] * 9, [0.0] * 10, 3])
def test_bad_digits(action):
    env = gym.make("LargeAction/ActuatorMaze-2p10-v0", action_format="factored")
    env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match="Actions are"):
        env.step(np.array(action))
    with pytest.raises(ValueError, match="action_format must be one of"):
        gym.make("LargeAction/ActuatorMaze-2p10-v0", action_format="one-hot")


PLAY = """
import sys
import gymnasium as gym
import envs
env, vector = gym.make(sys.argv[1]), gym.make_vec(sys.argv[1], num_envs=256)
env.reset(seed=0); vector.reset(seed=0)
vector.action_space.seed(0)
for _ in range(30):
    actions = vector.action_space.sample()
    vector.step(actions)
    _, _, terminated, truncated, _ = env.step(int(actions[0]))
    if terminated or truncated:
        env.reset()
if sys.argv[2] == "torch":
    from envs.torchrl import LargeActionEnv
    LargeActionEnv(sys.argv[1], batch_size=[256]).rollout(30, break_when_any_done=False)
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("id", BILLIONS)
def test_a_billion_actions_take_less_than_a_gigabyte(id):
    done = subprocess.run(
        [sys.executable, "-c", PLAY, id, "numpy"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 200 * 1024  # KiB; most of it is numpy and gymnasium


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("id", BILLIONS)
def test_with_torch_a_billion_actions_take_less_than_a_gigabyte(id):
    pytest.importorskip("torchrl")
    done = subprocess.run(
        [sys.executable, "-c", PLAY, id, "torch"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 1024 * 1024
