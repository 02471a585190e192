"""The recipe that gives a quantized chat model its conversation back: what it leaves, and that it goes on."""

import csv
import json
import math

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from recipes import qdpo
from recipes.conf.qdpo_schema import check
from recipes.dialogues import dialogues, make_tokenizer
from recipes.qdpo_data import load_data
from recipes.qdpo_run import Run, trainer_config
from recipes.qdpo_scores import evaluate, recovered
from recipes.run_folder import RunFolder
from recipes.trainer_recorder import Recorder


@pytest.fixture(autouse=True)
def one_thread():
    """The recipe sets torch's threads; other tests are not to notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def config(*overrides):
    with initialize_config_module("recipes.conf.qdpo", version_base="1.3"):
        return compose("qdpo", overrides=list(overrides))


@pytest.fixture
def given(tmp_path):
    """Overrides for a small chat model and a file of conversations, both on disk."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), bos_token_id=None, initializer_range=0.1, tie_word_embeddings=False,
            **sizes, **special,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    rows = [{"messages": dialogue.messages} for dialogue in dialogues(60, 0, "train")]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        "model=hf", f"model.name={tmp_path / 'chat'}", "data=prompts", f"data.path={tmp_path / 'mine.jsonl'}",
        "data.split=train", "data.valid=4", "data.test=6", "data.train=24", "data.max_new_tokens=6",
        "updates=4", "evaluate_every=2", "log_every=1", "batch_size=4", "device=cpu", "bits=2",
        "method.lr=1e-2", "report_card=false",
    ]  # fmt: skip


def run(path, *overrides):
    written = path / "config.yaml"
    cfg = OmegaConf.load(written) if written.exists() else config(*overrides)
    return qdpo.train(cfg, RunFolder(path))


def rows(path):
    with open(path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_small_chat_model_from_nothing(tmp_path, capsys):
    cfg = config("device=cpu", "smoke=true")
    qdpo.shrink(cfg)
    result = qdpo.train(cfg, RunFolder(tmp_path))
    files = {file.name for file in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.csv", "result.json", "scores.png", "report_card.json", "packed"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["packed"]["equal"]
    trained, before = result["scores"]["trained"], result["scores"]["quantized"]
    for scores in (trained, before):
        assert all(math.isfinite(x) for x in scores.values() if isinstance(x, float))
        assert scores["win"] + scores["tie"] + scores["lose"] == pytest.approx(1)
    assert trained["forward_kl"] != before["forward_kl"] > 0
    assert result["pairs"] <= result["prompts"] == 16
    assert result["updates"] == 4
    qdpo.report(result, tmp_path)
    assert "agreement" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["mse_clip", "kd", "qdpo_shuffled", "qdpo_target"])
def test_any_chat_model_and_prompts(method, given, tmp_path):
    result = run(tmp_path / "run", *given, f"method={method}", "bits=3", "group_size=8")
    assert result["packed"]["equal"]
    assert (result["bits"], result["group_size"]) == (3, 8)
    assert "rubric" not in result["scores"]["trained"]
    assert result["updates"] == (0 if method == "mse_clip" else 4)
    assert result["scores"]["trained"]["forward_kl"] != result["scores"]["quantized"]["forward_kl"] or (
        method == "mse_clip"
    )


class KilledError(Exception):
    pass


@pytest.mark.parametrize("method", ["qdpo_target_kd", pytest.param("kd", marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_never_killed(method, given, tmp_path, monkeypatch):
    overrides = [*given, f"method={method}"]
    whole = run(tmp_path / "whole", *overrides)
    on_save = Recorder.on_save

    def die(self, args, state, control, **kwargs):
        on_save(self, args, state, control, **kwargs)
        if state.global_step == 2:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_save", die)
        with pytest.raises(KilledError):
            run(tmp_path / "killed", *overrides)
    torch.manual_seed(99)
    resumed = run(tmp_path / "killed")
    assert whole["scores"] == resumed["scores"]
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    a, b = (load_file(tmp_path / name / "policy.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert run(tmp_path / "killed")["scores"] == whole["scores"]  # nothing is trained anew


def test_the_figures_of_a_model_that_is_its_own_teacher(given, tmp_path):
    cfg = config(*given, "method=rtn", "bits=8")
    made = Run(cfg, RunFolder(tmp_path / "run"))
    figures = evaluate(made, made.teacher)
    assert figures["agreement"] == figures["agreement_at"]["6"] == 1
    assert figures["flip_rate"] == 0
    assert figures["forward_kl"] == pytest.approx(0, abs=1e-6)
    assert figures["reverse_kl"] == pytest.approx(0, abs=1e-6)


def test_the_share_that_was_recovered():
    assert recovered(0.85, 0.5) == pytest.approx(0.7)
    assert recovered(0.4, 0.5) == pytest.approx(-0.2)
    assert math.isnan(recovered(1.0, 1.0))


def test_equal_batches_count_replies(tmp_path):
    kd, pairs = (trainer_config(config(f"method={name}"), tmp_path) for name in ("kd", "qdpo_kd"))
    assert kd.per_device_train_batch_size == 2 * pairs.per_device_train_batch_size == 8
    split = trainer_config(config("method=qdpo", "batch_size=32", "micro_batch_size=8"), tmp_path)
    assert (split.per_device_train_batch_size, split.gradient_accumulation_steps) == (4, 4)


def test_prompts_end_before_the_answer_and_are_not_shared(given):
    cfg = config(*given)
    data = load_data(cfg, make_tokenizer())
    valid = load_data(config(*given, "report_on=valid"), make_tokenizer())
    groups = [data.train["prompt"][:], data.valid["prompt"][:], data.report, valid.report]
    assert [len(group) for group in groups] == [24, 4, 6, 6]
    assert all(prompt[-1]["role"] == "user" for group in groups for prompt in group)
    assert len({json.dumps(prompt) for group in groups for prompt in group}) == 40


def test_what_makes_no_sense_is_refused(given, tmp_path):
    cases = {
        "words of data=dialogues": ["model=hf"],
        "needs a model that can read them": ["data=prompts", "data.path=x"],
        "both must be even": ["batch_size=3"],
        "must be even, for pairs": ["batch_size=8", "micro_batch_size=1"],
        "report_on=train": ["report_on=train"],
        "data.test=0": ["data.test=0"],
    }
    for says, overrides in cases.items():
        with pytest.raises(ValueError, match=says):
            check(config(*overrides))
    with pytest.raises(ValueError, match=r"method\.args: .*windows"):
        Run(config(*given, "+method.args.windows=3"), RunFolder(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"data\.column=text: .* it has messages"):
        load_data(config(*given, "data.column=text"), make_tokenizer())
    with pytest.raises(ValueError, match="lower these two"):
        load_data(config(*given, "data.test=30"), make_tokenizer())
    with pytest.raises(ConfigCompositionException, match="rate"):
        config("method.rate=1")
