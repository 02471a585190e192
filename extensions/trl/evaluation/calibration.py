"""Whether a model that is sure is right: probabilities of given answers, and their calibration error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .inputs import encode_prompts
from .scoring import completion_log_probs


def choice_probabilities(
    model: nn.Module,
    processing_class: Any,
    prompts: Sequence[Any],
    choices: Sequence[str] | Sequence[Sequence[str]],
    *,
    batch_size: int = 16,
) -> Tensor:
    """Probability of each answer to prompts with a choice, among the given ones.

    A choice has the probability of its tokens after the prompt, all of them, and the choices'
    probabilities are divided by their sum. A choice is tokenized by itself: write the space that goes
    before it as part of it.

    Args:
        model: a transformers causal language model.
        processing_class: its tokenizer, or a processor that holds one.
        prompts: N of them, all strings or all conversations (lists of messages).
        choices: C answers, the same for all prompts, or C for each.
        batch_size: pairs of prompt and choice read together.

    Returns:
        (N, C) float64 on the CPU, rows sum to 1.

    Raises:
        ValueError: there are not as many lists of choices as prompts, or as many choices in each, or one
            has no tokens.
    """
    of_each = _for_each(prompts, choices)
    width = len(of_each[0]) if of_each else 0
    if any(len(c) != width for c in of_each):
        raise ValueError("Every prompt must have the same number of choices.")
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    prompt_ids = [ids for ids in encode_prompts(processing_class, prompts) for _ in range(width)]
    texts = [choice for c in of_each for choice in c]
    choice_ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    for text, ids in zip(texts, choice_ids, strict=True):
        if not ids:
            raise ValueError(f"The choice {text!r} has no tokens.")
    log_probs = completion_log_probs(model, prompt_ids, choice_ids, batch_size=batch_size)  # (N C,)
    return log_probs.view(len(prompts), width).softmax(-1)


def _for_each(prompts: Sequence[Any], choices: Sequence[Any]) -> Sequence[Any]:
    """The choices of each prompt."""
    if not len(choices):
        raise ValueError("There are no choices.")
    if isinstance(choices[0], str):
        return [choices] * len(prompts)
    if len(choices) != len(prompts):
        raise ValueError(f"There are {len(prompts)} prompts and {len(choices)} lists of choices.")
    return choices


def expected_calibration_error(
    confidences: Tensor | Sequence[float], correct: Tensor | Sequence[bool], bins: int = 10
) -> float:
    """Expected calibration error: how far confidence is from accuracy, over bins of equal width.

    With B_m the answers whose confidence lies in ((m - 1) / M, m / M], it is the sum over m of
    ``|B_m| / N * |accuracy(B_m) - mean confidence(B_m)|``.

    Args:
        confidences: (N,), the probability that the model gave to the answer it chose, in 0 ... 1.
        correct: (N,), whether that answer is right.
        bins: M.

    Returns:
        The error in 0 ... 1.

    Raises:
        ValueError: no answers, different numbers of them, a confidence outside 0 ... 1, or ``bins`` below 1.
    """
    confidence = torch.as_tensor(confidences, dtype=torch.float64).cpu()
    right = torch.as_tensor(correct).to("cpu", torch.float64)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if confidence.shape != right.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(
            "Confidences and correctness must be two equally long lists, not empty; their shapes are "
            f"{tuple(confidence.shape)} and {tuple(right.shape)}."
        )
    # Probabilities in float32 may sum to a little more than 1.
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():
        raise ValueError("Confidences must be probabilities, in 0 ... 1.")
    inner_edges = torch.arange(1, bins, dtype=torch.float64) / bins
    bin_of = torch.bucketize(confidence, inner_edges)  # (N,)
    # |B_m| / N * |mean of (right - confidence)| is the size of the bin's sum over N.
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, right - confidence)
    return (gaps.abs().sum() / len(confidence)).item()
