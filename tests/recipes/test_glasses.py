"""The recipe of Glasses: settings, a run on a saved model, and going on with one."""

import json
import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from extensions.glasses.remedies import BosPrefix, Dilute
from recipes.conf.glasses_schema import check, lengths_of, name_of, register
from recipes.glasses import REMEDIES, load, look, remedy, report_config, shrink
from recipes.random_llama import char_tokenizer, random_llama
from recipes.run_folder import RunFolder

# Before the first import of huggingface_hub, which reads it then.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def no_groups_of_other_recipes(monkeypatch):
    """Recipes whose tests share this process have a group ``model``, where this one has a setting."""
    monkeypatch.delitem(ConfigStore.instance().repo, "model", raising=False)


def config(*overrides):
    register()
    with initialize_config_module(version_base="1.3", config_module="recipes.conf.glasses"):
        return compose(config_name="glasses", overrides=list(overrides))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of a model with its tokenizer, as ``save_pretrained`` writes it."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = char_tokenizer()
    random_llama(tokenizer, width=16, heads=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small(saved, *overrides):
    cfg = config(f"model={saved}", "tasks=[copy_last]", "retrieval=false", "prompt_style=terse", *overrides)
    shrink(cfg)
    return cfg


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("8:2048:log", [8, 16, 32, 64, 128, 256, 512, 1024, 2048]),
        ("8:100:log", [8, 16, 32, 64]),
        ("4:12:4", [4, 8, 12]),
        ([3, 5], [3, 5]),
        (OmegaConf.create([3, 5]), [3, 5]),
    ],
)
def test_lengths(setting, expected):
    assert lengths_of(setting) == expected


@pytest.mark.parametrize("setting", ["8:4:log", "8-64", "0:8:2", "8:16:0", [8, 4], [], "1:8:log"])
def test_lengths_that_are_none(setting):
    with pytest.raises(ValueError, match="lengths="):
        lengths_of(setting)


def test_the_command_of_the_documentation():
    cfg = config("model=a/b", "tasks=[copy_last,count_ones]", "lengths=8:2048:log")
    check(cfg)
    assert lengths_of(cfg.lengths)[-1] == 2048
    assert [task.name for task in report_config(cfg, char_tokenizer()).tasks] == ["copy_last", "count_ones"]
    assert name_of("a/b") == "a-b"
    assert name_of(None) == "random"


@pytest.mark.parametrize("name", REMEDIES)
def test_every_remedy_by_name(name):
    setting = f"{name}:64" if name in ("window", "log_n") else name
    assert callable(remedy(setting)) or hasattr(remedy(setting), "name")


def test_remedies_with_a_number():
    assert remedy("dilute:5") == Dilute(5)
    assert remedy("window:64").keywords == {"window": 64}
    assert remedy("bos", "<|begin|>") == BosPrefix("<|begin|>")


def test_tasks_as_turns_of_a_conversation():
    tokenizer = char_tokenizer()
    tokenizer.chat_template = "[user] {{ messages[0]['content'] }} [assistant] "
    config_ = report_config(config("model=x", "chat_template=true"), tokenizer)
    assert config_.tasks[0].items(4, 1)[0].prompt.startswith("[user] ")
    with pytest.raises(ValueError, match="chat_template=true: this tokenizer has none"):
        report_config(config("model=x", "chat_template=true"), char_tokenizer())


@pytest.mark.parametrize(
    "name",
    ["commas", "dilute:0", "dilute:x", "window", "log_n", "window:0", "log_n:1", "upcast:all", "adaptive:3"],
)
def test_remedies_that_are_none(name):
    with pytest.raises(ValueError, match=f"remedies={name}"):
        remedy(name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("smoke=false", "model: name one, as model="),
        ("tasks=[guess]", "tasks=.*they must be of copy_first"),
        ("lengths=many", "lengths=many"),
        ("dtypes=[int8]", r"dtypes=\['int8'\]: dtype must be one of"),
        ("dtypes=[]", "give at least one"),
        ("dtypes=[bfloat16,float32]", "bfloat16 is the reference of float32, and rounds more"),
        ("lengths=[8,a]", "they must be whole numbers"),
        ("lengths=[8,4]", "give ascending ones, each at least 2"),
        ("+task=[copy_last]", "task: there is no such setting; is it tasks?"),
        ("+nothing_like_it=1", "nothing_like_it: there is no such setting$"),
        ("load_dtype=half", None),
        ("load_dtype=eight", "load_dtype=eight"),
        ("trials=1", "trials=1: it must be at least 2"),
        ("device=tpu", "device=tpu"),
    ],
)
def test_settings_out_of_range(override, message):
    cfg = config(override) if override == "smoke=false" else config("model=x", override)
    if message is None:
        check(cfg)
    else:
        with pytest.raises(ValueError, match=message):
            check(cfg)


def test_unknown_settings():
    with pytest.raises(ConfigCompositionException, match="modle"):
        config("modle=x")


def test_a_model_that_is_not_there():
    with pytest.raises(ValueError, match="model=no/such: a checkpoint could not be read: no such path here"):
        load(config("model=no/such"))


def test_a_run_leaves_its_folder(saved, tmp_path):
    result = look(small(saved), RunFolder(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.yaml", "parts", "report.json", "report.md", "metrics.csv", "result.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert any(name.endswith(".png") for name in names)
    assert result["verdicts"] == json.loads((tmp_path / "report.json").read_text())["verdicts"]
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header.startswith("step,copy_last/gap,copy_last/snr_bfloat16")
    assert [row.split(",")[0] for row in rows] == ["8", "16", "32"]


def test_a_run_goes_on_to_the_same_report(saved, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    look(small(saved), RunFolder(whole))
    look(small(saved), RunFolder(cut))
    (cut / "result.json").unlink()
    (cut / "report.json").unlink()
    (cut / "parts" / "answers-copy_last.json").unlink()
    before = (cut / "parts" / "gap-copy_last.json").stat().st_mtime_ns
    look(small(saved), RunFolder(cut))
    assert (cut / "parts" / "gap-copy_last.json").stat().st_mtime_ns == before
    assert (cut / "report.json").read_text() == (whole / "report.json").read_text()


@pytest.mark.slow
def test_the_command_line(tmp_path):
    command = [sys.executable, "-m", "recipes.glasses"]
    done = subprocess.run(
        [*command, "smoke=true", f"hydra.run.dir={tmp_path / 'run'}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "copy_last: the gap of minimal pairs" in done.stdout
    assert "report.md" in done.stdout
    wrong = subprocess.run(
        [*command, "tasks=[copy_last]"], capture_output=True, text=True, cwd=tmp_path.parent
    )
    assert wrong.returncode == 1
    assert "model: name one" in wrong.stderr


def test_tokens_of_characters():
    assert len(char_tokenizer()("1 1 1")["input_ids"]) == 5
    spaced = char_tokenizer(spaced=True)
    assert len(spaced("1 1 1")["input_ids"]) == 3
    assert spaced.decode(spaced("a 1, b")["input_ids"]) == "a 1, b"
