"""The bench of RADT beside DT: what it runs, and what it makes of the runs that have ended."""

import csv
import json
import subprocess

import numpy as np
import pytest

from recipes.bench import radt, radt_page, radt_plan
from recipes.bench.radt_plan import ROWS, TUNING_SEED

FIGURES = ("error_of_mean", "mean_error", "bias", "slope", "intercept", "spearman")


def result(row, seed, error):
    test = {
        "targets": [0.0, 1.0, 2.0],
        "returns": [[0.1, 0.2], [1.0, 1.2], [1.5, 1.7]],
        "normalised": {
            part: dict.fromkeys(FIGURES, error) for part in ("overall", "in_range", "out_of_range")
        },
    }
    return {
        "seed": seed,
        "range": [0.0, 2.0],
        "parameters": 1234,
        "last": test,
        "selected": test,
        "cpu_s": 90.0,
        "machine": "a machine",
        "device": "cpu",
        "commit": "abc",
        "versions": {"torch": "2", "torchrl": "0", "gymnasium": "1", "mujoco": "4", "numpy": "2"},
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(radt_plan, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(radt_page, "DOCS", tmp_path)
    (tmp_path / "radt.md").write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    return tmp_path


def keep(row, seed, error):
    folder = row.folder(seed)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result(row, seed, error)))


def test_rows_have_names_and_folders_of_their_own():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert len({row.folder(seed) for row in ROWS for seed in range(5)}) == 5 * len(ROWS)
    trials = {row.folder(TUNING_SEED) for row in radt_plan.TRIALS}
    assert len(trials) == len(radt_plan.TRIALS)


def test_both_actors_are_trained_alike():
    for env in ("hopper", "half_cheetah", "walker2d"):
        ours, theirs = (
            {o for o in row.overrides(0) if not o.startswith(("actor=", "lr="))}
            for row in ROWS
            if row.env == env and row.size == "cpu" and not row.more
        )
        assert ours == theirs


def test_it_runs_what_has_not_ended_and_goes_on_with_what_has_begun(place, monkeypatch):
    told = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: told.append(command[3:]))
    rows = [row for row in ROWS if not row.long]
    keep(rows[0], 0, 0.1)
    begun = rows[1].folder(0)
    begun.mkdir(parents=True)
    (begun / "config.yaml").touch()
    radt.main(["--seeds", "0"])
    assert told[0] == [f"resume={begun}"]
    assert [t[:2] for t in told[1:]] == [[f"env={row.env}", f"actor={row.actor}"] for row in rows[2:]]
    assert told[1][-1] == f"hydra.run.dir={rows[2].folder(0)}"


def test_long_rows_are_run_only_if_named(place, monkeypatch):
    told = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: told.append(command))
    radt.main(["--only", "walker2d, radt", "--seeds", "3"])
    assert told[0][3:5] == ["env=walker2d", "actor=radt"]
    with pytest.raises(SystemExit):
        radt.main(["--only", "ant"])


def test_the_page_compares_means_over_seeds(place, capsys):
    ours, theirs = ROWS[:2]
    assert (ours.actor, theirs.actor) == ("radt", "dt")
    for seed, error in enumerate((0.1, 0.2, 0.3)):
        keep(ours, seed, error)
        keep(theirs, seed, 2 * error)
    radt.main(["--report"])
    page = (place / "radt.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page
    assert f"| {ours.env} | last | 0.200 | 0.400 | 0.50 |" in page
    assert "0.300" in page  # the worst seed
    assert f"not run yet: `python -m recipes.bench.radt --only '{ROWS[2].name}'`" in page
    assert (place / "radt.png").stat().st_size > 5_000
    with open(place / "radt.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6 * 2 * 3
    np.testing.assert_allclose([float(x) for x in lines[0]["returns"].split()], [0.1, 0.2])


def test_a_page_is_not_made_from_fewer_runs_than_before(place):
    keep(ROWS[0], 0, 0.1)
    radt.main(["--report"])
    (ROWS[0].folder(0) / "result.json").unlink()
    before = (place / "radt.md").read_text()
    with pytest.raises(SystemExit, match="left as it is"):
        radt.main(["--report"])
    assert (place / "radt.md").read_text() == before
