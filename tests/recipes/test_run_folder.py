"""The folder of a run, the generators' states and whole episodes."""

import contextlib
import csv
import random

import gymnasium as gym
import numpy as np
import pytest
import torch

from recipes.evaluation import optimum, play, random_return
from recipes.rng import generator_state, rng_state, set_generator_state, set_rng_state
from recipes.run_folder import MetricsTable, RunFolder


def test_a_checkpoint_is_whole_or_absent(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    assert folder.checkpoint() is None
    for step in (5, 50):
        with folder.new_checkpoint(step) as checkpoint:
            (checkpoint / "file").write_text(str(step))
    with contextlib.suppress(RuntimeError), folder.new_checkpoint(500) as checkpoint:
        (checkpoint / "file").write_text("half")
        raise RuntimeError
    assert (folder.checkpoint() / "file").read_text() == "50"
    assert [f.name for f in folder.path.glob("checkpoint*")] == ["checkpoint-0000000050"]
    with folder.new_checkpoint(501) as checkpoint:
        assert not list(checkpoint.iterdir())  # nothing of the failed one


def read(folder):
    with open(folder.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_get_columns_late_and_lose_rows_after_the_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    table = MetricsTable(folder)
    table.add(0, {"a": 1.5})
    table.add(10, {"a": 2, "b/c": 3})
    table.add(20, {"b/c": 4})
    assert read(folder)[2] == {"step": "20", "a": "", "b/c": "4"}
    again = MetricsTable(folder, up_to=10)
    again.add(20, {"a": 7})
    assert [row["a"] for row in read(folder)] == ["1.5", "2", "7"]
    MetricsTable(folder).add(0, {"a": 9})  # a run that begins anew
    assert len(read(folder)) == 1


def test_names_of_metrics_may_hold_commas_and_quotes(tmp_path):
    folder, name = RunFolder(tmp_path), "accuracy/dilute(3, ',', \"right\")"
    MetricsTable(folder).add(8, {name: 0.5, "b": 1})
    assert read(folder) == [{"step": "8", name: "0.5", "b": "1"}]
    MetricsTable(folder, up_to=8).add(16, {name: 0.25})
    assert [row[name] for row in read(folder)] == ["0.5", "0.25"]


def draw(generator):
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        torch.rand(3).tolist(),
    ] + [generator.random()]


def test_every_generator_goes_on(tmp_path):
    generator = np.random.default_rng(0)
    random.gauss(0, 1), np.random.randn()  # each keeps a second number in hand
    state = {**rng_state(), "own": generator_state(generator)}
    expected = draw(generator)
    assert draw(generator) != expected
    np.savez(tmp_path / "state.npz", **state)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
        loaded = dict(file)
    set_rng_state(loaded)
    set_generator_state(generator, loaded["own"])
    assert draw(generator) == expected


@pytest.mark.parametrize("kappa", [1.0, 20.0])
def test_the_oracle_and_random_play(kappa):
    env_id = "envs:LargeAction/ScatterChain-1K-v0"
    envs = gym.make_vec(env_id, num_envs=300, kappa=kappa)
    best = optimum(envs, 0)
    assert best.mean_return == pytest.approx(envs.dynamics.optimal_return())
    assert best.mean_length == 50
    envs.action_space.seed(0)
    measured = play(envs, lambda _: envs.action_space.sample(), 0).mean_return
    assert measured == pytest.approx(random_return(env_id, {"kappa": kappa}, 1, 0), abs=1.0)


def test_only_the_first_episode_of_each_environment_counts():
    envs = gym.make_vec("envs:LargeAction/ActuatorMaze-2p10-v0", num_envs=50)
    score = optimum(envs, 1)
    assert 2.0 < score.mean_length < 4.5
    assert score.mean_return == pytest.approx(1.0 - 0.05 * score.mean_length)


def test_there_is_no_oracle_of_mujoco():
    assert optimum(gym.make_vec("envs:LargeAction/InvertedPendulum-1M-v5", num_envs=1), 0) is None
