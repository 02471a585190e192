"""The timings of optimizers: the whole path on small tensors, and the words of the page."""

import csv

import pytest

from recipes.bench import eight_bit, optimizers, optimizers_page


def test_the_quick_path_leaves_figures_picture_and_page(tmp_path, capsys):
    eight_bit.main(["--steps", "3", "--seeds", "1", "--out", str(tmp_path)])
    optimizers.main(["--quick", "--out", str(tmp_path)])
    with open(tmp_path / "optimizers_cpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    base = [row for row in rows if row["optimizer"] == optimizers.BASE]
    assert {row["ratio"] for row in base} == {"1.0"}
    kept = {row["optimizer"]: float(row["bytes"]) for row in rows}
    # Two or three float32 moments; the counters of small tensors are little beside them.
    assert kept[optimizers.BASE] == pytest.approx(8, abs=0.01)
    assert kept["AdEMAMix, fused"] == pytest.approx(12, abs=0.01)
    assert kept["AdEMAMix, fused, beta1=0"] == pytest.approx(8, abs=0.01)
    assert kept["AdEMAMix8bit"] < 5  # the smallest keep float32
    with open(tmp_path / "optimizers_cpu_raw.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * len(kept)  # threads, rounds
    page = (tmp_path / "optimizers.md").read_text()
    assert "Not run yet: `python -m recipes.bench.optimizers --device cuda`" in page
    assert "### 2 threads" in page
    assert "| noise alone, warm-ups | 3 | 1 |" in page
    assert (tmp_path / "optimizers_cpu.png").stat().st_size > 5_000
    assert "AdEMAMix, foreach" in capsys.readouterr().out


def test_what_falls_short_is_said():
    ratios = {"AdEMAMix, fused": 1.4, "AdEMAMix, fused, beta1=0": 1.0}
    ratios |= {
        "AdEMAMix, foreach": 5.0,
        "torch AdamW, foreach": 6.0,
        "pytorch_optimizer AdEMAMix, foreach": 4.0,
    }
    rows = {("cpu", 1, name, "cpu"): {"ratio": str(ratio)} for name, ratio in ratios.items()}
    verdicts = [line[-1] for line in optimizers_page.claims(rows, "cpu", 1, "cpu")]
    assert verdicts == ["**falls short**", "pass", "pass", "**falls short**"]


def test_cuda_without_a_device_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(optimizers.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        optimizers.main(["--device", "cuda"])
    assert "sees no CUDA device" in capsys.readouterr().err


def test_float32_is_nearly_exact_and_eight_bits_are_not():
    off = eight_bit.errors("mean 0.3", steps=20, seed=0)
    assert off["AdEMAMix"] < 1e-4 < 1e-3 < off["AdEMAMix8bit"] < 0.05
