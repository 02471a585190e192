"""With its own parts switched off MiniLLM is TRL's DistillationTrainer; and what it asks of either model."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import DistillationConfig, DistillationTrainer

from extensions.trl import MiniLLMConfig, MiniLLMTrainer
from extensions.trl._host import last_hidden_state

WORDS = [f"w{i}" for i in range(30)]
COLLAPSED = {
    "long_term": False,
    "importance_weights": "none",
    "teacher_mix_alpha": 0.0,
    "normalization": "token",
    "steps_per_generation": 1,
    "num_iterations": 1,
}


def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    t = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=t, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def qwen(layers, width, seed):
    torch.manual_seed(seed)
    size = {"hidden_size": width, "intermediate_size": 2 * width, "head_dim": width // 2}
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(WORDS) + 3,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            eos_token_id=1,
            pad_token_id=0,
            initializer_range=0.5,  # far from uniform: the teacher has something to say
            **size,
        )
    )
    return model


def gpt2(layers, width, seed):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(WORDS) + 3,
            n_positions=64,
            n_embd=width,
            n_layer=layers,
            n_head=2,
            eos_token_id=1,
            bos_token_id=1,
            pad_token_id=0,
            initializer_range=0.3,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def prompts(lengths):
    g = torch.Generator().manual_seed(0)
    return Dataset.from_dict(
        {
            "prompt": [
                " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (n,), generator=g)) for n in lengths
            ]
        }
    )


def settings(folder, **others):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-2,
        "optim": "sgd",  # Adam makes whole steps of the roundings in gradients that are zero
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **others,
    }


class Recorder:
    """Gradients of each update, as they are before the optimizer sees them."""

    def __init__(self, trainer):
        self.gradients = []
        step = trainer.accelerator.backward

        def backward(loss, **kwargs):
            step(loss, **kwargs)
            self.gradients.append(
                torch.cat(
                    [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
                ).clone()
            )

        trainer.accelerator.backward = backward


@pytest.mark.parametrize(
    ("build", "lengths"),
    [(qwen, [1, 2, 3, 4, 5, 6, 3, 4] * 6), (gpt2, [4] * 48)],
    ids=["rope and padding", "learned positions, no padding"],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_without_its_own_parts_it_is_trls_distillation(tmp_path, build, lengths, accumulation):
    runs = []
    for trainer_class, config_class, own in (
        (DistillationTrainer, DistillationConfig, {}),
        (MiniLLMTrainer, MiniLLMConfig, {**COLLAPSED, "steps_per_generation": accumulation}),
    ):
        args = config_class(**settings(tmp_path, gradient_accumulation_steps=accumulation, **own))
        data = prompts(lengths)
        if trainer_class is DistillationTrainer:  # whose order of prompts is its own: hand it ours
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(args.seed))
            data, args.shuffle_dataset = data.select(order.tolist()), False
        trainer = trainer_class(build(1, 16, 0), build(2, 32, 1), args, data, None, tokenizer())
        recorder = Recorder(trainer)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        lengths_ = [
            entry["completions/mean_length"] for entry in trainer.state.log_history if "loss" in entry
        ]
        runs.append((losses, lengths_, recorder.gradients, trainer.model.state_dict()))
    (theirs, lengths_, their_gradients, their_weights), (ours, lengths_2, our_gradients, our_weights) = runs
    assert lengths_ == lengths_2  # the same answers
    assert theirs == pytest.approx(ours, rel=1e-5)
    assert theirs[0] > 0.05
    for one, other in zip(their_gradients, our_gradients, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm()
    for name, weight in their_weights.items():
        torch.testing.assert_close(
            our_weights[name], weight, rtol=1e-3, atol=1e-4
        )  # Adam divides by roundings


@pytest.mark.parametrize("build", [qwen, gpt2])
def test_left_padding_does_not_change_what_a_model_says(build):
    model = build(2, 16, 0).eval()
    ids = torch.randint(3, 30, (1, 7))
    padded = torch.cat([torch.zeros(1, 5).long(), ids], 1)
    mask = torch.cat([torch.zeros(1, 5).long(), torch.ones(1, 7).long()], 1)
    with torch.no_grad():
        alone = model.lm_head(last_hidden_state(model, ids, torch.ones_like(ids)))
        with_padding = model.lm_head(last_hidden_state(model, padded, mask))[:, 5:]
    torch.testing.assert_close(with_padding, alone, rtol=1e-5, atol=1e-5)


def test_the_sampler_and_the_loss_agree_on_gpt2_with_left_padding(tmp_path):
    """Scores of padded answers are those of the same answers without padding, for student and teacher."""
    args = MiniLLMConfig(**settings(tmp_path, steps_per_generation=2, num_iterations=1, mode="paper"))
    data = prompts([1, 2, 3, 4, 5, 6, 7, 8])
    trainer = MiniLLMTrainer(gpt2(1, 16, 0), gpt2(2, 32, 1), args, data, None, tokenizer())
    trainer.model.train()
    rollouts = trainer._scored(trainer._generate_and_score_completions(list(data)))
    assert (rollouts["prompt_mask"] == 0).any()
    for i in range(8):
        prompt = rollouts["prompt_ids"][i][rollouts["prompt_mask"][i] != 0]
        answer = rollouts["completion_ids"][i][rollouts["completion_mask"][i] != 0]
        for model, name in ((trainer.model, "old_log_q"), (trainer.teacher_model, "log_p")):
            with torch.no_grad():
                logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
            alone = torch.log_softmax(logits, -1).gather(1, answer[:, None])[:, 0]
            torch.testing.assert_close(rollouts[name][i, : len(answer)], alone, rtol=1e-5, atol=1e-5)


def test_the_teachers_hidden_states_may_be_kept_or_computed_again(tmp_path):
    weights = []
    for keep in (True, False):
        args = MiniLLMConfig(**settings(tmp_path, cache_teacher_hidden=keep, steps_per_generation=2))
        trainer = MiniLLMTrainer(qwen(1, 16, 0), qwen(2, 32, 1), args, prompts([3, 4] * 8), None, tokenizer())
        trainer.train()
        weights.append(torch.cat([p.flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)
