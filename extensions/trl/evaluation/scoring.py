"""Completions read by one model or two: probabilities of their tokens and divergences at each prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from .inputs import TokenIds, accepts, bare_model, check_prompts, evaluating, forward_arguments, padded

#: logits that are normalised at a time, so that no second copy of a batch's logits is made
SLICE = 1 << 22
#: logits of a batch, of which a model makes no more at a time unless one completion has more
LOGITS = 1 << 26


@dataclass(frozen=True)
class TokenScores:
    """What student q and teacher p say at each token of N completions, in nats.

    All are (N, T) float64 on the CPU, and zero where a completion has ended. ``reverse_kl`` to
    ``teacher_entropy`` are exact sums over the vocabulary at the token's prefix.
    """

    log_q: Tensor  #: log q(y_t)
    log_p: Tensor  #: log p(y_t)
    reverse_kl: Tensor  #: KL(q_t || p_t)
    forward_kl: Tensor  #: KL(p_t || q_t)
    student_entropy: Tensor
    teacher_entropy: Tensor
    mask: Tensor  #: 1 on the tokens of a completion

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion, (N,)."""
        return self.mask.sum(-1)


def completion_logits(
    model: nn.Module, prompts: Sequence[TokenIds], completions: Tensor, mask: Tensor
) -> Tensor:
    """Logits that predict the tokens of ``completions`` (B, T), of which ``mask`` is 1 on the real ones."""
    prompt_ids, prompt_mask = padded(prompts, "left")
    arguments: dict[str, Any] = forward_arguments(
        model, torch.cat([prompt_ids, completions], 1), torch.cat([prompt_mask, mask], 1)
    )
    kept = completions.shape[1] + 1  # the prompt's last token predicts the first of the completion
    if accepts(model, "logits_to_keep"):
        arguments["logits_to_keep"] = kept
    if accepts(model, "use_cache"):
        arguments["use_cache"] = False
    return model(**arguments).logits[:, -kept:-1]  # (B, T, V)


def _batches(completions: Sequence[TokenIds], batch_size: int, *models: nn.Module) -> Iterator[slice]:
    """Rows to be read together: fewer than ``batch_size`` if their logits were too many otherwise."""
    widest = max(bare_model(model).config.get_text_config().vocab_size for model in models)
    longest = max((len(ids) for ids in completions), default=0)
    rows = max(1, min(batch_size, LOGITS // (widest * (longest + 1))))
    return (slice(start, start + rows) for start in range(0, len(completions), rows))


def log_softmax(logits: Tensor) -> Tensor:
    """Over the vocabulary, in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _real_tokens(mask: Tensor, vocab_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Row and column of the real tokens of a mask (B, T), as many at a time as fill a slice."""
    rows, columns = mask.nonzero(as_tuple=True)
    step = max(1, SLICE // vocab_size)
    return zip(rows.split(step), columns.split(step), strict=True)


def expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """Sums over the vocabulary; what has no probability adds nothing, even if its value is infinite."""
    return torch.where(probabilities > 0, probabilities * values, 0).sum(-1)


def _token_scores(q_logits: Tensor, p_logits: Tensor, ids: Tensor) -> list[Tensor]:
    """The scores of n tokens in the order of ``TokenScores``' fields but for the mask, (n,) each."""
    log_q, log_p = log_softmax(q_logits), log_softmax(p_logits)  # (n, V)
    q, p = log_q.exp(), log_p.exp()
    return [
        log_q.gather(-1, ids[:, None])[:, 0],
        log_p.gather(-1, ids[:, None])[:, 0],
        expectation(q, log_q - log_p),
        expectation(p, log_p - log_q),
        -expectation(q, log_q),
        -expectation(p, log_p),
    ]


def score_completions(
    student: nn.Module,
    teacher: nn.Module,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    batch_size: int = 16,
    vocab_size: int | None = None,
) -> TokenScores:
    """Read completions with both models and compare them at each prefix, exactly over the vocabulary.

    Positions count from each prompt's first token, so that padding changes nothing; the models' train/eval
    modes are left as they were.

    Args:
        student: q, a transformers causal language model.
        teacher: p, over the same vocabulary; it may be on another device.
        prompts: token ids of N prompts, unpadded, none empty.
        completions: token ids of a completion of each, unpadded, with their EOS token if they have one.
        batch_size: sequences read together; fewer of long ones over a large vocabulary, whose logits fill
            the memory.
        vocab_size: compare the laws over the first ids only, for vocabularies padded to different sizes. By
            default the models' vocabularies must be of one size.

    Returns:
        Scores, (N, T) with T the longest completion.

    Raises:
        ValueError: the vocabularies differ in size, a prompt is empty or too long, or there are not as many
            completions as prompts.
    """
    names = [field.name for field in fields(TokenScores)][:6]
    scores, mask = compare_logits(
        student,
        teacher,
        prompts,
        completions,
        _token_scores,
        len(names),
        batch_size=batch_size,
        vocab_size=vocab_size,
    )
    return TokenScores(**dict(zip(names, scores, strict=True)), mask=mask)


def compare_logits(
    student: nn.Module,
    teacher: nn.Module,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    measure: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]],
    numbers: int,
    *,
    batch_size: int = 16,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Read completions with both models and measure something of their logits at each token.

    Args:
        measure: takes both models' logits (n, V) and the tokens that follow (n,), on the student's device,
            and returns ``numbers`` tensors (n,).
        numbers: how many those are.

    The other arguments and what is raised are those of :func:`score_completions`.

    Returns:
        What was measured, (numbers, N, T) float64 on the CPU, zero where a completion has ended, and the mask
        that is 1 on its tokens, (N, T) float64.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"There are {len(prompts)} prompts and {len(completions)} completions.")
    mask = padded(completions, "right")[1]  # (N, T)
    measured = torch.zeros(numbers, *mask.shape, dtype=torch.float64)
    with evaluating(student, teacher):
        for rows in _batches(completions, batch_size, student, teacher):
            tokens, counted = padded(completions[rows], "right")  # (B, T')
            for model in (student, teacher):
                check_prompts(model, prompts[rows], tokens.shape[1])
            q_logits, p_logits = (
                completion_logits(model, prompts[rows], tokens, counted)[..., :vocab_size]
                for model in (student, teacher)
            )
            if q_logits.shape[-1] != p_logits.shape[-1]:
                raise ValueError(
                    f"The student has logits of {q_logits.shape[-1]} tokens and the teacher of "
                    f"{p_logits.shape[-1]}. Divergences need one vocabulary: if only its padding differs, "
                    "pass vocab_size=len(tokenizer)."
                )
            for at in _real_tokens(counted, q_logits.shape[-1]):
                ids = tokens[at].to(q_logits.device)
                found = measure(q_logits[at], p_logits[at].to(q_logits.device), ids)
                measured[:, rows, : tokens.shape[1]][:, *at] = torch.stack([x.double().cpu() for x in found])
    return measured, mask.double()


def completion_log_probs(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    batch_size: int = 16,
) -> Tensor:
    """Log-probability of each whole completion after its prompt, in nats.

    Args:
        model: a transformers causal language model.
        prompts: token ids of N prompts, unpadded, none empty.
        completions: token ids of a completion of each, unpadded.
        batch_size: sequences read together; fewer of long ones over a large vocabulary, whose logits fill
            the memory.

    Returns:
        (N,) float64 on the CPU.

    Raises:
        ValueError: a prompt is empty or too long, or there are not as many completions as prompts.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"There are {len(prompts)} prompts and {len(completions)} completions.")
    totals = []
    with evaluating(model):
        for rows in _batches(completions, batch_size, model):
            tokens, counted = padded(completions[rows], "right")  # (B, T)
            check_prompts(model, prompts[rows], tokens.shape[1])
            logits = completion_logits(model, prompts[rows], tokens, counted)
            log_probs = torch.zeros(tokens.shape, dtype=torch.float64)
            for at in _real_tokens(counted, logits.shape[-1]):
                log_q = log_softmax(logits[at])  # (n, V)
                ids = tokens[at].to(log_q.device)[:, None]
                log_probs[at] = log_q.gather(-1, ids)[:, 0].double().cpu()
            totals.append(log_probs.sum(-1))
    return torch.cat(totals) if totals else torch.zeros(0, dtype=torch.float64)
