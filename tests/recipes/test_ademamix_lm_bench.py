"""The bench of AdEMAMix on a language model: it is even, what it computes is right, and it runs once."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from recipes import ademamix_lm
from recipes.bench import ademamix_lm as bench
from recipes.bench import ademamix_lm_page as page
from recipes.bench import ademamix_lm_plan as plan
from recipes.bench import ademamix_lm_runs as runs
from recipes.bench.ademamix_lm_plan import ROUNDS, SCALES, START, Scale, ablations, compared, overrides, tune

TINY = Scale(
    "tiny",
    "of its kind",
    12,
    ("device=cpu", "eval_sequences=4", "model.d_model=8", "model.n_layers=1", "context=8", "batch_size=2"),
)


def test_either_optimizer_has_as_many_trials():
    counts = {optimizer: sum(len(values) for _, values in ROUNDS[optimizer]) for optimizer in START}
    assert counts == {"adamw": 15, "ademamix": 15}
    assert all(dict(ROUNDS[optimizer])["lr"].count(start["lr"]) == 1 for optimizer, start in START.items())
    assert ROUNDS["adamw"][:2] == ROUNDS["ademamix"][:2]  # the rates and beta2
    for optimizer in START:
        tried, best = tune(TINY, optimizer, lambda job: 1.0)
        assert len(tried) == 15
        assert best == tried[0][0]


def test_tuning_finds_the_best_of_each_round():
    def loss(job):  # the least at lr 8e-3, beta1 0.95 and no decay, infinite at one
        values = dict(o.split("=") for o in job.overrides)
        if values["optimizer.beta2"] == "0.95":
            return math.inf
        lr, beta1 = float(values["optimizer.lr"]), float(values["optimizer.beta1"])
        return abs(math.log(lr / 8e-3)) + abs(beta1 - 0.95) + float(values["optimizer.weight_decay"])

    tried, best = tune(TINY, "adamw", loss)
    assert best == {"lr": 8e-3, "beta1": 0.95, "beta2": 0.999, "weight_decay": 0.0}
    assert sum(math.isinf(mean) for _, mean in tried) == 1
    assert tune(TINY, "adamw", lambda job: None) == ([], None)


def test_the_half_life_is_a_share_of_the_steps():
    (text,) = [o for o in overrides(SCALES["tiny"], "ademamix", START["ademamix"]) if "beta3" in o]
    beta3 = float(text.split("=")[1])
    assert math.log(0.5) / math.log(beta3) - 1 == pytest.approx(0.1 * SCALES["tiny"].steps)


def test_what_is_compared():
    jobs = [*compared(SCALES["tiny"], START), *ablations(SCALES["tiny"], START)]
    assert len(jobs) == len(set(jobs)) == len({runs.folder_of(job) for job in jobs}) == 5 * 6 + 3 * 7
    by_name = {job.name: runs.settings_of(job) for job in jobs if job.seed == 0}
    assert by_name["ademamix-1T"].steps == by_name["adamw-1T"].steps == 2000
    assert by_name["adamw-0.75T"].steps == 1500
    assert by_name["adamw-2T"].steps == 4000
    assert by_name["no-schedules"].optimizer.alpha_warmup is None
    assert by_name["ademamix-1T"].optimizer.alpha_warmup == 2000
    assert by_name["beta1-0"].optimizer.beta1 == 0
    assert by_name["adamw-lr-times-1-plus-alpha"].optimizer.lr == 6 * START["adamw"]["lr"]
    switched = by_name["switch-with-schedules"]
    assert (switched.switch_at, switched.optimizer.beta3_warmup) == (1001, 1000)
    assert switched.optimizer.lr == START["adamw"]["lr"]
    assert by_name["switch-without-schedules"].optimizer.alpha == 2
    # A twin differs in the injection alone.
    for optimizer in ("adamw", "ademamix"):
        twin = {**by_name[f"{optimizer}-injected"], "inject_at": None}
        assert twin == dict(by_name[f"{optimizer}-1T"])


def test_the_length_that_reaches_a_loss():
    lengths, losses = np.array([0.75, 1.0, 2.0]), np.array([0.5, 0.4, 0.2])
    assert runs.length_to_reach(0.4, lengths, losses) == pytest.approx(1.0)
    assert runs.length_to_reach(0.3, lengths, losses) == pytest.approx(2**0.5)
    assert runs.length_to_reach(0.2, lengths, losses) == pytest.approx(2.0)
    assert runs.length_to_reach(0.5, lengths, losses) == 0.0
    assert runs.length_to_reach(0.19, lengths, losses) == math.inf
    assert runs.length_to_reach(0.3, lengths, np.array([0.5, 0.25, 0.35])) == pytest.approx(
        0.75 ** (1 / 5) * 1.0 ** (4 / 5)
    )  # the first, where longer is not always better


def test_the_ratio_of_tokens_and_its_interval():
    rng = np.random.default_rng(0)
    lengths = np.log(plan.LENGTHS)
    adamw = 1.0 - 0.1 * lengths + rng.normal(0, 0.001, (5, 1))
    point, low, high = runs.tokens_ratio(adamw, adamw[:, 1] - 0.1 * math.log(1.2))
    # Seeds are drawn for both together, so what a seed adds to both cancels.
    assert (point, low, high) == pytest.approx((1.2, 1.2, 1.2))
    noisy = adamw[:, 1] - 0.1 * np.log([1.1, 1.2, 1.2, 1.2, 1.3])
    point, low, high = runs.tokens_ratio(adamw, noisy)
    assert 1.1 < low < point < high < 1.3
    assert runs.tokens_ratio(adamw, adamw[:, 1] + 1.0) == (0.0, 0.0, 0.0)
    assert runs.tokens_ratio(adamw, adamw[:, 1] - 1.0) == (math.inf,) * 3
    assert [page._ratio(x, 1.25) for x in (0.0, 1.5, math.inf)] == ["<0.6", "1.20", ">1.6"]


@pytest.mark.parametrize(
    ("sign", "worse", "says"),
    [
        (1, [0.1, 0.2], "yes"),
        (1, [0.1, -0.2], "on 1 of 2 seeds"),
        (-1, [0.1, 0.2], "no"),
        (-1, [-0.1, -math.inf], "yes"),
        (0, [0.1, -0.1], "yes: better on some seeds, worse on others"),
        (0, [-0.1, -0.1], "no: better on every seed"),
    ],
)
def test_whether_a_sign_is_the_papers(sign, worse, says):
    assert page.agrees(sign, worse) == says


@pytest.fixture
def folders(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(ademamix_lm, "plot_loss", lambda *_: None)  # takes longer than the runs
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(page, "DOCS", tmp_path)
    other = Scale("other", "not run", 99)
    monkeypatch.setattr(page, "SCALES", {"tiny": TINY, "other": other})
    for module, name, value in (
        (plan, "ROUNDS", {"adamw": (("lr", (1e-3, 1e-2)),), "ademamix": (("lr", (1e-3, 1e-2)),)}),
        (plan, "TUNING_SEEDS", (100,)),
        (plan, "SEEDS", 2),
        (plan, "ABLATION_SEEDS", 1),
        (plan, "LOOKS", 12),
    ):
        monkeypatch.setattr(module, name, value)
    (tmp_path / "ademamix_lm.md").write_text("above\n<!-- results -->\nold\n<!-- end of results -->\nbelow\n")
    yield tmp_path
    torch.set_num_threads(threads)


def test_it_runs_once_goes_on_and_reports(folders, capsys):
    page.report()  # of nothing
    assert (folders / "ademamix_lm.md").read_text().count("not run yet") > 5
    bench.run_all(TINY)
    files = {file: file.stat().st_mtime_ns for file in folders.rglob("result.json")}
    assert len(files) == 4 + 2 * 6 + 7 + 3 + 4
    bench.run_all(TINY)
    assert files == {file: file.stat().st_mtime_ns for file in folders.rglob("result.json")}

    page.report()
    text = (folders / "ademamix_lm.md").read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "\nold\n" not in text
    assert (
        "| other: not run | 99 | not run yet: `python -m recipes.bench.ademamix_lm --scale other` |" in text
    )
    for table in text.split("\n\n"):
        bars = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(bars) <= 1
    with open(folders / "ademamix_lm.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(files)
    one = next(row for row in rows if row["run"] == "ademamix-1T" and row["seed"] == "1")
    found = json.loads((folders / "runs/tiny/comparison/ademamix-1T/seed1/result.json").read_text())
    assert float(one["excess"]) == pytest.approx(found["excess"], rel=1e-5)
    with open(folders / "ademamix_lm_probe.csv", newline="") as lines:
        assert len(list(csv.DictReader(lines))) == 12 * (2 * 2 + 2)
    assert (folders / "ademamix_lm.png").read_bytes().startswith(b"\x89PNG")

    config = folders / "runs/tiny/comparison/adamw-1T/seed0/config.yaml"
    config.write_text(config.read_text().replace("clip_norm: 1.0", "clip_norm: 2.0"))
    with pytest.raises(SystemExit, match="the page is left as it is"):
        page.report()
    (folders / "ademamix_lm.csv").unlink()
    capsys.readouterr()
    page.report()
    assert "was run with other settings" in capsys.readouterr().out
    assert "| 1 | 0." not in (folders / "ademamix_lm.md").read_text().splitlines()[4]
