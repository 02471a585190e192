"""The race of the recipes' agents: its clock, that it runs once, and what is said of it."""

import csv
import json

import pytest

from recipes.bench import chain_race, chain_race_page, chain_race_runs
from recipes.bench.chain_race_page import ratios_table, reached, times_table
from recipes.bench.chain_race_runs import AGENTS, Agent, Job, Race, settings
from recipes.bench.intervals import ratio_of_medians

SHORT = ("env.kwargs.kappa=1.0", "total_timesteps=600")
TINY = {
    "SB3": Agent("stoch_dqn", (*SHORT, "algo.learning_starts=100", "algo.batch_size=32")),
    "TorchRL": Agent(
        "stoch_dqn_torchrl", (*SHORT, "n_envs=8", "agent.learning_starts=100", "agent.batch_size=32")
    ),
}
INF = float("inf")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(chain_race_runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(chain_race_runs, "EVERY", 200)
    monkeypatch.setattr(chain_race_page, "DOCS", tmp_path)
    for name in list(AGENTS):
        monkeypatch.delitem(AGENTS, name)
    AGENTS.update(TINY)
    (tmp_path / "chain_race.md").write_text("above\n<!-- results -->\nold\n<!-- end of results -->\nbelow\n")
    return tmp_path


def test_both_learn_once_and_are_reported(folders):
    chain_race.main(["--seeds", "1", "--only", *TINY])
    file = folders / "runs" / "TorchRL" / "seed0" / "result.json"
    written = file.stat().st_mtime_ns
    for name in TINY:
        found = json.loads((folders / "runs" / name / "seed0" / "result.json").read_text())
        assert [e["step"] for e in found["evaluations"]] == [200, 400, 600]
        for clock in ("wall_s", "cpu_s"):
            times = [e[clock] for e in found["evaluations"]]
            assert 0 < times[0] < times[1] < times[2]
    chain_race.main(["--seeds", "1", "--only", *TINY])
    assert file.stat().st_mtime_ns == written
    page = (folders / "chain_race.md").read_text()
    assert page.startswith("above\n")
    assert page.endswith("below\n")
    assert "old" not in page
    with open(folders / "chain_race.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["agent"] for row in rows} == set(TINY)
    assert len(rows) == 6


def test_a_race_ends_with_two_good_looks_in_a_row_and_does_not_time_them(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(chain_race_runs.time, "perf_counter", lambda: now[0])
    race = Race(settings(Job("SB3", 0)))
    oracle = race.envs.dynamics.optimal_action

    def the_best(_):
        now[0] += 100.0
        return oracle(race.envs.state)

    for act, over in ((the_best, False), (lambda _: [0], False), (the_best, False), (the_best, True)):
        now[0] += 1.0
        race.look(0, act)
        assert race.over == over
    assert [e["share"] for e in race.evaluations][2:] == pytest.approx([1.0, 1.0])
    assert race.evaluations[1]["share"] < 0.95
    assert [e["wall_s"] for e in race.evaluations] == [1.0, 2.0, 3.0, 4.0]


def test_agents_in_a_hurry_differ_in_rates_and_targets_alone():
    calm, hurried = (settings(Job(name, 0)).agent for name in ("TorchRL", "TorchRL, in a hurry"))
    assert {k for k in calm if calm[k] != hurried[k]} == {"lr", "row_lr_scale", "target_update_interval"}
    calm, hurried = (settings(Job(name, 0)).algo for name in ("SB3", "SB3, in a hurry"))
    assert {k for k in calm if calm[k] != hurried[k]} == {
        "learning_rate",
        "policy_kwargs",
        "target_update_interval",
    }


def run_of(*shares):
    rows = [
        {"step": 10 * i, "share": s, "wall_s": 2.0 * i, "cpu_s": float(i)} for i, s in enumerate(shares, 1)
    ]
    return {"evaluations": rows}


def test_when_a_run_was_there():
    run = run_of(0.1, 0.96, 0.2, 0.95, 0.99)
    assert reached(run, 1, "cpu_s") == 2.0
    assert reached(run, 2, "wall_s") == 8.0
    assert reached(run_of(0.1, 0.96), 1, "step") == 20
    assert reached(run_of(0.1, 0.96), 2, "step") == INF


def test_a_ratio_of_medians_counts_runs_that_never_got_there():
    assert ratio_of_medians([10.0] * 5, [2.0] * 5) == (5.0, 5.0, 5.0)
    middle, low, high = ratio_of_medians([10.0, 20.0, 30.0], [1.0, 2.0, INF])
    assert middle == 10.0
    assert low == 0.0  # the other is slower than ever, as often as its infinite run is drawn twice
    assert high == 30.0
    assert ratio_of_medians([INF] * 3, [2.0] * 3)[0] == INF


def test_the_tables_say_what_is_not_known_and_what_falls_short():
    runs = {
        "SB3": {0: run_of(0.1, 0.1, 0.1, 0.1, 0.96, 0.96), 1: run_of(0.1)},
        "TorchRL": {0: run_of(0.96, 0.96), 1: run_of(0.1, 0.96)},
    }
    times, ratios = times_table(runs), ratios_table(runs)
    for table in (times, ratios):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "| SB3 | 2 | never | wall | never | 10.0, never | never | 10.0, never |" in times
    assert "| TorchRL, in a hurry | not run yet |" in times
    assert "| SB3 | TorchRL, in a hurry | not run yet |" in ratios
    runs["SB3"][1] = run_of(0.1, 0.1, 0.96, 0.96)
    assert "| SB3 | TorchRL | wall | 2.7 [1.5, 5.0] | " in ratios_table(runs)
    assert "| >= 5 | **falls short** |" in ratios_table(runs)
