"""Where the replies of both models to the same prompts part, and whether the teacher's is the likelier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ...evaluation import Estimate, completion_log_probs
from ...evaluation.estimates import mean_over
from ...evaluation.inputs import TokenIds
from ..pairs import first_divergence


@dataclass(frozen=True)
class ReplyAgreement:
    """
    How far greedy replies to P prompts agree, token by token. Shares are in 0 ... 1, lengths in tokens with
    the one that ends a reply.
    """

    pairs: int
    diverging: int  #: pairs that are not identical
    identical: Estimate  #: share of identical pairs
    agreed_tokens: Estimate  #: tokens before the first that differs; of an identical pair, all
    #: share of pairs whose first k tokens agree, of a reply that is shorter, all
    prefix_agreement: dict[int, Estimate]
    policy_length: Estimate
    teacher_length: Estimate
    #: pairs by the position of the first token that differs, from 0
    divergence_histogram: list[int]
    #: that position of each pair, None for an identical one
    first_divergence: list[int | None] = field(repr=False)


def compare_replies(
    policy_replies: Sequence[TokenIds], teacher_replies: Sequence[TokenIds], max_new_tokens: int
) -> ReplyAgreement:
    """Compare replies of at most ``max_new_tokens`` to the same prompts."""
    parted = [first_divergence(*pair) for pair in zip(policy_replies, teacher_replies, strict=True)]
    identical = torch.tensor([at is None for at in parted]).double()  # (P,)
    lengths, teacher_lengths = (
        torch.tensor([len(reply) for reply in replies]).double()
        for replies in (policy_replies, teacher_replies)
    )
    # An identical pair agrees up to its end, and would agree after it.
    agreed = torch.tensor([max_new_tokens if at is None else at for at in parted])
    histogram = torch.bincount(agreed[identical == 0], minlength=max_new_tokens)
    return ReplyAgreement(
        pairs=len(parted),
        diverging=int((identical == 0).sum()),
        identical=mean_over(identical),
        agreed_tokens=mean_over(torch.minimum(agreed.double(), teacher_lengths)),
        prefix_agreement={k: mean_over((agreed >= k).double()) for k in _powers_of_two(max_new_tokens)},
        policy_length=mean_over(lengths),
        teacher_length=mean_over(teacher_lengths),
        divergence_histogram=histogram.tolist(),
        first_divergence=parted,
    )


def label_violations(
    teacher: nn.Module,
    prompts: Sequence[TokenIds],
    policy_replies: Sequence[TokenIds],
    teacher_replies: Sequence[TokenIds],
    *,
    batch_size: int = 16,
) -> Estimate:
    """
    Share of diverging pairs whose full-precision reply is less likely than the other under its own model.

    QDPO prefers the full-precision reply without asking. Its first differing token is indeed the likelier
    one, but a greedy reply as a whole need not be.

    Returns:
        The share, in 0 ... 1; NaN if no pair diverges.
    """
    pairs = zip(policy_replies, teacher_replies, strict=True)
    rows = [i for i, pair in enumerate(pairs) if first_divergence(*pair) is not None]
    asked = [prompts[i] for i in rows]
    chosen, rejected = (
        completion_log_probs(teacher, asked, [replies[i] for i in rows], batch_size=batch_size)
        for replies in (teacher_replies, policy_replies)
    )  # (D,)
    return mean_over((chosen < rejected).double())


def _powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``, which comes last."""
    below = [2**i for i in range(most.bit_length()) if 2**i < most]
    return [*below, most]
