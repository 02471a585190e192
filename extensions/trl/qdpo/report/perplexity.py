"""Perplexity of given texts, which hardly shows what quantization does to a conversation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...evaluation import Estimate, completion_log_probs
from ...evaluation.estimates import ratio_over
from ...evaluation.inputs import bare_model

TEXT_TOKENS = 2048  # of a text, what is after them is not read


@dataclass(frozen=True)
class Perplexity:
    """Of texts under both models, standard errors over texts."""

    texts: int  #: of two tokens or more
    tokens: int  #: predicted; the first token of a text is not
    policy: Estimate
    teacher: Estimate
    increase: Estimate  #: of the loss, the policy's less the teacher's on the same tokens, in nats per token


def perplexity(
    policy: nn.Module,
    teacher: nn.Module,
    processing_class: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 16,
) -> Perplexity:
    """
    Perplexity of each model: exp of its loss per token.

    Args:
        policy: a transformers causal language model.
        teacher: another.
        processing_class: the tokenizer of both, or a processor that holds one.
        texts: each is read by itself, up to 2,048 tokens or to the models' last position. Those of one token,
            which has nothing before it, are left out.
        batch_size: texts read together; fewer of long ones over a large vocabulary.

    Raises:
        ValueError: there is no text of two tokens.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    most = min(_positions(policy), _positions(teacher), TEXT_TOKENS)
    read = tokenizer(list(texts))["input_ids"] if len(texts) else []
    ids = [tokens[:most] for tokens in read if len(tokens) > 1]
    if not ids:
        raise ValueError(
            "There is no text of two tokens or more to take the perplexity of: pass texts=None to do without."
        )
    first, rest = [tokens[:1] for tokens in ids], [tokens[1:] for tokens in ids]
    loss, teacher_loss = (
        -completion_log_probs(model, first, rest, batch_size=batch_size) for model in (policy, teacher)
    )  # (N,)
    lengths = torch.tensor([len(tokens) for tokens in rest]).double()
    return Perplexity(
        texts=len(ids),
        tokens=int(lengths.sum()),
        policy=_exp(ratio_over(loss, lengths)),
        teacher=_exp(ratio_over(teacher_loss, lengths)),
        increase=ratio_over(loss - teacher_loss, lengths),
    )


def _positions(model: nn.Module) -> int:
    """How long a text the model can read."""
    return getattr(bare_model(model).config.get_text_config(), "max_position_embeddings", None) or TEXT_TOKENS


def _exp(estimate: Estimate) -> Estimate:
    """Of an estimate, with its error to first order."""
    value = math.exp(estimate.value)
    return Estimate(value, value * estimate.standard_error)
