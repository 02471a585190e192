"""The timings of teacher-mixed sampling: the whole path on tiny models, and the arithmetic of the page."""

import csv
import json

import pytest

pytest.importorskip("transformers")

from recipes.bench import minillm_sampling as bench
from recipes.bench import minillm_sampling_page as page


@pytest.fixture(autouse=True)
def threads_as_they_were():
    threads = bench.torch.get_num_threads()
    yield
    bench.torch.set_num_threads(threads)


def test_the_quick_path_leaves_figures_and_page(tmp_path, capsys):
    bench.main(["--quick", "--out", str(tmp_path)])
    assert "no figures" in capsys.readouterr().out
    rows = page.read(tmp_path)
    assert {name for _, _, name, _ in rows} == {
        page.COIN,
        page.BOTH,
        page.STUDENT,
        page.TEACHER,
        page.STUDENT_GENERATE,
    }
    assert {rows["cpu", "quick", page.BOTH, clock]["mixture_over_it"] for clock in ("cpu", "wall")} == {"1.0"}
    with open(tmp_path / "minillm_sampling_cpu_raw.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 5  # rounds, contestants
    where = json.loads((tmp_path / "minillm_sampling_cpu.json").read_text())
    assert where["cases"]["quick"]["alpha"] == 0.2
    text = (tmp_path / "minillm_sampling.md").read_text()
    assert "Not run yet: `python -m recipes.bench.minillm_sampling --device cuda`" in text
    assert "| quick | 1 x 16 | 2 x 32 | 2 | 0.2 |" in text


def test_factors_are_of_one_round_and_those_of_free_reading_of_the_models_alone():
    spent = {
        page.COIN: (1.0, 4.0),
        page.BOTH: (2.0, 12.0),
        page.STUDENT: (1.0, 1.0),
        page.TEACHER: (4.0, 4.0),
    }
    raw = [
        {"case": "some", "round": r, "contestant": name, "cpu_s": seconds[r], "wall_s": 2 * seconds[r]}
        for name, seconds in spent.items()
        for r in (0, 1)
    ]
    rows = bench.rows_of(raw, "cpu", 1)
    of = page.keyed(rows)
    assert of["cpu", "some", page.COIN, "cpu"]["mixture_over_it"] == 2.5  # of 2 and 3, not of the medians
    assert of["cpu", "some", page.COIN, "wall"]["median_s"] == 5.0
    case = {"student": (1, 2), "teacher": (3, 4), "rows": 5, "alpha": 0.2}
    line = page.factors(of, "cpu", {"some": case}).splitlines()[-1]
    assert "| 4.0 | 2.50 (2.25-2.75) | 2.50 (2.25-2.75) | 3.12 |" in line  # 5 / (.8 + .8)


def test_cuda_without_a_device_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bench.main(["--device", "cuda"])
    assert "sees no CUDA device" in capsys.readouterr().err
