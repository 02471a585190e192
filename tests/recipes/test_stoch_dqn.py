"""The StochDQN recipe: what it leaves, how it ends before it begins, and that it goes on exactly."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from recipes import stoch_dqn
from recipes.run_folder import RunFolder

SHORT = ["total_timesteps=900", "eval_every=300", "eval_episodes=2", "algo.learning_starts=100", "device=cpu"]
CONF = Path(stoch_dqn.__file__).parent / "conf"
WITH_CHECKOUT = {**os.environ, "PYTHONPATH": str(CONF.parents[1])}
ENVS = sorted(file.stem for file in (CONF / "env").glob("*.yaml"))
CONTINUOUS = ("half_cheetah", "hopper", "inverted_pendulum", "return_dial", "walker2d")
DISCRETE = [env for env in ENVS if env not in CONTINUOUS]


def config(*overrides):
    with initialize_config_module("recipes.conf", version_base="1.3"):
        return compose("stoch_dqn", overrides=list(overrides))


def run(path, *overrides):
    folder = RunFolder(path)
    cfg = config(*overrides) if folder.checkpoint() is None else OmegaConf.load(path / "config.yaml")
    return stoch_dqn.train(cfg, folder)


def rows(path):
    with open(path / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def weights(path):
    with zipfile.ZipFile(RunFolder(path).checkpoint() / "model.zip") as model:
        return torch.load(io.BytesIO(model.read("policy.pth")), weights_only=True)


class Killed(Exception):
    pass


def run_and_die(path, at, monkeypatch, *overrides):
    """Run until some steps after the checkpoint at ``at``, then end without tidying up."""

    def die(self):
        if self.num_timesteps > at + 50:
            raise Killed
        return True

    with monkeypatch.context() as patch:
        patch.setattr(stoch_dqn.Checkpoints, "_on_step", die)
        with pytest.raises(Killed):
            run(path, *overrides)


def test_what_it_leaves(tmp_path, capsys):
    result = run(tmp_path, "env.kwargs.kappa=1.0", *SHORT)
    files = {file.name for file in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.csv", "result.json", "return.png", "checkpoint-0000000900"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert sum(name.startswith("checkpoint") for name in files) == 1
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["n_actions"] == 1_000_000
    assert result["optimum"] == pytest.approx(46.0)
    assert result["random"] == pytest.approx(9.2268, abs=1e-3)
    assert result["fraction_of_optimum"] == result["return"] / result["optimum"]
    assert [e["step"] for e in result["evaluations"]] == [0, 300, 600, 900]
    table = rows(tmp_path)
    assert [row["step"] for row in table] == ["0", "300", "600", "900"]
    assert {"eval/mean_reward", "rollout/ep_rew_mean", "train/loss"} <= table[-1].keys()
    assert float(table[-1]["eval/mean_reward"]) == result["return"]
    printed = capsys.readouterr().out
    assert "the optimum 46.00, random play 9.23" in printed
    assert "900 of 900 steps" in printed


WAYS = {
    "plain": ["env=scatter_chain_1m"],
    "features, neighbours, n-step": ["env=actuator_maze_2p10", "n_envs=2", "algo.train_freq=2"],
    "every memory, double, polyak": [
        "env=scatter_chain_1m",
        "+env.kwargs.contexts=3",
        "algo=stoch_ddqn",
        "algo.head=low_rank",
        "algo.tau=0.01",
        "algo.target_update_interval=8",
        "algo.gradient_steps=2",
        "algo.candidates=[{_target_:extensions.stochmax.Uniform},{_target_:extensions.stochmax.ReplayActions},"
        "{_target_:extensions.stochmax.CachedArgmax},{_target_:extensions.stochmax.RecentExploited},"
        "{_target_:extensions.stochmax.Elite}]",
    ],
    "PPO": ["env=scatter_chain_1k", "algo=ppo", "algo.n_steps=100", "algo.batch_size=50"],
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_and_resumed_equals_never_killed(way, tmp_path, monkeypatch):
    short = [o for o in SHORT if way != "PPO" or "learning_starts" not in o]
    whole = run(tmp_path / "whole", *WAYS[way], *short)
    for at in (300, 600):
        if at == 300:
            run_and_die(tmp_path / "killed", at, monkeypatch, *WAYS[way], *short)
        else:
            run_and_die(tmp_path / "killed", at, monkeypatch)
        assert RunFolder(tmp_path / "killed").result() is None
    np.random.seed(99)
    torch.manual_seed(99)
    resumed = run(tmp_path / "killed")
    same = {"evaluations", "return", "steps", "optimum", "random"}
    assert {k: whole[k] for k in same} == {k: resumed[k] for k in same}
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_seeds_differ_and_one_repeats(tmp_path):
    a, b = (run(tmp_path / name, *SHORT, "seed=3")["evaluations"] for name in "ab")
    c = run(tmp_path / "c", *SHORT, "seed=4")["evaluations"]
    assert a == b != c


@pytest.mark.parametrize("env", DISCRETE)
@pytest.mark.parametrize("algo", ["stoch_dqn", "stoch_ddqn"])
def test_every_configuration_makes_a_model(env, algo):
    cfg = config(f"env={env}", f"algo={algo}", "algo.buffer_size=100", "device=cpu")
    model = stoch_dqn.make_model(cfg, stoch_dqn.make_env(cfg))
    assert type(model).__name__.lower() == algo.replace("_", "")
    assert (model.action_codec is None) == (cfg.env.codec is None)
    assert model.n_envs == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["env=inverted_pendulum", "algo=sac"],
        ["env=half_cheetah", "algo=ppo"],
        ["env=scatter_chain_1k", "algo=dqn"],
    ],
)
def test_peers_make_a_model(overrides):
    cfg = config(*overrides, "device=cpu")
    assert type(stoch_dqn.make_model(cfg, stoch_dqn.make_env(cfg))).__name__.lower() in overrides[1]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("algo.learning_rat=1", "learning_rat"),
        ("algo.batch_size=many", "many"),
        ("total_timestep=3", "total_timestep"),
        ("env=atari", "atari"),
        ("seed=x", "'x'"),
    ],
)
def test_a_wrong_setting_ends_it_before_it_begins(override, says):
    with pytest.raises(ConfigCompositionException) as error:
        config(override)
    assert says in str(error.value) + str(error.value.__cause__)


def test_an_environment_without_get_state_cannot_be_resumed(tmp_path, monkeypatch):
    short = [*SHORT, "env=inverted_pendulum", "algo=sac"]
    run_and_die(tmp_path, 300, monkeypatch, *short)
    with pytest.raises(ValueError, match=r"InvertedPendulum-v5 has no get_state.*Begin it anew"):
        run(tmp_path)


def command(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "recipes.stoch_dqn", *arguments],
        capture_output=True,
        text=True,
        **kwargs,
    )


def test_the_command_line(tmp_path):
    ended = command("smoke=true", "env=scatter_chain_1k", f"hydra.run.dir={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr
    assert "of the optimum" in ended.stdout
    before = (tmp_path / "run" / "result.json").read_text()
    again = command(f"resume={tmp_path / 'run'}")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "result.json").read_text() == before
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "config.yaml").write_text("seed: 0\nworkers: 2\n")
    for arguments, says in (
        ([f"resume={tmp_path / 'nothing'}"], "this is not the folder of a run"),
        ([f"resume={tmp_path / 'another'}"], "has workers beside what this recipe takes, and lacks algo"),
        ([f"resume={tmp_path / 'run'}", "seed=2"], "A run goes on as it began"),
    ):
        refused = command(*arguments)
        assert refused.returncode != 0
        assert says in refused.stderr
        assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
def test_a_sweep_has_a_folder_a_run(tmp_path):
    ended = command("-m", "smoke=true", "env=scatter_chain_1k", "seed=0,1", cwd=tmp_path, env=WITH_CHECKOUT)
    assert ended.returncode == 0, ended.stderr
    found = tmp_path.glob("runs/stoch_dqn/scatter_chain_1k-stoch_dqn/*/*/result.json")
    assert sorted(file.parent.name for file in found) == ["0-seed0", "1-seed1"]


@pytest.mark.slow
def test_kill_9(tmp_path):
    """The same as above, by a signal that no program can catch."""
    overrides = [*SHORT[1:], "total_timesteps=3000"]
    whole = run(tmp_path / "whole", *overrides)
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.stoch_dqn", *overrides, f"hydra.run.dir={tmp_path / 'killed'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while not (tmp_path / "killed" / "checkpoint-0000000900").exists() and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert RunFolder(tmp_path / "killed").result() is None
    ended = command(f"resume={tmp_path / 'killed'}")
    assert ended.returncode == 0, ended.stderr
    resumed = RunFolder(tmp_path / "killed").result()
    assert whole["evaluations"] == resumed["evaluations"]
