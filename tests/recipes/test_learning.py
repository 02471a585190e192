"""The bench of what is learned: runs once, goes on, leaves other settings out, reports what there is."""

import csv
import json

import pytest

from recipes.bench import learning
from recipes.bench.learning import Experiment

TINY = Experiment(
    "Tiny, of its kind",
    ("env=scatter_chain_1k", "total_timesteps=400", "eval_every=200", "device=cpu"),
    asked=0.0,
)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(learning, "DOCS", tmp_path)
    (tmp_path / "learning.md").write_text("above\n<!-- results -->\nold\n<!-- end of results -->\nbelow\n")
    monkeypatch.setattr(learning, "EXPERIMENTS", [TINY, Experiment("Another", ("env=needle_1m",))])
    return tmp_path


def test_it_runs_once_and_reports(folders, capsys):
    learning.run(TINY, 0)
    file = TINY.folder / "seed0" / "result.json"
    assert file.parent == folders / "runs" / "Tiny-of_its_kind" / "seed0"
    before = file.stat().st_mtime_ns
    learning.run(TINY, 0)
    assert file.stat().st_mtime_ns == before

    learning.report()
    page = (folders / "learning.md").read_text()
    assert page.startswith("above\n")
    assert page.endswith("below\n")
    assert "old" not in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    score = json.loads(file.read_text())["fraction_of_optimum"]
    assert f"| Tiny, of its kind | 1 | 400 | {score:.3f} [{score:.3f}, {score:.3f}] " in page
    assert "| Another | not run yet |" in page
    with open(folders / "learning.csv", newline="") as lines:
        assert [row["step"] for row in csv.DictReader(lines)] == ["0", "200", "400"]
    assert (folders / "learning.png").read_bytes().startswith(b"\x89PNG")

    config = file.parent / "config.yaml"
    config.write_text(config.read_text().replace("gamma: 0.95", "gamma: 0.5"))
    assert learning.results(TINY) == []
    assert "was run with other settings" in capsys.readouterr().out


def test_what_was_published_is_not_lost_where_nothing_has_run(folders):
    published = folders / "learning.csv"
    published.write_text("run,seed\nTiny,0\n")
    with pytest.raises(SystemExit, match="has 1 rows, and the runs that are here make 0"):
        learning.report()
    assert published.read_text() == "run,seed\nTiny,0\n"
    assert "old" in (folders / "learning.md").read_text()
    published.unlink()
    learning.report()
    assert "not run yet" in (folders / "learning.md").read_text()
    assert not (folders / "learning.png").exists()


def evaluations(*greedy):
    return {"evaluations": [{"step": i * 10, "greedy": g} for i, g in enumerate(greedy)], "optimum": 1.0}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            0.9,
            ">= 0.9 | 30 | 0.800",
        ),  # the second seed is there at 30; what the first does before does not count
        (0.95, ">= 0.95 | 1 of 2 seeds never |"),
        (None, "| |"),
    ],
)
def test_when_a_score_was_reached_and_how_it_held(asked, says):
    experiment = Experiment("e", (), asked=asked)
    found = [evaluations(0, 0.99, 0.1, 0.98, 0.8), evaluations(0, 0, 0, 0.9, 0.92)]
    curves = [[experiment.score(e, r) for e in r["evaluations"]] for r in found]
    assert learning.reached(experiment, found, curves) == says
