"""The bench of AdEMAMix in PPO and DQN: tunes evenly, runs once, and reports what there is."""

import csv
import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from rliable import metrics
from stable_baselines3 import DQN, PPO

from extensions.optim import AdEMAMix
from recipes.bench import ademamix_rl, ademamix_rl_page, ademamix_rl_runs, intervals
from recipes.bench.ademamix_rl_plan import (
    ADAM_TRIALS,
    ADEMAMIX_TRIALS,
    CHECKPOINTS,
    TASKS,
    UNTUNED,
    Setting,
    Task,
    make,
)

TINY_PPO = Task(
    "PPO, tiny",
    PPO,
    "CartPole-v1",
    steps=320,
    n_envs=2,
    lr=1e-3,
    linear=True,
    eps=1e-5,
    returns=(0, 500),
    kwargs={"n_steps": 16, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"net_arch": [4]}},
)
TINY_DQN = Task(
    "DQN, tiny",
    DQN,
    "CartPole-v1",
    steps=320,
    n_envs=1,
    lr=1e-3,
    linear=False,
    eps=1e-8,
    returns=(0, 500),
    kwargs={
        "batch_size": 4,
        "buffer_size": 400,
        "learning_starts": 32,
        "train_freq": 16,
        "gradient_steps": 2,
        "policy_kwargs": {"net_arch": [4]},
    },
    epsilon=0.05,
)
SLOW = Setting(1.0, beta3=0.99, alpha=2.0)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Runs and pages in a folder of the test's own, with two trials, of which one is kept."""
    monkeypatch.setattr(ademamix_rl_runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(ademamix_rl_runs, "FINALISTS", 1)
    for module in (ademamix_rl, ademamix_rl_page, ademamix_rl_runs):
        monkeypatch.setattr(module, "ADAM_TRIALS", (Setting(1.0), Setting(2.0)), raising=False)
        monkeypatch.setattr(
            module, "ADEMAMIX_TRIALS", (SLOW, Setting(2.0, beta3=0.9, alpha=1.0)), raising=False
        )
        monkeypatch.setattr(module, "TASKS", (TINY_PPO, TINY_DQN), raising=False)
    monkeypatch.setattr(ademamix_rl_page, "DOCS", tmp_path)
    monkeypatch.setattr(intervals, "REPS", 20)
    (tmp_path / "ademamix_rl.md").write_text("above\n<!-- results -->\nold\n<!-- end of results -->\nbelow\n")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def pretend(task, setting, seed, *returns):
    """Leave the result of a run that was not made."""
    file = ademamix_rl_runs.file_of(task, setting, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "seed": seed,
        "settings": ademamix_rl_runs.settings_of(task, setting),
        "evaluations": [{"step": 32 * (i + 1), "return": r} for i, r in enumerate(returns)],
        "updates": 20,
        "cpu_s": 1.0,
        "machine": "a machine",
        "commit": "abc",
        "versions": dict.fromkeys(("torch", "stable_baselines3", "gymnasium", "numpy"), "1"),
    }
    file.write_text(json.dumps(found))


def test_both_optimizers_have_as_many_trials():
    assert len(ADAM_TRIALS) == len(ADEMAMIX_TRIALS)
    names = [s.name for s in {*ADAM_TRIALS, *ADEMAMIX_TRIALS, *UNTUNED.values()}]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_run_is_a_whole_number_of_rollouts_and_has_every_evaluation(task):
    rollout = task.n_envs * task.kwargs["n_steps"] if task.algorithm is PPO else task.kwargs["train_freq"]
    assert task.steps % rollout == 0
    assert task.steps / CHECKPOINTS >= rollout


@pytest.mark.parametrize("task", [TINY_PPO, TINY_DQN], ids=lambda task: task.name)
@pytest.mark.parametrize("setting", [Setting(2.0, 0.95), SLOW, *UNTUNED.values()], ids=lambda s: s.name)
def test_the_algorithm_has_the_optimizer_that_is_said(task, setting):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = make(task, setting, seed=0).policy.optimizer
    assert type(optimizer) is (torch.optim.Adam if setting.beta3 is None else AdEMAMix)
    (group,) = optimizer.param_groups
    assert group["lr"] == task.lr * setting.factor
    assert group["eps"] == task.eps
    assert group["betas"][:2] == (setting.beta1, 0.999)
    if setting.beta3 is not None:
        assert (group["betas"][2], group["alpha"]) == (setting.beta3, setting.alpha)
        warmup = task.updates if setting.warmup else None
        assert group["alpha_warmup"] == group["beta3_warmup"] == warmup


@pytest.mark.parametrize("task", [TINY_PPO, TINY_DQN], ids=lambda task: task.name)
def test_a_run_is_made_once_and_the_same_again(task, folders):
    ademamix_rl.run(task, SLOW, 0)
    file = ademamix_rl_runs.file_of(task, SLOW, 0)
    found, written = ademamix_rl_runs.result(task, SLOW, 0), file.stat().st_mtime_ns
    assert found["updates"] == task.updates
    assert [e["step"] for e in found["evaluations"]] == list(range(32, 321, 32))

    ademamix_rl.run(task, SLOW, 0)
    assert file.stat().st_mtime_ns == written
    file.unlink()
    ademamix_rl.run(task, SLOW, 0)
    assert ademamix_rl_runs.result(task, SLOW, 0)["evaluations"] == found["evaluations"]
    assert not list(folders.rglob("*.partial"))


@pytest.mark.parametrize("setting", [Setting(2.0), SLOW], ids=lambda s: s.name)
def test_a_learning_rate_falls_where_it_is_said_to(setting):
    for task in (TINY_PPO, dataclasses.replace(TINY_PPO, linear=False)):
        model = make(task, setting, 0).learn(task.steps)
        (group,) = model.policy.optimizer.param_groups
        assert group["lr"] == (0.0 if task.linear else task.lr * setting.factor)
        assert (model.clip_range(0.25) == 0.05) == task.linear


def test_evaluating_leaves_the_training_as_it_is(monkeypatch):
    def weights(episodes):
        monkeypatch.setattr(ademamix_rl, "EPISODES", episodes)
        model = make(TINY_DQN, SLOW, 0)
        model.learn(TINY_DQN.steps, callback=ademamix_rl.Evaluations(TINY_DQN, reset=False))
        return model.policy.state_dict()

    one, five = weights(1), weights(5)
    assert all(torch.equal(one[name], five[name]) for name in one)


def test_the_slow_average_is_emptied_nine_times_and_warms_up_between(monkeypatch):
    emptied = []
    monkeypatch.setattr(AdEMAMix, "reset_slow", lambda self: emptied.append(self))
    setting = dataclasses.replace(SLOW, reset=True)
    assert setting.optimizer(TINY_PPO)[1]["alpha_warmup"] == TINY_PPO.updates // CHECKPOINTS
    ademamix_rl.run(TINY_PPO, SLOW, 0)
    assert not emptied
    ademamix_rl.run(TINY_PPO, setting, 0)
    assert len(emptied) == CHECKPOINTS - 1


def test_runs_with_other_settings_are_left_out(capsys):
    pretend(TINY_PPO, SLOW, 0, 1.0)
    assert ademamix_rl_runs.result(TINY_PPO, SLOW, 0)
    other = dataclasses.replace(TINY_PPO, lr=1e-4)
    assert ademamix_rl_runs.result(other, SLOW, 0) is None
    assert "was run with other settings" in capsys.readouterr().out


def test_the_best_is_the_finalist_with_the_greatest_area(monkeypatch):
    monkeypatch.setattr(ademamix_rl_runs, "FINALISTS", 2)
    trials = tuple(Setting(f) for f in (1.0, 2.0, 3.0))
    first, *others = ademamix_rl_runs.TUNING_SEEDS
    for setting, value in zip(trials, (10, 30, 20), strict=True):
        assert ademamix_rl_runs.finalists(TINY_PPO, trials) == ()
        pretend(TINY_PPO, setting, first, value, 0)
    assert ademamix_rl_runs.finalists(TINY_PPO, trials) == (trials[1], trials[2])
    for seed in others:
        assert ademamix_rl_runs.best(TINY_PPO, trials) is None
        pretend(TINY_PPO, trials[0], seed, 99, 99)  # not a finalist
        pretend(TINY_PPO, trials[1], seed, 0, 14)
        pretend(TINY_PPO, trials[2], seed, 20, 0)
    assert ademamix_rl_runs.best(TINY_PPO, trials) == trials[2]


def test_the_probability_of_being_better_is_rliables():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (10, 3)).astype(float), rng.integers(0, 5, (8, 3)).astype(float)
    assert ademamix_rl_page.better(x, y)[0] == pytest.approx(metrics.probability_of_improvement(x, y))
    assert intervals.iqm(x)[0] == metrics.aggregate_iqm(x)


def test_an_interval_is_the_same_at_every_call():
    scores, state = np.random.default_rng(0).normal(size=(10, 2)), np.random.get_state()[1].copy()
    first = intervals.interval(intervals.iqm, scores, digits=9)
    assert first == intervals.interval(intervals.iqm, scores, digits=9)
    assert (np.random.get_state()[1] == state).all()


def test_like_is_compared_with_like():
    for row, adam in ademamix_rl_runs.AGAINST.items():
        assert (row in UNTUNED) == (adam in UNTUNED) or row == ademamix_rl_runs.ADAM_AS_IT_COMES
    assert set(ademamix_rl_runs.ROWS) == {row for rows in ademamix_rl_runs.PASSES for row in rows}


def test_it_tunes_compares_and_reports(folders):
    ademamix_rl.main(["--only", "PPO", "--seeds", "2"])
    page = (folders / "ademamix_rl.md").read_text()
    assert page.startswith("above\n")
    assert page.endswith("below\n")
    assert "old" not in page
    for table in page.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    ppo, dqn = page.split("### PPO, tiny")[1].split("### DQN, tiny")
    assert "not run yet" not in ppo
    not_yet = "ot run yet: `python -m recipes.bench.ademamix_rl --only"
    assert f"updates. N{not_yet} 'DQN, tiny'`\n" in dqn

    with open(folders / "ademamix_rl.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    tuning = [row for row in rows if row["phase"] == "tuning"]
    assert len(tuning) == 2 * (2 + len(ademamix_rl_runs.TUNING_SEEDS) - 1)  # one of two trials is kept
    compared = {row["setting"] for row in rows if row["phase"] == "comparison"}
    assert all(sum(row["setting"] == name for row in rows if row not in tuning) == 2 for name in compared)
    assert len(rows[0]["returns"].split()) == CHECKPOINTS
    settings = json.loads((folders / "ademamix_rl.json").read_text())["PPO, tiny"]
    assert {row["setting"] for row in rows} <= set(settings["optimizers"])
    assert set(settings["compared"].values()) == compared
    assert (folders / "ademamix_rl.png").read_bytes().startswith(b"\x89PNG")

    papers = UNTUNED[ademamix_rl_runs.PAPERS]
    for seed in range(2):
        ademamix_rl_runs.file_of(TINY_PPO, papers, seed).unlink()
    (folders / "ademamix_rl.csv").unlink()  # it has more runs, which would not be lost
    ademamix_rl.main(["--report"])
    page = (folders / "ademamix_rl.md").read_text()
    assert f"| {ademamix_rl_runs.PAPERS} | n{not_yet} 'PPO, tiny'` |" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--only", "SAC"], "there are 'PPO, tiny'"), (["--seeds", "0"], "--seeds must be from 1 to 1000")],
)
def test_it_says_what_is_wrong(arguments, says, capsys):
    with pytest.raises(SystemExit):
        ademamix_rl.main(arguments)
    assert says in capsys.readouterr().err
