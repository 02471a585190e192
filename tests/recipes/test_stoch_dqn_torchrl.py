"""The TorchRL recipe: what it leaves, that it goes on exactly, its replay, and where its actors may be."""

import csv
import itertools
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from tensordict import TensorDict

from recipes import stoch_dqn_torchrl
from recipes.conf.stoch_dqn_torchrl_schema import check
from recipes.ring_replay import RingReplay
from recipes.run_folder import RunFolder
from recipes.torchrl_agent import Agent, make_env
from recipes.torchrl_collectors import env_of_worker, worker_seed
from recipes.torchrl_run import Run

SHORT = [
    "total_timesteps=960",
    "eval_every=320",
    "eval_episodes=2",
    "n_envs=8",
    "agent.learning_starts=100",
    "agent.batch_size=32",
    "agent.updates_per_step=1",
    "device=cpu",
]
CONF = Path(stoch_dqn_torchrl.__file__).parent / "conf"
CONTINUOUS = ("half_cheetah", "hopper", "inverted_pendulum", "return_dial", "walker2d")
DISCRETE = sorted(file.stem for file in (CONF / "env").glob("*.yaml") if file.stem not in CONTINUOUS)


def config(*overrides):
    with initialize_config_module("recipes.conf", version_base="1.3"):
        return compose("stoch_dqn_torchrl", overrides=list(overrides))


def run(path, *overrides):
    folder = RunFolder(path)
    cfg = config(*overrides) if folder.checkpoint() is None else OmegaConf.load(path / "config.yaml")
    return stoch_dqn_torchrl.train(cfg, folder)


def rows(path):
    with open(path / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def without_times(evaluations):
    return [{k: v for k, v in row.items() if k not in ("wall_s", "cpu_s")} for row in evaluations]


class Killed(Exception):
    pass


def run_and_die(path, at, monkeypatch, *overrides):
    """Run until some steps after the checkpoint at ``at``, then end without tidying up."""
    act = Run.act

    def die(self):
        if self.step > at + 50:
            raise Killed
        return act(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "act", die)
        with pytest.raises(Killed):
            run(path, *overrides)


def test_what_it_leaves(tmp_path, capsys):
    result = run(tmp_path, "env.kwargs.kappa=1.0", *SHORT)
    files = {file.name for file in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.csv", "result.json", "return.png", "checkpoint-0000000960"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["n_actions"] == 1_000_000
    assert result["optimum"] == pytest.approx(46.0)
    assert [e["step"] for e in result["evaluations"]] == [0, 320, 640, 960]
    table = rows(tmp_path)
    assert [row["step"] for row in table] == ["0", "320", "640", "960"]
    assert {"eval/mean_reward", "train/loss", "rollout/mean_step_reward"} <= table[-1].keys()
    assert "960 of 960 steps" in capsys.readouterr().out
    assert result["updates"] == (960 - 100) // 8 + 1


WAYS = {
    "rows": [],
    "features, double, soft, n-step": [
        "env=actuator_maze_2p10",
        "agent.double_dqn=true",
        "agent.tau=0.05",
        "agent.n_steps=3",
        "agent.net_arch=[16]",
        "agent.head=feature",
        "agent.updates_per_step=0.5",
    ],
    "one draw of the act for its update": ["agent.candidates=authors_code", "agent.updates_per_step=2"],
    "what learns": [
        "env=actuator_maze_2p10",
        "agent.candidates=[{_target_:extensions.stochmax.AdaptiveUniform},"
        "{_target_:extensions.stochmax.LearnedProposals,k:5}]",
    ],
    "low rank, contexts": ["agent.head=low_rank", "+env.kwargs.contexts=3", "agent.updates_per_step=2"],
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_and_resumed_equals_never_killed(way, tmp_path, monkeypatch):
    overrides = [*SHORT, *WAYS[way]]
    whole = run(tmp_path / "whole", *overrides)
    for at in (320, 640):
        run_and_die(tmp_path / "killed", at, monkeypatch, *(overrides if at == 320 else ()))
        assert RunFolder(tmp_path / "killed").result() is None
    torch.manual_seed(99)
    resumed = run(tmp_path / "killed")
    assert without_times(whole["evaluations"]) == without_times(resumed["evaluations"])
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    states = [
        torch.load(RunFolder(tmp_path / name).checkpoint() / "state.pt", weights_only=True)
        for name in ("whole", "killed")
    ]
    losses = [state["agent"]["loss"] for state in states]
    assert all(torch.equal(x, losses[1][name]) for name, x in losses[0].items())


@pytest.mark.parametrize("source", ["Elite", "RecentExploited"])
def test_what_is_in_no_checkpoint_keeps_a_run_from_going_on(source, tmp_path, monkeypatch, capsys):
    both = ",".join(f"{{_target_:extensions.stochmax.{name}}}" for name in ("Uniform", source))
    run_and_die(tmp_path, 320, monkeypatch, *SHORT, f"agent.candidates=[{both}]")
    assert f"what {source}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=f"{source}.*cannot go on.*agent.candidates=log"):
        run(tmp_path)


def test_two_seeds_differ_and_one_repeats(tmp_path):
    a, b, c = (
        without_times(run(tmp_path / name, *SHORT, f"seed={seed}")["evaluations"])
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert a == b
    assert a != c


@pytest.mark.parametrize("env", DISCRETE)
def test_every_configuration_acts_and_learns(env, tmp_path):
    cfg = config(f"env={env}", *SHORT[3:])
    world = make_env(cfg, "cpu", 0)
    agent = Agent(cfg, world, torch.device("cpu"))
    data = world.rollout(3, agent.policy, break_when_any_done=False)
    assert data["action"].shape == (8, 3)
    assert agent.update(data.reshape(-1)).isfinite()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["agent.lr=0"], "agent.lr=0"),
        (["agent.tau=2"], "agent.tau=2"),
        (["agent.updates_per_step=1.5"], "must be whole"),
        (["agent.updates_per_step=0.4"], r"nearest are 0\.3333 \(one in 3\) and 0\.5 \(one in 2\)"),
        (["agent.updates_per_step=0.9"], r"0\.5 \(one in 2\) and 1 \(one in 1\)"),
        (["agent.n_steps=20", "agent.learning_starts=152"], "make it at least 153"),
        (["agent.n_steps=3", "agent.learning_starts=20", "collector=multi"], "make it at least 33"),
        (["collector=threads"], "single, multi, ray"),
        (["collector=multi", "compile=true"], "collector=single"),
        (["cudagraphs=true", "device=cpu"], "device=cuda"),
        (["agent.eps_init=0.1", "agent.eps_end=0.5"], "at most agent.eps_init=0.1"),
        (["agent.loss_function=l3"], "l1, l2, smooth_l1"),
        (["agent.buffer_size=15"], "at least 16"),
        (["agent.buffer_size=31", "agent.n_steps=3"], "at least 32"),
        (["n_envs=0"], "n_envs=0"),
        (["agent.head=rows"], "unknown head"),
        (["agent.candidates=some"], "unknown candidates"),
    ],
)
def test_settings_that_make_no_sense(overrides, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        run(tmp_path, *SHORT, *overrides)


@pytest.mark.parametrize("share", [1, 3, 0.5, 0.25, 0.3333, 0.1429, 1 / 7, 0.01])
def test_updates_that_can_be_counted(share):
    cfg = config(*SHORT, f"agent.updates_per_step={share}")
    assert check(cfg) is None  # it raises if they cannot be


def test_a_cuda_graph_needs_a_gpu_whatever_device_is_called(monkeypatch):
    cfg = config(*SHORT, "cudagraphs=true", "device=auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="cudagraphs=true needs device=cuda and a GPU"):
        check(cfg)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check(cfg)


def test_no_two_workers_have_the_same_seed():
    where = itertools.product((0, 1, 2), (0, 64), (0, 1, 2))
    assert len({worker_seed(*at) for at in where}) == 18
    assert worker_seed(1, 64, 2) == worker_seed(1, 64, 2)


def test_a_workers_seed_is_also_that_of_its_draws():
    cfg = config(*SHORT)
    draws = []
    for worker in (0, 0, 1):
        torch.manual_seed(7)  # what the process was seeded with before
        world = env_of_worker(cfg, 0, worker)
        draws.append((torch.rand(3), world.reset()["observation"]))
    (again, state_again), (first, state), (other, _) = draws
    assert torch.equal(again, first)
    assert torch.equal(state_again, state)
    assert not torch.equal(first, other)


def test_the_first_update_may_come_with_the_nth_step(tmp_path):
    result = run(tmp_path, *SHORT, "total_timesteps=160", "agent.n_steps=20", "agent.learning_starts=153")
    assert result["updates"] == 1


@pytest.mark.parametrize(
    "candidates",
    ["authors_code", "[{_target_:extensions.stochmax.Uniform,k:5},{_target_:extensions.stochmax.Elite}]"],
)
def test_candidates_that_a_cuda_graph_would_repeat(candidates):
    cfg = config(*SHORT, f"agent.candidates={candidates}", "device=auto", "cudagraphs=true")
    world = make_env(cfg, "cpu", 0)
    with pytest.raises(RuntimeError, match="candidates='log'"):
        Agent(cfg, world, torch.device("cpu"))
    cfg.agent.candidates = "log"
    Agent(cfg, world, torch.device("cpu"))


@pytest.mark.parametrize(
    ("override", "says"), [("agent.learning_rat=1", "learning_rat"), ("n_envs=x", "'x'")]
)
def test_a_wrong_setting_ends_it_before_it_begins(override, says):
    with pytest.raises(ConfigCompositionException) as error:
        config(override)
    assert says in str(error.value) + str(error.value.__cause__)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "recipes.stoch_dqn_torchrl", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "collector",
    ["single", pytest.param("multi", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.slow)],
)
def test_the_command_line(tmp_path, collector):
    ended = command("smoke=true", f"collector={collector}", "device=cpu", f"hydra.run.dir={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr
    assert "2,000 steps" in ended.stdout
    result = RunFolder(tmp_path / "run").result()
    # The weights reach the actors: what is done while learning is better than at random.
    assert result["evaluations"][-1]["reward_while_learning"] > 3 * result["random"] / 50


@pytest.mark.slow
def test_compiled_it_learns_the_same(tmp_path, monkeypatch):
    """As traced; the code that inductor makes of it draws random numbers of its own."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    a, b = (
        run(tmp_path / str(compiled), *SHORT, f"compile={compiled}", "total_timesteps=320")
        for compiled in (False, True)
    )
    assert b["return"] == pytest.approx(a["return"], rel=1e-3)
    plain, compiled = (
        torch.load(RunFolder(tmp_path / name).checkpoint() / "state.pt", weights_only=True)["agent"]["loss"]
        for name in ("False", "True")
    )
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(x, compiled[name], rtol=1e-3, atol=1e-5) for name, x in plain.items())
    trained = [x for name, x in plain.items() if name.startswith("value") and name.endswith("row_values")]
    assert trained
    assert all(x.any(1).sum() > 100 for x in trained)


# -- the replay --


def test_nothing_is_drawn_before_there_are_enough_steps():
    replay = RingReplay(40, 2, n_steps=3)
    for number in range(3):
        with pytest.raises(RuntimeError, match=f"sample is of 3 steps, and {number} transitions"):
            replay.sample(4)
        replay.add(step_of(number, 2))
    assert replay.sample(4)["steps_to_next_obs"].tolist() == [[3.0]] * 4


def step_of(number, envs, done=()):
    """Transition ``number`` of each environment; rewards are 1, 10, 100 ... by environment."""
    at = torch.arange(envs).float()
    flag = torch.tensor([[e in done] for e in range(envs)])
    then = {
        "observation": (at + 1000 * (number + 1)).unsqueeze(1),
        "reward": (10.0**at * (number + 1)).unsqueeze(1),
        "done": flag,
        "terminated": flag,
    }
    return TensorDict({"observation": (at + 1000 * number).unsqueeze(1), "next": then}, [envs])


@pytest.mark.parametrize("n_steps", [1, 3])
def test_what_is_drawn_is_what_was_stored(n_steps):
    torch.manual_seed(0)
    replay = RingReplay(40, 2, n_steps, gamma=0.5)  # 20 rows
    ends = {7: (0,), 23: (1,), 24: (0, 1)}
    for number in range(27):
        replay.add(step_of(number, 2, ends.get(number, ())))
        if number >= n_steps - 1:
            batch = replay.sample(64)
            first = (batch["observation"].squeeze(1) // 1000).long()
            assert first.min() >= max(0, number - 19)
            assert first.max() <= number - n_steps + 1
    batch = replay.sample(2000)
    assert len(batch["observation"].unique()) == 2 * (20 - n_steps + 1)
    for x in batch.unbind(0)[:200]:
        env, start = int(x["observation"]) % 1000, int(x["observation"]) // 1000
        reward, k = 0.0, 0
        while True:
            reward += 0.5**k * 10.0**env * (start + k + 1)
            k += 1
            if k == n_steps or env in ends.get(start + k - 1, ()):
                break
        assert x["next", "reward"].item() == pytest.approx(reward)
        assert int(x["next", "observation"]) // 1000 == start + k
        assert bool(x["next", "done"]) == (env in ends.get(start + k - 1, ()))
        if n_steps > 1:
            assert x["steps_to_next_obs"].item() == k
