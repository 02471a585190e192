"""How far two models' distributions of whole answers are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from .estimates import Estimate, clustered_mean, clustered_ratio
from .inputs import TokenIds
from .sampling import eos_ids, sample_completions
from .scoring import TokenScores, score_completions


@dataclass(frozen=True)
class SequenceDivergence:
    """Divergences between student q and teacher p over answers of bounded length.

    Divergences and entropies are in nats, of a whole answer or, ``_per_token``, divided by the mean length of
    the answers they were taken over; lengths are in tokens, EOS included.
    """

    reverse_kl: Estimate  #: KL(q || p)
    forward_kl: Estimate  #: KL(p || q)
    reverse_kl_per_token: Estimate
    forward_kl_per_token: Estimate
    student_entropy: Estimate
    teacher_entropy: Estimate
    student_length: Estimate
    teacher_length: Estimate

    def as_dict(self) -> dict[str, float]:
        """Flat for a log or a table: each value by its name, each standard error with ``_se`` behind it."""
        flat = {}
        for name, estimate in asdict(self).items():
            flat[name], flat[f"{name}_se"] = estimate["value"], estimate["standard_error"]
        return flat


def sequence_divergence(
    student: nn.Module,
    teacher: nn.Module,
    prompts: Sequence[TokenIds],
    max_new_tokens: int,
    *,
    samples_per_prompt: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    eos_token_id: int | Sequence[int] | None = None,
    vocab_size: int | None = None,
) -> SequenceDivergence:
    """Estimate KL(q || p) from the student's answers and KL(p || q) from the teacher's.

    By the chain rule a divergence of answers is the expected sum of the divergences of their next
    tokens. These are exact, so that only the prefixes are sampled: unbiased as the usual sum of
    log-ratios, with less variance, and never negative.

    Args:
        student: q, a transformers causal language model.
        teacher: p, over the same vocabulary.
        prompts: token ids of each prompt, unpadded.
        max_new_tokens: answers are cut there; the divergences are those of the cut answers.
        samples_per_prompt: answers of each model to each prompt.
        seed: of the answers.
        batch_size: sequences generated or read together.
        eos_token_id: what ends an answer of either model; by default what the student's generation
            config says.
        vocab_size: compare the models over the first ids only, for vocabularies padded to different sizes.
            By default these must be of one size.

    Returns:
        Estimates, their standard errors over prompts.

    Raises:
        ValueError: the vocabularies differ in size, or a prompt is empty or too long.
    """
    ends = eos_ids(student, eos_token_id)

    def answers_of(model: nn.Module) -> TokenScores:
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
        repeated = [ids for ids in prompts for _ in range(samples_per_prompt)]
        return score_completions(
            student, teacher, repeated, completions, batch_size=batch_size, vocab_size=vocab_size
        )

    def by_prompt(values: Tensor) -> Tensor:
        return values.view(len(prompts), samples_per_prompt)

    def mean(values: Tensor) -> Estimate:
        return _estimate(clustered_mean(by_prompt(values)))

    def per_token(values: Tensor, lengths: Tensor) -> Estimate:
        return _estimate(clustered_ratio(by_prompt(values), by_prompt(lengths)))

    students, teachers = answers_of(student), answers_of(teacher)
    reverse, forward = students.reverse_kl.sum(-1), teachers.forward_kl.sum(-1)  # (P S,)
    return SequenceDivergence(
        reverse_kl=mean(reverse),
        forward_kl=mean(forward),
        reverse_kl_per_token=per_token(reverse, students.lengths),
        forward_kl_per_token=per_token(forward, teachers.lengths),
        student_entropy=mean(students.student_entropy.sum(-1)),
        teacher_entropy=mean(teachers.teacher_entropy.sum(-1)),
        student_length=mean(students.lengths),
        teacher_length=mean(teachers.lengths),
    )


def _estimate(pair: tuple[Tensor, Tensor]) -> Estimate:
    return Estimate(pair[0].item(), pair[1].item())
