"""From prompts to pairs: chosen is the full-precision model's greedy reply, rejected the quantized one's."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn

from ..evaluation import sample_completions
from ..evaluation.inputs import TokenIds, evaluating, padded
from ..evaluation.scoring import completion_logits
from .layers import cached_weights
from .replies import greedy_replies


@dataclass(frozen=True)
class PairCounts:
    """What became of the prompts."""

    prompts: int
    #: prompts to which both models gave the same reply
    identical: int
    #: pairs made of prompts with identical replies
    anchors: int

    @property
    def differing(self) -> int:
        return self.prompts - self.identical


@dataclass(frozen=True)
class Generation:
    """How replies are made."""

    max_new_tokens: int
    batch_size: int
    ends: tuple[int, ...]

    def replies(
        self, model: nn.Module, prompts: Sequence[TokenIds], folder: Path | None, description: str
    ) -> list[list[int]]:
        """Greedy replies of ``model``; see :func:`~.replies.greedy_replies`."""
        return greedy_replies(
            model,
            prompts,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            ends=self.ends,
            folder=folder,
            description=description,
        )


def first_divergence(one: TokenIds, other: TokenIds) -> int | None:
    """The first position at which two replies differ, or one of them has ended; None if identical."""
    for position, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return position
    return None if len(one) == len(other) else min(len(one), len(other))


def pair_rows(
    prompts: Sequence[TokenIds],
    chosen: Sequence[TokenIds],
    rejected: Sequence[TokenIds],
    keep_identical: bool,
) -> Dataset:
    """Rows ``prompt_ids``, ``chosen_ids``, ``rejected_ids``; identical pairs only if they are to be kept."""
    rows = [
        {"prompt_ids": list(x), "chosen_ids": list(w), "rejected_ids": list(y)}
        for x, w, y in zip(prompts, chosen, rejected, strict=True)
        if keep_identical or first_divergence(w, y) is not None
    ]
    return Dataset.from_list(rows)


def anchors(
    policy: nn.Module,
    prompts: Sequence[TokenIds],
    chosen: Sequence[TokenIds],
    generation: Generation,
) -> list[list[int]]:
    """
    Rejected replies for prompts of which the chosen reply is the policy's own.

    The policy takes its second choice where the first was the least certain, and goes on greedily.

    Args:
        policy: the quantized model.
        prompts: token ids.
        chosen: replies that both models give.
        generation: how replies are made.

    Returns:
        A reply to each prompt that differs from the chosen one.
    """
    replies: list[list[int]] = []
    with cached_weights(policy), evaluating(policy):
        for start in range(0, len(prompts), generation.batch_size):
            rows = slice(start, start + generation.batch_size)
            beginnings = _second_choices(policy, prompts[rows], chosen[rows])
            replies += _continued(policy, prompts[rows], beginnings, generation)
    return replies


def _second_choices(
    policy: nn.Module, prompts: Sequence[TokenIds], chosen: Sequence[TokenIds]
) -> list[list[int]]:
    """Replies up to the least certain position, and there the second choice."""
    tokens, mask = padded(chosen, "right")  # (B, T)
    logits = completion_logits(policy, prompts, tokens, mask)  # (B, T, V)
    (best, second), ids = (part.unbind(-1) for part in logits.topk(2, dim=-1))
    margins = (best - second).float().cpu().masked_fill(mask == 0, math.inf)  # (B, T)
    positions = margins.argmin(1).tolist()
    runners_up = ids[1].cpu()
    return [
        [*reply[:position], int(runners_up[row, position])]
        for row, (reply, position) in enumerate(zip(chosen, positions, strict=True))
    ]


def _continued(
    policy: nn.Module,
    prompts: Sequence[TokenIds],
    beginnings: Sequence[TokenIds],
    generation: Generation,
) -> list[list[int]]:
    """Beginnings of replies, carried on until they end or are as long as a reply may be."""
    replies = [list(beginning) for beginning in beginnings]
    open_ended = [
        i
        for i, reply in enumerate(replies)
        if reply[-1] not in generation.ends and len(reply) < generation.max_new_tokens
    ]
    if open_ended:
        shortest = min(len(replies[i]) for i in open_ended)
        continuations = sample_completions(
            policy,
            [[*prompts[i], *replies[i]] for i in open_ended],
            generation.max_new_tokens - shortest,
            seed=0,
            temperature=0.0,
            batch_size=generation.batch_size,
            eos_token_id=list(generation.ends),
        )
        for i, more in zip(open_ended, continuations, strict=True):
            replies[i] = [*replies[i], *more][: generation.max_new_tokens]
    return replies


def swap_half(pairs: Dataset, seed: int) -> Dataset:
    """The replies of a random half of the pairs swapped: labels that say nothing."""
    swapped = set(random.Random(seed).sample(range(len(pairs)), len(pairs) // 2))

    def swap(row: dict[str, Any], index: int) -> dict[str, Any]:
        if index not in swapped:
            return row
        return {**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}

    return pairs.map(swap, with_indices=True, load_from_cache_file=False)


def choose_anchors(identical: Sequence[int], fraction: float, seed: int) -> list[int]:
    """A share of the prompts with identical replies, at random, in their order."""
    count = round(fraction * len(identical))
    return sorted(random.Random(seed).sample(list(identical), count))
