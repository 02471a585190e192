"""The tiny Llama of :mod:`.glasses_grpo`, trained from scratch to count before GRPO takes it on."""

from __future__ import annotations

import os
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from extensions.glasses.tasks import Question

from ..schedules import lr_share
from .glasses_grpo_plan import TRAINING, Setting


def new_model(setting: Setting, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of about 90,000 parameters, the weights of which ``seed`` decides.

    Without positions all angles of its rotary embedding are 0, and only the causal mask tells of order.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=TRAINING.hidden,
        intermediate_size=2 * TRAINING.hidden,
        num_hidden_layers=TRAINING.layers,
        num_attention_heads=TRAINING.heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    if not setting.positions:
        model.model.rotary_emb.inv_freq.zero_()
    return model


def warmed_up(
    file: Path, setting: Setting, tokenizer: PreTrainedTokenizerFast, questions: list[Question], seed: int
) -> LlamaForCausalLM:
    """The model after supervised training: from ``file`` if it was trained, else trained and kept there."""
    model = new_model(setting, tokenizer, seed)
    if not file.exists():
        _train(model, setting.warm_up, tokenizer, questions, random.Random(seed))
        partial = file.with_suffix(".partial")
        torch.save(model.state_dict(), partial)
        os.replace(partial, file)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def _train(
    model: LlamaForCausalLM,
    steps: int,
    tokenizer: PreTrainedTokenizerFast,
    questions: list[Question],
    draw: random.Random,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINING.warm_up_lr)
    model.train()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = TRAINING.warm_up_lr * lr_share(step, steps, warmup=0.1, end=0.02)
        loss = answer_loss(model, tokenizer, draw.choices(questions, k=TRAINING.warm_up_batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def answer_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[Question]
) -> Tensor:
    """The mean cross entropy, in nats, of the answers' tokens.

    Padding is on the right, where no token looks.
    """
    batch = tokenizer([x.prompt for x in questions], return_tensors="pt", padding=True, padding_side="right")
    last = batch["attention_mask"].sum(1) - 1  # (B,), where the answer is read
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits  # (B, n, V)
    wanted = torch.tensor(tokenizer.convert_tokens_to_ids([x.answer for x in questions]))
    return F.cross_entropy(logits[torch.arange(len(last)), last], wanted)
