"""StochDQN over sizes and candidates: the plan, the sources by their names, and runs from end to end."""

import csv
import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from extensions.stochmax import Elite, Neighbours, RecentExploited, ReplayActions, Uniform
from recipes.baselines import stoch_dqn
from recipes.baselines.loop import Record, Returns, Task
from recipes.bench import intervals, peers_plan, training_runs
from recipes.reproduce import stochastic_q_scale as scale
from recipes.reproduce import stochastic_q_scale_page as page
from recipes.reproduce import stochastic_q_scale_picture as picture
from recipes.reproduce import stochastic_q_scale_plan as plan
from recipes.reproduce.stochastic_q_scale_plan import Job

TINY = Task(
    "DiscreteLQR-v0",
    256,
    {"bins": 5, "horizon": 4},
    num_envs=16,
    codec="bins",
    batch=16,
    updates=4,
    warm_up=32,
    eps_steps=128,
    hidden=8,
    eval_every=128,
    eval_episodes=4,
)


# StochDQN with any sources


def curve(records: list[Record]) -> list[tuple]:
    return [(at.steps, at.updates, at.greedy, at.length, at.training) for at in records]


def test_numbers_are_the_sources_that_they_were():
    assert stoch_dqn.sources_of((20, 10, 5)) == [Uniform(20), ReplayActions(10), Neighbours(5)]
    assert stoch_dqn.sources_of([20, 10, 0]) == [Uniform(20), ReplayActions(10)]
    defaults = {name: p.default for name, p in inspect.signature(stoch_dqn.train).parameters.items()}
    assert defaults["candidates"] == (20, 20, 20)
    assert defaults["double"] is False


def test_sources_by_name_are_those_of_their_arguments_in_order():
    named = {"recent": {"k": 3}, "uniform": {"k": 2, "shared": True}, "elite": {"k": 4}}
    assert stoch_dqn.sources_of(named) == [RecentExploited(3), Uniform(2, shared=True), Elite(4)]
    assert stoch_dqn.sources_of("all") == "all"


@pytest.mark.parametrize("candidates", [{"uniform": {}, "unform": {}}, "some"])
def test_unknown_candidates_are_refused(candidates):
    with pytest.raises(ValueError, match=r"unform.*uniform|some"):
        stoch_dqn.train(TINY, 0, candidates=candidates)


def test_named_sources_learn_as_numbers_do_and_a_change_shows():
    named = {"uniform": {"k": 5}, "replay": {"k": 5}, "neighbours": {"k": 5}}

    def run(candidates: stoch_dqn.Candidates, **settings: bool) -> list[tuple]:
        return curve(stoch_dqn.train(TINY, 3, lr=0.03, candidates=candidates, **settings))

    by_number = run((5, 5, 5))
    assert run(named) == by_number
    assert run(named, double=True) != by_number
    assert run("all") != by_number


def test_the_return_in_training_is_that_of_the_episodes_that_ended():
    def step(rewards: list[float], done: list[bool]) -> TensorDict:
        following = {"reward": torch.tensor(rewards).unsqueeze(1), "done": torch.tensor(done).unsqueeze(1)}
        return TensorDict({"next": following}, [])

    returns = Returns(2)
    assert returns.mean() is None
    returns.add(step([1.0, 10.0], [False, False]))
    returns.add(step([2.0, 20.0], [True, False]))
    assert returns.mean() == 3.0  # the other goes on
    assert returns.mean() is None
    returns.add(step([4.0, 30.0], [True, True]))
    assert returns.mean() == (4.0 + 60.0) / 2


# The plan


def test_sizes_go_from_a_thousand_or_ten_to_a_million():
    for family, worlds in plan.FAMILIES.items():
        sizes = [plan.actions(world) for world in worlds]
        assert sizes == sorted(sizes)
        assert sizes[0] <= 10_000
        assert 10**6 <= sizes[-1] < 1.1 * 10**6
        assert list(worlds)[-1] in plan.LARGEST, family
    assert {10**3, 10**4, 10**5, 10**6} == {plan.actions(x) for x in plan.FAMILIES["ScatterChain"]}


def test_without_a_memory_there_are_as_many_candidates():
    for world in plan.WORLDS:
        made = plan.methods(world)
        base, alone = (made[name][1]["candidates"] for name in (plan.BASE, plan.NO_MEMORY))
        assert sum(source["k"] for source in base.values()) == alone["uniform"]["k"]
        k = int(np.ceil(np.log2(plan.actions(world))))
        assert base == {"uniform": {"k": k}, "replay": {"k": k}}


def test_the_exact_maximum_is_taken_up_to_ten_thousand_actions():
    for world in plan.WORLDS:
        exact = {plan.EXACT, plan.DENSE} & plan.methods(world).keys()
        assert len(exact) == (plan.actions(world) <= 10_000)


def test_an_ablation_changes_one_thing():
    for world in plan.LARGEST:
        made, base = plan.methods(world), plan.methods(world)[plan.BASE][1]
        assert base["candidates"] == {"uniform": {"k": 20}, "replay": {"k": 20}}
        for group, names in plan.in_ablation(world).items():
            for name in names:
                changed = {key for key, value in made[name][1].items() if base.get(key) != value}
                assert changed == {"double" if group == "double" else "candidates"}
                stoch_dqn.sources_of(made[name][1]["candidates"])  # its arguments are accepted
    digits = {world for world in plan.LARGEST if plan.NEAR in plan.in_ablation(world)["kind of memory"]}
    assert digits == {world for world in plan.LARGEST if plan.WORLDS[world].codec is not None}


def test_all_that_is_asked_for_is_varied():
    kinds = [[*made["candidates"]] for made in plan.CHANGES["kind of memory"].values()]
    for kind in (
        [],
        ["recent"],
        ["elite"],
        ["replay", "elite"],
        ["replay", "recent"],
        ["replay", "neighbours"],
    ):
        assert ["uniform", *kind] in kinds
    assert [made["candidates"]["uniform"]["k"] for made in plan.CHANGES["size of R"].values()] == [5, 80]
    assert [made["candidates"]["replay"]["k"] for made in plan.CHANGES["size of M"].values()] == [5, 80]


def test_no_two_runs_share_a_file_and_the_seeds_go_round():
    every = list(plan.jobs(list(plan.WORLDS)))
    assert len({job.file for job in every}) == len(every)
    learns = [job for job in every if job.method not in (plan.RANDOM, plan.ORACLE)]
    assert [job.seed for job in learns] == sorted(job.seed for job in learns)
    assert {job.seed for job in learns} == set(plan.SEEDS)
    assert len(plan.SEEDS) == 5


# Runs, their files and the page


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A plan of one small world, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    worlds = {"small": TINY}
    for module in (plan, page, scale):
        monkeypatch.setattr(module, "WORLDS", worlds)
        monkeypatch.setattr(module, "SEEDS", range(2))
    for module in (plan, page, picture):
        monkeypatch.setattr(module, "FAMILIES", {"family": worlds})
        monkeypatch.setattr(module, "LARGEST", ["small"])
    monkeypatch.setattr(intervals, "REPS", 50)
    Path("docs/benchmarks").mkdir(parents=True)
    Path("docs/benchmarks/stochastic_q_scale.md").write_text(
        "# Sizes\n\n<!-- results -->\n<!-- end of results -->\n"
    )
    plan.actions.cache_clear()
    yield tmp_path
    plan.actions.cache_clear()


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.replace("\\|", "/").split("|")[1:-1]]


def test_a_page_has_what_there_is_and_says_what_is_missing(small, capsys):
    scale.main(["--report"])
    assert Path("docs/benchmarks/stochastic_q_scale.md").read_text().count(page.NOT_YET) > 10
    chosen = ["random ids", "oracle", "R + M", "elite", "DQN, n outputs"]
    scale.main(["--methods", *chosen])
    text = Path("docs/benchmarks/stochastic_q_scale.md").read_text()
    assert text.startswith("# Sizes")
    rows = [cells(row) for row in text.splitlines() if row.startswith("|")]
    ran = {row[1]: row for row in rows if len(row) == 2 + len(page.SCORES)}
    assert ran["elite"][2] == ran["R + M"][2] == ran["**R + M**"][2] == ran["DQN, n outputs"][2] == "2"
    assert ran["elite"][3] != ran["R + M"][3]
    assert ran["/R/ = 80"][2] == page.NOT_YET
    with open("docs/benchmarks/stochastic_q_scale.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert {row["method"] for row in written} == set(chosen)
    assert float(next(row for row in written if row["method"] == "oracle")["share"]) == 1.0
    at_256 = [row for row in written if row["method"] == "elite" and row["steps"] == "256"]
    assert all(row["updates"] == "60" and float(row["training"]) < 0 for row in at_256)
    assert Path("docs/benchmarks/stochastic_q_scale.png").stat().st_size > 0
    next(small.rglob("elite/*.json")).unlink()
    with pytest.raises(SystemExit, match="left as it is"):
        scale.main(["--report"])
    capsys.readouterr()


def test_a_plan_that_was_interrupted_goes_on(small, monkeypatch):
    made = []

    def watched(task, seed, device, **settings):
        if made == [0]:
            made.append("stopped")
            raise KeyboardInterrupt
        made.append(seed)
        return [Record(0, 0, float(seed), 1.0, 0.0, 0.0)]

    monkeypatch.setattr(plan.stoch_dqn, "train", watched)
    arguments = ["--methods", plan.NO_MEMORY, "--no-report"]
    with pytest.raises(KeyboardInterrupt):
        scale.main(arguments)
    kept = Job("small", plan.NO_MEMORY, 0).file.read_text()
    scale.main(arguments)
    scale.main(arguments)
    assert made == [0, "stopped", 1]
    assert Job("small", plan.NO_MEMORY, 0).file.read_text() == kept
    assert [run["seed"] for run in page.runs_of("small", plan.NO_MEMORY)] == [0, 1]
    monkeypatch.setattr(plan, "WORLDS", {"small": dataclasses.replace(TINY, gamma=0.5)})
    assert page.runs_of("small", plan.NO_MEMORY) == []  # of other settings


@pytest.mark.parametrize("argument", ["--worlds", "--methods", "--seeds"])
def test_unknown_names_are_refused(argument, capsys):
    with pytest.raises(SystemExit):
        scale.main([argument, "99"])
    assert "invalid choice" in capsys.readouterr().err


def test_where_a_share_was_reached():
    assert training_runs.reached(np.array([20.0, 10.0, np.inf])) == "20 (2 of 3)"
    assert training_runs.reached(np.array([20.0, np.inf, np.inf])) == "never (1 of 3)"
    assert training_runs.reached(np.array([3_000.0])) == "3,000"


def test_results_of_the_peers_are_filed_as_they_were():
    job = peers_plan.Job("ScatterChain-1K", "stoch_dqn", 3, 3e-3)
    assert str(job.file) == "runs/bench/peers/ScatterChain-1K/stoch_dqn/lr0.003/seed3.json"
    assert list(job.names) == ["world", "method", "seed", "lr"]
    settings = training_runs.as_json(job.settings)
    assert settings["method"]["candidates"] == [10, 10, 0]
    assert set(settings["task"]) == {field.name for field in dataclasses.fields(Task)}
    assert "training" not in json.dumps(settings)
