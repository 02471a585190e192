"""
MiniLLM's objective as pure functions of per-token numbers.

The student q answers prompts by itself (or mixed with its teacher p) and minimises KL(q || p), Gu et al.
2024, "MiniLLM" (arXiv 2306.08543). With r_t = log p(y_t) - log q(y_t), its gradient is the sum of two parts
(eq. 3):

    single step   the gradient of KL(q_t || p_t) at each visited prefix, exact over the vocabulary
    long term     -R_{t+1} grad log q(y_t), where R_{t+1} is the sum of the rewards r after position t

Tensors are (B, T): B answers of at most T tokens. A mask is 1 on tokens the student wrote, its end of
sequence included, and 0 on padding and on what tools returned. Everything is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .switches import Objective


@dataclass(frozen=True)
class Scores:
    """
    What was known of the answers when they were drawn; no gradient flows through it. All (B, T).

    Args:
        old_log_q: log-probability of each token under the student that drew it.
        log_p: under the teacher.
        log_mix: under the mixture it was drawn from, :func:`mixture_log_prob`.
        mask: 1 on tokens that count.
    """

    old_log_q: Tensor
    log_p: Tensor
    log_mix: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Coins:
    """
    Which answers shared the coins that decided between teacher and student, and so depend on each other.

    Args:
        group: (B,) int64, the number from 0 of the coins each answer was drawn by.
        reduce: sums a tensor (T, groups) over the processes that flipped the same coins; as it is if each
            process has its own.
    """

    group: Tensor
    reduce: Callable[[Tensor], Tensor]

    def per_group(self, values: Tensor) -> Tensor:
        """For each answer the sum of ``values`` (B, T) over the answers of its group, (B, T)."""
        member = torch.nn.functional.one_hot(self.group).to(values.dtype)  # (B, groups)
        return self.reduce(values.t() @ member).t()[self.group]


def score(log_q: Tensor, log_p: Tensor, mask: Tensor, alpha: float) -> Scores:
    """Scores of answers drawn from ``alpha p + (1 - alpha) q``, off the mask 0. Detached, all (B, T)."""
    log_q, log_p = log_q.detach(), log_p.detach()
    keep = mask != 0
    log_q, log_p = log_q.masked_fill(~keep, 0.0), log_p.masked_fill(~keep, 0.0)
    return Scores(log_q, log_p, mixture_log_prob(log_q, log_p, alpha), keep.to(log_q.dtype))


def mixture_log_prob(log_q: Tensor, log_p: Tensor, alpha: float) -> Tensor:
    """log(alpha p + (1 - alpha) q), the law of one token under teacher-mixed sampling (eq. 4)."""
    if alpha == 0.0:
        return log_q
    if alpha == 1.0:
        return log_p
    return torch.logaddexp(log_p + math.log(alpha), log_q + math.log1p(-alpha))


def alone(total: Tensor) -> Tensor:
    """The sum over all processes, where there is one."""
    return total


def advantages(
    objective: Objective,
    scores: Scores,
    reduce: Callable[[Tensor], Tensor] = alone,
    coins: Coins | None = None,
) -> Tensor:
    """
    What the policy gradient multiplies grad log q(y_t) by, (B, T), 0 off the mask.

    Args:
        objective: which returns, normalisation, baseline and whitening.
        scores: of the answers.
        reduce: sums a tensor over all processes, for baselines and whitening over the whole batch. It gets
            scalars and tensors of shape (T,).
        coins: of answers that were drawn together; ``None`` if all are independent.
    """
    mask = scores.mask  # (B, T)
    rewards = (scores.log_p - scores.old_log_q) * objective.reward_scale
    if objective.reward_clip is not None:
        rewards = rewards.clamp(-objective.reward_clip, objective.reward_clip)
    if objective.importance == "prefix":
        # Later rewards were drawn from the mixture too: each gets the product of the ratios up to itself.
        weights = prefix_weights(scores.old_log_q, scores, objective.importance_cap)
    else:
        weights = torch.ones_like(mask)
    returns = rewards_to_go(weights * rewards * mask, objective.gamma, objective.returns)
    if objective.length_normalization:
        returns = returns / tokens_to_come(mask, objective.returns)
    # The weight makes the baseline's mean zero under the mixture: E[W_t grad log q(y_t)] = 0.
    values = returns - weights * baseline(objective.baseline, returns, mask, reduce, coins)
    return whiten(objective.whiten, values * mask, mask, reduce) * mask


def rewards_to_go(rewards: Tensor, gamma: float, returns: str = "exclusive") -> Tensor:
    """
    Discounted sum (B, T) of the rewards after t (``"exclusive"``, R_{t+1}) or from t on (``"inclusive"``,
    R_t).

    The recursion runs from the end, so no power of gamma is divided by and long answers stay finite.
    """
    total = torch.zeros_like(rewards[:, 0])
    columns = []
    for t in range(rewards.size(1) - 1, -1, -1):
        if returns == "inclusive":
            total = rewards[:, t] + gamma * total
            columns.append(total)
        else:
            columns.append(total)
            total = rewards[:, t] + gamma * total
    return torch.stack(columns[::-1], dim=1)


def tokens_to_come(mask: Tensor, returns: str = "exclusive") -> Tensor:
    """
    What eq. 6 divides the returns at t by, (B, T), at least 1.

    For exclusive returns it is the paper's T - t - 1, one less than the T - t rewards after t (t from 1); for
    inclusive ones it is the number of rewards from t on.
    """
    from_here = mask.flip(1).cumsum(1).flip(1)  # (B, T): how many tokens from t on count
    count = from_here if returns == "inclusive" else from_here - mask - 1
    return count.clamp(min=1.0)


def baseline(
    kind: str,
    returns: Tensor,
    mask: Tensor,
    reduce: Callable[[Tensor], Tensor] = alone,
    coins: Coins | None = None,
) -> Tensor:
    """
    Mean return at each position, over all answers that reach it or over those independent of this one.

    (B, T), 0 where there is none; or a scalar 0.
    """
    if kind == "none":
        return returns.new_zeros(())
    total, count = reduce((returns * mask).sum(0)), reduce(mask.sum(0))  # (T,)
    if kind == "position":
        return (total / count.clamp(min=1.0)).expand_as(returns)
    own = (lambda values: values) if coins is None else coins.per_group
    others = count - own(mask)  # (B, T)
    return torch.where(others > 0.5, (total - own(returns * mask)) / others.clamp(min=1.0), 0.0)


def whiten(kind: str, values: Tensor, mask: Tensor, reduce: Callable[[Tensor], Tensor] = alone) -> Tensor:
    """Values to mean 0 and variance 1 over what counts: tokens on the mask, or padding as well. (B, T)."""
    if kind == "none":
        return values
    counts = mask if kind == "masked" else torch.ones_like(mask)
    count = reduce(counts.sum()).clamp(min=1.0)
    mean = reduce((values * counts).sum()) / count
    variance = reduce((counts * (values - mean) ** 2).sum()) / count
    return (values - mean) * torch.rsqrt(variance + 1e-8)


def token_weights(log_q: Tensor, scores: Scores) -> Tensor:
    """w_t = q(y_t) / p~(y_t) (eq. 5), (B, T); at most 1 / (1 - alpha) where q drew the answer."""
    return (log_q - scores.log_mix).exp()


def prefix_weights(log_q: Tensor, scores: Scores, cap: float | None = None) -> Tensor:
    """Product of the ratios q / p~ of the tokens up to t, (B, T), at most ``cap``."""
    weights = ((log_q - scores.log_mix) * scores.mask).cumsum(1).exp()
    return weights if cap is None else weights.clamp(max=cap)


def single_step_weights(objective: Objective, log_q: Tensor, scores: Scores) -> Tensor:
    """
    What KL(q_t || p_t) is multiplied by, (B, T): eq. 7's w_t, or the product of the ratios *before* t.

    KL_t is an exact sum over y_t, so only the prefix needs a weight; the paper takes w_t for it all the same.
    """
    if not objective.weight_single_step or objective.importance == "none":
        return torch.ones_like(log_q)
    if objective.importance == "token":
        return token_weights(log_q, scores)
    up_to = prefix_weights(log_q, scores)  # (B, T)
    before = torch.cat([torch.ones_like(up_to[:, :1]), up_to[:, :-1]], dim=1)
    return before if objective.importance_cap is None else before.clamp(max=objective.importance_cap)


def policy_gradient(
    objective: Objective, log_q: Tensor, scores: Scores, advantages: Tensor
) -> tuple[Tensor, Tensor]:
    """
    The long-term part: a loss whose gradient is -w_t A_t grad log q(y_t) where the clip is off.

    Returns:
        the loss at each token (B, T), not masked, and where the clip has stopped the gradient (B, T, bool).
    """
    # what the ratio is measured against
    behaviour = scores.log_mix if objective.importance == "token" else scores.old_log_q
    if objective.clip == "policy":
        weight = (scores.old_log_q - behaviour).exp()
        ratio = (log_q - scores.old_log_q).exp()
    else:
        weight = torch.ones_like(log_q)
        ratio = (log_q - behaviour).exp()
    gain = ratio * advantages
    if objective.epsilon is None:
        return -weight * gain, torch.zeros_like(gain, dtype=torch.bool)
    clipped = ratio.clamp(1.0 - objective.epsilon, 1.0 + objective.epsilon)
    if objective.clip == "paper":
        stopped = ratio > clipped
        gain = torch.minimum(ratio, clipped) * advantages
    else:
        stopped = clipped * advantages < gain
        gain = torch.minimum(gain, clipped * advantages)
    return -weight * gain, stopped


def token_losses(
    objective: Objective,
    *,
    reverse_kl: Tensor,
    log_q: Tensor,
    scores: Scores | None,
    advantages: Tensor | None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """
    Both parts of the loss at every token; their sum over t has MiniLLM's gradient for one answer.

    Args:
        objective: what to add up.
        reverse_kl: KL(q_t || p_t) at each prefix, with gradient, (B, T).
        log_q: log q(y_t) of the present student, with gradient, (B, T).
        scores, advantages: of these answers; may be ``None`` if ``objective.needs_scores`` is false.

    Returns:
        the single-step loss and the long-term loss, each (B, T) (not masked; zero if switched off), and what
        was measured on the way: ``weights`` (B, T) and ``clipped`` (B, T).
    """
    zeros = torch.zeros_like(log_q)
    measured = {"weights": torch.ones_like(zeros), "clipped": zeros}
    single, long = zeros, zeros
    if scores is not None:
        measured["weights"] = single_step_weights(objective, log_q.detach(), scores)
    if objective.single_step:
        single = measured["weights"] * reverse_kl
    if objective.long_term:
        if scores is None or advantages is None:
            raise ValueError("The long-term part needs the answers' scores and advantages.")
        long, stopped = policy_gradient(objective, log_q, scores, advantages)
        measured["clipped"] = stopped.to(log_q.dtype)
    return single, long, measured


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum of w)^2 / sum of w^2 over all elements: how many equally weighted samples they are worth."""
    log_weights = log_weights.flatten()
    return (2.0 * log_weights.logsumexp(0) - (2.0 * log_weights).logsumexp(0)).exp()
