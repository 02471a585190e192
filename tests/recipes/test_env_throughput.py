"""The throughput bench: its quick path, and that what is written by hand is the same world."""

import csv

import torch

from envs.dynamics.scatter_chain import ScatterChain
from recipes.bench import env_by_hand, env_throughput
from recipes.bench.env_throughput_page import DOORS, claims, keyed


def test_the_quick_path_leaves_figures_and_page(tmp_path):
    env_throughput.main(["--quick", "--out", str(tmp_path)])
    with open(tmp_path / "env_throughput_cpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["door"] for row in rows} == set(DOORS)
    assert all(float(row["q25"]) <= float(row["steps_per_s"]) <= float(row["q75"]) for row in rows)
    page = (tmp_path / "env_throughput.md").read_text()
    assert "## CPU" in page
    assert "Not run yet: `python -m recipes.bench.env_throughput --device cuda`" in page
    assert claims(keyed(rows), "cpu") == []  # a quick run claims nothing


def test_a_claim_that_does_not_hold_is_told():
    def row(door, world, mode, batch, rate):
        values = ["cpu", 1, door, world, mode, batch, rate, rate, rate, 9]
        return dict(zip(env_throughput.FIELDS, values, strict=True))

    rows = [
        row("TorchRL, rollout", "ScatterChain", "eager", 65536, 1e6),
        row("torch, step only", "ScatterChain", "one source", 65536, 1e6),
        row("torch, step only", "ScatterChain", "by hand", 65536, 1.1e6),
        row("gymnasium, one", "ScatterChain", "", 1, 2e5),
        row("gymnasium, vector", "ScatterChain", "", 4096, 3e7),
        row("gymnasium, vector", "gymnasium's CartPole", "", 4096, 2e7),
        row("gymnasium, vector", "ScatterChain", "", 65536, 3e7),
        row("gymnasium, vector", "gymnasium's CartPole", "", 65536, 4e7),
        row("torch, bare step", "ScatterChain", "eager", 65536, 2e7),
        row("torch, bare step", "ScatterChain", "compiled", 65536, 8e7),
    ]
    verdicts = [verdict for *_, verdict in claims(keyed(rows), "cpu")]
    assert verdicts == ["pass", "pass", "pass", "pass", "**falls short**", "**falls short**", "pass"]


def test_by_hand_is_the_same_world():
    world = ScatterChain()
    generator = torch.Generator().manual_seed(0)
    state = world.reset(torch.randint(2**62, (256,), generator=generator))
    for step in range(20):
        actions = torch.randint(world.n, (256,), generator=generator)
        if step % 3:
            actions = world.optimal_action(state)
        level, t, reward = env_by_hand.step(world, state["level"], state["t"], actions)
        state, expected, _ = world.step(state, actions)
        assert torch.equal(level, state["level"])
        assert torch.equal(t, state["t"])
        torch.testing.assert_close(reward, expected, rtol=1e-12, atol=0)
    assert state["level"].max() == world.levels - 1
