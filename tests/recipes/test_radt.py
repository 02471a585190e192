"""The recipe of RADT: killed and resumed equals never killed, and what is refused before it begins."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_module

from recipes import radt
from recipes.data.return_dial import behaviour
from recipes.radt_run import Run
from recipes.run_folder import RunFolder


@pytest.fixture(autouse=True)
def one_thread():
    """The recipe sets torch's threads; other tests are not to notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


TINY = [
    "env=return_dial",
    "steps=20",
    "eval_every=5",
    "batch_size=8",
    "context=4",
    "transformer.n_embd=8",
    "transformer.n_layer=1",
    "eval_episodes=1",
    "test_targets=3",
    "test_episodes=2",
]


def settings(*overrides):
    with initialize_config_module("recipes.conf", version_base="1.3"):
        return compose("radt", overrides=[*TINY, *overrides])


@pytest.fixture
def data():
    return behaviour(episodes=30)


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "time/wall_s"} for row in csv.DictReader(file)]


def weights(folder):
    state = torch.load(RunFolder(folder).checkpoint() / "state.pt", weights_only=True)
    return {**state["actor"], **{f"selected.{name}": x for name, x in state["selected"].items()}}


@pytest.mark.parametrize("actor", ["radt", "dt"])
def test_stopped_and_resumed_equals_never_stopped(actor, tmp_path, data, monkeypatch):
    cfg = settings(f"actor={actor}")
    whole = Run(cfg, data, RunFolder(tmp_path / "whole"))
    whole.to_the_end()

    class Killed(Exception):
        pass

    first = Run(cfg, data, RunFolder(tmp_path / "parts"))
    train = first._train

    def killed(until):
        if until > 10:
            raise Killed
        return train(until)

    monkeypatch.setattr(first, "_train", killed)
    with pytest.raises(Killed):
        first.to_the_end()
    torch.manual_seed(12345)  # another process would have other numbers
    second = Run(cfg, data, RunFolder(tmp_path / "parts"))
    assert second.step == 10
    second.to_the_end()

    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert second.test() == whole.test()


def test_a_run_leaves_its_result_and_picture(tmp_path, data):
    folder = RunFolder(tmp_path)
    result = radt.train(settings(), folder)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert (tmp_path / "alignment.png").stat().st_size > 10_000
    assert list(tmp_path.glob("events.*"))
    last = result["last"]
    low, high = result["range"]
    assert len(last["targets"]) == 3 + 2
    assert last["targets"][0] < low < high < last["targets"][-1]
    assert [len(row) for row in last["returns"]] == [2] * 5
    assert [row["step"] for row in result["evaluations"]] == [0, 5, 10, 15, 20]


def test_the_selected_weights_are_those_with_the_least_error_on_the_way(tmp_path, data, monkeypatch):
    run = Run(settings(), data, RunFolder(tmp_path))
    seen = []
    look = run._look_and_save

    def watch(*arguments):
        look(*arguments)
        seen.append({name: x.clone() for name, x in run.actor.state_dict().items()})

    monkeypatch.setattr(run, "_look_and_save", watch)
    run.to_the_end()
    errors = [row["error_sum"] for row in run.progress["evaluations"]]
    best = seen[errors.index(min(errors))]
    assert all(torch.equal(run.selected[name], best[name]) for name in best)
    before = {name: x.clone() for name, x in run.actor.state_dict().items()}
    run.test()
    assert all(torch.equal(x, before[name]) for name, x in run.actor.state_dict().items())


def test_both_actors_are_told_returns_in_the_same_units(tmp_path, data):
    by_data = [
        Run(settings("return_scale=null", f"actor={a}"), data, RunFolder(tmp_path / a))
        for a in ("radt", "dt")
    ]
    config = by_data[0].actor.module[0].module.transformer.config
    dt = by_data[1].actor.module[0].module
    assert (config.return_shift, config.return_scale) == (dt.shift, dt.scale)
    to_go = by_data[0].windows.return_to_go
    assert config.return_shift == pytest.approx(float(to_go.mean()), rel=1e-5)
    fixed = Run(settings("return_scale=10", "actor=dt"), data, RunFolder(tmp_path / "fixed"))
    assert fixed.actor.module[0].module.scale == 10
    window = fixed.windows.sample(2)
    keys = ("observation", "action", "return_to_go")
    net = fixed.actor.module[0].module.eval()
    plain = super(type(net), net).forward(
        window["observation"], window["action"], window["return_to_go"] / 10
    )
    assert torch.equal(net(*(window[key] for key in keys)), plain)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("actor=gpt", "one of radt, dt"),
        ("steps=0", "at least 1"),
        ("eval_targets=1", "at least 2"),
        ("train_context=2", "at least context=4"),
        ("return_scale=0", "above 0, or null"),
        ("lr=0", "above 0"),
        ("lr_warmup=1.5", "are shares"),
        ("device=tpu", "cpu, cuda or auto"),
        ("seed=-1", "from 0 to"),
        ("transformer.norm=batch", "layernorm"),
        ("transformer.n_head=3", "multiple of n_head"),
        ("cache=sliding", "attention_window=4"),
        ("cache=lru", "none, exact, sliding"),
    ],
)
def test_settings_that_make_no_sense_are_refused(override, message, tmp_path, data):
    with pytest.raises(ValueError, match=message):
        Run(settings(override), data, RunFolder(tmp_path))


def test_misspelt_settings_are_refused():
    with pytest.raises(Exception, match="steppes"):
        settings("steppes=3")
    with pytest.raises(Exception, match="seqa"):
        settings("transformer.seqa=false")


def test_data_of_another_environment_are_refused(tmp_path, data):
    data = data.clone()
    data["action"] = data["action"].repeat(1, 2)
    with pytest.raises(ValueError, match="the env that the dataset is from"):
        Run(settings(), data, RunFolder(tmp_path))


def test_data_that_say_that_they_are_of_another_environment_are_refused(monkeypatch, tmp_path, data):
    monkeypatch.setattr(radt, "load_dataset", lambda path: (data, {"name": "x", "env_id": "Walker2d-v5"}))
    cfg = settings(f"dataset={tmp_path}")
    with pytest.raises(ValueError, match="is from Walker2d-v5, not from envs:Align/ReturnDial-v0"):
        radt.read_data(cfg)


def test_observations_of_another_environment_are_refused(tmp_path, data):
    data = data.clone()
    data["observation"] = data["observation"][:, 1:]
    with pytest.raises(ValueError, match=r"observations and actions have 16 and 1 features, .* 17 and 1"):
        Run(settings(), data, RunFolder(tmp_path))


def test_a_policy_that_is_always_the_same_is_reported(tmp_path, data, capsys):
    result = radt.train(settings(), RunFolder(tmp_path))
    for name in ("last", "selected"):
        result[name]["normalised"]["in_range"].update(spearman=None, slope=0.0)
    radt.report(result, tmp_path)
    assert "slope 0.00, Spearman -" in capsys.readouterr().out


def test_three_streams_are_trained_and_played(tmp_path, data):
    run = Run(settings("transformer.architecture=three_streams", "steps=5"), data, RunFolder(tmp_path))
    run.to_the_end()
    assert run.policy.cache == "none"


def test_discrete_data_are_refused(tmp_path, data):
    data = data.clone()
    data["action"] = torch.zeros(len(data), dtype=torch.int64)
    with pytest.raises(ValueError, match="continuous actions"):
        Run(settings(), data, RunFolder(tmp_path))


def test_returns_that_are_all_alike_are_refused(tmp_path, data):
    data = data.clone()
    data["next", "reward"] = torch.zeros_like(data["next", "reward"])
    with pytest.raises(ValueError, match="nothing to align"):
        Run(settings(), data, RunFolder(tmp_path))


def test_an_environment_without_data_is_refused(tmp_path):
    cfg = settings()
    cfg.env.id = "Ant-v5"
    with pytest.raises(ValueError, match="dataset=PATH"):
        radt.read_data(cfg)


def test_a_sliding_cache_is_trained_on_longer_windows(tmp_path, data):
    cfg = settings("cache=sliding", "transformer.attention_window=4", "train_context=8", "steps=5")
    run = Run(cfg, data, RunFolder(tmp_path))
    run.to_the_end()
    assert run.windows.sample(2).batch_size == (2, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [["env=return_dial"], ["env=hopper", "actor=dt"], ["env=walker2d"], ["env=half_cheetah"]]
)
def test_the_command_line_goes_all_the_way(overrides, tmp_path):
    command = [sys.executable, "-m", "recipes.radt", "smoke=true", *overrides, f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "last checkpoint: |target - mean return|" in done.stdout
    again = subprocess.run(
        [sys.executable, "-m", "recipes.radt", f"resume={tmp_path}"], capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert done.stdout.splitlines()[-1] == again.stdout.splitlines()[-1]
