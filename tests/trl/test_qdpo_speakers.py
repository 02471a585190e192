"""Who speaks as the full-precision model, as the policy and as the reference, and in which precision."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer
from trl.trainer import dpo_trainer
from trl.trainer.utils import add_fused_lm_head

from extensions.trl import _host
from extensions.trl.qdpo import pair_trainer
from extensions.trl.qdpo.layers import cached_weights, full_precision, quantized_layers
from extensions.trl.qdpo.pair_trainer import PairTrainer
from extensions.trl.qdpo.pairs import Generation
from extensions.trl.qdpo.prompts import encode_rows


def replies(trainer, name):
    rows = trainer.train_dataset
    return [row[name] for row in (rows.pairs if hasattr(rows, "pairs") else rows)]


@pytest.mark.parametrize("loss", ["sigmoid", "kd"])
def test_a_model_that_has_a_fused_head_already_has_another_teacher(tmp_path, tiny, loss):
    fresh = tiny.qdpo(tmp_path / "fresh", loss_type=loss, bits=2)
    model = tiny.llama(layers=2)
    add_fused_lm_head(model)
    again = tiny.qdpo(tmp_path / "again", model, loss_type=loss, bits=2)
    assert again.pair_counts == fresh.pair_counts
    assert replies(again, "chosen_ids") == replies(fresh, "chosen_ids")


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_that_was_trained_already_has_another_teacher(tmp_path, tiny, bf16):
    """In half precision accelerate wraps the fused head's forward, which calls the original's."""
    rest = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "gradient_checkpointing": False}
    settings = {"bf16": bf16, "max_steps": 1, "learning_rate": 0.0, **rest}

    def made(trained):
        model = tiny.llama(layers=2)
        data = {"train_dataset": tiny.texts(), "processing_class": tiny.tokenizer()}
        before = SFTTrainer(model, SFTConfig(str(tmp_path / "sft"), **settings), **data)
        if trained:
            before.train()
        return tiny.qdpo(tmp_path / "qdpo", model, loss_type="kd", bits=2, bf16=bf16, pairs_dir="")

    fresh, again = made(False), made(True)
    assert again.pair_counts == fresh.pair_counts
    assert replies(again, "chosen_ids") == replies(fresh, "chosen_ids")


def test_a_report_card_after_an_evaluation_has_another_teacher_too(tmp_path, tiny):
    held_out = {"eval_dataset": tiny.prompts(8)}
    trainer = tiny.qdpo(tmp_path, bf16=True, precompute_ref_log_probs=True, others=held_out)
    card = {"samples_per_prompt": 0, "attribution_prompts": 0}
    before = trainer.report_card(tiny.prompts(16), **card).replies
    trainer.evaluate()
    assert trainer.report_card(tiny.prompts(16), **card).replies == before
    assert before.diverging > 0


@pytest.mark.parametrize("loss", ["sft", "sigmoid", "qdpo_target"])
@pytest.mark.parametrize("reference", ["copy", "precomputed", "teacher"])
def test_a_teacher_that_is_away_is_called_back(tmp_path, tiny, monkeypatch, loss, reference):
    """As on a GPU that it had to leave: whoever speaks or scores was placed since."""
    away, left = set(), []
    leave, place = PairTrainer._leave_device, pair_trainer.place

    def watched(self, teacher):
        leave(self, teacher)
        left.append(id(teacher) in away)

    def placed(model, device):
        at_rest = inspect.currentframe().f_back.f_code.co_name == "_leave_device"
        (away.add if at_rest else away.discard)(id(model))
        place(model, device)

    def called(function):
        def asked(self, model, *rest):
            assert id(model) not in away
            return function(self, model, *rest)

        return asked

    monkeypatch.setattr(PairTrainer, "_leave_device", watched)
    monkeypatch.setattr(pair_trainer, "place", placed)
    for owner, name in ((PairTrainer, "compute_ref_log_probs"), (Generation, "replies")):
        monkeypatch.setattr(owner, name, called(getattr(owner, name)))
    others = {"eval_dataset": tiny.prompts(6)}
    if reference == "teacher":
        others["teacher_model"] = tiny.llama(layers=2)
    precomputed = reference == "precomputed"
    tiny.qdpo(tmp_path, loss_type=loss, precompute_ref_log_probs=precomputed, others=others)
    copied = reference == "copy" and loss != "sigmoid"  # a copy that is no reference
    assert left[-1] == (reference == "teacher" or copied)


def test_a_revision_is_the_models_and_its_references(tmp_path, tiny, monkeypatch):
    asked = []
    load = dpo_trainer.create_model_from_path

    def recorded(path, revision=None, **settings):
        asked.append((Path(path).name, revision))
        return load(path, **settings)

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", recorded)
    monkeypatch.setattr(_host, "create_model_from_path", recorded)
    for name, seed in (("policy", 0), ("teacher", 1)):
        tiny.llama(layers=2, seed=seed).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    tiny.qdpo(
        tmp_path,
        str(tmp_path / "policy"),
        tiny.prompts(8, ("prompt", "chosen", "rejected")),
        bits=None,
        model_init_kwargs={"revision": "step1000"},
        others={"teacher_model": str(tmp_path / "teacher")},
    )
    assert sorted(asked) == [("policy", "step1000"), ("policy", "step1000"), ("teacher", None)]


def test_a_distilled_model_in_full_precision_can_be_quantized(tmp_path, tiny):
    distilled = tiny.qdpo(
        tmp_path / "kd", bits=None, loss_type="kd", others={"teacher_model": tiny.llama(seed=1, layers=2)}
    )
    distilled.train()
    distilled.save_model()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "kd", dtype="float32")
    assert tiny.qdpo(tmp_path / "qdpo", model).pair_counts["train"].prompts == 16


def test_nothing_trained_is_nothing_changed_by_a_round_under_autocast(tmp_path, tiny):
    trainer = tiny.qdpo(
        tmp_path,
        data=tiny.prompts(32),
        bits=8,
        bf16=True,
        learning_rate=0.0,
        num_rounds=2,
        max_steps=-1,
        num_train_epochs=2,
    )
    first = replies(trainer, "rejected_ids")
    trainer.train()
    assert trainer.train_dataset.number == 1
    assert replies(trainer, "rejected_ids") == first


def test_a_report_card_is_the_same_before_and_after_no_training(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path, bits=8, bf16=True, learning_rate=0.0, precompute_ref_log_probs=False)
    held_out = tiny.prompts(12, longest=4)
    before = trainer.report_card(held_out, samples_per_prompt=0, attribution_prompts=0).figures()
    trainer.train()
    after = trainer.report_card(held_out, samples_per_prompt=0, attribution_prompts=0).figures()
    assert after["replies/identical"] == before["replies/identical"]
    assert after["flips/forward_kl_per_token"] == pytest.approx(
        before["flips/forward_kl_per_token"], abs=1e-9
    )


def test_replies_are_kept_by_the_configuration_of_the_model(tmp_path, tiny):
    one = tiny.qdpo(tmp_path / "run", pairs_dir=str(tmp_path / "kept"))
    model = tiny.llama(layers=2)
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 3.0}
    other = tiny.qdpo(tmp_path / "run", type(model)(model.config), pairs_dir=str(tmp_path / "kept"))
    other.teacher.policy.load_state_dict(one.teacher.policy.state_dict())
    folders = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert len(folders) == 4  # two models, each in full precision and in few bits


def test_tools_and_settings_of_the_template_are_those_of_the_row(tiny):
    tokens = tiny.tokenizer()
    conversation = [{"role": "user", "content": "w1 w2"}]
    rows = [
        {"prompt": conversation, "chat_template_kwargs": {"polite": True}},
        {"prompt": conversation, "chat_template_kwargs": {"polite": False}},
    ]
    polite, plain = encode_rows(tokens, Dataset.from_list(rows))
    assert polite == [tokens.convert_tokens_to_ids("politely"), *plain]


@pytest.mark.parametrize("loss", ["kd", "kd_on_policy"])
def test_one_batch_of_eight_is_eight_of_one(tmp_path, tiny, loss):
    seen = []
    for size, steps in ((8, 1), (1, 8)):
        trainer = tiny.qdpo(
            tmp_path / f"{size}",
            tiny.llama(layers=2, eos_token_id=[1, 5, 9, 13]),  # replies of several lengths
            loss_type=loss,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
        )
        gradients = tiny.gradients(trainer)
        trainer.train()
        seen += gradients
        lengths = {len(ids) for ids in replies(trainer, "chosen_ids")}
    assert len(lengths) > 1
    tiny.assert_close(*seen, tolerance=1e-5)


def test_no_reference_runs_where_no_loss_reads_it(tmp_path, tiny):
    for loss in ("qdpo_target", ["qdpo_target", "kd"], "sft"):
        trainer = tiny.qdpo(tmp_path, loss_type=loss)
        assert trainer.ref_model is None
        assert "ref_chosen_logps" not in trainer.train_dataset.column_names
        trainer.train()
        trainer.evaluate(tiny.prompts(3))
    assert tiny.qdpo(tmp_path, loss_type=["sigmoid", "kd"]).ref_model is not None


def test_weights_are_cached_as_they_are_read(tiny):
    from extensions.trl.qdpo import layers
    from extensions.trl.qdpo.quantizers import WeightScheme

    model = tiny.llama()
    layers.quantize_model(model, WeightScheme(2))
    layer = next(iter(quantized_layers(model).values()))
    rounded, latent = layer.weight.detach(), layer.latent.detach()
    with full_precision(model), cached_weights(model):
        assert layer.weight is layer.weight
        assert torch.equal(layer.weight, latent)
    with cached_weights(model), full_precision(model):
        assert torch.equal(layer.weight, latent)
    assert torch.equal(layer.weight, rounded)


def test_a_checkpoint_of_other_bits_is_refused(tmp_path, tiny):
    tiny.qdpo(tmp_path, bits=4, save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    assert json.loads((checkpoint / "qdpo.json").read_text())["bits"] == 4
    with pytest.raises(ValueError, match=r"written with bits=4, and bits is 2 now.* set bits=4"):
        tiny.qdpo(tmp_path, bits=2, max_steps=4).train(resume_from_checkpoint=True)


def test_latent_weights_are_no_full_precision_model(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path / "run")
    trainer.save_model(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"latent weights.*resume_from_checkpoint.*load_packed"):
        tiny.qdpo(tmp_path / "more", str(tmp_path / "saved"))


def test_datasets_are_looked_at_before_the_model_is_quantized(tmp_path, tiny):
    model = tiny.llama(layers=2)
    wrong = Dataset.from_dict({"text": ["w1"]})
    for others in ({"data": wrong}, {"others": {"eval_dataset": wrong}}):
        with pytest.raises(ValueError, match="needs 'prompt'"):
            tiny.qdpo(tmp_path, model, **others)
        assert not quantized_layers(model)
    with pytest.raises(ValueError, match="needs an eval_dataset"):
        tiny.qdpo(tmp_path, model, eval_strategy="epoch")
    with pytest.raises(ValueError, match="need both replies"):
        tiny.qdpo(tmp_path, model, Dataset.from_dict({"prompt": ["w1"], "chosen": ["w2"]}))
    tiny.qdpo(tmp_path, model)


def test_a_damaged_file_of_replies_is_made_anew(tmp_path, tiny):
    first = tiny.qdpo(tmp_path)
    for file in (tmp_path / "pairs").glob("*/*.json"):
        file.write_text("{")
    assert replies(tiny.qdpo(tmp_path), "rejected_ids") == replies(first, "rejected_ids")


def test_patience_that_is_left_is_kept_in_a_checkpoint(tmp_path, tiny):
    settings = {
        "others": {"eval_dataset": tiny.prompts(8)},
        "early_stopping_patience": 3,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 12,
        "learning_rate": 0.0,
    }
    whole = tiny.qdpo(tmp_path / "whole", **settings)
    whole.train()
    assert whole.state.global_step == 4
    resumed = tiny.qdpo(tmp_path / "whole", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.global_step == 4


def test_a_name_of_no_module_and_experts_are_refused(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"'donw_proj', and LlamaForCausalLM has no such module.*down_proj"):
        tiny.qdpo(tmp_path, modules_to_not_quantize=["donw_proj"])
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 43}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads, pad_token_id=0, eos_token_id=1))
    with pytest.raises(ValueError, match="QDPO takes dense models"):
        tiny.qdpo(tmp_path, model)


def test_a_loss_that_asks_a_teacher_needs_one(tmp_path, tiny):
    pairs = Dataset.from_list([{"prompt_ids": [3], "chosen_ids": [4, 1], "rejected_ids": [5, 1]}] * 4)
    for loss in ("kd", "qdpo_target"):
        with pytest.raises(ValueError, match="set bits, or pass teacher_model"):
            tiny.qdpo(tmp_path, data=pairs, bits=None, loss_type=loss)


def test_the_log_tells_what_became_of_the_prompts(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path, bits=8)
    trainer.train()
    counts, log = trainer.pair_counts["train"], trainer.state.log_history
    assert 0 < counts.differing < counts.prompts
    assert log[0]["pairs/differing"] == counts.differing / counts.prompts
    assert log[0]["pairs/label_violations"] == trainer.violation_rates["train"]
    assert "pairs/differing" not in log[-1]  # the summary of the run
