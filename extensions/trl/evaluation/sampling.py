"""Samples of a model's own distribution, whatever its generation config says, the random state kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList

from .inputs import TokenIds, bare_model, check_prompts, encode_prompts, evaluating, model_device, padded


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The generators of the CPU and of ``device`` seeded; afterwards they are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Not torch.manual_seed, which would also seed the devices that are not put back.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _generation_config(model: nn.Module, config: GenerationConfig) -> Iterator[None]:
    """The model's generation config replaced for a while.

    Giving one to ``generate`` is not enough: what it leaves unset, such as ``min_p``, comes from the model's.
    """
    owners: list[Any] = [module for module in model.modules() if "generation_config" in vars(module)]
    before = [owner.generation_config for owner in owners]
    try:
        for owner in owners:
            owner.generation_config = config
        yield
    finally:
        for owner, its_own in zip(owners, before, strict=True):
            owner.generation_config = its_own


def eos_ids(model: nn.Module, eos_token_id: int | Sequence[int] | None) -> list[int]:
    """The ids that end an answer: those given, else those of the model's generation config."""
    if eos_token_id is None:
        eos_token_id = bare_model(model).generation_config.eos_token_id
    if eos_token_id is None:
        return []
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)


def until_eos(ids: TokenIds, ends: Sequence[int]) -> list[int]:
    """The tokens up to the first of ``ends``, which is kept."""
    for position, token in enumerate(ids):
        if token in ends:
            return list(ids[: position + 1])
    return list(ids)


def _first(vocab_size: int | None) -> LogitsProcessorList:
    """What rules out all but the first tokens of the vocabulary."""
    if vocab_size is None:
        return LogitsProcessorList()

    def rule_out(input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.where(torch.arange(scores.shape[-1], device=scores.device) < vocab_size, -torch.inf)

    return LogitsProcessorList([rule_out])


def sample_completions(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    max_new_tokens: int,
    *,
    seed: int,
    samples_per_prompt: int = 1,
    temperature: float = 1.0,
    batch_size: int = 16,
    eos_token_id: int | Sequence[int] | None = None,
    vocab_size: int | None = None,
) -> list[list[int]]:
    """Sample completions from the model's full distribution: no top-k, top-p, min-p or penalties.

    The global random state, the train/eval mode and the model's generation config are left as they were.

    Args:
        model: a transformers causal language model.
        prompts: token ids of each prompt, unpadded.
        max_new_tokens: where a completion is cut that has not ended.
        seed: equal seeds and batch sizes give equal samples.
        samples_per_prompt: completions of each prompt.
        temperature: of the softmax; 0 takes the likeliest token each time.
        batch_size: sequences generated together.
        eos_token_id: what ends a completion; by default what the model's generation config says.
        vocab_size: draw from the first ids only, for a vocabulary padded at its end. All by default.

    Returns:
        ``samples_per_prompt`` completions of the first prompt, then of the second, and so on, each with the
        token that ended it.

    Raises:
        ValueError: no prompts, an empty one, or one too long for the model.
    """
    check_prompts(model, prompts, max_new_tokens)
    ends = eos_ids(model, eos_token_id)
    law: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        law = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    # Padding never counts, so that any token of the vocabulary serves.
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=0, use_cache=True, **law
    )
    rows = [ids for ids in prompts for _ in range(samples_per_prompt)]
    device = model_device(model)
    completions: list[list[int]] = []
    with evaluating(model), _seeded(seed, device), _generation_config(model, config):
        for start in range(0, len(rows), batch_size):
            input_ids, mask = padded(rows[start : start + batch_size], "left")
            output: Any = model.generate(  # type: ignore[operator]
                input_ids=input_ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                logits_processor=_first(vocab_size),
            )  # (B, P + T)
            new = output[:, input_ids.shape[1] :].tolist()
            completions += [until_eos(ids, ends) for ids in new]
    return completions


def generate_texts(
    model: nn.Module,
    processing_class: Any,
    prompts: Sequence[Any],
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 16,
) -> list[str]:
    """Answer prompts in text.

    Args:
        model: a transformers causal language model.
        processing_class: its tokenizer, or a processor that holds one.
        prompts: all strings, or all conversations (lists of messages), which take the chat template.
        max_new_tokens: where an answer is cut that has not ended. An answer ends at the EOS token of the
            model's generation config or of the tokenizer.
        seed: equal seeds and batch sizes give equal answers.
        temperature: of the softmax; 0 takes the likeliest token each time.
        batch_size: prompts answered together.

    Returns:
        An answer to each prompt, without special tokens.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    ends = eos_ids(model, None)
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    completions = sample_completions(
        model,
        encode_prompts(processing_class, prompts),
        max_new_tokens,
        seed=seed,
        temperature=temperature,
        batch_size=batch_size,
        eos_token_id=ends,
    )
    return processing_class.batch_decode(completions, skip_special_tokens=True)
