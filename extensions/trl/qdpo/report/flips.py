"""Flipped tokens: where the policy, at a prefix of the teacher's reply, would not go on as the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...evaluation import Estimate
from ...evaluation.estimates import ratio_over
from ...evaluation.inputs import TokenIds
from ...evaluation.scoring import compare_logits, expectation, log_softmax

#: edges of the bins of the teacher's margin, in nats
MARGINS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf)
TOP_K = (1, 2, 5, 10)


@dataclass(frozen=True)
class MarginBin:
    """Tokens at which the teacher's margin is in ``low`` (in the bin) ... ``high`` (outside), in nats."""

    low: float
    high: float
    tokens: int
    flips: int
    rate: Estimate  #: flips of its tokens; NaN if it has none


@dataclass(frozen=True)
class FlipRates:
    """
    What the policy says at each token of given replies of the teacher. Shares are of tokens, 0 ... 1, and
    their standard errors over prompts.
    """

    tokens: int
    flips: int
    rate: Estimate  #: share of tokens at which the two models' likeliest tokens differ
    by_margin: list[MarginBin]
    #: share of tokens at which the teacher's likeliest token is among the policy's k likeliest
    top_k_agreement: dict[int, Estimate]
    forward_kl_per_token: Estimate  #: KL(teacher || policy) in nats, at the prefixes of these replies


def teacher_forced_flips(
    policy: nn.Module,
    teacher: nn.Module,
    prompts: Sequence[TokenIds],
    replies: Sequence[TokenIds],
    *,
    batch_size: int = 16,
    vocab_size: int | None = None,
) -> FlipRates:
    """
    Read the teacher's replies with both models and compare what they would say next.

    The margin is the gap between the teacher's two largest logits: how much the policy's error must be to
    flip the token. Among equal logits the first counts as the largest, in both models.

    Args:
        policy: a transformers causal language model.
        teacher: another over the same vocabulary.
        prompts: token ids of P prompts, unpadded.
        replies: the teacher's reply to each, with the token that ended it.
        batch_size: sequences read together; fewer of long ones over a large vocabulary.
        vocab_size: compare over the first ids only, for vocabularies padded to different sizes.

    Raises:
        ValueError: the vocabularies differ in size, or a prompt is empty or too long.
    """
    (margin, rank, kl), mask = compare_logits(
        policy, teacher, prompts, replies, _measure, 3, batch_size=batch_size, vocab_size=vocab_size
    )  # (P, T) each
    flipped = rank.gt(0).double()  # rank is 0 where a reply has ended
    lengths = mask.sum(-1)

    def rate(events: Tensor, among: Tensor) -> Estimate:
        return ratio_over((events * among).sum(-1), among.sum(-1))

    bins = []
    for low, high in pairwise(MARGINS):
        inside = mask * ((margin >= low) & (margin < high))
        tokens, flips = int(inside.sum()), int((flipped * inside).sum())
        bins.append(MarginBin(low, high, tokens, flips, rate(flipped, inside)))
    return FlipRates(
        tokens=int(lengths.sum()),
        flips=int(flipped.sum()),
        rate=rate(flipped, mask),
        by_margin=bins,
        top_k_agreement={k: rate((rank < k).double(), mask) for k in TOP_K},
        forward_kl_per_token=rate(kl, mask),
    )


def _measure(q_logits: Tensor, p_logits: Tensor, _: Tensor) -> list[Tensor]:
    """
    From the policy's logits q and the teacher's p (n, V): the margin of p, the rank in q of what is likeliest
    in p, from 0, and KL(p || q).
    """
    log_q, log_p = log_softmax(q_logits), log_softmax(p_logits)  # (n, V)
    largest = log_p.topk(2, -1).values  # (n, 2)
    likeliest = p_logits.argmax(-1, keepdim=True)  # (n, 1), the first of equals
    its_logit = q_logits.gather(-1, likeliest)
    first_of_equals = torch.arange(q_logits.shape[-1], device=q_logits.device) < likeliest  # (n, V)
    before = (q_logits > its_logit) | ((q_logits == its_logit) & first_of_equals)
    return [
        largest[:, 0] - largest[:, 1],
        before.sum(-1),
        expectation(log_p.exp(), log_p - log_q),
    ]
