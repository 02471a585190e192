"""The timings of QDPO's step: the same pairs, memory as it is allocated, bounds as they are kept."""

import csv

import pytest
import torch

from recipes.bench import qdpo_speed, qdpo_speed_page
from recipes.bench import qdpo_speed_sizes as sizes
from recipes.bench import qdpo_speed_steps as steps


def test_both_trainers_read_the_same_pairs(tmp_path):
    case = steps.QUICK["quick"]
    names = (steps.DPO, next(iter(steps.OURS)))
    theirs, ours = (steps.make_trainer(name, case, str(tmp_path)) for name in names)
    one, other = (next(iter(trainer.get_train_dataloader())) for trainer in (theirs, ours))
    assert torch.equal(one["input_ids"], other["input_ids"])
    # prompts and replies, and the end token that the host adds to each
    assert one["input_ids"].shape == (2 * case.pairs, case.prompt + case.reply + 1)
    assert ours.ref_model is theirs.ref_model is None


def test_the_peak_is_what_is_held_at_once():
    class Trainer:
        def train(self):
            one = torch.zeros(1_000_000)  # 4 MB
            del one
            two = torch.zeros(1_000_000)
            self.kept = [two, torch.zeros(500_000)]

    assert steps.peak_bytes(Trainer()) == pytest.approx(6e6, rel=0.01)


def test_what_is_beyond_its_bound_is_said():
    def row(trainer, ratio, peak, rounded):
        quartiles = {"cpu_ratio": ratio, "cpu_q25": ratio, "cpu_q75": ratio}
        memory = {"peak_bytes": peak, "rounded_bytes": rounded}
        return {"case": "c", "trainer": trainer, **quartiles, **memory}

    rows = [row("TRL", 1.0, 100, 0), row("slow", 1.3, 140, 50), row("large", 1.2, 160, 50)]
    exported = [{"bits": 3, "group_size": 32, "ratio": 1.03}]
    lines = qdpo_speed_page.claims(rows, exported).splitlines()[2:]
    said = [line.split(" | ")[-1] for line in lines]
    assert said == ["**beyond** |", "within |", "within |", "**beyond** |", "**beyond** |"]


def test_the_export_is_as_large_as_its_bits_and_scales():
    rows = sizes.sizes(steps.Case(1, 128, 64, 2, 4, 4))
    assert [(row["bits"], row["group_size"]) for row in rows][:2] == [(4, "channel"), (4, 32)]
    assert all(1 <= row["ratio"] < qdpo_speed_page.MOST_SIZE for row in rows)


@pytest.mark.slow
def test_the_quick_path_leaves_figures_and_page(tmp_path):
    qdpo_speed.main(["--quick", "--out", str(tmp_path)])
    with open(tmp_path / "qdpo_speed_cpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["cpu_ratio"] for row in rows if row["trainer"] == steps.DPO} == {"1"}
    assert all(float(row["peak_bytes"]) > 0 for row in rows)
    assert "**" in (tmp_path / "qdpo_speed.md").read_text()
