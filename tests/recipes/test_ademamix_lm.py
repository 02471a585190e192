"""The language-model recipe: what it leaves, how it ends before it begins, and that it goes on exactly."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from extensions.optim import AdEMAMix
from recipes import ademamix_lm
from recipes.corpus import Stream
from recipes.decoder import Decoder, token_losses, turned
from recipes.lm_run import Run
from recipes.run_folder import RunFolder
from recipes.schedules import lr_share

SHORT = [
    "steps=60", "eval_every=20", "eval_sequences=8", "batch_size=2", "context=16", "data.vocab_size=32",
    "model.d_model=16", "device=cpu",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """The recipe sets torch's threads; other tests are not to notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def config(*overrides):
    with initialize_config_module("recipes.conf", version_base="1.3"):
        return compose("ademamix_lm", overrides=list(overrides))


def run(path, *overrides):
    folder = RunFolder(path)
    cfg = config(*overrides) if folder.checkpoint() is None else OmegaConf.load(path / "config.yaml")
    return ademamix_lm.train(cfg, folder)


def rows(path):
    with open(path / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def saved(path):
    return torch.load(RunFolder(path).checkpoint() / "state.pt", weights_only=True)


class Killed(Exception):
    pass


def run_and_die(path, at, monkeypatch, *overrides):
    """Run until the step ``at`` is under way, then end without tidying up."""
    update = Run._update

    def die(self, tokens, step):
        if step == at:
            raise Killed
        return update(self, tokens, step)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_update", die)
        with pytest.raises(Killed):
            run(path, *overrides)


def test_what_it_leaves(tmp_path, capsys):
    result = run(tmp_path, *SHORT)
    files = {file.name for file in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.csv", "result.json", "loss.png", "checkpoint-0000000060"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert sum(name.startswith("checkpoint") for name in files) == 1
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["tokens"] == 60 * 2 * 16
    assert result["excess"] == result["loss"] - result["floor"] > 0
    assert result["diverged_at"] is None
    assert [e["step"] for e in result["evaluations"]] == [0, 20, 40, 60]
    table = rows(tmp_path)
    assert [row["step"] for row in table] == ["0", "20", "40", "60"]
    assert float(table[-1]["eval/loss"]) == result["loss"] < float(table[0]["eval/loss"])
    assert float(table[-1]["train/alpha"]) == 5.0
    assert float(table[1]["train/alpha"]) == pytest.approx(5 / 3)
    assert "60 of 60 steps: loss held out" in capsys.readouterr().out


WAYS = {
    "AdEMAMix, clipped hard": ["clip_norm=0.1"],
    "AdEMAMix, beta1 = 0": ["optimizer.beta1=0", "clip_norm=null", "optimizer.fused=false"],
    "AdamW": ["optimizer=adamw"],
    "a switch right after a checkpoint": ["switch_at=21", "optimizer.alpha_warmup=40"],
    "a switch": ["switch_at=35", "optimizer.alpha_warmup=25", "probe_every=5", "inject_at=45"],
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_and_resumed_equals_never_killed(way, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", *SHORT, *WAYS[way])
    run_and_die(tmp_path / "killed", 33, monkeypatch, *SHORT, *WAYS[way])  # on from 20, before a switch
    run_and_die(tmp_path / "killed", 58, monkeypatch)  # on from 40, after it
    assert RunFolder(tmp_path / "killed").result() is None
    np.random.seed(99)
    torch.manual_seed(99)
    resumed = run(tmp_path / "killed")
    same = {"evaluations", "probe", "loss", "steps", "floor", "tokens"}
    assert {k: whole[k] for k in same} == {k: resumed[k] for k in same}
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    a, b = saved(tmp_path / "whole"), saved(tmp_path / "killed")
    assert a["model"].keys() == b["model"].keys()
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    torch.testing.assert_close(a["optimizer"], b["optimizer"], rtol=0, atol=0)


def test_two_seeds_differ_and_one_repeats(tmp_path):
    a, b = (run(tmp_path / name, *SHORT, "seed=3") for name in "ab")
    c = run(tmp_path / "c", *SHORT, "seed=4")
    assert a["evaluations"] == b["evaluations"] != c["evaluations"]
    assert a["floor"] == c["floor"]  # the held-out text is the same for all


@pytest.mark.filterwarnings("ignore:AdEMAMix with alpha > 1 and no alpha_warmup")
def test_until_the_switch_it_is_adamw_and_then_ademamix_from_there(tmp_path):
    switch = [*SHORT, "switch_at=41", "optimizer.alpha=3.0", "optimizer.alpha_warmup=null"]
    run(tmp_path / "switched", *switch)
    run(tmp_path / "adamw", *SHORT, "optimizer=adamw", "optimizer.lr=4e-3")
    adamw, switched = rows(tmp_path / "adamw"), rows(tmp_path / "switched")
    assert [row["eval/loss"] for row in adamw[:3]] == [row["eval/loss"] for row in switched[:3]]
    assert adamw[3]["eval/loss"] != switched[3]["eval/loss"]
    assert [row.get("train/alpha") for row in switched] == ["", "", "", "3.0"]
    state = saved(tmp_path / "switched")["optimizer"]["state"][0]
    assert state["step"] == 60
    assert state["slow_step"] == 20


def test_the_probe_is_seen_once(tmp_path):
    probed = [*SHORT, "probe_every=1", "optimizer=adamw", "optimizer.lr=2e-2"]
    never, seen = (
        dict(run(tmp_path / str(n), *probed, *o)["probe"]) for n, o in enumerate(([], ["inject_at=30"]))
    )
    gained = {step: never[step] - seen[step] for step in never}
    assert list(gained) == list(range(1, 61))
    assert all(gained[step] == 0 for step in range(1, 30))
    assert gained[30] > 0.001
    table = rows(tmp_path / "1")
    assert [float(row["probe/loss"]) for row in table[1:]] == list(seen.values())


def test_every_step_has_a_batch_of_its_own(tmp_path, monkeypatch):
    numbers = []
    batch = Stream.batch
    monkeypatch.setattr(Stream, "batch", lambda self, number: numbers.append(number) or batch(self, number))
    run(tmp_path, *SHORT)
    assert numbers == [0, *range(60)]  # the first is the probe


def test_every_parameter_moves(tmp_path):
    run_ = Run(config(*SHORT), RunFolder(tmp_path))
    before = {name: p.detach().clone() for name, p in run_.model.named_parameters()}
    run_._train(until=2)
    assert all((p != before[name]).any() for name, p in run_.model.named_parameters())
    assert isinstance(run_.optimizer, AdEMAMix)
    assert [group["weight_decay"] for group in run_.optimizer.param_groups] == [0.3, 0.0]


def test_the_decoder_sees_no_future():
    torch.manual_seed(0)
    model = Decoder(vocab_size=11, context=12, d_model=16, n_layers=2, n_heads=2)
    tokens = torch.randint(11, (3, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    a, b = model(tokens), model(changed)
    assert a.shape == (3, 12, 11)
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert (a[:, 7:] != b[:, 7:]).any(-1).all()  # and all that comes after sees it
    losses = token_losses(model, tokens)
    chosen = model(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(losses, -chosen)


def test_the_decoder_tells_positions_apart():
    torch.manual_seed(0)
    model = Decoder(vocab_size=11, context=12, d_model=16, n_layers=1, n_heads=2)
    tokens = torch.arange(11)[None]
    swapped = tokens[:, [0, 1, 5, 3, 4, 2, 6, 7, 8, 9, 10]]
    assert not torch.allclose(model(tokens)[0, -1], model(swapped)[0, -1])
    query, key = torch.randn(2, 1, 8)  # the angle between two depends on their distance alone
    turns = [part[:, :4] for part in Decoder(2, 12, 16, 1, 2).turns]
    products = turned(query, *turns) @ turned(key, *turns).T
    for distance in range(-11, 12):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)


def test_the_learning_rate_grows_and_falls():
    shares = [lr_share(step, 100, 0.1, 0.02) for step in range(1, 101)]
    assert shares[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert shares[54] == pytest.approx(0.51)
    assert shares[-1] == pytest.approx(0.02)
    assert lr_share(1, 100, 0.0, 0.0) == pytest.approx((1 + math.cos(math.pi / 100)) / 2)


def test_a_run_that_diverges_says_so(tmp_path, capsys):
    overrides = [*SHORT, "optimizer=adamw", "optimizer.lr=1e30", "clip_norm=null"]
    result = run(tmp_path, *overrides)
    assert result["diverged_at"] == 20
    assert result["loss"] is None
    assert "NaN" not in (tmp_path / "result.json").read_text()
    assert (tmp_path / "loss.png").exists()
    ademamix_lm.report(result, tmp_path)
    assert "diverged: by step 20 the loss was no number" in capsys.readouterr().out
    assert run(tmp_path)["evaluations"] == result["evaluations"]  # there is nothing to go on with


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.learning_rate=1", "learning_rate"),
        ("optimizer.alpha=much", "much"),
        ("step=3", "step"),
        ("optimizer=lion", "lion"),
        ("model.d_model=x", "'x'"),
    ],
)
def test_a_wrong_setting_ends_it_before_it_begins(override, says):
    with pytest.raises(ConfigCompositionException) as error:
        config(override)
    assert says in str(error.value) + str(error.value.__cause__)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["steps=0"], "steps=0: it must be at least 1"),
        (["model.n_heads=3"], "model.d_model=16: it must be a multiple of twice model.n_heads=3"),
        (["model.n_layers=0"], "model.n_layers=0: it must be at least 1"),
        (["device=gpu"], "device=gpu: it must be cpu, cuda or auto"),
        (["lr_warmup=1.0"], "are shares"),
        (["clip_norm=0"], "clip_norm=0.0: it must be above 0, or null"),
        (["switch_at=10", "optimizer=adamw"], "it needs optimizer=ademamix"),
        (["switch_at=61"], "at most steps=60"),
        (["inject_at=5"], "nothing would look"),
        (["inject_at=61", "probe_every=1"], "from 1 to steps=60"),
        (["probe_every=0"], "it must be at least 1, or null"),
        (["data.p_repeat=2"], "a probability below 1"),
        (["optimizer.lr=-1"], "Invalid learning rate: -1.0"),
        (["optimizer.beta3=1.0"], "Invalid beta parameter at index 2: 1.0"),
    ],
)
def test_settings_that_make_no_sense_end_it_too(overrides, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        run(tmp_path, *SHORT, *overrides)
    assert not list(tmp_path.glob("*"))


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "recipes.ademamix_lm", *arguments],
        capture_output=True,
        text=True,
    )


def test_the_command_line(tmp_path):
    quick = [*SHORT[2:], "smoke=true"]
    ended = command(*quick, f"hydra.run.dir={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr
    assert "above the least possible" in ended.stdout
    before = (tmp_path / "run" / "result.json").read_text()
    again = command(f"resume={tmp_path / 'run'}")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "result.json").read_text() == before
    refused = command("steps=0", f"hydra.run.dir={tmp_path / 'bad'}")
    assert refused.returncode != 0
    assert refused.stderr.strip() == "steps=0: it must be at least 1"


@pytest.mark.slow
def test_kill_9(tmp_path):
    """The same as above, by a signal that no program can catch."""
    overrides = [*SHORT[1:], "steps=2000"]
    whole = run(tmp_path / "whole", *overrides)
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.ademamix_lm", *overrides, f"hydra.run.dir={tmp_path / 'killed'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while not list((tmp_path / "killed").glob("checkpoint-0000000[1-9]*")) and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert RunFolder(tmp_path / "killed").result() is None
    ended = command(f"resume={tmp_path / 'killed'}")
    assert ended.returncode == 0, ended.stderr
    resumed = RunFolder(tmp_path / "killed").result()
    assert whole["evaluations"] == resumed["evaluations"]
    a, b = saved(tmp_path / "whole"), saved(tmp_path / "killed")
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
