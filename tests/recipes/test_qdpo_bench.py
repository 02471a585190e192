"""What is made of the runs of QDPO's comparison."""

import csv

import pytest

from recipes.bench import qdpo_plan as plan
from recipes.bench import qdpo_report as made
from recipes.bench.qdpo_runs import best_rates


def run(agreement, kl=0.001):
    scores = dict.fromkeys(("reverse_kl", "rubric", "win", "lose", "tie", "win_rate"), 0.5)
    more = {"perplexity": 1.5, "flip_rate": 0.02, "agreed_tokens": 20.0, "length": 30.0}
    trained = {"agreement": agreement, "forward_kl": kl, "agreement_at": {"8": 0.9}, **scores, **more}
    trained["flips_by_margin"] = {"0": [3, 10], "0.5": [1, 90]}
    about = {"cpu_s": 60.0, "machine": "M", "versions": {"torch": "2"}, "commit": "c", "updates": 80}
    return {"scores": {"trained": trained}, **about}


def test_the_best_rate_is_that_of_the_highest_agreement_once_all_were_tried():
    even, best, last = plan.METHODS["kd"].rates
    tuning = {f"kd-{even:g}": {100: run(0.7, 0.003)}, f"kd-{best:g}": {100: run(0.7, 0.002)}}
    assert best_rates(tuning) == {}
    assert best_rates(tuning | {f"kd-{last:g}": {100: run(0.6, 0.001)}}) == {"kd": best}


def test_a_method_is_run_once_its_rate_is_known():
    assert {job.way for job in plan.comparison("3", {})} == {"rtn", "mse_clip"}
    assert "kd_mse" in {job.way for job in plan.comparison("3", {"kd": 1e-4})}
    jobs = list(plan.comparison("2-g32", {"qdpo": 1e-5, "kd": 1e-4}))
    assert {job.way for job in jobs} == {"rtn", "mse_clip", "qdpo", "kd"}
    assert [job.seed for job in jobs] == [seed for seed in plan.SEEDS for _ in range(4)]
    shuffled = [j for j in plan.comparison("3", {"qdpo": 1e-5}) if j.way == "qdpo_shuffled"]
    assert all("method.lr=1e-05" in job.overrides for job in shuffled)
    assert {"bits=2", "group_size=32"} <= set(plan.all_overrides(jobs[0]))
    assert len({len(way.rates) for way in plan.METHODS.values() if way.rates}) == 1


def test_what_was_recovered_is_told_seed_by_seed():
    rtn, kd = {0: run(0.5), 1: run(0.6)}, {0: run(0.75), 1: run(0.9), 2: run(0.9)}
    assert made.of(kd, "recovered", rtn).tolist() == pytest.approx([0.5, 0.75])
    table = made.scores_table(("rtn", "kd", "sft"), {"rtn": rtn, "kd": kd}).splitlines()
    assert table[3].startswith("| KD | 3 | 0.850 ± 0.050 | 0.62 ± 0.13 | 0.900")
    assert table[4].startswith("| SFT | not run yet |")


def test_differences_are_paired_and_called_what_they_are():
    rtn = {seed: run(0.4 + seed / 10, 0.003) for seed in range(5)}
    kd = {seed: run(0.5 + seed / 10, 0.004) for seed in range(5)}
    rows = made.differences_table(("rtn", "kd"), {"rtn": rtn, "kd": kd}).splitlines()
    assert len(rows) == 3
    cells = rows[2].split(" | ")
    assert cells[0] == "| KD, against RTN"
    assert cells[2] == "0.100 [0.100, 0.100] (better)"
    assert cells[4] == "0.00100 [0.00100, 0.00100] (worse)"
    assert cells[5].startswith("0.000 [0.000, 0.000]")


def test_flips_are_counted_by_margin_over_all_seeds():
    runs = {"rtn": {0: run(0.5), 1: run(0.5)}, "kd": {0: run(0.5), 1: run(0.5)}, "sft": {0: run(0.5)}}
    lines = made.margins_table(("rtn", "kd", "sft"), runs).splitlines()
    assert lines[0] == "| margin, nats | 0 to 0.5 | 0.5 and more |"
    assert lines[2:] == ["| tokens | 20 | 180 |", "| RTN | 6 | 2 |", "| KD | 6 | 2 |"]


def test_the_report_of_half_a_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(made, "DOCS", tmp_path)
    rates = {"kd": 1e-4}
    jobs = {name: list(plan.comparison(name, rates)) for name in plan.FORMATS}
    jobs |= {
        "tuning": list(plan.tuning()),
        "trials": list(plan.trials(rates)),
        "long": list(plan.long(rates)),
    }
    parts = {name: {} for name in jobs}
    parts["3"] = {"rtn": {0: run(0.5)}, "kd": {0: run(0.7)}}
    parts["tuning"] = {f"kd-{plan.METHODS['kd'].rates[0]:g}": {100: run(0.6)}}
    others = ("margins", "scores long", "tuning", "trials", "about")
    places = [*(f"{kind} {name}" for name in plan.FORMATS for kind in ("scores", "differences"))]
    marks = "".join(f"<!-- {x} -->\n<!-- end of {x} -->\n" for x in (*places, *others))
    (tmp_path / "qdpo.md").write_text(marks)
    made.report(parts, jobs)
    page = (tmp_path / "qdpo.md").read_text()
    assert "| KD | 1 | 0.700 | 0.40 |" in page
    assert page.count("Not run yet.") == len(plan.FORMATS) + 1  # and long, and trials
    assert (tmp_path / "qdpo.png").exists()
    with open(tmp_path / "qdpo.csv", newline="") as file:
        runs = {(row["part"], row["run"], row["seed"]) for row in csv.DictReader(file)}
    assert runs == {("3", "rtn", "0"), ("3", "kd", "0"), ("tuning", next(iter(parts["tuning"])), "100")}
