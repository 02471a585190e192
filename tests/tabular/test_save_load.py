"""Files: what was saved is loaded, N + N steps are 2N steps, and other files are refused."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from extensions.tabular import (
    DoubleQLearning,
    QLearning,
    Sarsa,
    StochDoubleQ,
    StochQ,
    StochSarsa,
    VisitCount,
)
from extensions.tabular.checks import choose_device

ALL = [QLearning, DoubleQLearning, Sarsa, StochQ, StochDoubleQ, StochSarsa]


def assert_same(a, b):
    for x, y in ((a._table, b._table), (a._memory, b._memory)):
        if x is not None:
            for name, values in x.state_dict().items():
                assert torch.equal(values, y.state_dict()[name])
    assert a.num_timesteps == b.num_timesteps
    assert a._draws.clock == b._draws.clock
    for x, y in zip(a.records.rows, b.records.rows, strict=True) if a.records else ():
        assert x.keys() == y.keys()
        for name, values in x.items():
            np.testing.assert_array_equal(values, y[name])  # with NaN where nothing was recorded


@pytest.mark.parametrize("table", ["dense", "sparse"])
@pytest.mark.parametrize("rate", [0.2, VisitCount(0.8)])
@pytest.mark.parametrize("cls", ALL)
def test_n_and_n_steps_are_2n_steps(cls, rate, table, mdp, tmp_path):
    """With a file between them, in the middle of an episode and of a block of draws."""
    if table == "sparse" and not cls.__name__.startswith("Stoch"):
        pytest.skip("the exact ones have dense tables only")
    options = {"schedule_timesteps": 200, "exploration_fraction": 0.9, "record_interval": 30}
    options |= {"seed": 5, "table": table}
    whole = cls(mdp(3), rate, **options).learn(200)
    env = mdp(3)
    first = cls(env, rate, **options).learn(100)
    first.predict([0, 1, 2], deterministic=False)  # changes nothing
    first.save(tmp_path / "agent")
    other = mdp(3)
    other.set_state(env.get_state())
    second = cls.load(tmp_path / "agent", other, force_reset=False)
    assert_same(first, second)
    second.learn(100, reset_num_timesteps=False)
    first.learn(100, reset_num_timesteps=False)
    assert_same(first, whole)
    assert_same(second, whole)


@pytest.mark.parametrize("half", [39, 40, 41])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("cls", ALL)
def test_n_and_n_steps_are_2n_steps_in_a_vector_environment(cls, mode, half, tmp_path):
    """With a file between them before, at and after the end of episodes."""

    def lakes():
        lake = [lambda: gym.make("FrozenLake-v1", max_episode_steps=4, reward_schedule=(1.0, -1.0, 0.1))]
        return SyncVectorEnv(lake * 3, autoreset_mode=mode)

    options = {"seed": 5, "schedule_timesteps": 2 * half, "exploration_final_eps": 1.0, "record_interval": 9}
    whole = cls(lakes(), 0.5, **options).learn(2 * half)
    envs = lakes()
    first = cls(envs, 0.5, **options).learn(half)
    first.save(tmp_path / "agent")
    second = cls.load(tmp_path / "agent", envs, force_reset=False)
    assert_same(first, second)
    second.learn(half, reset_num_timesteps=False)
    assert_same(second, whole)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_nothing_is_learned_after_loading_from_a_step_that_only_resets(mode, scripted, tmp_path):
    """State 2, where an episode is cut short, has no value: nothing is ever done there."""
    script = [(1.0, 1, False, False), (1.0, 2, False, True)]
    envs = SyncVectorEnv([lambda: scripted(script)] * 2, autoreset_mode=mode)
    QLearning(envs, seed=0).learn(2).save(tmp_path / "agent")
    agent = QLearning.load(tmp_path / "agent", envs, force_reset=False)
    agent.learn(5, reset_num_timesteps=False)
    assert not agent.q_values()[:, 2].any()
    assert agent.q_values()[:, 0].any()


def test_an_episode_that_a_file_cuts_in_two_has_one_return(scripted, tmp_path):
    env = scripted([(5.0, 1, False, False), (5.0, 2, True, False)])
    StochQ(env, seed=0, record_interval=4).learn(5).save(tmp_path / "agent")
    going_on = StochQ.load(tmp_path / "agent", env, force_reset=False).learn(3, reset_num_timesteps=False)
    assert [row["time/total_timesteps"] for row in going_on.records.rows] == [4, 8]
    assert [row["rollout/ep_rew_mean"].item() for row in going_on.records.rows] == [10, 10]


@pytest.mark.parametrize("steps", [5, 6])
def test_what_began_before_there_were_records_is_not_in_them(steps, scripted, tmp_path):
    """An episode of two steps, cut in two if 5 steps were made, and the first action, which was chosen."""
    env = scripted([(5.0, 1, False, False), (5.0, 2, True, False)])
    StochSarsa(env, seed=0).learn(steps).save(tmp_path / "agent")
    returns, betas = {5: [np.nan, np.nan, 10], 6: [np.nan, 10, np.nan]}[steps], [np.nan, 0, 0]
    for interval, expected in ((1, (returns, betas)), (3, ([10], [0]))):
        env.at = steps
        agent = StochSarsa.load(
            tmp_path / "agent", env, force_reset=False, record_interval=interval, learning_rate=1e-12
        )
        agent._table.values[:] = 0
        agent.num_timesteps = 0
        rows = agent.learn(3, reset_num_timesteps=False).records.rows
        for name, values in zip(("rollout/ep_rew_mean", "train/beta"), expected, strict=True):
            np.testing.assert_allclose([row[name].item() for row in rows], values, atol=1e-9)


@pytest.mark.parametrize("cls", ALL)
def test_a_loaded_agent_predicts_the_same(cls, tmp_path):
    agent = cls("FrozenLake-v1", seed=0).learn(500)
    agent.save(tmp_path / "folder" / "agent.pt")
    loaded = cls.load(tmp_path / "folder" / "agent")
    states = np.arange(16)
    np.testing.assert_array_equal(loaded.predict(states)[0], agent.predict(states)[0])
    for _ in range(3):
        a, b = (x.predict(states, deterministic=False)[0] for x in (agent, loaded))
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="call set_env"):
        loaded.learn(10)
    loaded.set_env(gym.make("FrozenLake-v1"))
    assert loaded.learn(10).num_timesteps == 10


def test_an_agent_without_an_environment_is_on_the_device_that_is_asked_for(tmp_path, monkeypatch):
    StochQ("FrozenLake-v1", seed=0).learn(10).save(tmp_path / "agent")
    made = []

    def stop_before_there_are_tensors(self, env, device, **arguments):
        made.append(choose_device(env, device))
        raise InterruptedError

    monkeypatch.setattr(StochQ, "__init__", stop_before_there_are_tensors)
    for device in ("cuda:1", "cpu", "auto"):
        with pytest.raises(InterruptedError):
            StochQ.load(tmp_path / "agent", device=device)
    assert made == [torch.device("cuda", 1), torch.device("cpu"), torch.device("cpu")]


def test_a_schedule_is_given_again(tmp_path):
    agent = StochQ("FrozenLake-v1", lambda remaining: 0.1 * remaining, seed=0).learn(10)
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="give it again"):
        StochQ.load(tmp_path / "agent")
    assert StochQ.load(tmp_path / "agent", learning_rate=0.5, gamma=0.5).gamma == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", np.linspace(0, 0.5, 3)[1]),
        ("learning_rate", VisitCount(np.float64(0.7))),
        ("gamma", np.float64(0.9)),
        ("exploration_fraction", np.float32(0.5)),
        ("exploration_initial_eps", np.float64(0.8)),
        ("exploration_final_eps", np.float64(0.1)),
        ("seed", np.int64(3)),
        ("schedule_timesteps", np.int32(50)),
        ("initial_value", np.float64(0.1)),
        ("record_interval", np.uint8(5)),
        ("candidates", np.array(["log", "all"])[0]),
        ("candidates", np.int64(2)),
        ("memory", np.int64(1)),
        ("eval_candidates", np.int64(10)),
        ("remember_explored", np.bool_(True)),
        ("table", np.array(["dense", "sparse"])[1]),
    ],
)
def test_numpys_numbers_are_pythons_in_a_file(name, value, tmp_path):
    plain = VisitCount(0.7) if isinstance(value, VisitCount) else value.item()
    agent, same = (StochQ("FrozenLake-v1", **{"seed": 0, name: x}).learn(20) for x in (value, plain))
    assert_same(agent, same)
    agent.save(tmp_path / "agent")
    loaded = StochQ.load(tmp_path / "agent")
    assert_same(agent, loaded)
    assert loaded._arguments == same._arguments
    assert type(loaded._arguments[name]) is type(plain)


def test_numpys_numbers_of_steps_and_of_runs_are_pythons_in_a_file(mdp, tmp_path):
    agent = StochQ(mdp(np.int64(3)), seed=0).learn(np.int64(20))
    agent.save(tmp_path / "agent")
    assert_same(StochQ.load(tmp_path / "agent"), agent)


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "agent.pt"
    StochQ("FrozenLake-v1", seed=0).learn(10).save(path)
    with pytest.raises(FileNotFoundError):
        StochQ.load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"load it with StochQ\.load"):
        StochSarsa.load(path)
    with pytest.raises(ValueError, match="48 states and 4 actions, and the agent was made for 1, 16 and 4"):
        StochQ.load(path, "CliffWalking-v1")
    with pytest.raises(ValueError, match="candidates cannot be changed"):
        StochQ.load(path, candidates=3)
    with pytest.raises(ValueError, match="without visit counts"):
        StochQ.load(path, learning_rate=VisitCount())
    whole = path.read_bytes()
    for part in (b"", whole[:100], whole[: len(whole) // 2], whole[:-10], b"not a file" * 100):
        path.write_bytes(part)
        with pytest.raises(ValueError, match="cut short"):
            StochQ.load(path)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="not a file of a tabular agent"):
        StochQ.load(path)


def test_a_file_of_another_version_is_refused(tmp_path):
    path = tmp_path / "agent.pt"
    StochQ("FrozenLake-v1", seed=0).learn(10).save(path)
    saved = torch.load(path, weights_only=True)
    others = [{**saved, "format": "extensions.tabular 1"}]
    others += [{key: saved[key] for key in saved.keys() - {missing}} for missing in saved]
    for other in others:
        torch.save(other, path)
        with pytest.raises(ValueError, match="is of another version"):
            StochQ.load(path)


def test_a_file_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"format": Evil()}, tmp_path / "agent.pt")
    with pytest.raises(ValueError, match="not a whole file"):
        StochQ.load(tmp_path / "agent.pt")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    agent = StochQ("FrozenLake-v1", seed=0).learn(10)
    agent.save(tmp_path / "agent")
    before = (tmp_path / "agent.pt").read_bytes()

    def full(whole, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        agent.save(tmp_path / "agent")
    assert (tmp_path / "agent.pt").read_bytes() == before


def test_the_file_of_a_sparse_table_holds_what_was_written(many_actions, tmp_path):
    agent = StochQ(many_actions(10**9), seed=0).learn(200)
    agent.save(tmp_path / "agent")
    assert (tmp_path / "agent.pt").stat().st_size < 40_000
