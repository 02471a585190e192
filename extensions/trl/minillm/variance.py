"""How noisy MiniLLM's gradient is, by estimator, on the user's own models and prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from .. import _host
from ..divergence import tiled_divergences
from .gradient_noise import GradientReport, gradient_noise
from .objective import (
    Objective,
    Scores,
    advantages,
    effective_sample_size,
    prefix_weights,
    score,
    token_losses,
    token_weights,
)
from .rollouts import on_grid
from .sampling import sample_mixture

_PLAIN = Objective(length_normalization=False, epsilon=None)

#: What is compared if nothing else is named. All but the last two have the same mean where alpha = 0.
ESTIMATORS: dict[str, Objective] = {
    "policy gradient": replace(_PLAIN, single_step=False, returns="inclusive"),
    "policy gradient, leave-one-out": replace(
        _PLAIN, single_step=False, returns="inclusive", baseline="leave_one_out"
    ),
    "single step + long term": _PLAIN,
    "single step + long term, leave-one-out": replace(_PLAIN, baseline="leave_one_out"),
    "equation 7": Objective(epsilon=None),
    "single step alone": replace(_PLAIN, long_term=False),
}


def gradient_variance(
    student: nn.Module,
    teacher: nn.Module,
    prompt_ids: Sequence[Tensor | Sequence[int]],
    estimators: Mapping[str, Objective] = ESTIMATORS,
    *,
    max_new_tokens: int,
    eos_token_ids: list[int],
    pad_token_id: int,
    num_rollouts: int = 16,
    alpha: float = 0.2,
    temperature: float = 1.0,
    parameters: Sequence[str] | None = None,
    chunk_size: int = 8,
    vocab_size: int | None = None,
) -> GradientReport:
    """
    Draw answers once, and measure on them the noise of each estimator's gradient.

    The gradient is looked at through a probe, since that of all parameters is too large to keep for each
    answer. By default the probe is a vector added to whatever the LM head reads (the bias of the last norm,
    where it has one): it costs one backward through the head alone, and tells positions apart. ``parameters``
    probes named ones instead, by a backward through the model for each answer and estimator.

    Baselines and whitening are over all P times M answers, as over a batch of them in training. Tokens are
    drawn by the mixture of both models' probabilities: answers drawn by shared coins depend on each other.

    Args:
        student, teacher: causal language models of transformers, with the same tokens. Left as they were.
        prompt_ids: P prompts, (L,) each, of tokens (``tokenizer(text).input_ids``), without padding.
        estimators: names and objectives.
        max_new_tokens: T, the longest answer.
        eos_token_ids, pad_token_id: what ends an answer, and stands after it.
        num_rollouts: M answers to each prompt, at least 2.
        alpha: the teacher's share in the mixture that answers are drawn from, in [0, 1).
        temperature: divides the logits of both models.
        parameters: names of the student's parameters. The gradients of all answers are kept for each
            estimator in turn: P x M numbers for each number in these.
        chunk_size: answers run at once.
        vocab_size: look at the first tokens only, for models whose vocabularies are padded to different
            sizes. By default the models' vocabularies must be equal.

    Raises:
        TypeError: prompts are strings.
        ValueError: no prompts, no such parameters, fewer than two answers to a prompt, or what
            :func:`~extensions.trl.minillm.sampling.sample_mixture` refuses.
    """
    if any(isinstance(ids, str) for ids in (prompt_ids, *prompt_ids)):
        raise TypeError(
            "prompt_ids must be token ids, got strings: [tokenizer(text).input_ids for text in prompts]."
        )
    if not prompt_ids:
        raise ValueError("prompt_ids has no prompts.")
    if num_rollouts < 2:
        raise ValueError(f"num_rollouts must be at least 2 to tell a variance, got {num_rollouts}.")
    if not 0.0 <= alpha < 1.0:
        raise ValueError(f"alpha must be in [0, 1), got {alpha}: at 1 the student would write nothing.")
    probes: list[Tensor] = _named(student, parameters)
    device = next(student.parameters()).device
    prompts = [torch.as_tensor(ids, dtype=torch.int64, device=device) for ids in prompt_ids]
    with _frozen_in_eval_mode(student, teacher):
        batches = []
        for prompt in prompts:
            ids = prompt.expand(num_rollouts, -1)
            answers = sample_mixture(
                student,
                teacher,
                ids,
                torch.ones_like(ids),
                alpha=alpha,
                max_new_tokens=max_new_tokens,
                eos_token_ids=eos_token_ids,
                pad_token_id=pad_token_id,
                temperature=temperature,
                method="mixture",
                vocab_size=vocab_size,
            )
            whole = answers.new_full((num_rollouts, max_new_tokens), pad_token_id)
            whole[:, : answers.shape[1]] = answers
            batches += [(prompt, part) for part in whole.split(1 if probes else chunk_size)]
        answers = torch.cat([part for _, part in batches])  # (P M, T)
        mask = _up_to_the_end(answers, eos_token_ids)
        scores = _scores(student, teacher, batches, mask, temperature, alpha, vocab_size)
        gains = {name: advantages(objective, scores) for name, objective in estimators.items()}
        gradients: dict[str, list[Tensor]] = {name: [] for name in estimators}
        for parameter in probes:
            parameter.requires_grad_()
        start = 0
        for prompt, part in batches:
            rows = slice(start, start + len(part))
            start += len(part)
            here = Scores(*(x[rows] for x in vars(scores).values()))
            reverse_kl, said, _, shift = _read(
                student, teacher, prompt, part, here.mask, temperature, not probes, vocab_size
            )
            for name, objective in estimators.items():
                single, long, _ = token_losses(
                    objective, reverse_kl=reverse_kl, log_q=said, scores=here, advantages=gains[name][rows]
                )
                loss = (single + long).masked_fill(here.mask == 0, 0.0).sum()
                found = torch.autograd.grad(loss, probes or [shift], retain_graph=True)
                kept = torch.cat([g.flatten() for g in found])[None] if probes else found[0]
                gradients[name].append(kept.cpu())
    noise = {}
    for name, objective in estimators.items():
        each = torch.cat(gradients[name]).unflatten(0, (len(prompts), num_rollouts))  # (P, M, [T,] D)
        row = gradient_noise(each if probes else each.sum(2), _ess(objective, scores))
        if not probes:
            row = replace(row, by_position=tuple(each.double().var(1).sum(-1).mean(0).tolist()))
        noise[name] = row
    return GradientReport(noise, len(prompts), num_rollouts)


def _named(student: nn.Module, names: Sequence[str] | None) -> list[Tensor]:
    there = dict(student.named_parameters())
    missing = [name for name in names or () if name not in there]
    if missing or (names is not None and not names):
        raise ValueError(
            f"parameters must name parameters of the student, and {missing or 'an empty list'} does not. It "
            f"has {', '.join(list(there)[-5:])} and {max(len(there) - 5, 0)} more."
        )
    return [there[name] for name in names or ()]


@contextmanager
def _frozen_in_eval_mode(*models: nn.Module) -> Iterator[None]:
    """Neither dropout nor gradients, and all as before afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    wanted = [(p, p.requires_grad) for model in models for p in model.parameters()]
    try:
        for model in models:
            model.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, grad in wanted:
            parameter.requires_grad_(grad)


def _up_to_the_end(answers: Tensor, eos_token_ids: list[int]) -> Tensor:
    """1 up to the first token that ends an answer, that token included. (B, T)."""
    ended = torch.isin(answers, torch.tensor(eos_token_ids, device=answers.device)).long()
    return (ended.cumsum(1) - ended == 0).long()


@torch.no_grad()
def _scores(
    student: nn.Module,
    teacher: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    mask: Tensor,
    temperature: float,
    alpha: float,
    vocab_size: int | None,
) -> Scores:
    columns = []
    for (prompt, part), here in zip(batches, mask.split([len(part) for _, part in batches]), strict=True):
        read = _read(student, teacher, prompt, part, here, temperature, False, vocab_size)
        columns.append(read[1:3])
    log_q, log_p = (torch.cat(column) for column in zip(*columns, strict=True))
    return score(log_q, log_p, mask, alpha)


def _read(
    student: nn.Module,
    teacher: nn.Module,
    prompt: Tensor,
    answers: Tensor,
    mask: Tensor,
    temperature: float,
    probe_head: bool,
    vocab_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    KL(q || p), log q and log p of the answers, 0 off the mask, (B, T) each; and what was added to the states
    that the student's head reads, (B, T, D), for its gradient if ``probe_head``.
    """
    ids = torch.cat([prompt.expand(len(answers), -1), answers], 1)
    with torch.no_grad():
        wanted = _states(teacher, ids, answers)
    hidden = _states(student, ids, answers)
    shift = torch.zeros_like(hidden, requires_grad=probe_head)
    kept = mask != 0
    found = tiled_divergences(
        (hidden + shift)[kept],
        _host.head_of(student, hidden.dtype, vocab_size),
        wanted[kept],
        _host.head_of(teacher, wanted.dtype, vocab_size),
        answers[kept],
        temperature,
    )
    return on_grid(found.reverse_kl, kept), on_grid(found.log_q, kept), on_grid(found.log_p, kept), shift


def _states(model: nn.Module, ids: Tensor, answers: Tensor) -> Tensor:
    """Last hidden states where each token of the answers is predicted, (B, T, D)."""
    return _host.last_hidden_state(model, ids, torch.ones_like(ids))[:, -answers.size(1) - 1 : -1]


def _ess(objective: Objective, scores: Scores) -> float:
    """Effective sample size of the weights over their number."""
    if objective.importance == "none":
        return 1.0
    if objective.importance == "token":
        weights = token_weights(scores.old_log_q, scores)[scores.mask != 0]
    else:
        weights = prefix_weights(scores.old_log_q, scores, objective.importance_cap)[:, -1]
    return effective_sample_size(weights.log()).item() / weights.numel()
