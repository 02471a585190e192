"""The bench of the TorchRL agent on a GPU, as far as it runs without one."""

import pytest
import torch

from recipes.bench import torchrl_gpu
from recipes.run_folder import RunFolder
from recipes.torchrl_run import Run

TINY = ("n_envs=8", "device=cpu", "cudagraphs=false", "agent.batch_size=16", "agent.learning_starts=0")


@pytest.fixture
def run(tmp_path):
    return Run(torchrl_gpu.settings(*TINY, "agent.net_arch=[8]"), RunFolder(tmp_path))


def test_the_settings_are_those_that_were_asked_for():
    cfg = torchrl_gpu.settings()
    assert (cfg.n_envs, cfg.agent.batch_size, list(cfg.agent.net_arch)) == (4096, 256, [256, 256])
    assert (cfg.agent.candidates, cfg.agent.updates_per_step, cfg.cudagraphs) == ("log", 1, True)


def test_it_trains_with_one_update_a_vector_step(run):
    rates = torchrl_gpu.training_rates(run, windows=2, vector_steps=3, synchronize=lambda: None)
    assert len(rates) == 2
    assert min(rates) > 0
    assert run.step == 8 * (torchrl_gpu.WARM_UP + 2 * 3)
    assert run.progress["updates"] == run.step // 8


def test_its_parts_act_and_learn(run):
    torchrl_gpu.training_rates(run, windows=0, vector_steps=1, synchronize=lambda: None)
    calls = torchrl_gpu.parts(run)
    assert calls.keys() == torchrl_gpu.ASKED.keys() - {"training"}
    before = [p.detach().clone() for p in run.agent.loss.parameters() if p.numel() < 1000]
    actions = calls["act"]()
    assert actions.shape == (8,)
    assert ((actions >= 0) & (actions < 10**6)).all()
    assert calls["update"]().isfinite()
    after = [p for p in run.agent.loss.parameters() if p.numel() < 1000]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    acted, loss = calls["act and update"]()
    assert acted.shape == (8,)
    assert loss.isfinite()


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no GPU here"):
        torchrl_gpu.main([])


def test_a_figure_is_held_against_what_is_asked():
    rows = torchrl_gpu.table({"act and update": [200.0, 250.0, 400.0], "training": [9e5] * 3}).splitlines()
    assert rows[4].endswith("| 250 | 225 to 325 | <= 300 | pass |")
    assert rows[5].endswith("| 900,000 | 900,000 to 900,000 | >= 1,000,000 | **falls short** |")
    assert rows[2].count("not run yet") == 1
    assert len({row.count("|") for row in rows}) == 1
