"""The worlds' pages are those of their docstrings and scores."""

from pathlib import Path

import pytest

from envs import world_ids
from envs.control import DiscretizeFlat
from recipes.bench import world_pages, world_scores

DOCS = Path(__file__).resolve().parents[2] / "docs"
COMMAND = "run python -m recipes.bench.world_pages"
SCORES = world_scores.read(DOCS / "benchmarks" / "world_scores.csv")
CLASSES = world_pages.by_class()


def page(name):
    return (DOCS / "environments" / name).read_text()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_page_is_made_of_its_docstring(cls):
    assert page(f"{world_pages.slug(cls)}.md") == world_pages.text_of(cls, CLASSES[cls], SCORES), COMMAND
    assert (DOCS / "environments" / f"{world_pages.slug(cls)}.png").stat().st_size > 1000
    assert f"environments/{world_pages.slug(cls)}\n" in (DOCS / "environments.md").read_text()


def test_the_page_of_mujoco():
    text = world_pages.text_of_mujoco(SCORES)
    assert page(f"{world_pages.slug(DiscretizeFlat)}.md") == text, COMMAND
    assert "| `LargeAction/HalfCheetah-1M-v5` | 1,000,000 | HalfCheetah-v5 | 10 |" in text
    assert "`LargeAction/DiscretizedMujoco-v5`" in text


def test_the_page_of_return_dials():
    assert page("return_dial.md") == world_pages.text_of_return_dial(), COMMAND
    assert (DOCS / "environments" / "return_dial.png").stat().st_size > 1000
    assert "environments/return_dial\n" in (DOCS / "environments.md").read_text()


def test_the_table_has_every_id_with_a_size():
    text = world_pages.text_of_table(SCORES)
    assert page("table.md") == text, COMMAND
    sized = [id for id in SCORES if "-" in world_scores.name_of(id)]
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| [`")] == sized
    head, *lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {head.count("|")}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_picture_is_explained(cls):
    assert cls.draw.__doc__, f"tell in the docstring of {cls.__name__}.draw what the picture shows"
    assert " ".join(cls.draw.__doc__.split()) in " ".join(
        world_pages.text_of(cls, CLASSES[cls], SCORES).split()
    )


def test_every_id_has_scores():
    assert set(SCORES) == {*world_ids(), *world_scores.control_ids()}


def test_scores_are_made_and_kept(tmp_path):
    arguments = ["--only", "ScatterChain-1K", "--episodes", "20", "--out", str(tmp_path)]
    world_scores.main(arguments)
    (row,) = world_scores.read(tmp_path / "world_scores.csv").values()
    assert float(row["optimum"]) == float(row["oracle"]) == 46.0
    assert float(row["gap"]) == 0
    assert 0 < float(row["random"]) < 46
    before = (tmp_path / "world_scores.csv").read_text()
    world_scores.main(arguments)
    assert (tmp_path / "world_scores.csv").read_text() == before


def test_pages_are_made(tmp_path, monkeypatch):
    cls = next(iter(CLASSES))
    monkeypatch.setattr(world_pages, "by_class", lambda: {cls: CLASSES[cls]})
    monkeypatch.chdir(DOCS.parent)
    world_pages.main(["--out", str(tmp_path)])
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {
        "scatter_chain.md",
        "scatter_chain.png",
        "mujoco.md",
        "table.md",
        "return_dial.md",
        "return_dial.png",
    }
