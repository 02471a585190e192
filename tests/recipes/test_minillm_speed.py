"""The timings of MiniLLM's step: charged once; answers do not end; what is beyond a bound is said."""

import csv

import pytest
import torch

from recipes.bench import minillm_speed, minillm_speed_page
from recipes.bench import minillm_speed_loss as loss
from recipes.bench import minillm_speed_steps as steps


def test_a_part_inside_of_another_counts_for_itself_only():
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])
    watch = steps.Stopwatch(lambda: None, lambda: next(now))
    watch.start("rest")  # 0
    inner = watch.wrap("scores", lambda: "done")  # 3 to 7
    assert watch.wrap("answers", inner)() == "done"  # 1 to 15
    watch.stop()  # 31
    assert watch.spent == {"rest": 1 + 16, "answers": 2 + 8, "scores": 4}


def test_models_generate_no_special_token_and_their_losses_do_not_know():
    case = steps.QUICK["quick"]
    model = steps.model(case.student, case, seed=0)
    with torch.no_grad():
        out = model(torch.tensor([[5, 6, 7]]))
    assert (out.logits[..., :3] == -1e4).all()
    assert (out.logits[..., 3:].abs() < 10).all()
    assert (model.lm_head.weight.abs() < 1).all()


def test_losses_are_compared_before_they_are_timed(monkeypatch):
    x = loss.make_inputs(loss.QUICK["quick"], "cpu")
    loss.check(x, 1e-4)
    right = loss.reverse_kl
    monkeypatch.setattr(
        loss, "reverse_kl", lambda name, x: tuple((1 + 0.1 * (name == loss.KL)) * t for t in right(name, x))
    )
    with pytest.raises(AssertionError, match="ours, reverse KL is not"):
        loss.check(x, 1e-4)


def test_what_is_beyond_its_bound_is_said():
    def row(ratio, peak):
        return {"ratio": ratio, "q25": ratio, "q75": ratio, "peak_bytes": peak}

    page = minillm_speed_page
    times = {("cpu", "small", who, "cpu"): row(r, 0) for who, r in ((page.MODERN, 1.4), (page.OFF, 0.9))}
    peaks = {("cpu", "s", who, "cpu"): row(1, p) for who, p in ((page.KL, 120), (page.TRL_LOSS, 100))}
    lines = page.claims(times, peaks, "cpu").splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:]] == ["within |", "**beyond** |", "**beyond** |"]


@pytest.mark.slow
def test_the_quick_path_leaves_figures_and_page(tmp_path):
    minillm_speed.main(["--quick", "--out", str(tmp_path)])
    with open(tmp_path / "minillm_speed_cpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["ratio"] for row in rows if row["trainer"] == steps.BASE} == {"1.0"}
    with open(tmp_path / "minillm_speed_cpu_raw.csv", newline="") as file:
        for row in csv.DictReader(file):  # the parts are all of the time
            parts = sum(float(row[f"{part}_s"]) for part in steps.PARTS)
            assert parts == pytest.approx(float(row["cpu_s"]), rel=0.02)
    page = (tmp_path / "minillm_speed.md").read_text()
    assert "Not run yet: `python -m recipes.bench.minillm_speed --device cuda`" in page
    assert "peak memory of the loss, ours, reverse KL and log q: quick" in page
