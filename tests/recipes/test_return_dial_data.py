"""Episodes of return dials: of all returns, in the layout of offline data."""

import numpy as np
import pytest
import torch

from recipes.data.return_dial import behaviour


def test_layout():
    data = behaviour(episodes=6, horizon=5, distractors=2)
    assert data.batch_size == (30,)
    assert data["observation"].shape == (30, 3)
    assert data["action"].shape == data["next", "reward"].shape == (30, 1)
    for key in ("observation", "action", ("next", "reward")):
        assert data[key].dtype == torch.float32
    assert data["episode"].tolist() == [i for i in range(6) for _ in range(5)]
    assert data["next", "done"].squeeze(1).tolist() == [False, False, False, False, True] * 6
    assert (data["next", "truncated"] == data["next", "done"]).all()
    assert not data["next", "terminated"].any()


def test_rewards_belong_to_their_actions_and_observations_to_their_steps():
    data = behaviour(episodes=6, horizon=5, distractors=2)
    torch.testing.assert_close(data["next", "reward"], (data["action"] + 1) / 2)
    torch.testing.assert_close(data["observation"][:, 0], torch.arange(5).repeat(6) / 5)


@pytest.mark.parametrize("noise", [0.05, 0.25])
def test_returns_are_spread_and_each_episode_keeps_its_level(noise):
    data = behaviour(episodes=2000, noise=noise)
    actions = data["action"].reshape(2000, 20)
    assert actions.abs().max() <= 1
    returns = data["next", "reward"].reshape(2000, 20).sum(1)
    counts = torch.histc(returns, bins=5, min=0, max=20)
    assert counts.min() > 200
    inside = (actions.abs() < 1).all(1)
    assert actions[inside].std(1).mean() == pytest.approx(noise, rel=0.1)


def test_distractors_tell_nothing_of_the_level():
    data = behaviour(episodes=2000)
    columns = torch.cat([data["observation"][:, 1:], data["action"]], 1).reshape(2000, 20, 17)[:, 0]
    correlation = np.corrcoef(columns.numpy().T)[-1, :-1]
    assert np.abs(correlation).max() < 0.1


def test_same_seed_same_data():
    first, again, other = (behaviour(episodes=4, seed=seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first["action"] != other["action"]).any()


def test_bad_arguments():
    with pytest.raises(ValueError, match="episodes must be an int in"):
        behaviour(episodes=0)
    with pytest.raises(ValueError, match="noise must be a number in"):
        behaviour(episodes=1, noise=-0.1)
