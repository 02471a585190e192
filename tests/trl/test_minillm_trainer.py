"""MiniLLMTrainer keeps TRL's promises: models and data of every kind."""

import math
from dataclasses import dataclass
from itertools import islice

import pytest
import torch
from datasets import Dataset

from extensions.trl import MiniLLMConfig, MiniLLMTrainer
from extensions.trl.minillm import minillm_trainer as module

MODES = ["paper", "reference", "modern"]

# -- models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("student", "teacher"), [("gpt2", "gpt2"), ("qwen3", "llama")])
def test_every_parameter_of_the_student_moves_and_none_of_the_teacher(tmp_path, tiny, mode, student, teacher):
    model, big = getattr(tiny, student)(0), getattr(tiny, teacher)(1, layers=2, width=32)
    trainer = tiny.trainer(tmp_path, model, big, mode=mode, num_iterations=2, steps_per_generation=2)
    before, teacher_before = tiny.weights(trainer.model), tiny.weights(trainer.teacher_model)
    buffers = {name: value.clone() for name, value in big.named_buffers()}
    trainer.train()
    assert tiny.moved(before, tiny.weights(trainer.model)) == before.keys()
    assert not tiny.moved(teacher_before, tiny.weights(trainer.teacher_model))
    assert not tiny.moved(buffers, dict(big.named_buffers()))
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

    @dataclass
    class OnCPU(MiniLLMConfig):
        bf16: bool = False
        use_cpu: bool = True

    monkeypatch.setattr(module, "MiniLLMConfig", OnCPU)
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
    assert tiny.moved(before, tiny.weights(trainer.model)) == before.keys()


def test_bf16_autocast(tmp_path, tiny):
    rough = tiny.trainer(tmp_path, bf16=True, max_steps=1)
    exact = tiny.trainer(tmp_path, max_steps=1)
    found = [tiny.gradients(trainer) for trainer in (rough, exact)]
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
    assert tiny.moved(before, tiny.weights(trainer.model)) == before.keys()


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
        batches = islice(trainer.get_train_dataloader(), 8)  # an epoch; a stream begins again by itself
        seen.append([[row["prompt"] for row in batch] for batch in batches])
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
