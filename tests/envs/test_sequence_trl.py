"""TRL's own trainer takes the rewards, the dataset and the environment with tools."""

import os

import pytest

# Before the first import of huggingface_hub, which reads them then.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from pathlib import Path

from envs.sequence_tasks import TaskConfig, generate, to_hf_dataset
from envs.sequence_tasks.rewards import exact_reward, format_reward, graded_count_reward, length_penalty
from envs.sequence_tasks.scratchpad import CountScratchpadEnv, scratchpad_dataset

trl = pytest.importorskip("trl")


def byte_tokenizer(chat_template=None):
    """One token a byte, and the marks of a chat."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=special[0],
        eos_token=special[2],
        additional_special_tokens=special[1:2],
        padding_side="left",
        chat_template=chat_template,
    )


def tiny_llama(vocabulary):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=4096,
        )
    )


def grpo(folder, tokenizer, **arguments):
    args = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=4,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        use_cpu=True,
    )
    model = tiny_llama(len(tokenizer))
    return trl.GRPOTrainer(model=model, args=args, processing_class=tokenizer, **arguments)


def digits_only(trainer, tokenizer):
    """Let the model say nothing but digits, so that its answers are read."""
    import torch

    digits = tokenizer.convert_tokens_to_ids(list("123456789"))
    bias = torch.full((len(tokenizer),), -100.0)
    bias[digits] = 0.0
    trainer.model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)


def test_a_step_of_grpo(tmp_path):
    tokenizer = byte_tokenizer()
    config = TaskConfig("count_ones", lengths=(5, 6), prompt_style="terse")
    rewards = [exact_reward, graded_count_reward, format_reward, length_penalty(0.01)]
    data = to_hf_dataset(config, 8)
    trainer = grpo(tmp_path, tokenizer, train_dataset=data, reward_funcs=rewards)
    digits_only(trainer, tokenizer)
    trainer.train()
    (log,) = [row for row in trainer.state.log_history if "loss" in row]
    assert log["rewards/format_reward/mean"] == pytest.approx(0.1)
    assert log["rewards/length_penalty/mean"] == pytest.approx(-0.04)
    assert log["rewards/exact_reward/mean"] == 0.0  # of four digits
    assert log["abs_error/len_5-8"] > 1000
    assert log["round_number_rate"] == 0.0
    assert "rewards/graded_count_reward/mean" in log


def test_a_step_of_grpo_with_the_scratchpad(tmp_path):
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    tokenizer = byte_tokenizer(template)
    config = TaskConfig("count_bernoulli", lengths=(5, 9))
    data = scratchpad_dataset(config, 4)
    asked = []

    class Watched(CountScratchpadEnv):
        def reset(self, **row):
            question = super().reset(**row)
            asked.append((self._payload, question))
            return question

    trainer = grpo(tmp_path, tokenizer, train_dataset=data, environment_factory=Watched)
    trainer.train()
    (log,) = [row for row in trainer.state.log_history if "loss" in row]
    assert log["rewards/Watched/mean"] == 0.0
    assert {tool.__name__ for tool in trainer.tools} == {"read", "note"}
    assert len(asked) == 8
    assert len(set(asked[:4])) == len(set(asked[4:])) == 1  # a group has one question
    assert {payload for payload, _ in asked} <= {item.payload for item in generate(config, 4)}


def test_tools_are_described_to_the_model():
    from transformers.utils import get_json_schema

    env = CountScratchpadEnv()
    read, note = (get_json_schema(tool)["function"] for tool in (env.read, env.note))
    assert read["description"].startswith("Reads elements")
    assert {name: field["type"] for name, field in read["parameters"]["properties"].items()} == {
        "start": "integer",
        "end": "integer",
    }
    assert note["parameters"]["properties"]["text"]["type"] == "string"
