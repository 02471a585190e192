"""The timings of RADT: turns do the work they say, ratios are of one round, what is missed is said."""

import csv
import itertools
import warnings

import numpy as np
import pytest
import torch

from extensions.torchrl import TrajectoryWindows
from recipes.bench import radt_speed, radt_speed_page
from recipes.bench import radt_speed_cases as cases

SMALL = cases.Size(8, 1, 3, batch=4)


def test_actors_have_equal_widths_depths_and_dropouts():
    size = cases.Size(32, 2, 5)
    dt = cases.dt_actor(size, 0.25, "cpu")[0].module
    radt = cases.radt_actor(size, 0.25, "cpu")[0].module
    blocks = dt.transformer.transformer.h
    assert len(blocks) == len(radt.transformer.blocks) == 2
    assert (
        blocks[0].mlp.c_fc.weight.shape[::-1] == radt.transformer.blocks[0].mlp[0].weight.shape == (128, 32)
    )
    drops = {m.p for net in (dt, radt) for m in net.modules() if isinstance(m, torch.nn.Dropout)}
    assert drops == {0.25}
    assert radt.transformer.config.attn_pdrop == blocks[0].attn.attn_dropout.p == 0.25


def test_an_update_trains(monkeypatch):
    turns = cases.updates(SMALL, 0.1, "cpu", 3)
    assert list(turns) == [cases.DT, cases.RADT, cases.RADT_RELU]
    steps = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: steps.append(step(self)))
    assert [turn() for turn in turns.values()] == [3, 3, 3]
    assert len(steps) == 9


@pytest.mark.parametrize("setup", [lambda: cases.steps_with_full_windows(SMALL, "cpu", 5),
                                   lambda: cases.first_steps(SMALL, "cpu")])  # fmt: skip
def test_policies_are_called_a_step(setup, monkeypatch):
    turns, calls = setup(), []
    forward = cases.RADTPolicy.forward
    monkeypatch.setattr(cases.RADTPolicy, "forward", lambda self, td: calls.append(0) or forward(self, td))
    for turn in turns.values():
        before = len(calls)
        assert turn() == len(calls) - before > 0


def test_evaluations_play_whole_episodes():
    case = cases.Evaluation("envs:Align/ReturnDial-v0", 20, targets=2, episodes=3, alone=2, size=SMALL)
    counts = {who: turn() for who, turn in cases.evaluations(case, "cpu").items()}
    assert list(counts.values()) == [2, 2, 6, 6]


def test_windows_of_the_loop_are_windows_of_the_dataset():
    data = cases.episodes(3, 5, states=2, actions=1)
    windows = TrajectoryWindows(data, 4)
    looped = cases.one_by_one(data, windows, 4, "cpu")(64)
    assert [x.shape[:2] for x in looped] == [(64, 4)] * 5
    every = [x.numpy() for x in windows.at(torch.arange(15)).values()]
    known = {tuple(np.concatenate([x[i].reshape(-1) for x in every])) for i in range(15)}
    drawn = {tuple(np.concatenate([x[i].numpy().reshape(-1) for x in looped])) for i in range(64)}
    assert drawn <= known
    assert len(drawn) > 10


def test_ratios_are_of_one_round(monkeypatch):
    """A slow machine in one round slows both."""
    clock = itertools.accumulate([0.0, 1.0, 0.0, 2.0] * 1000)
    monkeypatch.setattr(radt_speed.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(radt_speed.random.Random, "sample", lambda self, names, n: names)
    raw = radt_speed.take_turns({"base": lambda: 1, "other": lambda: 4}, 3, "cpu")
    assert [(one["round"], one["who"]) for one in raw] == [
        (r, w) for r in range(3) for w in ("base", "other")
    ]
    assert [one["cpu_s"] for one in raw] == [1.0, 0.5] * 3
    raw = [{"part": "p", "case": "c", **one} for one in raw]
    for one in raw[2:4]:
        one["cpu_s"] *= 10
    rows = [row for row in radt_speed.summary(raw, "cpu") if row["clock"] == "cpu"]
    assert [(row["who"], row["ratio_q25"], row["ratio"], row["ratio_q75"]) for row in rows] == [
        ("base", 1, 1, 1),
        ("other", 2, 2, 2),
    ]
    assert [row["ms"] for row in rows] == [1000, 500]


def test_what_is_missed_is_said():
    def row(part, who, ratio):
        case = "D 128, 3 layers, K 20, batch 64"
        return {"part": part, "case": case, "who": who, "clock": "cpu"} | dict.fromkeys(
            ("ratio", "ratio_q25", "ratio_q75"), ratio
        )

    rows = [row("updates", cases.RADT, 0.99), row("full windows", cases.SLIDING, 5.0)]
    lines = radt_speed_page.claims(rows, "cpu").splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:]] == ["**missed** |", "reached |"]


def test_the_quick_path_leaves_figures_and_page(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        radt_speed.main(["--quick", "--out", str(tmp_path)])
    with open(tmp_path / "radt_speed_cpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == set(radt_speed_page.PARTS)
    assert {row["ratio"] for row in rows if row["who"] == cases.DT} == {"1"}
    page = (tmp_path / "radt_speed.md").read_text()
    assert "Not run yet: `python -m recipes.bench.radt_speed --device cuda`" in page
    for title, _, _ in radt_speed_page.PARTS.values():
        assert f"### {title}" in page
