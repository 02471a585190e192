"""What importing costs, and the host's words."""

import inspect
import json
import subprocess
import sys

from extensions.tabular import QLearning, StochQ


def test_importing_loads_neither_hosts_nor_worlds():
    code = "import json, sys, extensions.tabular; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    strangers = {
        "stable_baselines3",
        "torchrl",
        "tensordict",
        "trl",
        "transformers",
        "envs",
        "recipes",
        "mujoco",
    }
    assert not loaded & strangers


def test_it_imports_where_docstrings_are_stripped():
    ended = subprocess.run(
        [sys.executable, "-OO", "-c", "import extensions.tabular"], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def test_arguments_are_named_as_in_stable_baselines3():
    import pytest

    dqn = pytest.importorskip("stable_baselines3").DQN
    theirs = inspect.signature(dqn).parameters
    shared = {
        "env",
        "learning_rate",
        "gamma",
        "exploration_fraction",
        "exploration_initial_eps",
        "exploration_final_eps",
        "seed",
        "device",
    }
    ours = inspect.signature(QLearning).parameters
    assert shared <= theirs.keys() & ours.keys()
    for name in ("exploration_fraction", "exploration_initial_eps", "exploration_final_eps"):
        assert ours[name].default == theirs[name].default
    for method, names in {
        "learn": ["total_timesteps", "callback", "reset_num_timesteps", "progress_bar"],
        "predict": ["observation", "state", "episode_start", "deterministic"],
        "load": ["path", "env", "device", "force_reset"],
    }.items():
        parameters = inspect.signature(getattr(StochQ, method)).parameters
        assert set(names) <= parameters.keys()
        assert set(names) <= inspect.signature(getattr(dqn, method)).parameters.keys()
