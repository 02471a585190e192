"""What is trained, what is not, what the loss begins with, and that nothing but the arithmetic matters."""

import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from extensions.trl.qdpo.layers import QuantizedLinear, full_precision, quantize_model, quantized_layers
from extensions.trl.qdpo.quantizers import WeightScheme

LN2 = math.log(2)
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"])


def saved(tiny, folder, **settings):
    """A full-precision model and its tokenizer in a folder."""
    model = tiny.llama(layers=2, **settings)
    model.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    return str(folder / "model")


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# -- the reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bits": 2, "group_size": 4, "symmetric": False},
        {"quantize_lm_head": True},
        {"kv_bits": 3, "activation_bits": 4},
        {"train_scales_only": True},
        {"gradient_checkpointing": True},
        {"others": {"peft_config": LORA}},
        {"bf16": True},
        {"sync_ref_model": True},
    ],
    ids=lambda settings: ", ".join(settings) or "plain",
)
def test_the_first_loss_is_ln_2(tmp_path, tiny, settings):
    trainer = tiny.qdpo(tmp_path, max_steps=1, **settings)
    trainer.train()
    assert losses(trainer) == [pytest.approx(LN2, abs=1e-7)]
    assert trainer.state.log_history[0]["rewards/margins"] == 0.0


@pytest.mark.parametrize(
    "settings", [{}, {"others": {"peft_config": LORA}}, {"kv_bits": 3}], ids=["plain", "adapter", "keys"]
)
def test_the_first_loss_is_ln_2_with_a_reference_that_was_computed_before(tmp_path, tiny, settings):
    trainer = tiny.qdpo(tmp_path, max_steps=1, precompute_ref_log_probs=True, **settings)
    assert trainer.ref_model is None
    trainer.train()
    assert losses(trainer) == [pytest.approx(LN2, abs=1e-6)]


@pytest.mark.parametrize("by", ["path", "model with a name", "model"])
def test_the_reference_is_the_initial_quantized_model(tmp_path, tiny, by):
    """TRL alone would load the checkpoint again, which is in full precision."""
    path = saved(tiny, tmp_path)
    model = path if by == "path" else tiny.llama(layers=2)
    if by == "model with a name":
        model.config._name_or_path = path
    trainer = tiny.qdpo(tmp_path, model)
    initial = tiny.weights(tiny.llama(layers=2))
    layers = quantized_layers(trainer.ref_model)
    assert len(layers) == len(quantized_layers(trainer.model)) == 14
    trainer.train()
    assert all(layer.quantizing for layer in layers.values())
    assert all(torch.equal(value, initial[name]) for name, value in trainer.ref_model.named_parameters())
    ids = torch.tensor([[9, 12, 30]])
    quantized = tiny.llama(layers=2)
    quantize_model(quantized, WeightScheme(bits=3))
    with torch.no_grad():
        assert torch.equal(trainer.ref_model(ids).logits, quantized(ids).logits)
        assert not torch.equal(trainer.ref_model(ids).logits, tiny.llama(layers=2)(ids).logits)


def test_another_reference(tmp_path, tiny):
    other = tiny.llama(layers=2, seed=3)
    trainer = tiny.qdpo(tmp_path, others={"ref_model": other})
    assert trainer.ref_model is other
    trainer.train()
    assert losses(trainer)[0] != pytest.approx(LN2, abs=1e-3)


def test_a_reference_follows_scales_that_are_trained(tmp_path, tiny):
    settings = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    trainer = tiny.qdpo(tmp_path, train_scales_only=True, max_steps=1, learning_rate=1e-2, **settings)
    before = tiny.weights(trainer.ref_model)
    trainer.train()
    policy, reference = tiny.weights(trainer.model), tiny.weights(trainer.ref_model)
    assert tiny.moved(policy, reference) == set()
    assert {name.rsplit(".", 1)[1] for name in tiny.moved(before, reference)} == {"weight_scale"}


def test_a_reference_that_follows_is_no_teacher(tmp_path, tiny):
    """The teacher stays the full-precision model."""
    trainer = tiny.qdpo(tmp_path, sync_ref_model=True, ref_model_sync_steps=1, loss_type=["sigmoid", "kd"])
    initial = tiny.weights(tiny.llama(layers=2))
    trainer.train()
    assert len(tiny.moved(initial, tiny.weights(trainer.ref_model))) > 0
    with trainer.teacher.speaking() as teacher:
        assert tiny.moved(initial, tiny.weights(teacher)) == set()


@pytest.mark.parametrize("head", [True, False], ids=["head in few bits", "head in full"])
def test_the_loss_reads_the_model_that_speaks(tmp_path, tiny, head):
    """TRL's fused head multiplies by the head's weight itself: it must be the low-bit one."""
    trainer = tiny.qdpo(tmp_path, quantize_lm_head=head)
    batch = trainer.data_collator(list(trainer.train_dataset))
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        fused = trainer.model(**texts, labels=labels, fused_lm_head=True, use_cache=False).log_probs
        laws = trainer.model(**texts).logits.log_softmax(-1)
    said = laws[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    mask = batch["completion_mask"][:, 1:].bool()
    torch.testing.assert_close(fused[mask], said[mask], rtol=0, atol=2e-6)
    layer = trainer.model.lm_head
    assert isinstance(layer, QuantizedLinear) == head
    if head:
        with full_precision(trainer.model), torch.no_grad():
            without = trainer.model(**texts, labels=labels, fused_lm_head=True, use_cache=False).log_probs
        assert (without[mask] - fused[mask]).abs().max() > 0.01
        assert layer.weight.unique(dim=1).shape[1] <= 8 * 16


# -- what is trained -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss", ["sigmoid", "qdpo_target", "kd", "kd_on_policy", "sft", ["qdpo_target", "kd"], ["sigmoid", "sft"]]
)
def test_every_parameter_moves_and_no_other_model(tmp_path, tiny, loss):
    teacher = tiny.llama(layers=2)
    trainer = tiny.qdpo(tmp_path, others={"teacher_model": teacher}, loss_type=loss, quantize_lm_head=True)
    models = {"policy": trainer.model, "reference": trainer.teacher.initial, "teacher": teacher}
    before = {who: tiny.weights(model) for who, model in models.items()}
    scales = {name: layer.scale.clone() for name, layer in quantized_layers(trainer.model).items()}
    trainer.train()
    assert tiny.moved(before["policy"], tiny.weights(trainer.model)) == set(before["policy"])
    for who in ("reference", "teacher"):
        assert tiny.moved(before[who], tiny.weights(models[who])) == set()
        assert all(p.grad is None for p in models[who].parameters())
    for name, layer in quantized_layers(trainer.model).items():
        assert torch.equal(layer.scale, scales[name])
        assert not torch.equal(layer.weight, layer.latent)


@pytest.mark.parametrize("fold", [{}, {"precompute_ref_log_probs": True}], ids=str)
@pytest.mark.parametrize("loss", ["sigmoid", "kd"])
def test_an_adapter_is_trained_below_the_quantizer(tmp_path, tiny, fold, loss):
    trainer = tiny.qdpo(tmp_path, others={"peft_config": LORA}, loss_type=loss, **fold)
    before = tiny.weights(trainer.model)
    trainer.train()
    moved = tiny.moved(before, tiny.weights(trainer.model))
    assert moved == {name for name in before if "lora_" in name}
    layer = trainer.model.base_model.model.model.layers[0].self_attn.q_proj
    weight = layer.base_layer.weight
    assert all(len(row.unique()) <= 8 for row in weight)
    assert torch.equal(layer(torch.eye(16)).T, weight)


def test_scales_alone_are_trained(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path, train_scales_only=True, learning_rate=1e-3)
    before = tiny.weights(trainer.model)
    trainer.train()
    moved = tiny.moved(before, tiny.weights(trainer.model))
    assert moved == {name for name in before if name.endswith("weight_scale")}


def test_the_gradient_is_of_the_latent_weight(tmp_path, tiny):
    """Straight through: as if the rounded weight were the parameter, inside the range of the grid."""
    trainer = tiny.qdpo(tmp_path, optim="sgd", max_steps=1)
    seen = tiny.gradients(trainer)
    plain = tiny.llama(layers=2)
    for name, layer in quantized_layers(trainer.model).items():
        plain.get_submodule(name).weight.data = layer.weight.detach().clone()
    pairs = Dataset.from_list(list(trainer.train_dataset))
    other = tiny.qdpo(
        tmp_path, plain, pairs, bits=None, optim="sgd", max_steps=1, others={"ref_model": tiny.llama()}
    )
    other.ref_model = trainer.ref_model
    as_it_is = tiny.gradients(other)
    trainer.train()
    other.train()
    tiny.assert_close(seen[0], as_it_is[0], 1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        ["sigmoid", "qdpo_target"],
        "kd",
        pytest.param("kd_on_policy", marks=pytest.mark.slow),
        pytest.param(["qdpo_target", "kd"], marks=pytest.mark.slow),
    ],
)
def test_gradient_accumulation_is_a_larger_batch(tmp_path, tiny, loss):
    runs = []
    for batch, steps in ((8, 1), (1, 8)):
        trainer = tiny.qdpo(
            tmp_path,
            data=tiny.prompts(24),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            loss_type=loss,
            max_grad_norm=0.0,
        )
        seen = tiny.gradients(trainer)
        trainer.train()
        runs.append(seen)
    tiny.assert_close(runs[0][0], runs[1][0], 1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param("sigmoid", marks=pytest.mark.slow),
        pytest.param("kd", marks=pytest.mark.slow),
        ["qdpo_target", "kd_on_policy"],
    ],
)
def test_checkpointing_of_activations_changes_nothing(tmp_path, tiny, loss):
    ends = []
    for checkpointing in (False, True):
        trainer = tiny.qdpo(tmp_path, loss_type=loss, gradient_checkpointing=checkpointing)
        trainer.train()
        ends.append(tiny.weights(trainer.model))
    assert tiny.moved(*ends) == set()


@pytest.mark.parametrize("loss", ["sigmoid", ["qdpo_target", "kd"]])
def test_bfloat16(tmp_path, tiny, loss):
    trainer = tiny.qdpo(tmp_path, bf16=True, loss_type=loss, gradient_checkpointing=True)
    before = tiny.weights(trainer.model)
    trainer.train()
    assert tiny.moved(before, tiny.weights(trainer.model)) == set(before)
    assert all(math.isfinite(loss) for loss in losses(trainer))


def test_a_model_in_half_precision_keeps_its_latent_weights_in_full(tmp_path, tiny):
    """Updates of this size would be lost in bfloat16."""
    trainer = tiny.qdpo(tmp_path, tiny.llama(layers=2).to(torch.bfloat16), learning_rate=1e-6)
    layers = quantized_layers(trainer.model)
    before = {name: layer.latent.detach().clone() for name, layer in layers.items()}
    assert {value.dtype for value in before.values()} == {torch.float32}
    assert trainer.model.model.norm.weight.dtype == torch.bfloat16
    trainer.train()
    for name, layer in layers.items():
        assert (layer.latent != before[name]).float().mean() > 0.9


def test_two_seeded_runs_are_one(tmp_path, tiny):
    ends = []
    for _ in range(2):
        trainer = tiny.qdpo(tmp_path, loss_type=["qdpo_target", "kd"])
        trainer.train()
        ends.append((losses(trainer), tiny.weights(trainer.model)))
    assert ends[0][0] == ends[1][0]
    assert tiny.moved(ends[0][1], ends[1][1]) == set()


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_padding_is_not_read(tmp_path, tiny, side):
    """Whichever side the tokenizer pads on, and whatever is on it."""
    tokens = tiny.tokenizer()
    tokens.padding_side = side
    trainer = tiny.qdpo(tmp_path, tokens=tokens, pad_to_multiple_of=8)
    plain = tiny.qdpo(tmp_path)
    ids = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert all(trainer.train_dataset[name][:] == plain.train_dataset[name][:] for name in ids)
    found = []
    for one in (trainer, plain):
        torch.manual_seed(0)
        seen = tiny.gradients(one)
        one.train()
        found.append(seen[0])
    tiny.assert_close(*found, 1e-5)


def test_a_pad_token_of_ones_choice(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path, pad_token="w3")
    three = tiny.tokenizer().convert_tokens_to_ids("w3")
    assert trainer.data_collator.pad_token_id == trainer.model.config.pad_token_id == three
    with pytest.raises(ValueError, match="no token 'none': set pad_token"):
        tiny.qdpo(tmp_path, pad_token="none")


# -- evaluation ----------------------------------------------------------------------------------------------


def flips(policy, rows):
    """Share of the teacher's tokens that are not the policy's first choice."""
    flipped = total = 0
    for row in rows:
        ids = row["prompt_ids"] + row["chosen_ids"]
        with torch.no_grad():
            first = policy(torch.tensor([ids])).logits[0].argmax(-1)
        at = range(len(row["prompt_ids"]), len(ids))
        flipped += sum(int(first[i - 1]) != ids[i] for i in at)
        total += len(at)
    return flipped / total


@pytest.mark.parametrize("size", [4, 3])
def test_the_share_of_flipped_tokens(tmp_path, tiny, size):
    """Over all tokens, not over batches, of which the last may be small."""
    trainer = tiny.qdpo(
        tmp_path, others={"eval_dataset": tiny.prompts(10)}, per_device_eval_batch_size=size, max_steps=1
    )
    expected = flips(trainer.model.eval(), trainer.eval_dataset)
    assert trainer.evaluate()["eval_flip_rate"] == pytest.approx(expected, abs=1e-9)
    assert 0 < expected < 1
    trainer.train()
    (entry,) = (entry for entry in trainer.state.log_history if "flip_rate" in entry)
    assert 0 < entry["flip_rate"] < 1


def test_evaluation_sets_by_name(tmp_path, tiny):
    sets = {"a": tiny.prompts(6), "b": tiny.conversations(5)}
    trainer = tiny.qdpo(tmp_path, others={"eval_dataset": sets}, loss_type=["qdpo_target", "kd"])
    assert set(trainer.pair_counts) == {"train", "a", "b"}
    found = trainer.evaluate()
    assert {"eval_a_loss", "eval_b_loss"} <= set(found)


@pytest.mark.parametrize("loss", [pytest.param("sigmoid", marks=pytest.mark.slow), "qdpo_target", "kd"])
def test_new_prompts_after_training(tmp_path, tiny, loss):
    trainer = tiny.qdpo(tmp_path, loss_type=loss)
    trainer.train()
    data = tiny.prompts(5)
    found = trainer.evaluate(data)
    prepared = trainer._prepare_dataset(data, trainer.processing_class, trainer.args, "x")
    ids = torch.tensor([trainer.processing_class(data["prompt"][0])["input_ids"]])
    plain = tiny.llama(layers=2).generate(ids, max_new_tokens=6, do_sample=False)
    assert plain[0, ids.shape[1] :].tolist() == prepared["chosen_ids"][0]
    assert 0 <= found["eval_flip_rate"] <= 1
    # what was prepared already is taken as it is
    assert trainer.evaluate(prepared)["eval_loss"] == pytest.approx(found["eval_loss"], rel=1e-5)


def test_what_cannot_be_asked_after_training(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path, others={"ref_model": tiny.llama(layers=2, seed=3)})
    trainer.train()
    with pytest.raises(RuntimeError, match=r"full-precision weights were not kept.* teacher_model"):
        trainer.evaluate(tiny.prompts(5))


def test_training_stops_when_flips_do_not_get_fewer(tmp_path, tiny):
    trainer = tiny.qdpo(
        tmp_path,
        others={"eval_dataset": tiny.prompts(8)},
        early_stopping_patience=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        max_steps=30,
        learning_rate=3e-2,
    )
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == ("eval_flip_rate", False)
    trainer.train()
    rates = [entry["eval_flip_rate"] for entry in trainer.state.log_history if "eval_flip_rate" in entry]
    assert len(rates) == trainer.state.global_step < 30
    assert trainer.state.best_metric == min(rates)
    assert min(rates) not in rates[-2:]
    assert trainer.evaluate()["eval_flip_rate"] == pytest.approx(min(rates))


# -- what is left behind -------------------------------------------------------------------------------------


def test_what_is_saved_is_read_by_plain_from_pretrained(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    latent = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert tiny.moved(tiny.weights(latent), tiny.weights(trainer.model)) == set()
    ids = torch.tensor([[9, 12, 30]])
    with torch.no_grad(), full_precision(trainer.model.eval()):
        assert torch.equal(latent(ids).logits, trainer.model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("w1")["input_ids"] == [8 + 1]


def test_tags_and_model_card(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path)
    trainer.create_model_card(model_name="small")
    card = (tmp_path / "README.md").read_text()
    assert {"trl", "dpo", "qdpo"} <= set(trainer.model.model_tags)
    assert "2407.03051" in card
    assert "QDPO" in card


def test_ours_are_logged_beside_the_hosts(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path, loss_type=["sigmoid", "qdpo_target", "kd", "kd_on_policy", "sft"])
    trainer.train()
    entry = trainer.state.log_history[0]
    parts = [entry[f"{name}_loss"] for name in ("qdpo_target", "kd", "kd_on_policy", "sft")]
    assert entry["loss"] == pytest.approx(LN2 + sum(parts), rel=1e-4)
    assert {"rewards/margins", "logps/chosen", "flip_rate", "entropy"} <= set(entry)


def test_nothing_is_left_on_the_model(tmp_path, tiny):
    """No weight stays cached, no quantizer off, no hook in place, and the mode is what it was."""
    trainer = tiny.qdpo(tmp_path, others={"eval_dataset": tiny.prompts(4)}, loss_type=["sigmoid", "kd"])
    trainer.train()
    trainer.evaluate()
    for layer in quantized_layers(trainer.model).values():
        assert layer._cached is None
        assert layer.quantizing
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_arguments_are_given_back(tmp_path, tiny):
    path = saved(tiny, tmp_path)
    trainer = tiny.qdpo(tmp_path, path, model_init_kwargs={"dtype": "float32"})
    assert trainer.args.model_init_kwargs == {"dtype": "float32"}
    assert json.loads(trainer.args.to_json_string())["bits"] == 3
