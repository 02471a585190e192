"""Batches of gymnasium environments: each episode is gymnasium's own, and is played once."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torchrl.envs import StepCounter, TransformedEnv, check_env_specs

from recipes.gym_batch import GymBatch

CONTINUOUS, DISCRETE = "Pendulum-v1", "CartPole-v1"


def bare_episode(id, seed, actions, **kwargs):
    """Observations, rewards, terminated, truncated of one episode in gymnasium, until its end."""
    env = gym.make(id, **kwargs)
    observation, _ = env.reset(seed=seed)
    rows = [(observation, 0.0, False, False)]
    for action in actions:
        rows.append(env.step(action)[:4])
        if rows[-1][2] or rows[-1][3]:
            break
    return rows


@pytest.mark.parametrize("id", [CONTINUOUS, DISCRETE])
def test_torchrl_finds_no_fault(id):
    check_env_specs(GymBatch(id, 3), seed=0, break_when_any_done="both")
    check_env_specs(GymBatch(id, 3, max_episode_steps=2), seed=0, break_when_any_done="both")


@pytest.mark.parametrize("id", [CONTINUOUS, DISCRETE])
def test_each_episode_is_that_of_its_own_seed_and_idles_after_its_end(id):
    env = GymBatch(id, 4, max_episode_steps=25)
    env.set_seed(7)
    td = env.reset()
    torch.manual_seed(0)
    trajectory = [td.clone()]
    for _ in range(40):
        stepped, td = env.step_and_maybe_reset(env.rand_action(td))
        trajectory.append(stepped)
    actions = np.stack([step["action"].numpy() for step in trajectory[1:]], 1)  # (4, 40, ...)
    for i in range(4):
        rows = bare_episode(id, 7 + i, actions[i], max_episode_steps=25)
        assert len(rows) <= 26
        for t, step in enumerate(trajectory[1:], 1):
            observation, reward, terminated, truncated = rows[min(t, len(rows) - 1)]
            after = step[i]["next"]
            assert after["observation"].tolist() == observation.tolist()
            assert after["terminated"].item() == terminated
            assert after["truncated"].item() == truncated
            assert after["done"].item() == (terminated or truncated)
            assert after["reward"].item() == (np.float32(reward) if t < len(rows) else 0)


def test_a_full_reset_begins_anew_and_seeds_are_used_once():
    env = GymBatch(CONTINUOUS, 2, max_episode_steps=3)
    env.set_seed(0)
    first = env.rollout(3, break_when_any_done=False)
    assert first["next", "done"][:, -1].all()
    second = env.rollout(3, break_when_any_done=False)
    assert not second["next", "done"][:, 0].any()
    assert (second["observation"][:, 0] != first["observation"][:, 0]).any()
    env.set_seed(0)
    assert env.reset()["observation"].equal(first["observation"][:, 0])


def test_what_a_transform_cuts_off_idles_too():
    env = TransformedEnv(GymBatch(CONTINUOUS, 2), StepCounter(max_steps=2))
    td = env.reset()
    for _ in range(4):
        stepped, td = env.step_and_maybe_reset(env.rand_action(td))
    assert not stepped["next", "reward"].any()
    assert stepped["next", "truncated"].all()


def test_actions_are_clipped_into_the_box():
    env, same = GymBatch(CONTINUOUS, 2), GymBatch(CONTINUOUS, 2)
    for batch, size in ((env, 50.0), (same, 2.0)):
        batch.set_seed(0)
        batch.after = batch.step(batch.reset().set("action", torch.full((2, 1), size)))["next"]
    assert (env.after == same.after).all()


def test_observations_are_copies():
    env = GymBatch(CONTINUOUS, 2)
    td = env.reset()
    before = td["observation"].clone()
    env.step(env.rand_action(td))
    assert td["observation"].equal(before)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        GymBatch(CONTINUOUS, 0)
    with pytest.raises(ValueError, match="takes vectors"):
        GymBatch("FrozenLake-v1", 1)
    env = GymBatch(CONTINUOUS, 1)
    with pytest.raises(ValueError, match="NaN"):
        env.step(env.reset().set("action", torch.full((1, 1), torch.nan)))


def test_mujoco_says_what_it_has_against_a_model_once(capfd):
    GymBatch("HalfCheetah-v5", 5).close()
    assert capfd.readouterr().err.count("settotalmass") <= 1
