"""Windows of whole episodes, against loops in plain Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from extensions.torchrl.radt import TrajectoryWindows, return_to_go

S, A = 3, 2


def dataset(lengths, discrete=False, seed=0, **entries):
    """Episodes of the given lengths in the flat layout."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    end = torch.zeros(n, 1, dtype=torch.bool)
    end[torch.tensor(lengths).cumsum(0) - 1] = True
    action = (
        torch.randint(5, (n,), generator=generator) if discrete else torch.randn(n, A, generator=generator)
    )
    return TensorDict(
        {
            "observation": torch.randn(n, S, generator=generator) * 3 + 1,
            "action": action,
            "next": {
                "reward": torch.randn(n, 1, generator=generator),
                "terminated": end,
                "truncated": torch.zeros_like(end),
                "done": end,
            },
            "episode": torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
            **entries,
        },
        batch_size=[n],
    )


def slow_window(data, first, context):
    """One window as lists, a step at a time, left-padded."""
    episode = data["episode"].tolist()
    discrete = data["action"].ndim == 1
    begin = episode.index(episode[first])
    rows = []
    for t in range(first, min(first + context, len(episode))):
        if episode[t] != episode[first]:
            break
        rest = range(t, begin + episode.count(episode[first]))
        to_go = sum(float(data["next", "reward"][i, 0]) for i in rest)
        rows.append((data["observation"][t].tolist(), data["action"][t].tolist(), [to_go], t - begin, True))
    empty = ([0.0] * S, -1 if discrete else [0.0] * A, [0.0], 0, False)
    return [empty] * (context - len(rows)) + rows


def assert_same(window, rows):
    for key, column in zip(
        ("observation", "action", "return_to_go", "timestep", "mask"), zip(*rows, strict=True), strict=True
    ):
        expected = torch.tensor(column, dtype=window[key].dtype)
        torch.testing.assert_close(
            window[key], expected, atol=1e-5, rtol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("context", [1, 4, 30])
def test_every_window_equals_a_slow_loop(context, discrete):
    data = dataset([5, 1, 9, 4], discrete)
    windows = TrajectoryWindows(data, context)
    got = windows.at(torch.arange(len(windows)))
    assert got.batch_size == (19, context)
    assert windows.discrete == discrete
    for first in range(19):
        assert_same(got[first], slow_window(data, first, context))


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), context=st.integers(1, 15), data=st.data()
)
def test_windows_of_random_episodes(lengths, context, data):
    flat = dataset(lengths)
    first = data.draw(st.integers(0, sum(lengths) - 1))
    window = TrajectoryWindows(flat, context).at(torch.tensor([first]))[0]
    assert_same(window, slow_window(flat, first, context))


def test_padding_is_on_the_left_and_empty():
    window = TrajectoryWindows(dataset([6], discrete=True), 4, normalise=True).at(torch.tensor([4]))[0]
    assert window["mask"].tolist() == [False, False, True, True]
    assert window["timestep"].tolist() == [0, 0, 4, 5]
    assert window["action"][:2].tolist() == [-1, -1]
    assert not window["observation"][:2].any()
    assert not window["return_to_go"][:2].any()


def test_return_to_go_has_the_steps_own_reward_and_stays_in_its_episode():
    reward = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    to_go = return_to_go(reward, torch.tensor([3, 3, 7, 8, 8]))
    assert to_go.dtype == torch.float32
    assert to_go.squeeze(1).tolist() == [3, 2, 4, 24, 16]


def test_return_to_go_is_summed_in_float64_an_episode_at_a_time():
    reward = torch.tensor([[1e8], [0.25], [0.25], [1e20], [0.25]])
    to_go = return_to_go(reward, torch.tensor([0, 0, 0, 1, 2]))
    assert to_go[1:3, 0].tolist() == [0.5, 0.25]
    windows = TrajectoryWindows(dataset([3, 1, 1], next={"reward": reward}), 2)
    assert windows.returns[0] == 1e8 + 0.5  # float32 would give 1e8


def test_statistics_are_of_real_steps():
    data = dataset([7, 2, 40])
    windows = TrajectoryWindows(data, 20)
    observation = data["observation"].double().numpy()
    torch.testing.assert_close(windows.mean, torch.from_numpy(observation.mean(0)).float())
    torch.testing.assert_close(windows.std, torch.from_numpy(observation.std(0) + 1e-6).float())
    assert windows.lengths.tolist() == [7, 2, 40]
    returns = [float(e.double().sum()) for e in data["next", "reward"].split([7, 2, 40])]
    torch.testing.assert_close(windows.returns, torch.tensor(returns, dtype=torch.float64))
    torch.testing.assert_close(windows.return_to_go, return_to_go(data["next", "reward"], data["episode"]))


def test_target_range_is_of_percentiles():
    data = dataset([1] * 101, next={"reward": torch.arange(101.0).unsqueeze(1)})
    windows = TrajectoryWindows(data, 2)
    assert windows.target_range() == pytest.approx((5, 95))
    assert windows.target_range(0, 50) == pytest.approx((0, 50))


def test_normalised_windows_have_mean_0_and_deviation_1():
    data = dataset([30, 20])
    windows = TrajectoryWindows(data, 1, normalise=True)
    observation = windows.at(torch.arange(50))["observation"].squeeze(1)
    torch.testing.assert_close(observation, (data["observation"] - windows.mean) / windows.std)
    torch.testing.assert_close(observation.mean(0), torch.zeros(S), atol=1e-5, rtol=0)


def test_every_transition_is_equally_likely_to_come_first():
    windows = TrajectoryWindows(dataset([1, 9]), 3, seed=1)
    sample = windows.sample(20_000)
    last, length = sample["timestep"][:, -1], sample["mask"].sum(1)
    of_long = sample["return_to_go"][:, -1, 0] != windows.return_to_go[0, 0]
    assert of_long.float().mean() == pytest.approx(0.9, abs=0.01)
    first = torch.bincount((last - length + 1)[of_long], minlength=9)
    assert (first / first.sum() - 1 / 9).abs().max() < 0.01


def test_draws_are_seeded_and_resume_exactly():
    data = dataset([20, 30])
    one, other = TrajectoryWindows(data, 5, seed=3), TrajectoryWindows(data, 5, seed=3)
    assert (one.sample(8) == other.sample(8)).all()
    state = one.get_state()
    ahead = one.sample(8)
    assert (ahead != other.at(torch.arange(8))).any()
    fresh = TrajectoryWindows(data, 5, seed=4)
    fresh.set_state(state)
    torch.rand(3)  # the global generator is not used
    assert (fresh.sample(8) == ahead).all()


def test_reads_memory_maps_other_dtypes_and_other_keys(tmp_path):
    data = dataset([4, 3])
    stored = data.clone()
    stored["agent", "state"] = stored.pop("observation").double()
    stored.memmap(tmp_path)
    windows = TrajectoryWindows(TensorDict.load_memmap(tmp_path), 3, observation_key=("agent", "state"))
    assert_same(windows.at(torch.tensor([2]))[0], slow_window(data, 2, 3))


def test_the_data_stay_as_they_are():
    data = dataset([4, 3])
    before = data.clone()
    TrajectoryWindows(data, 3, normalise=True).sample(5)["observation"].zero_()
    assert (data == before).all()


def test_an_episode_may_be_cut_and_may_have_one_step():
    data = dataset([1, 3])
    data["next", "done"] = torch.zeros(4, 1, dtype=torch.bool)
    assert TrajectoryWindows(data, 2).lengths.tolist() == [1, 3]
    assert TrajectoryWindows(data.exclude(("next", "done")), 2).lengths.tolist() == [1, 3]


def changed(key, value):
    data = dataset([3, 3])
    data[key] = value(data[key])
    return data


def with_nan(x):
    x = x.clone()
    x[4] = torch.nan
    return x


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dataset([3]).reshape(3, 1), r"batch size \[N\]"),
        (dataset([3])[:0], "at least one episode"),
        ({"observation": 1}, "must be a TensorDict"),
        (dataset([3]).exclude("action"), "no 'action'"),
        (dataset([3]).exclude("episode"), "number the episodes"),
        (dataset([3]).exclude(("next", "reward")), "reward_key"),
        (changed("observation", lambda x: x.unsqueeze(1)), r"x.flatten\(1\)"),
        (changed("observation", lambda x: x.long()), "vectors of floats"),
        (changed("observation", with_nan), "first at transition 4, in 1 in all"),
        (changed("observation", lambda x: x * 1e39), "infinite"),
        (changed("action", with_nan), "NaN"),
        (changed("action", lambda x: x.long()), r"discrete and must be indices"),
        (changed("action", lambda x: x > 0), "one-hot"),
        (changed("action", lambda x: x[:, 0]), r"x.unsqueeze\(-1\)"),
        (changed("action", lambda x: torch.tensor([0, 1, 2, -1, 0, 1])), "negative"),
        (changed(("next", "reward"), with_nan), "NaN"),
        (changed(("next", "reward"), lambda x: x.squeeze(1)), r"reshape\(-1, 1\)"),
        (changed(("next", "reward"), lambda x: x.long()), "must be floats"),
        (changed("episode", lambda x: x.float()), "must be integers"),
        (changed("episode", lambda x: torch.tensor([0, 0, 1, 1, 0, 0])), "decreases"),
        (changed("episode", lambda x: x * 0), "Transition 2 is done"),
    ],
)
def test_bad_data_is_refused_with_the_fix(data, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryWindows(data, 2)


def test_bad_settings_are_refused_with_the_fix():
    assert len(TrajectoryWindows(dataset([3, 7]), 2, max_ep_len=7)) == 10
    with pytest.raises(ValueError, match="set max_ep_len=7"):
        TrajectoryWindows(dataset([3, 7]), 2, max_ep_len=6)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        TrajectoryWindows(dataset([3]), 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_windows_are_those_of_the_cpu_and_the_host_does_not_wait():
    data = dataset([5, 1, 9])
    windows = TrajectoryWindows(data, 4, device="cuda")
    every = windows.at(torch.arange(15, device="cuda"))
    assert (every.cpu() == TrajectoryWindows(data, 4).at(torch.arange(15))).all()
    torch.cuda.set_sync_debug_mode("error")
    try:
        windows.sample(64)
    finally:
        torch.cuda.set_sync_debug_mode("default")
