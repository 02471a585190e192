"""
Why a token flips: its own low-bit computation, or the low-bit keys and values of the tokens before it.

At each token of the teacher's reply four combinations say what comes next,

                              cache by the teacher     cache by the policy
    token by the teacher          the truth               cache error
    token by the policy         own-token error             the policy

and a flip of the policy's is put down to what flips the token by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DynamicCache

from ...evaluation import Estimate
from ...evaluation.estimates import ratio_over
from ...evaluation.inputs import (
    TokenIds,
    accepts,
    bare_model,
    check_prompts,
    evaluating,
    model_device,
    padded,
    position_ids,
)
from ..kv_cache import full_precision_kv_cache, kv_bits
from ..token_quantizer import fake_quantize_tokens


@dataclass(frozen=True)
class FlipAttribution:
    """
    What flips tokens of the teacher's replies, standard errors over prompts.

    ``own_token``, ``cache``, ``either`` and ``together`` are shares of the policy's flips and sum to 1 (NaN
    without flips); the rates are shares of all tokens.
    """

    prompts: int
    tokens: int
    flips: int
    own_token: Estimate  #: flipped by the token's own computation and not by the cache
    cache: Estimate  #: flipped by the cache and not by the token's own computation
    either: Estimate  #: flipped by each of them alone
    together: Estimate  #: flipped only by both together
    flip_rate: Estimate  #: of the policy
    own_token_rate: Estimate  #: flipped by the policy on the teacher's cache
    cache_rate: Estimate  #: flipped by the teacher on the policy's cache
    undone_rate: Estimate  #: flipped by one of them, and not by the policy


def flip_attribution(
    policy: nn.Module,
    teacher: nn.Module,
    prompts: Sequence[TokenIds],
    replies: Sequence[TokenIds],
    *,
    batch_size: int = 16,
    vocab_size: int | None = None,
) -> FlipAttribution:
    """
    Walk along the teacher's replies, each model reading the next token on both caches.

    What :func:`~extensions.trl.qdpo.kv_cache.quantize_kv_cache` rounds is the cache's error: the teacher
    reads the policy's cache rounded, and the policy the teacher's as it is.

    Args:
        policy: a transformers causal language model.
        teacher: another of the same architecture and vocabulary.
        prompts: token ids of P prompts, unpadded.
        replies: the teacher's reply to each, with the token that ended it.
        batch_size: replies walked along together, of similar length.
        vocab_size: let the models choose among the first ids only.

    Raises:
        ValueError: a model cannot read the other's cache, or a prompt is empty or too long.
    """
    check_one_cache(policy, teacher)
    for model in (policy, teacher):
        check_prompts(model, prompts, max((len(reply) for reply in replies), default=0))
    by_length = sorted(range(len(replies)), key=lambda i: len(replies[i]))
    batches = [by_length[start : start + batch_size] for start in range(0, len(replies), batch_size)]
    counts = torch.zeros(len(replies), 2, 2, 2, dtype=torch.float64)  # (P, own token, cache, policy)
    with (
        evaluating(policy, teacher),
        tqdm(total=len(replies), desc="flip attribution", leave=False, disable=None) as bar,
    ):
        for rows in batches:
            counts[rows] = _walk(
                policy, teacher, [prompts[i] for i in rows], [replies[i] for i in rows], vocab_size
            )
            bar.update(len(rows))

    tokens, flips = counts.sum((1, 2, 3)), counts[..., 1].sum((1, 2))  # (P,)
    return FlipAttribution(
        prompts=len(replies),
        tokens=int(tokens.sum()),
        flips=int(flips.sum()),
        own_token=ratio_over(counts[:, 1, 0, 1], flips),
        cache=ratio_over(counts[:, 0, 1, 1], flips),
        either=ratio_over(counts[:, 1, 1, 1], flips),
        together=ratio_over(counts[:, 0, 0, 1], flips),
        flip_rate=ratio_over(flips, tokens),
        own_token_rate=ratio_over(counts[:, 1].sum((1, 2)), tokens),
        cache_rate=ratio_over(counts[:, :, 1].sum((1, 2)), tokens),
        undone_rate=ratio_over(counts[..., 0].sum((1, 2)) - counts[:, 0, 0, 0], tokens),
    )


def check_one_cache(policy: nn.Module, teacher: nn.Module) -> None:
    """
    Refuse models of which one cannot read the other's keys and values.

    Raises:
        ValueError: these have different shapes.
    """
    shapes = [_cache_shape(model) for model in (policy, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "Flips are attributed by letting each model read the other's keys and values, which have "
            "different shapes (layers, heads, width): {} in the policy and {} in the teacher. Leave the "
            "attribution out of a report card with attribution_prompts=0.".format(*shapes)
        )


def _cache_shape(model: nn.Module) -> tuple[int, int, int]:
    config = bare_model(model).config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, width


def _walk(
    policy: nn.Module,
    teacher: nn.Module,
    prompts: Sequence[TokenIds],
    replies: Sequence[TokenIds],
    vocab_size: int | None,
) -> Tensor:
    """How often each combination of flips comes in each reply, (B, own token, cache, policy)."""
    prompt_ids, prompt_mask = padded(prompts, "left")  # (B, L)
    reply_ids, counted = padded(replies, "right")  # (B, T)
    tokens, mask = torch.cat([prompt_ids, reply_ids], 1), torch.cat([prompt_mask, counted], 1)

    def read(model: nn.Module, cache: DynamicCache, start: int, stop: int) -> Tensor:
        """The likeliest token after those in between, (B,); the cache, of those before, takes them in."""
        arguments: dict[str, Any] = {"input_ids": tokens[:, start:stop], "attention_mask": mask[:, :stop]}
        if accepts(model, "position_ids"):
            arguments["position_ids"] = position_ids(mask)[:, start:stop]
        arguments = {name: values.to(model_device(model)) for name, values in arguments.items()}
        if accepts(model, "logits_to_keep"):
            arguments["logits_to_keep"] = 1
        logits = model(**arguments, past_key_values=cache, use_cache=True).logits
        return logits[:, -1, :vocab_size].argmax(-1).cpu()

    low_bit, full = (DynamicCache(config=bare_model(model).config) for model in (policy, teacher))
    last = prompt_ids.shape[1] - 1  # the prompt's last token is the first that is read on two caches
    if last > 0:
        read(policy, low_bit, 0, last)
        read(teacher, full, 0, last)

    counts = torch.zeros(len(replies), 2, 2, 2, dtype=torch.float64)
    row = torch.arange(len(replies))
    bits = kv_bits(policy)
    for step in range(reply_ids.shape[1]):
        at = (last + step, last + step + 1)
        with full_precision_kv_cache(policy) if bits else nullcontext():
            own_token = read(policy, _copy(full, low_bit), *at)
        cache = read(teacher, _copy(low_bit, full, bits), *at)
        both = read(policy, low_bit, *at)
        truth = read(teacher, full, *at)
        flips = [(said != truth).long() for said in (own_token, cache, both)]
        counts[row, *flips] += counted[:, step]
    return counts


def _copy(cache: DynamicCache, reader: DynamicCache, bits: int | None = None) -> DynamicCache:
    """
    A copy of a cache, in the type and on the device of the cache of the model that is to read it; rounded to
    ``bits``, if its own model reads it rounded.
    """
    copied = copy.deepcopy(cache)
    layers: Any = zip(copied.layers, reader.layers, strict=True)
    for layer, like in layers:
        if getattr(like, "keys", None) is not None:
            layer.keys, layer.values = (
                (states if bits is None else fake_quantize_tokens(states, bits)).to(likewise)
                for states, likewise in ((layer.keys, like.keys), (layer.values, like.values))
            )
    return copied
