"""The path of the TorchRL timings, and what is said of them."""

import csv

from recipes.bench import torchrl_scaling, torchrl_scaling_page


def test_a_quick_run_writes_a_row_a_cell_and_a_page(tmp_path):
    torchrl_scaling.main(["--quick", "--device", "cpu", "--out", str(tmp_path)])
    with open(tmp_path / "torchrl_scaling_cpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["agent"] for row in rows} == set(torchrl_scaling.AGENTS)
    assert {row["n"] for row in rows} == {"10", "100"}
    quantities = {row["quantity"] for row in rows}
    assert quantities == {"act_cpu_s", "act_wall_s", "update_cpu_s", "update_wall_s", "replay_row_bytes"}
    assert all(float(row["median"]) > 0 for row in rows)
    page = (tmp_path / "torchrl_scaling.md").read_text()
    assert "nothing is claimed" in page
    sizes = {
        row["n"]: row["median"]
        for row in rows
        if row["quantity"] == "replay_row_bytes" and row["agent"] == "row"
    }
    assert sizes["10"] == sizes["100"]


def test_claims_are_ratios_against_what_is_asked():
    m = {("row", 10**6, "update_cpu_s"): 3.0, ("row", 10**3, "update_cpu_s"): 2.0}
    assert torchrl_scaling_page.claims(m, "cpu") == [("update, row, n = 10^6 / 10^3", 1.5, "<=", 1.2)]
    assert "falls short" in torchrl_scaling_page.claims_table(m, "cpu")
    m["torchrl_dqn", 10**6, "update_cpu_s"] = 1800.0
    assert torchrl_scaling_page.claims(m, "cpu")[1][1:] == (600.0, ">=", 500.0)
