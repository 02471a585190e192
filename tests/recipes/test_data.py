"""Offline data: what is collected, what is kept, and what is read from files of three kinds."""

from __future__ import annotations

import json

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv
from tensordict import TensorDict

from recipes.bench import replay_data
from recipes.data import collect_replay
from recipes.data.collect_replay import Settings, collect, dataset_name, ensure
from recipes.data.layout import Episode, flatten, returns_of
from recipes.data.minari_files import export_minari
from recipes.data.reading import load_dataset
from recipes.data.recorder import EpisodeRecorder
from recipes.data.spread import spread_evenly
from recipes.data.store import fingerprint, save


class Counter(gym.Env):
    """Counts its steps: terminates after an action above 0.5, is truncated after ``limit`` steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, limit: int) -> None:
        self.limit, self.episode = limit, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        terminated = bool(action[0] > 0.5)
        return self._observation(), float(self.t), terminated, self.t >= self.limit, {}

    def _observation(self):
        return np.array([self.episode, self.t], np.float64)


# Rollouts of 16 steps in 8 environments, and few updates: what is learned is of no concern here.
QUICK = {"n_steps": 16, "n_epochs": 1}
QUICKLY = ["hyper.n_steps=16", "hyper.n_epochs=1"]


def episodes_of(lengths, seed=0, width=3, discrete=False):
    """Random episodes, every other one terminated."""
    rng = np.random.default_rng(seed)
    return [
        Episode(
            rng.normal(size=(length + 1, width)).astype(np.float32),
            rng.integers(0, 4, length) if discrete else rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            rng.normal(size=length).astype(np.float32),
            terminated=i % 2 == 0,
        )
        for i, length in enumerate(lengths)
    ]


def assert_same(a, b):
    assert fingerprint(a) == fingerprint(b)


class TestRecording:
    def test_every_whole_episode_in_raw_units(self):
        recorder = EpisodeRecorder(DummyVecEnv([lambda: Counter(3), lambda: Counter(5)]))
        recorder.reset()
        for t in range(7):
            recorder.step(np.array([[0.0], [1.0 if t == 3 else 0.0]], np.float32))
        first, other, second = recorder.episodes  # the third of either is still open
        assert [len(e.reward) for e in (first, other, second)] == [3, 4, 3]
        assert [e.terminated for e in (first, other, second)] == [False, True, False]
        np.testing.assert_array_equal(first.observation, [[0, 0], [0, 1], [0, 2], [0, 3]])
        np.testing.assert_array_equal(second.observation[:, 0], 1)
        np.testing.assert_array_equal(other.observation[-1], [0, 4])
        np.testing.assert_array_equal(other.action, [[0], [0], [0], [1]])
        np.testing.assert_array_equal(other.reward, [1, 2, 3, 4])

    def test_what_a_learner_sees_and_says_is_normalised_and_unclipped_but_not_what_is_kept(self):
        given = Settings(env="hopper", hyper={"n_steps": 32, "n_epochs": 1})
        recorder = EpisodeRecorder(DummyVecEnv([lambda: gym.make("Hopper-v5")] * 8))
        hyper = collect_replay.hyper_parameters(given)
        hyper["policy_kwargs"] = {"log_std_init": 1.0}  # most actions are far outside of the box
        collect_replay.make_model(given, hyper, recorder).learn(512)
        assert max(np.abs(episode.action).max() for episode in recorder.episodes) == 1.0
        # Recorded states, set again, lead with the recorded action to the recorded reward and next state.
        env = gym.make("Hopper-v5").unwrapped
        env.reset(seed=0)
        episode = recorder.episodes[0]
        for t in range(len(episode.reward) - 1):
            # The observation lacks x, on which nothing depends, and clips velocities at 10.
            before = episode.observation[t].astype(np.float64)
            if np.abs(before).max() >= 10 or np.abs(episode.observation[t + 1]).max() >= 10:
                continue
            env.set_state(np.concatenate([[0.0], before[:5]]), before[5:])
            after, reward, *_ = env.step(episode.action[t])
            np.testing.assert_allclose(after[:5], episode.observation[t + 1][:5], atol=2e-2)
            assert reward == pytest.approx(episode.reward[t], abs=0.1)


class TestLayout:
    def test_flat_transitions_of_known_episodes(self):
        episodes = episodes_of([2, 1, 3])
        data = flatten(episodes)
        assert data["episode"].tolist() == [0, 0, 1, 2, 2, 2]
        assert data["next", "done"].squeeze(-1).tolist() == [False, True, True, False, False, True]
        assert data["next", "terminated"].squeeze(-1).tolist() == [False, True, False, False, False, True]
        assert data["next", "truncated"].squeeze(-1).tolist() == [False, False, True, False, False, False]
        torch.testing.assert_close(data["observation"][3:], torch.from_numpy(episodes[2].observation[:-1]))
        torch.testing.assert_close(
            data["next", "observation"][2], torch.from_numpy(episodes[1].observation[1])
        )
        torch.testing.assert_close(
            data["next", "observation"][5], torch.from_numpy(episodes[2].observation[3])
        )
        assert returns_of(data).tolist() == pytest.approx([float(e.reward.sum()) for e in episodes], abs=1e-6)


class TestSpread:
    def test_as_even_as_there_are_episodes(self):
        returns = np.concatenate([np.linspace(0, 0.99, 900), [1.5] * 5, np.linspace(3, 4, 50)])
        kept = spread_evenly(returns, np.ones(len(returns), int), 4, 65, 10**6, seed=0)
        counts, _ = np.histogram(returns[kept], bins=4, range=(0, 4))
        assert counts.tolist() == [30, 5, 0, 30]
        assert (np.diff(kept) > 0).all()

    def test_seeded(self):
        returns = np.random.default_rng(0).normal(size=200)
        choose = lambda seed: spread_evenly(returns, np.ones(200, int), 5, 50, 10**6, seed)  # noqa: E731
        assert choose(0).tolist() == choose(0).tolist() != choose(1).tolist()

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 30)), min_size=1, max_size=60),
        st.integers(1, 8),
        st.integers(1, 60),
        st.integers(30, 300),
    )
    def test_within_the_limits_and_each_at_most_once(self, pairs, bins, max_episodes, max_transitions):
        returns, lengths = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
        kept = spread_evenly(returns, lengths, bins, max_episodes, max_transitions, seed=0)
        assert 1 <= len(kept) == len(set(kept.tolist())) <= max_episodes
        assert lengths[kept].sum() <= max_transitions
        # It stops for a limit only.
        assert (
            len(kept) in (len(pairs), max_episodes) or lengths[kept].sum() + lengths.max() > max_transitions
        )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A collection of a few thousand steps: its folder and metadata."""
    out = tmp_path_factory.mktemp("data")
    return out, collect(Settings(env="hopper", steps=4_000, max_transitions=2_000, out=str(out), hyper=QUICK))


class TestCollecting:
    def test_leaves_a_dataset_and_its_history(self, small):
        out, made = small
        data, metadata = load_dataset("hopper-v5/ppo-replay-v0", out)
        assert metadata == made
        assert metadata["env_id"] == "Hopper-v5"
        assert metadata["algorithm"] == "stable_baselines3.PPO"
        assert metadata["hyper_parameters"]["learning_rate"] == 3e-4
        assert metadata["versions"]["stable_baselines3"]
        assert metadata["kept"]["of_transitions"] > 2_000 >= metadata["transitions"] == len(data) > 1_500
        assert sum(metadata["returns"]["histogram"]["counts"]) == metadata["episodes"]
        returns = returns_of(data)
        assert metadata["returns"]["p95"] == pytest.approx(float(returns.quantile(0.95)), abs=0.01)
        dtypes = [data[k].dtype for k in ("observation", "action", ("next", "reward"))]
        assert dtypes == [torch.float32] * 3
        assert data["observation"].shape[1:] == (11,)
        assert data["action"].shape[1:] == (3,)
        # Within an episode the next observation is the following one.
        inside = ~data["next", "done"][:-1].squeeze(-1)
        torch.testing.assert_close(data["next", "observation"][:-1][inside], data["observation"][1:][inside])

    def test_again_equals_the_first(self, small, tmp_path):
        again = collect(
            Settings(env="hopper", steps=4_000, max_transitions=2_000, out=str(tmp_path), hyper=QUICK)
        )
        assert again["sha256"] == small[1]["sha256"]

    def test_does_not_replace_what_is_there(self, small):
        with pytest.raises(FileExistsError, match="remove it, or give another out="):
            collect(Settings(env="hopper", steps=4_000, out=str(small[0])))

    def test_a_killed_one_begins_anew(self, tmp_path, capsys):
        (tmp_path / "hopper-v5" / ".ppo-replay-v0.partial" / "junk").mkdir(parents=True)
        collect(Settings(env="hopper", steps=600, out=str(tmp_path), hyper=QUICK))
        assert "begins anew" in capsys.readouterr().out
        assert [folder.name for folder in (tmp_path / "hopper-v5").iterdir()] == ["ppo-replay-v0"]

    def test_sac(self, tmp_path):
        given = Settings(env="half_cheetah", algo="sac", steps=4_000, out=str(tmp_path))
        given.hyper = {"learning_starts": 4_000}
        made = collect(given)
        assert made["name"] == "halfcheetah-v5/sac-replay-v0"
        assert made["episodes"] == 4

    def test_the_command(self, tmp_path, monkeypatch, capsys):
        arguments = ["env=walker2d", "steps=600", f"out={tmp_path}", *QUICKLY]
        monkeypatch.setattr("sys.argv", ["collect_replay", *arguments])
        collect_replay.main()
        assert "walker2d-v5/ppo-replay-v0: " in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "env= is missing: one of hopper, walker2d, half_cheetah"),
            (["env=ant"], "env=ant: one of hopper"),
            (["env=hopper", "algo=ddpg"], "algo=ddpg: one of ppo, sac"),
            (["env=hopper", "stepz=3"], "stepz"),
            (["env=hopper", "steps=many"], "many"),
            (["env=hopper", "steps=0"], "steps=0: at least 1"),
            (["env=hopper", "hyper.nsteps=8"], "hyper.nsteps: not an argument of PPO"),
            (["env=half_cheetah", "steps=100"], "no episode ended within steps=100"),
            (["env=hopper", "steps=600", "max_transitions=2"], "not one episode is that short"),
        ],
    )
    def test_bad_settings_end_it_in_a_line(self, arguments, message, tmp_path, monkeypatch):
        monkeypatch.setattr("sys.argv", ["collect_replay", f"out={tmp_path}", *QUICKLY, *arguments])
        with pytest.raises(SystemExit, match=message):
            collect_replay.main()

    def test_ensure_collects_only_what_is_missing(self, small, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(collect_replay, "collect", asked.append)
        assert ensure("hopper-v5/ppo-replay-v0", small[0]) == small[0] / "hopper-v5/ppo-replay-v0"
        assert asked == []
        ensure("walker2d-v5/sac-replay-v0", tmp_path)
        assert [(s.env, s.algo, s.out) for s in asked] == [("walker2d", "sac", str(tmp_path))]
        with pytest.raises(ValueError, match="what can be collected is hopper-v5/ppo-replay-v0, "):
            ensure("hopper-medium", tmp_path)

    def test_names_say_what_they_are(self):
        assert dataset_name("half_cheetah") == "halfcheetah-v5/ppo-replay-v0"


class TestOurFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        save(flatten(episodes_of([2, 1, 3])), {"name": "toy"}, tmp_path / "toy")
        return tmp_path / "toy"

    def test_read_by_path(self, folder):
        data, metadata = load_dataset(folder)
        assert_same(data, flatten(episodes_of([2, 1, 3])))
        assert metadata["episodes"] == 3

    @pytest.mark.parametrize("keep", [0, 8])
    def test_truncated(self, folder, keep):
        file = folder / "observation.memmap"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(ValueError, match="collect the data again"):
            load_dataset(folder)

    def test_altered(self, folder):
        file = folder / "next" / "reward.memmap"
        file.write_bytes(bytes(file.stat().st_size))
        with pytest.raises(ValueError, match="another SHA-256"):
            load_dataset(folder)


class TestMinari:
    @pytest.fixture
    def export(self, small, tmp_path, monkeypatch):
        """The collection in Minari's format, where Minari looks for it."""
        data, metadata = load_dataset("hopper-v5/ppo-replay-v0", small[0])
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
        return data, metadata, export_minari(data, metadata, tmp_path)

    def test_minari_reads_it(self, export):
        data, metadata, folder = export
        read = minari.load_dataset("hopper-v5/ppo-replay-v0")
        assert (read.total_episodes, read.total_steps) == (metadata["episodes"], metadata["transitions"])
        assert read.env_spec.id == "Hopper-v5"
        assert list(minari.list_local_datasets()) == ["hopper-v5/ppo-replay-v0"]
        again = [
            Episode(e.observations, e.actions, e.rewards, bool(e.terminations[-1]))
            for e in read.iterate_episodes()
        ]
        assert_same(flatten(again), data)
        assert not list(folder.parent.glob(".*"))

    def test_so_do_we(self, export):
        data, metadata, folder = export
        again, about = load_dataset(folder)
        assert_same(again, data)
        assert (about["name"], about["env_id"]) == ("hopper-v5/ppo-replay-v0", "Hopper-v5")
        assert about["returns"] == metadata["returns"]

    def test_torchrl_reads_it_once_its_bug_is_mended(self, export, tmp_path_factory, monkeypatch):
        from torchrl.data.datasets import MinariExperienceReplay

        data, _, _ = export
        # TorchRL 0.14.1 fills a TensorDict and then keeps memmap_like of it, which is all zeros.
        monkeypatch.setattr(TensorDict, "memmap_like", TensorDict.memmap)
        root = tmp_path_factory.mktemp("torchrl")
        replay = MinariExperienceReplay(
            "hopper-v5/ppo-replay-v0", batch_size=8, root=root, load_from_local_minari=True
        )
        read = replay[:]
        for key in ("observation", "action", "episode", ("next", "observation"), ("next", "reward")):
            torch.testing.assert_close(read[key].to(data[key].dtype), data[key], rtol=0, atol=0)
        for key in ("terminated", "truncated", "done"):
            assert torch.equal(read["next", key], data["next", key])

    def test_does_not_replace(self, export, tmp_path):
        data, metadata, _ = export
        with pytest.raises(FileExistsError, match="give another root"):
            export_minari(data, metadata, tmp_path)

    def test_export_says_what_it_lacks(self, tmp_path):
        data = flatten(episodes_of([2]))
        with pytest.raises(ValueError, match=r"set metadata\['env_id'\]"):
            export_minari(data, {"name": "toy-v0", "env_id": None}, tmp_path)
        del data["next", "observation"]
        with pytest.raises(ValueError, match="'next', 'observation'"):
            export_minari(data, {"name": "toy-v0", "env_id": "Hopper-v5"}, tmp_path)


BOX = gym.spaces.Box(-1, 1, (3,), np.float32)


def write_minari(folder, episodes, space=BOX, change=None):
    """A Minari dataset by h5py; ``change`` may damage the opened file."""
    from minari.serialization import serialize_space

    (folder / "data").mkdir(parents=True)
    metadata = {
        "total_episodes": len(episodes),
        "total_steps": sum(len(e.reward) for e in episodes),
        "data_format": "hdf5",
        "dataset_id": "toy-v0",
        "minari_version": minari.__version__,
        "observation_space": serialize_space(space),
        "action_space": serialize_space(gym.spaces.Box(-1, 1, (2,), np.float32)),
    }
    (folder / "data" / "metadata.json").write_text(json.dumps(metadata))
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for i, episode in enumerate(episodes):
            group = file.create_group(f"episode_{i}")
            last = np.arange(len(episode.reward)) == len(episode.reward) - 1
            group["observations"], group["actions"] = episode.observation, episode.action
            group["rewards"] = episode.reward
            group["terminations"], group["truncations"] = (
                last & episode.terminated,
                last & ~episode.terminated,
            )
        if change is not None:
            change(file)


def replace(key, value):
    """A change of a file: another array under a key, or none."""

    def change(file):
        del file[key]
        if value is not None:
            file[key] = value

    return change


class TestMinariFiles:
    def test_one_step_episodes_and_discrete_actions(self, tmp_path):
        episodes = episodes_of([1, 1, 2], discrete=True)
        write_minari(tmp_path / "toy", episodes)
        data, metadata = load_dataset(tmp_path / "toy")
        assert_same(data, flatten(episodes))
        assert data["action"].dtype == torch.int64
        assert metadata["env_id"] is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (replace("episode_1/rewards", None), "rewards"),
            (replace("episode_1/rewards", np.zeros(3)), "episode 1: 3 rewards ask for"),
            (replace("episode_1/observations", np.zeros((2, 3))), "episode 1: 2 rewards ask for"),
            (replace("episode_1/rewards", np.zeros(0)), "episode 1 is empty"),
            (replace("episode_1/rewards", np.array([0, np.nan])), "reward of 1 .* first in episode 1"),
            (replace("episode_1/observations", np.full((3, 3), np.inf)), "observation of 2 .* in episode 1"),
            (
                replace("episode_1/actions", np.zeros(2, np.int64)),
                "episode 1: action should be float32 as those of episode 0, not int64",
            ),
            (
                replace("episode_1/actions", np.zeros((2, 5))),
                r"episode 1: action should have the shape of episode 0's, \(2,\), not \(5,\)",
            ),
            (
                replace("episode_1/observations", np.zeros((3, 5))),
                r"episode 1: observation should .*, \(3,\), not \(5,\)",
            ),
            (replace("episode_2", None), "episode_2"),
        ],
    )
    def test_damaged(self, tmp_path, change, message):
        write_minari(tmp_path / "toy", episodes_of([2, 2, 2]), change=change)
        with pytest.raises(ValueError, match=message):
            load_dataset(tmp_path / "toy")

    def test_truncated(self, tmp_path):
        write_minari(tmp_path / "toy", episodes_of([2, 2]))
        file = tmp_path / "toy" / "data" / "main_data.hdf5"
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(ValueError, match="is the file whole"):
            load_dataset(tmp_path / "toy")

    def test_no_episodes(self, tmp_path):
        write_minari(tmp_path / "toy", [])
        with pytest.raises(ValueError, match="holds no episodes"):
            load_dataset(tmp_path / "toy")

    def test_dict_observations(self, tmp_path):
        write_minari(tmp_path / "toy", episodes_of([2]), space=gym.spaces.Dict(position=BOX))
        with pytest.raises(ValueError, match="only vectors are read: flatten them first"):
            load_dataset(tmp_path / "toy")


class TestD4RL:
    def arrays(self):
        """Of episodes of 2, 1 and 3 steps, and of an open one."""
        return {
            "observations": np.arange(14, dtype=np.float64).reshape(7, 2),
            "actions": np.arange(7, dtype=np.float32)[:, None],
            "rewards": np.arange(7, dtype=np.float32),
            "terminals": np.array([0, 1, 0, 0, 0, 0, 0], bool),
            "timeouts": np.array([0, 1, 1, 0, 0, 1, 0], bool),
        }

    def write(self, file, arrays):
        with h5py.File(file, "w") as opened:
            for key, array in arrays.items():
                opened[key] = array
        return file

    def test_whole_episodes(self, tmp_path):
        with pytest.warns(UserWarning, match="last 1 transitions are of an open episode"):
            data, metadata = load_dataset(self.write(tmp_path / "toy.hdf5", self.arrays()))
        assert data["episode"].tolist() == [0, 0, 1, 2, 2, 2]
        # Both at once, as after the second step, is terminated.
        assert data["next", "terminated"].squeeze(-1).tolist() == [False, True] + [False] * 4
        assert data["next", "truncated"].squeeze(-1).tolist() == [False, False, True, False, False, True]
        assert data["next", "done"].squeeze(-1).tolist() == [False, True, True, False, False, True]
        assert data["observation"].dtype == torch.float32
        assert returns_of(data).tolist() == [1, 2, 12]
        assert metadata["name"] == "toy"
        assert metadata["episodes"] == 3

    @pytest.mark.parametrize(
        ("key", "array", "message"),
        [
            ("timeouts", None, "lacks timeouts; a D4RL file has observations, actions"),
            ("rewards", np.zeros(6), "of unequal length: .*'rewards': 6"),
            ("rewards", np.full(7, np.nan), "reward of 6 transitions is NaN"),
            ("actions", np.zeros(7), "actions of torch.float32 and shape"),
            ("actions", np.zeros((7, 2), np.int64), "actions of torch.int64 and shape"),
            ("observations", np.zeros((7, 2, 2)), "observation should have 2 dimensions"),
            ("rewards", np.zeros((7, 2)), "rewards should have the shape"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.*open episode")
    def test_damaged(self, tmp_path, key, array, message):
        arrays = {**self.arrays(), key: array}
        file = self.write(tmp_path / "toy.hdf5", {k: v for k, v in arrays.items() if v is not None})
        with pytest.raises(ValueError, match=message):
            load_dataset(file)

    def test_no_end(self, tmp_path):
        arrays = {**self.arrays(), "terminals": np.zeros(7, bool), "timeouts": np.zeros(7, bool)}
        with pytest.raises(ValueError, match="no episode ends"):
            load_dataset(self.write(tmp_path / "toy.hdf5", arrays))

    def test_truncated(self, tmp_path):
        file = self.write(tmp_path / "toy.hdf5", self.arrays())
        file.write_bytes(file.read_bytes()[:500])
        with pytest.raises(ValueError, match="is it whole"):
            load_dataset(file)


def test_the_page_has_a_row_and_a_histogram_for_each_dataset(small, tmp_path):
    made = {**small[1], "name": "walker2d-v5/ppo-replay-v0"}
    text = replay_data.page([small[1], made])
    for one in (small[1], made):
        assert f"| `{one['name']}` | {one['episodes']:,} | {one['transitions']:,} |" in text
    replay_data.plot([small[1], made], tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 1_000


class TestNothingThere:
    def test_neither_path_nor_name(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="collect_replay collects some"):
            load_dataset("hopper-v5/ppo-replay-v0", tmp_path)

    def test_some_other_folder(self, tmp_path):
        with pytest.raises(ValueError, match="is no dataset"):
            load_dataset(tmp_path)
