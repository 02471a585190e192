"""From prompts to what a causal language model is called with, left-padded and with the right positions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: token ids of one prompt or completion, unpadded
TokenIds = Sequence[int]


def bare_model(model: nn.Module) -> Any:
    """The model inside what ``torch.compile``, data parallelism and PEFT wrapped around it."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module  # type: ignore[assignment]
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()  # type: ignore[operator]
        else:
            return model


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the forward of the bare model has an argument of that name."""
    return argument in inspect.signature(bare_model(model).forward).parameters


def model_device(model: nn.Module) -> torch.device:
    """Where the model takes its input."""
    return next(model.parameters()).device


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Models in eval mode and no gradients; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions counted from each row's first real token; 0 on the padding before it.

    Models with absolute positions, such as GPT-2, count the padding as well unless they are told otherwise.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)  # (B, L)


def forward_arguments(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """Keyword arguments of a forward over a padded batch, with ``position_ids`` if the model takes them."""
    arguments = {"input_ids": input_ids, "attention_mask": attention_mask}
    if accepts(model, "position_ids"):
        arguments["position_ids"] = position_ids(attention_mask)
    return {name: values.to(model_device(model)) for name, values in arguments.items()}


def padded(sequences: Sequence[TokenIds], side: str) -> tuple[Tensor, Tensor]:
    """Token ids as one rectangle, padded with 0, and the mask that is 1 on real tokens; both (B, L) int64."""
    width = max((len(ids) for ids in sequences), default=0)
    tokens = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(sequences):
        columns = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        tokens[row, columns] = torch.tensor(ids, dtype=torch.long)
        mask[row, columns] = 1
    return tokens, mask


def check_prompts(model: nn.Module, prompts: Sequence[TokenIds], new_tokens: int) -> None:
    """Refuse prompts without tokens, and those that leave no room for ``new_tokens`` more.

    Raises:
        ValueError: there is such a prompt, or no prompt at all.
    """
    if not prompts:
        raise ValueError("There are no prompts.")
    room = getattr(bare_model(model).config.get_text_config(), "max_position_embeddings", None)
    for index, ids in enumerate(prompts):
        if not len(ids):
            raise ValueError(f"Prompt {index} has no tokens; begin it with the tokenizer's BOS token.")
        if room is not None and len(ids) + new_tokens > room:
            raise ValueError(
                f"Prompt {index} has {len(ids)} tokens, which with {new_tokens} new ones is more than the "
                f"{room} positions of {type(bare_model(model)).__name__}. Truncate the prompts or lower "
                "max_new_tokens."
            )


def encode_prompts(processing_class: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Token ids of prompts as TRL's trainers make them.

    Args:
        processing_class: a tokenizer, or a processor that holds one.
        prompts: all of them strings, or all of them conversations (lists of messages), to which the chat
            template adds its generation prompt.

    Returns:
        Token ids of each prompt, unpadded.

    Raises:
        ValueError: strings and conversations are mixed, or there are conversations and no chat template.
    """
    if not len(prompts):
        return []
    strings = sum(isinstance(prompt, str) for prompt in prompts)
    if 0 < strings < len(prompts):
        raise ValueError(
            f"{strings} of {len(prompts)} prompts are strings and the others conversations: make them all of "
            "one kind."
        )
    if not strings and getattr(processing_class, "chat_template", "one of its own") is None:
        raise ValueError(
            "The prompts are conversations, but the processing class has no chat template: set its "
            "chat_template (trl.clone_chat_template copies another model's), or pass prompts as strings."
        )
    if strings:
        return processing_class(text=list(prompts))["input_ids"]
    return processing_class.apply_chat_template(
        list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
