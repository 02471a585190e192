"""The comparison of StochDQN with its peers: the plan, its runs and its page."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from recipes.baselines import references
from recipes.baselines.loop import Record, Task
from recipes.bench import intervals, peers, peers_page, peers_picture, peers_plan, peers_runs, training_runs
from recipes.bench.peers_plan import Job

SHORT = Task(
    "DiscreteLQR-v0",
    480,
    {"bins": 5, "horizon": 4},
    num_envs=16,
    codec="bins",
    batch=64,
    buffer=4_000,
    warm_up=200,
    eps_steps=1_200,
    hidden=32,
    eval_every=240,
    eval_episodes=4,
)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A plan of one small world, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for module in (peers_plan, peers_page, peers_picture):
        monkeypatch.setattr(module, "WORLDS", {"small": SHORT})
    for module in (peers_plan, peers_runs, peers_page):
        monkeypatch.setattr(module, "SEEDS", range(2))
    monkeypatch.setattr(intervals, "REPS", 50)
    Path("docs/benchmarks").mkdir(parents=True)
    Path("docs/benchmarks/peers.md").write_text("# Peers\n\n<!-- results -->\n<!-- end of results -->\n")
    return tmp_path


def test_every_method_runs_where_it_can():
    rates = dict.fromkeys(peers_plan.cells(learns=True), 1e-3)
    ran = {(job.world, job.method) for job in peers_plan.comparison(rates)}
    assert ("ScatterChain-1M", "stoch_dqn") in ran
    assert ("ScatterChain-1K", "exact_dqn") in ran
    assert ("ActuatorMaze-2p10", "exact_dqn") in ran
    assert ("ActuatorMaze-2p20", "exact_dqn") not in ran
    assert {world for world, method in ran if method == "exact"} == {"ScatterChain-1K", "ActuatorMaze-2p10"}
    assert not {("ScatterChain-1M", name) for name in ("cem", "branching", "wolpertinger")} & ran
    for world in (
        "ActuatorMaze-2p10",
        "ActuatorMaze-2p20",
        "DiscreteLQR-1M",
        "JointReplenishmentSeparable-1M",
    ):
        assert {(world, name) for name in ("stoch_dqn", "wolpertinger", "cem", "branching")} <= ran
    assert peers_plan.why_not("ScatterChain-1M", "cem") is not None


def test_all_look_at_as_many_candidates():
    methods = peers_plan.METHODS
    for world, task in peers_plan.WORLDS.items():
        if task.codec is not None:
            cross = methods["cem"].settings_in(world)
            assert sum(methods["stoch_dqn"].settings_in(world)["candidates"]) == peers_plan.CANDIDATES
            assert cross["samples"] * cross["rounds"] == peers_plan.CANDIDATES
            assert methods["wolpertinger"].settings_in(world)["k"] == peers_plan.CANDIDATES


def test_a_plan_that_was_interrupted_goes_on(small, monkeypatch):
    made = []
    original = dict(peers_plan.METHODS)

    def watched(task, seed, device, **settings):
        if len(made) == 2 and "stopped" not in made:
            made.append("stopped")
            raise KeyboardInterrupt
        made.append(seed)
        return references.play_random(task, seed, device)

    monkeypatch.setitem(
        peers_plan.METHODS, "exact_dqn", dataclasses.replace(original["exact_dqn"], train=watched)
    )
    arguments = ["--methods", "exact_dqn", "--no-report"]
    with pytest.raises(KeyboardInterrupt):
        peers.main(arguments)
    assert peers_runs.runs_of("small", "exact_dqn") == []
    tried = Job("small", "exact_dqn", peers_plan.TRIAL_SEED, 1e-3).file
    kept = tried.read_text()
    peers.main(arguments)
    # all rates bring the same, so the lowest is the best, and lower ones are tried as long as that may be
    assert made == [100, 100, "stopped", 100, 100, 0, 1]
    assert tried.read_text() == kept
    assert [run["seed"] for run in peers_runs.runs_of("small", "exact_dqn")] == [0, 1]


def with_returns_of(monkeypatch, returns):
    """The branching method in the small world, whose greedy returns are those of its learning rate."""

    def says(task, seed, device, lr, **settings):
        return [
            Record(0, 0, x, 1.0, 0.0, 0.0) for x in returns[min(returns, key=lambda x: abs(x - lr / 1e-3))]
        ]

    branching_method = peers_plan.METHODS["branching"]
    monkeypatch.setitem(peers_plan.METHODS, "branching", dataclasses.replace(branching_method, train=says))


def test_the_rate_with_the_higher_returns_late_in_the_run_is_taken(small, monkeypatch):
    with_returns_of(monkeypatch, {1: (0, 9, 1), 3: (5, 5, 1.5), 9: (9, 9, 0)})
    low, high = (Job("small", "branching", peers_plan.TRIAL_SEED, lr) for lr in (1e-3, 3e-3))
    training_runs.run(low)
    assert peers_runs.best_rates() == {}
    training_runs.run(high)
    assert peers_runs.best_rates() == {}  # the best is the highest: one beyond it is to be tried
    training_runs.run(dataclasses.replace(high, lr=3 * 3e-3))
    assert peers_runs.best_rates() == {("small", "branching"): 3e-3}


@pytest.mark.parametrize(
    ("returns", "chosen"),
    [
        ({1 / 3: (1,), 1: (2,), 3: (1,)}, 1),
        ({1 / 9: (1,), 1 / 3: (3,), 1: (2,), 3: (1,)}, 1 / 3),
        ({1: (1,), 3: (2,), 9: (3,), 27: (4,)}, 27),
    ],
)
def test_rates_are_tried_beyond_the_best_up_to_four(small, monkeypatch, returns, chosen):
    with_returns_of(monkeypatch, returns)
    for job in peers_runs.tuning():
        if job.method == "branching":
            training_runs.run(job)
    tried = [lr / 1e-3 for lr in peers_runs.tried("small", "branching")]
    assert tried == pytest.approx(list(returns))
    assert peers_runs.best_rate("small", "branching") == pytest.approx(chosen * 1e-3)


def test_the_exact_maximum_has_the_rate_of_the_sampled_one(small):
    assert all(job.method != "exact" for job in peers_runs.tuning())
    assert peers_runs.best_rate("small", "exact") is None
    for job in peers_runs.tuning():
        if job.method == "stoch_dqn":
            training_runs.run(job)
    assert peers_runs.best_rate("small", "exact") == peers_runs.best_rate("small", "stoch_dqn") is not None


def test_a_run_that_another_process_is_at_is_left_to_it(small):
    job = Job("small", "random", 0)
    job.file.parent.mkdir(parents=True)
    with training_runs.alone(job.file.with_suffix(".lock")) as mine:
        assert mine
        assert not training_runs.run(job)
    assert not job.file.exists()
    assert training_runs.run(job)
    assert not training_runs.run(job)  # it has ended


def test_a_run_with_other_settings_is_not_this_one(small, capsys):
    job = Job("small", "random", 0)
    training_runs.run(job)
    assert training_runs.result(job)["random"] < 0
    found = json.loads(job.file.read_text())
    found["settings"]["task"]["gamma"] = 0.5
    job.file.write_text(json.dumps(found))
    assert training_runs.result(job) is None
    assert "other settings" in capsys.readouterr().out


def test_shares_and_where_they_are_reached(small):
    for method in ("random", "oracle"):
        training_runs.run(Job("small", method, 0))
    low, high = peers_runs.ends("small")
    records = [{"greedy": low + x * (high - low), "steps": s} for s, x in ((0, 0.0), (10, 0.5), (20, 1.0))]
    runs = [{"records": records}, {"records": [*records[:2], records[0]]}]
    scores = peers_runs.shares("small", runs)
    np.testing.assert_allclose(scores, [[0.0, 0.5, 1.0], [0.0, 0.5, 0.0]], atol=1e-12)
    first = training_runs.first_at(runs, scores, 0.9, "steps")
    assert first.tolist() == [20.0, np.inf]
    assert training_runs.reached(first) == "never (1 of 2)"
    assert training_runs.reached(training_runs.first_at(runs, scores, 0.4, "steps")) == "10"


def test_a_page_has_what_there_is_and_says_what_is_missing(small, capsys):
    peers.main(["--report"])
    assert Path("docs/benchmarks/peers.md").read_text().count("not run yet") > 5
    peers.main(["--methods", "random", "oracle", "branching"])
    page = Path("docs/benchmarks/peers.md").read_text()
    rows = {
        row.split("|")[1].strip(): row
        for row in page.split("## small")[1].split("## Settings")[0].splitlines()
        if row.startswith("|")
    }
    assert "| 2 |" in rows["Branching (BDQ)"]
    assert "not run yet" in rows["StochDQN"]
    assert page.startswith("# Peers")
    with open("docs/benchmarks/peers.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert {row["method"] for row in written} == {"random", "oracle", "branching"}
    assert float(next(row for row in written if row["method"] == "oracle")["share"]) == 1.0
    assert Path("docs/benchmarks/peers.png").stat().st_size > 0
    for file in small.rglob("oracle/*.json"):
        file.unlink()
    with pytest.raises(SystemExit, match="left as it is"):
        peers.main(["--report"])
    assert Path("docs/benchmarks/peers.md").read_text() == page
    capsys.readouterr()
