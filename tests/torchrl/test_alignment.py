"""Evaluation of targets: bookkeeping against scripted episodes, figures against scipy and numpy."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from tensordict import TensorDict

from extensions.torchrl.radt import (
    Alignment,
    TrajectoryWindows,
    evaluate_targets,
    spaced_targets,
)


class Recorder:
    """Does nothing (action 0), and keeps what it is given."""

    def __init__(self):
        self.seen = []

    def __call__(self, td):
        self.seen.append(td.select("observation", "return_to_go", "is_init").clone())
        return td.set("action", torch.zeros(*td.batch_size, 1))

    def all(self, key):
        return torch.stack([td[key] for td in self.seen], 1)  # (B, T, ...)


def even_payments(horizon):
    """What a perfectly aligned policy does where nothing is paid but the action."""

    def policy(td):
        left = horizon - td["observation"][:, :1]
        return td.set("action", (td["return_to_go"] / left).clamp(0, 1))

    return policy


@pytest.fixture
def dial(scripted):
    return lambda rows: scripted(torch.zeros(rows, 8), [8] * rows)


def test_each_target_has_its_episodes_and_a_perfect_policy_no_error(dial):
    got = evaluate_targets(dial(6), even_payments(8), [1.0, 4.0, 8.0], 2, max_steps=20)
    assert got.targets.tolist() == [1, 4, 8]
    torch.testing.assert_close(got.returns, torch.tensor([[1.0, 1], [4, 4], [8, 8]], dtype=torch.float64))
    assert got.lengths.tolist() == [[8, 8]] * 3
    assert got.figures() == pytest.approx(
        {"error_of_mean": 0, "mean_error": 0, "bias": 0, "slope": 1, "intercept": 0, "spearman": 1}, abs=1e-6
    )


def test_return_to_go_is_that_of_the_dataset(scripted):
    lengths = [5, 1, 9, 3]
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randint(-8, 9, (4, 9), generator=generator) / 4  # sums are exact
    of_episode = [row[:length] for row, length in zip(rewards, lengths, strict=True)]
    n = sum(lengths)
    data = TensorDict(
        {
            "observation": torch.zeros(n, 2),
            "action": torch.zeros(n, 1),
            "next": {"reward": torch.cat(of_episode).unsqueeze(1)},
            "episode": torch.arange(4).repeat_interleave(torch.tensor(lengths)),
        },
        batch_size=[n],
    )
    windows = TrajectoryWindows(data, 9)
    policy = Recorder()
    got = evaluate_targets(scripted(rewards, lengths), policy, windows.returns, 1, max_steps=9)
    assert got.returns.squeeze(1).equal(windows.returns)
    seen = [row[:length] for row, length in zip(policy.all("return_to_go"), lengths, strict=True)]
    assert torch.cat(seen).equal(windows.return_to_go)


def test_what_comes_after_the_first_end_is_ignored(scripted):
    policy = Recorder()
    got = evaluate_targets(scripted(torch.ones(2, 6), [2, 6]), policy, [10.0, 20.0], 1, max_steps=50)
    assert got.returns.tolist() == [[2], [6]]
    assert got.lengths.tolist() == [[2], [6]]
    assert len(policy.seen) == 6  # until the last has ended
    assert policy.all("return_to_go")[0].flatten().tolist() == [10, 9, 8, 8, 8, 8]
    assert policy.all("is_init").squeeze(-1).tolist() == [[True] + [False] * 5] * 2


def test_targets_at_once_are_targets_one_by_one(scripted):
    generator = torch.Generator().manual_seed(1)
    rewards, lengths = torch.rand(6, 7, generator=generator), torch.tensor([7, 3, 5, 1, 7, 6])
    policy, targets = even_payments(7), [0.5, 2.0, 6.0]
    together = evaluate_targets(scripted(rewards, lengths), policy, targets, 2, max_steps=7)
    for i, target in enumerate(targets):
        for j in range(2):
            row = slice(2 * i + j, 2 * i + j + 1)
            alone = evaluate_targets(scripted(rewards[row], lengths[row]), policy, [target], 1, max_steps=7)
            assert alone.returns[0, 0] == together.returns[i, j]
            assert alone.lengths[0, 0] == together.lengths[i, j]


def test_targets_change_in_mid_episode(scripted, dial):
    def flip(to_go, step):
        assert step == 4
        return (8 - step) - to_go

    env = scripted(torch.zeros(3, 8), [8, 8, 2])  # the last one has ended by then
    got = evaluate_targets(env, even_payments(8), [2.0, 6.0, 1.0], 1, max_steps=8, retarget=(4, flip))
    # 1 by step 4, then 4 - 1; 3 by step 4, then 4 - 3; and 1/8 and (1 - 1/8)/7, as nothing more was asked
    expected = torch.tensor([[4], [4], [0.25]], dtype=torch.float64)
    torch.testing.assert_close(got.returns, expected)
    torch.testing.assert_close(got.goals, torch.tensor([[4.0], [4], [1]], dtype=torch.float64))
    deaf = evaluate_targets(dial(2), Recorder(), [2.0, 6.0], 1, max_steps=8, retarget=(4, flip))
    assert deaf.goals.tolist() == [[2], [-2]]  # nothing by step 4, then 4 - target
    assert deaf.mean_error.tolist() == [2, 2]


def test_observations_are_normalised_for_the_policy_alone(scripted):
    policy = Recorder()
    env = scripted(torch.ones(1, 3), [3])
    norm = (torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]))
    stepped = []
    env._step = lambda td, step=env._step: (stepped.append(td["observation"].clone()), step(td))[1]
    evaluate_targets(env, policy, [1.0], 1, max_steps=3, observation_norm=norm)
    assert policy.all("observation")[0, :, 0].tolist() == [-0.5, 0, 0.5]
    assert torch.cat(stepped)[:, 0].tolist() == [0, 1, 2]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout, self.frozen = torch.nn.Dropout(), torch.nn.Linear(1, 1).eval()
        self.modes = []

    def forward(self, td):
        self.modes.append((self.training, self.dropout.training, torch.is_grad_enabled()))
        return td.set("action", self.frozen(torch.zeros(*td.batch_size, 1)))


@pytest.mark.parametrize("rewards", [torch.ones(1, 2), torch.full((1, 2), torch.nan)])
def test_modules_are_in_eval_mode_meanwhile_and_then_as_before(scripted, rewards):
    net = Net()
    try:
        evaluate_targets(scripted(rewards, [2]), net, [1.0], 1, max_steps=2)
    except ValueError:
        assert rewards.isnan().any()
    assert set(net.modes) == {(False, False, False)}
    assert net.training
    assert net.dropout.training
    assert not net.frozen.training


def test_progress_is_told(scripted):
    told = []
    env = scripted(torch.ones(2, 3), [1, 3])
    evaluate_targets(env, Recorder(), [1.0, 2.0], 1, max_steps=9, progress=lambda *x: told.append(x))
    assert told == [(1, 1), (2, 1), (3, 0)]


def test_episodes_cut_by_max_steps_are_told(scripted):
    with pytest.warns(UserWarning, match="2 of 3 episodes had not ended after max_steps=4"):
        got = evaluate_targets(scripted(torch.ones(3, 6), [6, 6, 1]), Recorder(), [1.0], 3, max_steps=4)
    assert got.lengths.tolist() == [[4, 4, 1]]


def test_a_reward_that_is_no_number_ends_the_evaluation_unless_its_episode_has_ended(scripted):
    rewards = torch.ones(2, 4)
    rewards[1, 2] = torch.nan
    evaluate_targets(scripted(rewards, [4, 2]), Recorder(), [1.0, 2.0], 1, max_steps=4)
    with pytest.raises(ValueError, match="Environment 1 gave the reward nan at step 2"):
        evaluate_targets(scripted(rewards, [4, 4]), Recorder(), [1.0, 2.0], 1, max_steps=4)


@pytest.mark.parametrize(
    ("targets", "episodes", "max_steps", "message"),
    [
        ([1.0, 2.0], 2, 5, r"batch size \[4\]; got \[6\]"),
        ([], 2, 5, "at least one"),
        ([1.0, math.nan], 3, 5, "finite"),
        ([1.0, 2.0], 0, 5, "at least 1"),
        ([1.0, 2.0], 3, 0, "at least 1"),
    ],
)
def test_bad_arguments_are_refused(dial, targets, episodes, max_steps, message):
    with pytest.raises(ValueError, match=message):
        evaluate_targets(dial(6), Recorder(), targets, episodes, max_steps=max_steps)


def random_alignment(n=5, episodes=20, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=n) * 100
    returns = np.round(0.7 * targets[:, None] + rng.normal(size=(n, episodes)) * 30)  # with ties
    return Alignment(
        torch.from_numpy(targets),
        torch.from_numpy(returns),
        torch.full((n, episodes), 10),
        torch.from_numpy(targets[:, None].repeat(episodes, 1)),
    )


def test_figures_are_those_of_numpy_and_scipy():
    got = random_alignment()
    x, y = got.goals.numpy().ravel(), got.returns.numpy().ravel()
    slope, intercept = np.polyfit(x, y, 1)
    assert got.figures() == pytest.approx(
        {
            "error_of_mean": np.abs(got.targets.numpy() - got.returns.numpy().mean(1)).mean(),
            "mean_error": np.abs(x - y).mean(),
            "bias": (y - x).mean(),
            "slope": slope,
            "intercept": intercept,
            "spearman": scipy.stats.spearmanr(x, y).statistic,
        },
        rel=1e-9,
    )


def test_misses_on_both_sides_cancel_in_one_error_alone():
    got = Alignment(*(torch.tensor(x).double() for x in ([5.0], [[3.0, 7.0]], [[1, 1]], [[5.0, 5.0]])))
    assert got.error_of_mean.tolist() == [0]
    assert got.mean_error.tolist() == [2]


def test_normalised_errors_are_multiples_of_the_range():
    got = random_alignment()
    scaled = got.normalised(-20, 60)
    torch.testing.assert_close(scaled.mean_error, got.mean_error / 80)
    torch.testing.assert_close(scaled.error_of_mean, got.error_of_mean / 80)
    assert scaled.bias == pytest.approx(got.bias / 80)
    assert scaled.slope == pytest.approx(got.slope)
    assert scaled.spearman == got.spearman
    with pytest.raises(ValueError, match="high must be above low"):
        got.normalised(3, 3)


def test_targets_inside_and_outside_the_data_are_told_apart():
    got = random_alignment()
    low, high = sorted(got.targets.tolist())[1:4:2]
    inside, outside = got.within(low, high), got.beyond(low, high)
    assert len(inside.targets) == 3  # the ends are inside
    assert len(outside.targets) == 2
    assert inside.returns.shape == (3, 20)
    report = json.loads(json.dumps(got.to_dict((low, high)), allow_nan=False))
    assert report["in_range"]["bias"] == pytest.approx(inside.bias)
    assert report["out_of_range"]["mean_error"] == pytest.approx(float(outside.mean_error.mean()))
    assert report["normalised"]["in_range"]["mean_error"] == pytest.approx(
        float(inside.mean_error.mean()) / (high - low)
    )
    assert report["data_range"] == [low, high]
    assert np.shape(report["returns"]) == (5, 20)


def test_figures_that_are_undefined_are_none():
    got = random_alignment().within(1e6, 2e6)
    assert set(got.figures().values()) == {None}
    single = random_alignment(n=1)
    assert {name for name, x in single.figures().items() if x is None} == {"slope", "intercept", "spearman"}
    assert "in_range" not in single.to_dict()


def test_spaced_targets():
    assert spaced_targets(-10, 50, 4).tolist() == [-10, 10, 30, 50]
    assert spaced_targets(0, 1, 7).dtype == torch.float64
    for low, high, n in ((0, 1, 1), (1, 1, 3), (2, 1, 3), (math.nan, 1, 3)):
        with pytest.raises(ValueError, match="n >= 2 targets"):
            spaced_targets(low, high, n)
