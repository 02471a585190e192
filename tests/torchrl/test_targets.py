"""A target for each environment: against scripted rewards, and against the windows of a dataset."""

import warnings

import pytest
import torch
from torchrl.envs import Compose, RewardSum, TargetReturn, TransformedEnv, check_env_specs

from extensions.torchrl.radt import MultiTargetReturn, return_to_go


def idle(td):
    return td.set("action", torch.zeros(*td.batch_size, 1))


@pytest.fixture
def env_with(scripted):
    """Rewards 1, 2, 3, 4, ... in three environments whose episodes have 2, 6 and 6 steps."""

    def make(*args, **kwargs):
        rewards = torch.arange(1.0, 7.0).expand(3, 6)
        return TransformedEnv(scripted(rewards, [2, 6, 6]), MultiTargetReturn(*args, **kwargs))

    return make


def rollout(env, steps, before=lambda env, step: None):
    """(B, steps) of the returns to go that a policy is given, across ends of episodes."""
    td, seen = env.reset(), []
    for step in range(steps):
        seen.append(td["return_to_go"].squeeze(-1))
        before(env, step)
        _, td = env.step_and_maybe_reset(idle(td))
    return torch.stack(seen, 1).tolist()


@pytest.mark.parametrize("targets", [5.0, [5.0, 5.0, 5.0], torch.full((3, 1), 5)])
@pytest.mark.parametrize("mode", ["reduce", "constant"])
def test_torchrl_finds_no_fault(env_with, targets, mode):
    check_env_specs(env_with(targets, mode), break_when_any_done="both")


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_each_environment_has_its_own_and_has_it_again_in_its_next_episode(env_with, shape):
    env = env_with(torch.tensor([10.0, 20.0, 30.0]).reshape(shape))
    for _ in range(2):  # a full reset begins anew
        assert rollout(env, 4) == [[10, 9, 10, -990], [20, 19, 17, 14], [30, 29, 27, 24]]


def test_constant_targets_stay(env_with):
    assert rollout(env_with([1.0, 2.0, 3.0], "constant"), 3) == [[1] * 3, [2] * 3, [3] * 3]


@pytest.mark.parametrize("mode", ["reduce", "constant"])
def test_one_number_is_what_torchrl_has(env_with, mode):
    theirs = TransformedEnv(env_with(0.0).base_env, TargetReturn(7.0, mode, out_keys=["return_to_go"]))
    assert rollout(env_with(7.0, mode), 5) == rollout(theirs, 5)


def test_return_to_go_is_that_of_the_dataset(scripted):
    lengths = [4, 1, 7]
    rewards = torch.randint(-8, 9, (3, 7), generator=torch.Generator().manual_seed(0)) / 4  # sums are exact
    of_episode = [row[:length] for row, length in zip(rewards, lengths, strict=True)]
    episode = torch.arange(3).repeat_interleave(torch.tensor(lengths))
    expected = return_to_go(torch.cat(of_episode).unsqueeze(1), episode)
    targets = [row.sum() for row in of_episode]
    seen = rollout(TransformedEnv(scripted(rewards, lengths), MultiTargetReturn(targets)), 7)
    got = [row[:length] for row, length in zip(seen, lengths, strict=True)]
    assert [x for row in got for x in row] == expected.flatten().tolist()


def test_targets_change_from_the_next_step_on(env_with):
    def change(env, step):
        if step == 2:
            env.transform.retarget([50.0, 60.0], rows=[1, 2])

    seen = rollout(env_with([10.0, 20.0, 30.0]), 6, change)
    assert seen[1] == [20, 19, 17, 50, 46, 41]
    assert seen[2] == [30, 29, 27, 60, 56, 51]
    assert seen[0] == [10, 9, 10, -990, 10, -990]


def test_changes_in_two_calls_both_hold_and_do_not_outlive_the_episode(env_with):
    def change(env, step):
        if step == 1:
            env.transform.retarget(50.0)  # the first environment's episode ends in this step
            env.transform.retarget([70.0], rows=torch.tensor([False, False, True]))

    seen = rollout(env_with([10.0, 20.0, 30.0]), 3, change)
    assert [row[2] for row in seen] == [10, 50, 70]
    env = env_with([10.0, 20.0, 30.0])
    env.reset()
    env.transform.retarget(50.0)
    assert rollout(env, 2)[1] == [20, 19]


def test_a_partial_reset_forgets_the_changes_of_its_rows(env_with):
    env = env_with([10.0, 20.0, 30.0])
    td = env.reset()
    env.transform.retarget(50.0)
    td = env.reset(td.set("_reset", torch.tensor([[True], [False], [False]])))
    after = env.step(idle(td))["next", "return_to_go"]
    assert after.flatten().tolist() == [-990, 50, 50]


def test_a_return_to_go_that_is_changed_in_place_is_changed_at_once_and_for_this_episode(env_with):
    env = env_with(torch.tensor([[10.0], [20.0], [30.0]]))
    td = env.reset()
    td["return_to_go"][1] = 90
    assert env.step(idle(td))["next", "return_to_go"].flatten().tolist() == [9, 89, 29]
    assert env.reset()["return_to_go"].flatten().tolist() == [10, 20, 30]


def test_works_beside_other_transforms_and_other_keys(scripted):
    target = MultiTargetReturn([5.0, 6.0], out_keys=[("agent", "to_go")])
    env = TransformedEnv(scripted(torch.ones(2, 3), [3, 3]), Compose(RewardSum(), target))
    check_env_specs(env)
    got = env.rollout(3, policy=idle)
    assert got["agent", "to_go"].squeeze(-1).tolist() == [[5, 4, 3], [6, 5, 4]]
    env.reset()
    target.retarget(9.0)
    assert env.step(idle(env.reset()))["next", "agent", "to_go"].flatten().tolist() == [4, 5]


def test_targets_outside_the_data_are_told_once(env_with):
    with pytest.warns(UserWarning, match=r"Targets \[-1.0, 9.0\] lie outside the data, .* 0 to 8"):
        env = env_with([-1.0, 8.0, 9.0], data_range=(0, 8))
    env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.transform.retarget(100.0)
        MultiTargetReturn([0.0, 8.0], data_range=(0, 8))


def test_targets_outside_the_data_are_told_in_mid_episode_too(env_with):
    env = env_with(5.0, data_range=(0, 8))
    env.reset()
    with pytest.warns(UserWarning, match="outside the data"):
        env.transform.retarget(9.0)


def test_what_cannot_be_a_target_is_refused(env_with):
    with pytest.raises(ValueError, match=r"must be finite; got \[1.0, nan\]"):
        MultiTargetReturn([1.0, torch.nan])
    with pytest.raises(ValueError, match="2 targets for 3 environments"):
        env_with([1.0, 2.0]).reset()
    env = env_with(1.0)
    env.reset()
    with pytest.raises(ValueError, match="3 targets for 2 environments"):
        env.transform.retarget([1.0, 2.0, 3.0], rows=[0, 1])
    with pytest.raises(ValueError, match="finite"):
        env.transform.retarget(torch.inf)
    with pytest.raises(ValueError, match="Mode can only be"):
        MultiTargetReturn(1.0, mode="increase")
