"""The gradient that is applied: accumulated, of text, checkpointed, of adapters."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

MODES = ["paper", "reference", "modern"]

# -- gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["token", "sequence"])
@pytest.mark.parametrize("mode", MODES)
def test_eight_batches_of_one_are_one_of_eight(tmp_path, tiny, mode, normalization):
    """Prompts, answers and texts are the same, so the gradient of the update is, too; twice over."""
    found, losses = [], []
    for batch, accumulation in ((8, 1), (1, 8)):
        trainer = tiny.trainer(
            tmp_path,
            tiny.gpt2(0).double(),
            tiny.gpt2(1, layers=2).double(),
            tiny.prompts(16),
            others={"pretraining_dataset": tiny.texts()},
            mode=mode,
            normalization=normalization,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=2 * accumulation,
            num_iterations=1,
            optim="sgd",
            learning_rate=1e-3,
        )
        found.append(tiny.gradients(trainer))
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert all("minillm/pt_loss" in entry for entry in trainer.state.log_history if "loss" in entry)
    assert len(found[0]) == len(found[1]) == 2
    for one, other in zip(*found, strict=True):
        tiny.assert_close(one, other, 1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_text_counts_as_much_as_the_configuration_says(tmp_path, tiny):
    """The gradient is linear in pretraining_coef, and without it the texts are not read."""
    found = {}
    for coef in (0.0, 1.0, 3.0):
        trainer = tiny.trainer(
            tmp_path,
            others={"pretraining_dataset": tiny.texts()},
            pretraining_coef=coef,
            max_grad_norm=0.0,
            max_steps=1,
        )
        seen = tiny.gradients(trainer)
        trainer.train()
        found[coef] = seen[0]
        assert (trainer.text is None) == (coef == 0.0)
    once = {name: found[1.0][name] - found[0.0][name] for name in found[0.0]}
    thrice = {name: (found[3.0][name] - found[0.0][name]) / 3.0 for name in found[0.0]}
    tiny.assert_close(once, thrice, 1e-4)


@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_the_gradient_of_text_is_that_of_its_likelihood_and_of_the_teachers_opinion(
    tmp_path, tiny, normalization
):
    """-log q of every token but the first, in part KL(p || q): per token, or summed over each text."""
    ratio, found = 0.25, []
    for coef in (0.0, 1.0):
        trainer = tiny.trainer(
            tmp_path,
            tiny.gpt2(0).double(),
            tiny.gpt2(1, layers=2).double(),
            others={"pretraining_dataset": tiny.texts()},
            normalization=normalization,
            pretraining_coef=coef,
            pretraining_kd_ratio=ratio,
            max_grad_norm=0.0,
            max_steps=1,
        )
        if coef:
            model, text = copy.deepcopy(trainer.model), trainer.text.batch(0)
        found.append(tiny.gradients(trainer))
        trainer.train()
    ids, mask = text["input_ids"], text["attention_mask"]
    log_q = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits, -1)[:, :-1]
    with torch.no_grad():
        log_p = torch.log_softmax(trainer.teacher_model(input_ids=ids, attention_mask=mask).logits, -1)[
            :, :-1
        ]
    said = -log_q.gather(2, ids[:, 1:, None]).squeeze(2)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    total = (((1.0 - ratio) * said + ratio * kl) * mask[:, 1:]).sum()
    (total / (mask[:, 1:].sum() if normalization == "token" else len(ids))).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    tiny.assert_close({name: found[1][0][name] - found[0][0][name] for name in expected}, expected, 1e-5)


@pytest.mark.parametrize("build", ["gpt2", "qwen3"])
def test_gradient_checkpointing_changes_memory_only(tmp_path, tiny, build):
    found = []
    for on in (False, True):
        model, teacher = (getattr(tiny, build)(seed, layers=2) for seed in (0, 1))
        trainer = tiny.trainer(tmp_path, model, teacher, gradient_checkpointing=on, mode="modern")
        found.append(tiny.gradients(trainer))
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == on
    for one, other in zip(*found, strict=True):
        tiny.assert_close(one, other, 1e-5)


# -- PEFT ----------------------------------------------------------------------------------------------------

LORA = {"r": 2, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("given", ["config", "model"])
def test_adapters_move_and_the_model_below_does_not(tmp_path, tiny, given, checkpointing):
    model, others = tiny.gpt2(0), {}
    if given == "config":
        others["peft_config"] = LoraConfig(**LORA)
    else:
        model = get_peft_model(model, LoraConfig(**LORA))
    trainer = tiny.trainer(tmp_path, model, others=others, max_steps=3, gradient_checkpointing=checkpointing)
    assert isinstance(trainer.model, PeftModel)
    before = tiny.weights(trainer.model)
    trainer.train()
    adapters = {name for name in before if "lora_" in name}
    assert adapters
    assert tiny.moved(before, tiny.weights(trainer.model)) == adapters


def test_adapters_are_seeded(tmp_path, tiny):
    starts = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model = tiny.gpt2(0)
        torch.manual_seed(noise)
        trainer = tiny.trainer(tmp_path, model, others={"peft_config": LoraConfig(**LORA)})
        starts.append(tiny.weights(trainer.model))
    assert not tiny.moved(*starts)


def test_adapters_give_the_gradient_of_the_merged_model(tmp_path, tiny):
    """At their start adapters add nothing: the loss is that of the bare model on the same answers."""
    losses = []
    for others in ({}, {"peft_config": LoraConfig(**LORA)}):
        trainer = tiny.trainer(tmp_path, others=others, max_steps=1)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_head_that_is_trained_whole(tmp_path, tiny):
    adapter = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    trainer = tiny.trainer(tmp_path, tiny.qwen3(0), tiny.qwen3(1), others={"peft_config": adapter})
    before = tiny.weights(trainer.model)
    trainer.train()
    changed = tiny.moved(before, tiny.weights(trainer.model))
    assert any("modules_to_save" in name for name in changed)
    assert all("lora_" in name or "modules_to_save" in name for name in changed)


def test_adapters_the_loss_would_pass_by_are_refused(tmp_path, tiny):
    on_head = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="lm_head"):
        tiny.trainer(tmp_path, tiny.qwen3(0), others={"peft_config": on_head})
    learned_prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="Prompt-learning"):
        tiny.trainer(tmp_path, others={"peft_config": learned_prompt})
