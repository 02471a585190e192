import csv

from recipes.bench import action_scaling


def test_quick_run_leaves_its_rows_its_figure_and_its_page(tmp_path):
    action_scaling.main(["--quick", "--device", "cpu", "--out", str(tmp_path)])

    with open(tmp_path / "action_scaling.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == action_scaling.FIELDS
    timed = {(r["agent"], int(r["n"]), r["quantity"]) for r in rows if r["quantity"].endswith("_s")}
    assert timed == {
        (agent, n, f"{quantity}_{clock}_s")
        for agent, n in action_scaling.time_plan(quick=True)
        for quantity in ("act", "update")
        for clock in ("cpu", "wall")
    }
    assert {r["quantity"] for r in rows} >= {"peak_rss", "peak_rss_over_imports"}
    for row in rows:
        assert 0 <= float(row["q25"]) <= float(row["median"]) <= float(row["q75"])
        assert int(row["repetitions"]) >= 1
    assert (tmp_path / "action_scaling_cpu.png").read_bytes().startswith(b"\x89PNG")
    assert "no GPU" in (tmp_path / "action_scaling.md").read_text()
