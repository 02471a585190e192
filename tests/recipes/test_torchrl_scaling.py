"""The path of the TorchRL timings, and what is said of them."""

import csv

import pytest

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
    turns = {("row", 10**6, "update_cpu_s"): [3.0] * 3, ("row", 10**3, "update_cpu_s"): [2.0] * 5}
    assert torchrl_scaling_page.claims(turns, "cpu") == [
        ("update, row, n = 10^6 / 10^3", (1.5, 1.5, 1.5), "<=", 1.2)
    ]
    assert "falls short" in torchrl_scaling_page.claims_table(turns, "cpu")
    turns["torchrl_dqn", 10**6, "update_cpu_s"] = [1800.0]
    assert torchrl_scaling_page.claims(turns, "cpu")[1][1:] == ((600.0,) * 3, ">=", 500.0)


@pytest.mark.parametrize(
    ("low", "high", "sign", "said"),
    [
        (1.0, 1.2, "<=", "pass"),
        (1.1, 1.3, "<=", "within the noise"),
        (1.3, 1.4, "<=", "**falls short**"),
        (1.3, 1.4, ">=", "pass"),
        (1.1, 1.3, ">=", "within the noise"),
    ],
)
def test_what_lies_within_the_noise_is_said_to(low, high, sign, said):
    assert torchrl_scaling_page.verdict(low, high, sign, 1.2) == said
    assert torchrl_scaling_page.verdict(low, high, sign, None) == ""


def test_a_turn_counts_by_its_median():
    cell = torchrl_scaling.Cell("row", 10, "update", lambda: None)
    cell.cpu, cell.wall, cell.ends = [1.0, 2.0, 9.0, 4.0], [1.0, 1.0, 1.0, 5.0], [3, 4]
    assert torchrl_scaling.turns_of(cell) == ([2.0, 4.0], [1.0, 5.0])
