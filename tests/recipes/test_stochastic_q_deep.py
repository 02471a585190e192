"""The loop that is measured is the maximum in batch; the plans, the runs that are kept, the page."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from recipes.reproduce import stochastic_q, stochastic_q_control, stochastic_q_time
from recipes.reproduce import stochastic_q_control_plan as plan
from recipes.reproduce.stochastic_q_control_page import difference
from recipes.reproduce.stochastic_q_loops import (
    GAMMA,
    ActionIn,
    Agent,
    Batch,
    compared_in_python,
    compared_in_torch,
    in_batch,
)

pytest.importorskip("mujoco")

PAGE = "# A page\n\n<!-- control -->\n<!-- end of control -->\n\n<!-- time -->\n<!-- end of time -->\n"


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def few_bootstraps(monkeypatch):
    """They would take most of the time."""
    monkeypatch.setattr("recipes.bench.intervals.REPS", 20)


@pytest.fixture
def page(tmp_path):
    """A page to be filled, in a folder of its own."""
    (tmp_path / "stochastic_q_deep.md").write_text(PAGE)
    return tmp_path / "stochastic_q_deep.md"


@pytest.mark.parametrize("loop", [compared_in_python, compared_in_torch])
def test_a_loop_finds_the_maximum_of_the_batch(loop):
    torch.manual_seed(0)
    q, states, actions = ActionIn(3, 2).double(), torch.randn(5, 3).double(), torch.randn(70, 2).double()
    with torch.no_grad():
        value, which = loop(q, states, actions)
        best, column = in_batch(q, states, actions)
        by_hand = torch.stack([q(states, action.expand(5, -1)) for action in actions], 1)  # (B, C)
    torch.testing.assert_close(best, by_hand.amax(1))
    torch.testing.assert_close(value, best.to(value))
    assert which.equal(column)
    assert column.equal(by_hand.argmax(1))
    assert len(set(which.tolist())) > 1


def test_a_batch_in_chunks_is_one_batch(monkeypatch):
    q, states, actions = ActionIn(3, 2), torch.randn(5, 3), torch.randn(70, 2)
    whole = in_batch(q, states, actions)
    monkeypatch.setattr("recipes.reproduce.stochastic_q_loops.ROWS", 37)
    for part, one in zip(in_batch(q, states, actions), whole, strict=True):
        torch.testing.assert_close(part, one)


@pytest.mark.parametrize("maximum", [compared_in_python, compared_in_torch, in_batch])
def test_targets_are_those_of_the_formula(maximum):
    torch.manual_seed(0)
    agent = Agent([4, 4], 3, maximum, sampled=True)
    ends = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0])
    batch = Batch(torch.randn(5, 3), torch.arange(5), torch.randn(5), torch.randn(5, 3), ends)
    actions = agent.candidates(batch.ids)
    with torch.no_grad():
        values = torch.stack([agent.q(batch.next_obs, action.expand(5, -1)) for action in actions], 1)
    by_hand = batch.rewards + GAMMA * (1 - ends) * values.amax(1)
    torch.testing.assert_close(agent.targets(batch, actions), by_hand)
    torch.testing.assert_close(agent.targets(batch, actions)[ends == 1], batch.rewards[ends == 1])


def test_candidates_are_the_drawn_and_the_remembered_each_once():
    torch.manual_seed(0)
    agent = Agent([1000], 3, in_batch, sampled=True)
    memory = torch.tensor([7, 7, 7, 500])
    controls = agent.candidates(memory).squeeze(1)
    assert len(controls) == len(set(controls.tolist())) <= 10 + 2
    assert set(agent.codec.features(memory).flatten().tolist()) <= set(controls.tolist())
    assert len(Agent([1000], 3, in_batch, sampled=False).candidates(memory)) == 1000


def test_an_update_moves_every_parameter():
    agent = Agent([4, 4], 3, compared_in_torch, sampled=True)
    before = [p.clone() for p in agent.q.parameters()]
    for _ in range(3):
        agent.update(8)
    assert all(not torch.equal(p, old) for p, old in zip(agent.q.parameters(), before, strict=True))


def test_the_plan_has_what_the_paper_has():
    assert [world.n for world in plan.WORLDS.values()] == [512, 1000, 4096]
    learners = {"stoch_dqn", "stoch_ddqn", "dqn", "ddqn", "random"}
    for tier in "AB":
        for world in plan.WORLDS:
            assert learners <= {name for where, name in plan.cells(tier) if where == world}
    assert {"ppo", "a2c", "ddpg"} <= {name for _, name in plan.cells("B")}
    assert ("HalfCheetah, 4096", "stoch_dqn_authors") not in plan.cells("A")
    jobs = list(plan.jobs("A"))
    assert len({job.file(plan.RUNS) for job in jobs}) == len(jobs) == 5 * len(plan.cells("A"))
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)


def test_only_the_maximum_differs():
    sampled, exact = (plan.Job("A", "HalfCheetah, 4096", name, 0) for name in ("stoch_dqn", "dqn"))
    assert sampled.settings["algorithm"] == exact.settings["algorithm"] == "StochDQN"
    given = [job.arguments for job in (sampled, exact)]
    assert {key for key in given[0] if given[0][key] != given[1][key]} == {"candidates"}
    authors = plan.Job("A", "InvertedPendulum, 512", "stoch_dqn_authors", 0).arguments
    assert (authors["batch_size"], authors["buffer_size"]) == (18, 36)


def rows_of(page):
    with open(page.with_suffix(".csv")) as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore")
def test_runs_are_kept_and_make_a_page(page, monkeypatch, capsys, one_thread):
    short = replace(
        plan.WORLDS["InvertedPendulum, 512"],
        horizon=10,
        random_episodes=2,
        budgets={"A": plan.Budget(60, 30, 2), "B": plan.Budget(60, 30, 2)},
    )
    monkeypatch.setitem(plan.WORLDS, "InvertedPendulum, 512", short)
    monkeypatch.setitem(plan.COMMON, "learning_starts", 20)
    monkeypatch.setattr(plan, "SEEDS", range(2))
    runs = page.parent / "runs"
    arguments = ["--part", "control", "--runs", str(runs), "--out", str(page.parent)]
    some = ["--worlds", "InvertedPendulum, 512", "--methods", "stoch_dqn", "dqn", "random"]
    stochastic_q.main([*arguments, *some])
    assert capsys.readouterr().out.count(" s\n") == 6
    text = page.read_text()
    assert "| StochDQN | 2 of 5 seeds |" in text
    assert "| StochDDQN | not run yet |" in text
    rows = rows_of(page)
    learned = [row for row in rows if row["method"] == "dqn"]
    assert [(row["seed"], row["step"]) for row in learned] == [(s, t) for s in "01" for t in ("30", "60")]
    assert all(0 < float(row["greedy"]) <= 10 for row in rows)
    assert float(learned[0]["cpu_s"]) < float(learned[1]["cpu_s"])

    stochastic_q.main([*arguments, *some])  # nothing is left to run
    assert capsys.readouterr().out == ""

    file = plan.Job("A", "InvertedPendulum, 512", "dqn", 1).file(runs)
    made = json.loads(file.read_text())
    file.write_text(json.dumps({**made, "settings": {**made["settings"], "algorithm": "another"}}))
    with pytest.raises(SystemExit, match="the page is left as it is"):
        stochastic_q.main([*arguments, "--report"])
    assert "was run with other settings" in capsys.readouterr().out
    assert page.read_text() == text


@pytest.mark.filterwarnings("ignore")
def test_a_long_run_has_continuous_agents():
    for method in ("ppo", "a2c", "ddpg"):
        agent = stochastic_q_control.make(plan.Job("B", "InvertedPendulum, 512", method, 0))
        assert agent.action_space.shape == (1,)
        assert agent.env.envs[0].spec.max_episode_steps == 100


def test_times_make_a_page(page, monkeypatch, one_thread):
    monkeypatch.setattr("recipes.bench.action_scaling.SLICE", 0.0005)
    stochastic_q.main(["--part", "time", "--quick", "--out", str(page.parent)])
    text = page.read_text()
    assert text.startswith("# A page\n\n<!-- control -->\n<!-- end of control -->")
    for n in (16, 64):
        assert f"| {n} | a forward each, compared in Python |" in text
        assert f"**n = {n}.**" in text
    assert all(f"| {name} |" in text for name in stochastic_q_time.AGENTS)
    assert (page.parent / "stochastic_q_deep_time.png").exists()


def test_what_takes_too_long_is_left_out():
    asked = {(n, name) for n in stochastic_q_time.SIZES for name in stochastic_q_time.AGENTS}
    acts = {(n, name) for n, name in asked if stochastic_q_time.affordable(name, n, 1)}
    assert {(n, name) for n, name in asked - acts} == {
        (100_000, "python loop, all n"),
        (1_000_000, "python loop, all n"),
        (100_000, "loop, all n"),
        (1_000_000, "loop, all n"),
        (1_000_000, "SB3's DQN, n outputs"),
    }
    for n in (512, 1_000, 4_096):  # what the published figures are compared with
        own = plan.authors_batch(n)
        assert all(stochastic_q_time.affordable(name, n, own) for name in stochastic_q_time.AGENTS)


def test_a_part_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        stochastic_q.main(["--part", "another"])
    assert "tables" in capsys.readouterr().err


def test_a_difference_says_what_its_interval_says():
    high, low = np.arange(5.0)[:, None] + 100, np.arange(5.0)[:, None]
    assert difference(high, low).startswith("100.0 [")
    assert difference(high, low).endswith(": higher")
    assert difference(low, high).endswith(": lower")
    assert difference(low, low + 0.1).endswith(": not told apart")
