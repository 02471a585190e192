"""The bench of what Glasses costs: what is measured, and its page."""

import pytest
import torch

from recipes.bench import glasses_speed
from recipes.bench.glasses_speed import draw, in_turn, memory, model_of, overhead, sensitivities
from recipes.bench.glasses_speed_page import cost, write_page


def test_jobs_take_turns():
    order = []
    seconds = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, "cpu")
    assert order == ["a", "b"] * 4
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}


def test_estimates(monkeypatch):
    monkeypatch.setattr(glasses_speed, "PROBES", (4, 32))
    few, many = sensitivities(16, 2, 12, 1, "cpu")
    assert (few["probes"], many["probes"]) == (4, 32)
    assert 0 < many["mean_error"] < few["mean_error"] < 1
    assert many["exact_s"] > 0


def test_plain_forwards_are_those_of_the_gap():
    row = overhead(16, 2, 12, 1, "cpu")
    assert row["plain_s"] > 0
    assert row["gap_s"] > 0
    assert len(row["ratios"].split()) == 1


@pytest.mark.slow
def test_memory_of_a_process():
    assert memory(16, 1)["peak_mb"] >= 0


def test_models():
    assert model_of(64, 2).depth == 2
    assert draw(2, 5).shape == (2, 5)
    assert int(draw(2, 500).max()) < len(model_of(64, 2).tokenizer)


def test_ratios():
    row = {"a": 3.0, "b": 2.0, "ratios": "1.4 1.5 1.6"}
    assert cost(row, "a", "b").startswith("1.50 [1.4")


def test_the_page_of_nothing_says_so(tmp_path):
    write_page(tmp_path / "x.md", {"sensitivity": [], "gap": [], "memory": [], "whole": []}, "nowhere")
    text = (tmp_path / "x.md").read_text()
    assert "Not run yet: `python -m recipes.bench.glasses_speed --whole`" in text


@pytest.mark.slow
def test_the_whole_of_it_in_small(tmp_path):
    threads = torch.get_num_threads()
    glasses_speed.main(["--quick", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    page = (tmp_path / "glasses_speed.md").read_text()
    assert "| 64, 6, 32 | 16 |" in page
