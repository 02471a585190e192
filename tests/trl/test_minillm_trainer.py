"""MiniLLMTrainer keeps TRL's promises: data of every kind, PEFT, accumulation, evaluation, cards."""

import math
import os
from functools import partial

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from extensions.trl import MiniLLMConfig, MiniLLMTrainer
from extensions.trl.minillm import minillm_trainer as module

MODES = ["paper", "reference", "modern"]


def moved(before, after):
    return {name for name, value in after.items() if not torch.equal(before[name], value)}


def gradients(trainer):
    """A list that gets the gradient of each update, by parameter, as the optimizer sees it."""
    seen = []
    create = trainer.create_optimizer

    def recorded(*args, **kwargs):
        optimizer = create(*args, **kwargs)
        optimizer.register_step_pre_hook(lambda *_: seen.append(current()))
        return optimizer

    def current():
        named = trainer.model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    trainer.create_optimizer = recorded
    return seen


def assert_close(one, other, tolerance=1e-6):
    """As vectors: the difference is at most this share of the longer one."""
    assert one.keys() == other.keys()
    a, b = (torch.cat([x[name].flatten().double() for name in one]) for x in (one, other))
    assert a.norm() > 0
    assert (a - b).norm() <= tolerance * max(a.norm(), b.norm())


# -- models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("student", "teacher"), [("gpt2", "gpt2"), ("qwen3", "llama")])
def test_every_parameter_of_the_student_moves_and_none_of_the_teacher(tmp_path, tiny, mode, student, teacher):
    model, big = getattr(tiny, student)(0), getattr(tiny, teacher)(1, layers=2, width=32)
    trainer = tiny.trainer(tmp_path, model, big, mode=mode, num_iterations=2, steps_per_generation=2)
    before, teacher_before = tiny.weights(trainer.model), tiny.weights(trainer.teacher_model)
    buffers = {name: value.clone() for name, value in big.named_buffers()}
    trainer.train()
    assert moved(before, tiny.weights(trainer.model)) == before.keys()
    assert not moved(teacher_before, tiny.weights(trainer.teacher_model))
    assert not moved(buffers, dict(big.named_buffers()))
    assert not any(p.requires_grad for p in trainer.teacher_model.parameters())
    assert not trainer.teacher_model.training
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_names_and_paths_and_no_configuration(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens = tiny.tokenizer()
    for name, model in (("student", tiny.llama(0)), ("teacher", tiny.llama(1, layers=2))):
        model.config.max_position_embeddings = 1024
        model.save_pretrained(name)
        tokens.save_pretrained(name)
    on_cpu = partial(MiniLLMConfig, bf16=False, use_cpu=True)
    monkeypatch.setattr(module, "MiniLLMConfig", on_cpu)
    trainer = MiniLLMTrainer("./student", "./teacher", train_dataset=tiny.prompts(32))
    assert trainer.args.output_dir == "student-MiniLLM"
    assert isinstance(trainer.args, MiniLLMConfig)
    assert trainer.args.mode == "paper"
    assert trainer.processing_class.padding_side == "left"
    assert trainer.model.dtype == trainer.teacher_model.dtype == torch.float32
    assert not any(p.requires_grad for p in trainer.teacher_model.parameters())


def test_the_teacher_may_be_named_in_the_configuration(tmp_path, tiny):
    tiny.gpt2(1).save_pretrained(tmp_path / "teacher")
    tiny.tokenizer().save_pretrained(tmp_path / "teacher")
    named = {"teacher_model_name_or_path": str(tmp_path / "teacher")}
    kwargs = {"teacher_model_init_kwargs": {"dtype": "bfloat16"}}
    args = tiny.config(tmp_path, **named, **kwargs)
    trainer = MiniLLMTrainer(tiny.gpt2(0), None, args, tiny.prompts(), processing_class=tiny.tokenizer())
    assert trainer.teacher_model.dtype == torch.bfloat16
    trainer.train()


def test_a_teacher_of_half_the_precision(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path, teacher=tiny.qwen3(1, layers=2).bfloat16())
    before = tiny.weights(trainer.model)
    trainer.train()
    assert moved(before, tiny.weights(trainer.model)) == before.keys()


def test_bf16_autocast(tmp_path, tiny):
    rough = tiny.trainer(tmp_path, bf16=True, max_steps=1)
    exact = tiny.trainer(tmp_path, max_steps=1)
    found = [gradients(trainer) for trainer in (rough, exact)]
    for trainer in (rough, exact):
        trainer.train()
    assert rough.model.dtype == torch.float32
    assert all(value.isfinite().all() for value in found[0][0].values())
    assert rough.state.log_history[0]["loss"] != exact.state.log_history[0]["loss"]


def test_a_processing_class_without_a_padding_token_pads_with_the_end(tmp_path, tiny):
    tokens = tiny.tokenizer(pad_token=None)
    trainer = tiny.trainer(tmp_path, tokens=tokens)
    assert tokens.pad_token == "<eos>"
    trainer.train()
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_any_of_several_ends_ends_an_answer(tmp_path, tiny, alpha):
    model = tiny.gpt2(0)
    model.generation_config.eos_token_id = [1, 10, 11]
    trainer = tiny.trainer(tmp_path, model, teacher_mix_alpha=alpha, max_completion_length=20)
    assert trainer.eos_token_ids == [1, 10, 11]
    trainer.model.train()
    rollouts = trainer._generate_and_score_completions(list(tiny.prompts(64)))
    ends, early = set(), 0
    for ids, mask in zip(rollouts["completion_ids"], rollouts["completion_mask"], strict=True):
        answer = ids[mask != 0].tolist()
        assert not set(answer[:-1]) & {1, 10, 11}
        if len(answer) < 20:
            ends.add(answer[-1])
            early += 1
    assert early > 10
    assert ends == {1, 10, 11}


# -- data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prompts", "conversations"])
def test_prompts_of_both_kinds_and_further_columns_ride_along(tmp_path, tiny, kind):
    data = getattr(tiny, kind)(columns=("prompt", "completion")).add_column("id", list(range(16)))
    trainer = tiny.trainer(tmp_path, data=data, max_steps=1)
    seen = []
    score = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: seen.append(inputs) or score(inputs)
    trainer.train()
    assert [set(row) for row in seen[0]] == [{"prompt", "completion", "id"}] * 16
    assert sorted(row["id"] for row in seen[0]) == list(range(16))


def test_a_conversation_is_read_through_the_chat_template(tmp_path, tiny):
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "w1 w2"}]] * 16})
    tokens = tiny.tokenizer()
    for arguments, text in (({}, ""), ({"polite": True}, "politely ")):
        trainer = tiny.trainer(tmp_path, data=data, tokens=tokens, chat_template_kwargs=arguments)
        trainer.model.train()
        rollouts = trainer._generate_and_score_completions(list(data)[:2])
        expected = tokens(f"{text}user w1 w2 <eos> assistant")["input_ids"]
        assert rollouts["prompt_ids"].tolist() == [expected] * 2


@pytest.mark.parametrize("kind", ["prompts", "conversations"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stream_of_prompts(tmp_path, tiny, kind, accumulation):
    data = getattr(tiny, kind)(22).to_iterable_dataset()
    settings = {"gradient_accumulation_steps": accumulation, "steps_per_generation": 2, "num_iterations": 1}
    trainer = tiny.trainer(tmp_path, data=data, max_steps=7, **settings)
    before = tiny.weights(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 7  # 2 generations of 8 an epoch, so it begins again
    assert moved(before, tiny.weights(trainer.model)) == before.keys()


def test_a_stream_and_a_dataset_give_the_same_prompts(tmp_path, tiny):
    """In blocks of one generation, each seen as often as the rollouts are learned from."""
    seen = []
    for stream in (False, True):
        data = tiny.prompts(16)
        trainer = tiny.trainer(
            tmp_path,
            data=data.to_iterable_dataset() if stream else data,
            shuffle_dataset=False,
            steps_per_generation=2,
            num_iterations=2,
        )
        seen.append([[row["prompt"] for row in batch] for batch in trainer.get_train_dataloader()])
    assert seen[0] == seen[1]
    assert [batch == seen[0][0] for batch in seen[0]] == [True] * 4 + [False] * 4
    assert sorted(seen[0][0] + seen[0][4]) == sorted(tiny.prompts(16)["prompt"])


def test_workers_read_the_prompts(tmp_path, tiny):
    losses = []
    for workers in (0, 2):
        trainer = tiny.trainer(tmp_path, dataloader_num_workers=workers)
        trainer.train()
        losses.append(trainer.state.log_history[-1]["train_loss"])
    assert losses[0] == losses[1]


def test_each_generation_serves_its_updates_and_each_pass_reads_all_answers(tmp_path, tiny):
    """Algorithm 1: rollouts are drawn, then learned from in batches, several times over."""
    trainer = tiny.trainer(tmp_path, steps_per_generation=2, num_iterations=3, max_steps=12)
    drawn, read = [], []
    score, loss = trainer._generate_and_score_completions, trainer._compute_loss

    def draw(inputs):
        drawn.append(trainer.state.global_step)
        return score(inputs)

    def learn(student, inputs, normalizer):
        trimmed = [
            (*p[m != 0].tolist(), -1, *c[n != 0].tolist())
            for p, m, c, n in zip(
                *(inputs[f"{side}_{part}"] for side in ("prompt", "completion") for part in ("ids", "mask")),
                strict=True,
            )
        ]
        read.append(trimmed)
        return loss(student, inputs, normalizer)

    trainer._generate_and_score_completions, trainer._compute_loss = draw, learn
    trainer.train()
    assert drawn == [0, 6]
    for start in (0, 6):
        passes = [read[i] + read[i + 1] for i in range(start, start + 6, 2)]
        assert all(len(answers) == 8 for answers in passes)
        assert all(sorted(answers) == sorted(passes[0]) for answers in passes)
        assert any(answers != passes[0] for answers in passes)  # in another order
    assert sorted(read[0] + read[1]) != sorted(read[6] + read[7])


# -- generation ----------------------------------------------------------------------------------------------


def test_padding_to_a_multiple_changes_lengths_and_nothing_else(tmp_path, tiny):
    found, shapes = [], []
    for multiple in (None, 8):
        trainer = tiny.trainer(tmp_path, max_steps=1, pad_to_multiple_of=multiple)
        found.append(gradients(trainer))
        loss = trainer._compute_loss
        trainer._compute_loss = lambda student, inputs, n, loss=loss: (
            shapes.append((inputs["prompt_ids"].size(1), inputs["completion_ids"].size(1)))
            or loss(student, inputs, n)
        )
        trainer.train()
    assert_close(found[0][0], found[1][0], 1e-5)
    assert all(length % 8 for length in shapes[0])
    assert not any(length % 8 for length in shapes[1])


def test_generation_kwargs_reach_transformers(tmp_path, tiny):
    forbidden = list(range(8, 40))
    trainer = tiny.trainer(tmp_path, teacher_mix_alpha=0.0, generation_kwargs={"suppress_tokens": forbidden})
    trainer.model.train()
    rollouts = trainer._generate_and_score_completions(list(tiny.prompts(32)))
    said = set(rollouts["completion_ids"].flatten().tolist())
    assert said - {0, 1}
    assert not said & set(forbidden)


@pytest.mark.parametrize("method", ["coin_flip", "mixture"])
def test_answers_are_drawn_in_chunks(tmp_path, tiny, method, monkeypatch):
    sizes = []
    sample = module.sample_mixture

    def recorded(student, teacher, input_ids, *args, **kwargs):
        sizes.append(len(input_ids))
        assert kwargs["method"] == method
        return sample(student, teacher, input_ids, *args, **kwargs)

    monkeypatch.setattr(module, "sample_mixture", recorded)
    tiny.trainer(tmp_path, rollout_chunk_size=7, teacher_mix_method=method, max_steps=1).train()
    assert sizes == [7, 7, 2]


# -- evaluation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prompts", "conversations"])
@pytest.mark.parametrize("shape", ["dataset", "stream", "dict", "dataset dict", "dict of streams"])
def test_evaluation_datasets_of_every_kind(tmp_path, tiny, kind, shape):
    data = getattr(tiny, kind)(6)
    shapes = {
        "dataset": data,
        "stream": data.to_iterable_dataset(),
        "dict": {"a": data, "b": data},
        "dataset dict": DatasetDict({"a": data, "b": data}),
        "dict of streams": {"a": data.to_iterable_dataset(), "b": data},
    }
    trainer = tiny.trainer(
        tmp_path, others={"eval_dataset": shapes[shape]}, eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    names = ["eval"] if shape in ("dataset", "stream") else ["eval_a", "eval_b"]
    logged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    assert all(logged[f"{name}_loss"] > 0.0 for name in names)
    assert logged["eval_minillm/reverse_kl"] > 0.0
    assert "eval_completions/mean_length" in logged


def test_evaluation_before_training_and_between_rollouts_changes_no_step(tmp_path, tiny):
    """Rollouts go on where they were; the answers of evaluation come from the student alone."""
    asked = []
    for start in (False, True):
        trainer = tiny.trainer(
            tmp_path,
            others={"eval_dataset": tiny.prompts(4)},
            eval_strategy="steps",
            eval_steps=1,
            eval_on_start=start,
            max_steps=3,
        )
        mix = trainer._generate_with_teacher
        trainer._generate_with_teacher = lambda *args, trainer=trainer, mix=mix: (
            asked.append(trainer.model.training) or mix(*args)
        )
        trainer.train()
        steps = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert steps == ([0] if start else []) + [1, 2, 3]
    assert asked == [True, True]  # one generation a run


def test_the_evaluation_loss_is_the_reverse_kl_per_token(tmp_path, tiny):
    """By a plain computation from logits, of a student that is its teacher and of one that is not."""
    teacher = tiny.qwen3(0)
    for seed in (0, 1):
        others = {"eval_dataset": tiny.prompts(4)}
        trainer = tiny.trainer(tmp_path, tiny.qwen3(seed), teacher, others=others)
        seen = []
        score = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = lambda rows, score=score, seen=seen: (
            seen.append(score(rows)) or seen[-1]
        )
        loss = trainer.evaluate()["eval_loss"]
        (batch,) = seen
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            log_q, log_p = (
                torch.log_softmax(
                    model(input_ids=ids, attention_mask=mask, position_ids=positions).logits, -1
                )
                for model in (trainer.model, teacher)
            )
        kl = (log_q.exp() * (log_q - log_p)).sum(-1)[:, -batch["completion_ids"].size(1) - 1 : -1]
        keep = batch["completion_mask"] != 0
        assert loss == pytest.approx(kl[keep].mean().item(), rel=1e-4, abs=1e-6)
        assert (loss < 1e-6) == (seed == 0)


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
        found.append(gradients(trainer))
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert all("minillm/pt_loss" in entry for entry in trainer.state.log_history if "loss" in entry)
    assert len(found[0]) == len(found[1]) == 2
    for one, other in zip(*found, strict=True):
        assert_close(one, other, 1e-6)
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
        seen = gradients(trainer)
        trainer.train()
        found[coef] = seen[0]
        assert (trainer.text is None) == (coef == 0.0)
    once = {name: found[1.0][name] - found[0.0][name] for name in found[0.0]}
    thrice = {name: (found[3.0][name] - found[0.0][name]) / 3.0 for name in found[0.0]}
    assert_close(once, thrice, 1e-4)


@pytest.mark.parametrize("build", ["gpt2", "qwen3"])
def test_gradient_checkpointing_changes_memory_only(tmp_path, tiny, build):
    found = []
    for on in (False, True):
        model, teacher = (getattr(tiny, build)(seed, layers=2) for seed in (0, 1))
        trainer = tiny.trainer(tmp_path, model, teacher, gradient_checkpointing=on, mode="modern")
        found.append(gradients(trainer))
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == on
    for one, other in zip(*found, strict=True):
        assert_close(one, other, 1e-5)


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
    assert moved(before, tiny.weights(trainer.model)) == adapters


def test_adapters_are_seeded(tmp_path, tiny):
    starts = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model = tiny.gpt2(0)
        torch.manual_seed(noise)
        trainer = tiny.trainer(tmp_path, model, others={"peft_config": LoraConfig(**LORA)})
        starts.append(tiny.weights(trainer.model))
    assert not moved(*starts)


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
    changed = moved(before, tiny.weights(trainer.model))
    assert any("modules_to_save" in name for name in changed)
    assert all("lora_" in name or "modules_to_save" in name for name in changed)


def test_adapters_the_loss_would_pass_by_are_refused(tmp_path, tiny):
    on_head = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="lm_head"):
        tiny.trainer(tmp_path, tiny.qwen3(0), others={"peft_config": on_head})
    learned_prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="Prompt-learning"):
        tiny.trainer(tmp_path, others={"peft_config": learned_prompt})


# -- what is written -----------------------------------------------------------------------------------------


def test_tags_and_the_paper_are_on_the_model_card(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path, save_strategy="steps", save_steps=2)
    assert trainer.model.model_tags == ["trl", "minillm"]
    trainer.train()
    card = (tmp_path / "README.md").read_text()
    for said in ("- minillm", "- trl", trainer._paper["title"], "2306.08543", "gu2024minillm"):
        assert said in card


def test_completions_are_written_down(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path, log_completions=True, steps_per_generation=2, max_steps=4)
    trainer.train()
    files = sorted(os.listdir(tmp_path / "completions"))
    assert files == [f"completions_{step:05d}.parquet" for step in (1, 2, 3, 4)]
    table = pd.read_parquet(tmp_path / "completions" / files[0])
    assert list(table.columns) == ["step", "prompt", "completion"]
    assert len(table) == 8  # all answers of the generation
    assert set(table["prompt"]) <= set(tiny.prompts()["prompt"])
    assert table["completion"].str.len().sum() > 0


def test_what_is_logged_is_in_its_range(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path, others={"pretraining_dataset": tiny.texts()})
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    names = "reverse_kl single_loss long_loss pt_loss advantage_mean advantage_std reward "
    names += "is_weight_mean is_weight_min ess clip_ratio teacher_token_fraction"
    logged = {name: entry[f"minillm/{name}"] for name in names.split()}
    assert all(math.isfinite(value) for value in logged.values())
    assert logged["reverse_kl"] > 0.0
    assert 0.0 < logged["is_weight_min"] <= logged["is_weight_mean"] <= 1.25
    assert 0.0 < logged["ess"] <= 1.0
    assert 0.0 <= logged["clip_ratio"] <= 1.0
    assert 0.05 < logged["teacher_token_fraction"] < 0.6
    assert {name.split("/")[1] for name in entry if name.startswith("guards/")} == {
        "empty_ratio",
        "short_ratio",
        "repetition",
        "prompt_echo",
        "length_drift",
    }
    assert 0.0 < entry["entropy"] <= math.log(len(tiny.vocabulary))


def test_the_same_seed_gives_the_same_student(tmp_path, tiny):
    ends = []
    for seed in (1, 1, 2):
        trainer = tiny.trainer(tmp_path, others={"pretraining_dataset": tiny.texts()}, seed=seed)
        trainer.train()
        ends.append(tiny.weights(trainer.model))
    assert not moved(ends[0], ends[1])
    assert moved(ends[0], ends[2])


def test_the_warm_start_learns_the_answers_and_keeps_the_best(tmp_path, tiny):
    data = tiny.prompts(16, columns=("prompt", "completion"))
    trainer = tiny.trainer(
        tmp_path,
        data=data,
        others={"eval_dataset": data.select(range(4))},
        warm_start_epochs=2.0,
        warm_start_learning_rate=1e-2,
        max_steps=1,
    )
    before = tiny.weights(trainer.model)
    starts = []
    score = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: (
        starts.append(tiny.weights(trainer.model)) or score(rows)
    )
    trainer.train()
    assert moved(before, starts[0]) == before.keys()
    assert trainer.state.global_step == 1
    assert os.listdir(tmp_path / "warm_start")
