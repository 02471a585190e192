"""Exposure bias: what a student loses by reading its own words instead of the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .estimates import clustered_mean, clustered_ratio
from .inputs import TokenIds
from .sampling import eos_ids, sample_completions
from .scoring import score_completions


@dataclass(frozen=True)
class ExposureBias:
    """Curves over l = 1 ... ``max_new_tokens``, the first at index 0; all (T,) float64.

    ``regret`` and ``teacher_forced`` are in nats, ``excess`` in percent.
    """

    regret: Tensor  #: R(l): sum over the first l positions of E KL(p_t || q_t) at the student's own prefixes
    teacher_forced: Tensor  #: eps(l): the same at the teacher's prefixes
    excess: Tensor  #: ExAccErr(l) = (R(l) - eps(l)) / eps(l) * 100
    regret_se: Tensor
    teacher_forced_se: Tensor
    excess_se: Tensor


def exposure_bias(
    student: nn.Module,
    teacher: nn.Module,
    prompts: Sequence[TokenIds],
    max_new_tokens: int,
    *,
    samples_per_prompt: int = 10,
    seed: int = 0,
    batch_size: int = 16,
    eos_token_id: int | Sequence[int] | None = None,
    vocab_size: int | None = None,
) -> ExposureBias:
    """Measure the excess accumulated error, ExAccErr, of the student against the teacher.

    R(l) sums, over the first l positions, the expectation of log p/q with the prefix from q and the next
    token from p; eps(l) has the prefix from p as well. The expectation over the next token is exact,
    over the vocabulary; only prefixes are sampled. The first position, where both prefixes are the
    prompt, counts, and makes ExAccErr(1) zero; positions after EOS count as zero.

    Args:
        student: q, a transformers causal language model.
        teacher: p, over the same vocabulary.
        prompts: token ids of each prompt, unpadded.
        max_new_tokens: the largest l.
        samples_per_prompt: answers of each model to each prompt.
        seed: of the answers. Both models draw with the same random numbers, which makes their difference less
            noisy; the standard errors allow for it.
        batch_size: sequences generated or read together.
        eos_token_id: what ends an answer of either model; by default what the student's generation
            config says.
        vocab_size: compare the models over the first ids only, for vocabularies padded to different sizes.
            By default these must be of one size.

    Returns:
        The curves with their standard errors over prompts; that of ``excess`` is to first order.
        ``excess`` is NaN while eps is zero, as between equal models.

    Raises:
        ValueError: the vocabularies differ in size, or a prompt is empty or too long.
    """
    ends = eos_ids(student, eos_token_id)
    repeated = [ids for ids in prompts for _ in range(samples_per_prompt)]
    accumulated = []
    for model in (student, teacher):
        completions = sample_completions(
            model,
            prompts,
            max_new_tokens,
            seed=seed,
            samples_per_prompt=samples_per_prompt,
            batch_size=batch_size,
            eos_token_id=ends,
            vocab_size=vocab_size,
        )
        scores = score_completions(
            student, teacher, repeated, completions, batch_size=batch_size, vocab_size=vocab_size
        )
        errors = torch.zeros(len(repeated), max_new_tokens, dtype=torch.float64)
        errors[:, : scores.forward_kl.shape[1]] = scores.forward_kl
        accumulated.append(errors.cumsum(-1).view(len(prompts), samples_per_prompt, -1))  # (P, S, T)
    own, forced = accumulated
    regret, regret_se = clustered_mean(own)
    teacher_forced, teacher_forced_se = clustered_mean(forced)
    ratio, ratio_se = clustered_ratio(own, forced)
    return ExposureBias(
        regret=regret,
        teacher_forced=teacher_forced,
        excess=100 * (ratio - 1),
        regret_se=regret_se,
        teacher_forced_se=teacher_forced_se,
        excess_se=100 * ratio_se,
    )
