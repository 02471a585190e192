"""The dial that is turned over: policies whose errors are known, the runs of the benchmark, and its page."""

import dataclasses

import numpy as np
import pytest
import torch

from envs.return_dial import best_action
from recipes.bench import intervals, radt_dial, radt_dial_page, radt_dial_plan, radt_dial_runs
from recipes.bench.radt_dial_plan import ASKED, DATA, DISTRACTED, DT, HORIZON, NOISY, RADT, TUNED, Job
from recipes.bench.radt_dial_runs import EACH, TARGETS, best_rates, play, run, settings_of

RATES = {(title, data): 1e-3 for title in TUNED for data in DATA}


def oracle(td):
    """Spreads what is left over the steps that are left."""
    left = HORIZON - (td["observation"][:, :1] * HORIZON).round()
    td["action"] = torch.as_tensor(best_action(td["return_to_go"].numpy(), left.numpy())).float()
    return td


class GoesOnAsBefore:
    """The best first action, and then the same again and again."""

    def __call__(self, td):
        if td["is_init"].all():
            self.action = oracle(td)["action"]
        td["action"] = self.action
        return td


@pytest.mark.parametrize("distractors", [0, 16])
def test_the_best_policy_follows_the_turn(distractors):
    found = play(oracle, distractors)
    assert found["plain"] < 1e-6
    assert found["flipped"] < 1e-6
    assert len(found["asked"]) == len(TARGETS) * EACH
    np.testing.assert_allclose(found["brought"], found["asked"], atol=1e-4)
    # the second half is asked for what the first was not: targets 1 .. 19 leave 0.5 .. 9.5 at the turn
    expected = HORIZON / 2 - TARGETS.repeat_interleave(EACH) / 2
    np.testing.assert_allclose(found["asked"], expected, atol=1e-4)


def test_a_policy_that_goes_on_as_before_misses_it_by_a_known_distance():
    found = play(GoesOnAsBefore(), distractors=0)
    left = TARGETS / 2  # at the turn
    assert found["plain"] < 1e-6
    assert found["flipped"] == pytest.approx(float((1 - 2 * left / (HORIZON / 2)).abs().mean()), abs=1e-5)
    assert found["flipped"] > 0.45


def all_jobs():
    return [job for part in radt_dial.PARTS.values() for job in part(RATES)]


def test_every_run_has_a_file_and_settings_of_its_own():
    jobs = all_jobs()
    assert len({job.file for job in jobs}) == len({str(settings_of(job)) for job in jobs}) == len(set(jobs))


@pytest.mark.parametrize("arm", list({job.arm.title: job.arm for job in all_jobs()}.values()), ids=str)
def test_the_recipe_takes_the_settings_of_every_arm(arm):
    cfg = radt_dial_runs._compose(*Job(arm, DISTRACTED, 1e-3, 0).overrides)
    assert cfg.env.kwargs.distractors == 16
    assert cfg.steps == (1600 if "4 x" in arm.title else 400)


@pytest.fixture
def in_a_second(tmp_path, monkeypatch):
    """Runs of five steps, in a folder of their own."""
    monkeypatch.setattr(radt_dial_plan, "RUNS", tmp_path)
    monkeypatch.setattr(radt_dial_plan, "COMMON", (*radt_dial_plan.COMMON, "steps=5", "eval_every=5"))
    monkeypatch.setattr(radt_dial_runs, "EPISODES", 20)


@pytest.fixture
def quick_intervals(monkeypatch):
    monkeypatch.setattr(intervals, "REPS", 10)


@pytest.mark.parametrize("arm", [RADT, DT], ids=["radt", "dt"])
def test_a_run_is_made_once(arm, in_a_second, monkeypatch):
    job = Job(arm, NOISY, 1e-3, 0)
    run(job)
    ((_, found),) = radt_dial_runs.ended([job])
    assert 0 < found["plain"] < 1
    assert 0 < found["flipped"] < 1
    monkeypatch.setattr(radt_dial_runs, "train", lambda job: pytest.fail("was run again"))
    run(job)
    monkeypatch.setattr(radt_dial_runs, "EPISODES", 21)
    assert radt_dial_runs.result(job) is None  # other settings


def test_a_run_that_diverges_is_told_as_one(in_a_second):
    job = Job(RADT, NOISY, 1e30, 0)
    run(job)
    ((_, found),) = radt_dial_runs.ended([job])
    assert found["plain"] is None
    assert "finite" in found["diverged"] or "NaN" in found["diverged"]
    assert radt_dial_page.cell([found], "flipped") == "1 of 1 diverged"


def test_the_rate_is_chosen_by_targets_that_stay(monkeypatch):
    plain = {1e-3: 0.03, 3e-3: 0.01, 1e-2: 0.02, 3e-2: None}
    flipped = {1e-3: 0.1, 3e-3: 0.3, 1e-2: 0.2, 3e-2: None}
    tried = [
        (job, {"plain": plain[job.lr], "flipped": flipped[job.lr]})
        for job in radt_dial_plan.tuning()
        if job.data == NOISY and (job.arm is RADT or job.lr < 1e-2)
    ]
    monkeypatch.setattr(radt_dial_runs, "ended", lambda jobs: tried)
    assert best_rates() == {("RADT", NOISY): 3e-3}  # not all of DT's were tried


def test_seeds_that_go_wrong_are_counted(monkeypatch, quick_intervals):
    def runs_of(arm, data, rates):
        wrong = "RMSNorm" in arm.title and arm.factor == 10
        found = [0.01, 0.01, 0.01, 0.019, 0.05 if wrong else 0.01]
        return [{"flipped": x} for x in found] + [{"flipped": None}] * wrong

    monkeypatch.setattr(radt_dial_page, "runs_of", runs_of)
    cells = radt_dial_page.norm_cells(RATES)
    table = radt_dial_page.norms_table("flipped", 0.02, cells)
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 6
    for row in rows:
        by_rate = [cell.split("; ")[1].strip() for cell in row.strip("| ").split("|")[2:]]
        wrong = "2 of 6" if "RMSNorm" in row else "0 of 5"
        assert by_rate == ["0 of 5", "0 of 5", "0 of 5", wrong]


def test_a_page_is_not_made_from_fewer_runs(tmp_path, monkeypatch, in_a_second):
    monkeypatch.setattr(radt_dial_page, "DOCS", tmp_path)
    (tmp_path / "radt_dial.csv").write_text("part\ntuning\n")
    with pytest.raises(SystemExit, match="has 1 rows, and the runs that are here make 0"):
        radt_dial.main(["--report"])


def test_the_page_has_what_there_is(tmp_path, monkeypatch, in_a_second, quick_intervals):
    monkeypatch.setattr(radt_dial_page, "DOCS", tmp_path)
    monkeypatch.setattr(radt_dial_page, "best_rates", lambda: RATES)
    (tmp_path / "radt_dial.md").write_text("before\n<!-- results -->\n<!-- end of results -->\nafter\n")
    for arm in (RADT, DT):
        run(Job(arm, DISTRACTED, 1e-3, 0))
    radt_dial.main(["--report"])
    page = (tmp_path / "radt_dial.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "2 runs" in page
    assert len((tmp_path / "radt_dial.csv").read_text().splitlines()) == 3
    assert (tmp_path / "radt_dial.png").stat().st_size > 10_000


@pytest.mark.slow
def test_radt_follows_the_turn():
    arm = dataclasses.replace(RADT, title="RADT, tested")
    assert radt_dial_runs.train(Job(arm, DISTRACTED, 3e-3, 0))["flipped"] < ASKED
