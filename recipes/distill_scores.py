"""What became of a student: how far from teacher and truth it is, how right, how diverse, how sure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from extensions.trl.evaluation import (
    choice_probabilities,
    completion_log_probs,
    distinct_n,
    expected_calibration_error,
    exposure_bias,
    rouge_l,
    sample_completions,
    sequence_divergence,
)

from .distill_data import Data
from .instructions import Instructions

#: answers of each model to a prompt, for the divergences
PAIRS = 2
#: plain answers drawn for each question with two choices
DRAWS = 10

Scores = dict[str, Any]


def evaluate(
    cfg: DictConfig,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
) -> Scores:
    """All that is measured of a student, on prompts and texts that nobody learned from.

    Returns:
        ``reverse_kl``, ``forward_kl`` to the teacher, nats an answer, and their standard errors;
        ``exposure``: ExAccErr in percent at each length; ``rouge_l``, ``distinct_4``, ``mean_length``,
        ``ended``: the share of answers that did; ``text_loss``: nats a token on plain text, if there is any.
        Where the law of the answers is known also ``valid``: the share of right answers; ``distinct_valid``:
        different right answers to a prompt, of as many as are drawn; ``true_forward_kl`` from the truth to
        the student and its standard error; ``choice_ece`` and ``choice_accuracy``.
    """
    e, longest = cfg.evaluation, cfg.data.max_completion_length
    rows = data.test if e.split == "test" else data.valid
    rows = rows.select(range(min(e.prompts, len(rows))))
    prompts = [tokenizer(prompt)["input_ids"] for prompt in rows["prompt"]]
    shared: dict[str, Any] = {
        "batch_size": e.batch_size,
        "eos_token_id": tokenizer.eos_token_id,
        "vocab_size": common_vocabulary(student, teacher),
    }
    divergence = sequence_divergence(
        student, teacher, prompts, longest, samples_per_prompt=PAIRS, **shared
    ).as_dict()
    bias = exposure_bias(student, teacher, prompts, longest, samples_per_prompt=PAIRS, **shared)
    names = (
        "reverse_kl",
        "forward_kl",
        "reverse_kl_se",
        "forward_kl_se",
        "student_entropy",
        "teacher_entropy",
    )
    scores: Scores = {name: divergence[name] for name in names}
    scores["exposure"] = [None if math.isnan(x) else round(x, 3) for x in bias.excess.tolist()]
    scores.update(_of_answers(cfg, rows, data.world, tokenizer, student, prompts, shared["vocab_size"]))
    if data.valid_texts is not None:
        scores["text_loss"] = text_loss(cfg, tokenizer, student, data.valid_texts["text"][: e.texts])
    if data.world is not None:
        scores.update(_of_truth(cfg, data.world, tokenizer, student))
    return scores


def common_vocabulary(*models: PreTrainedModel) -> int | None:
    """Tokens that all models have, if one has more: padding of its vocabulary, which is no answer."""
    sizes = {model.config.get_text_config().vocab_size for model in models}
    return min(sizes) if len(sizes) > 1 else None


def _of_answers(
    cfg: DictConfig,
    rows: Dataset,
    world: Instructions | None,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    prompts: list[Any],
    vocab_size: int | None,
) -> Scores:
    n = cfg.evaluation.samples
    sampled = sample_completions(
        model,
        prompts,
        cfg.data.max_completion_length,
        seed=1,
        samples_per_prompt=n,
        batch_size=cfg.evaluation.batch_size,
        eos_token_id=tokenizer.eos_token_id,
        vocab_size=vocab_size,
    )
    texts = tokenizer.batch_decode(sampled, skip_special_tokens=True)
    ended = [ids[-1] == tokenizer.eos_token_id for ids in sampled]
    gold = [row for row in rows["completion"] for _ in range(n)]
    scores: Scores = {
        "rouge_l": rouge_l(texts, gold),
        "distinct_4": distinct_n(texts, 4),
        "mean_length": float(np.mean([len(ids) for ids in sampled])),
        "ended": float(np.mean(ended)),
    }
    if world is not None:
        asked = [prompt.strip() for prompt in rows["prompt"] for _ in range(n)]
        right = [
            done and world.is_valid(prompt, text)
            for prompt, text, done in zip(asked, texts, ended, strict=True)
        ]
        scores["valid"] = float(np.mean(right))
        by_task: dict[str, list[bool]] = {}
        for prompt, ok in zip(asked, right, strict=True):
            by_task.setdefault(prompt.split()[0], []).append(ok)
        scores["valid_by_task"] = {
            task: round(float(np.mean(oks)), 4) for task, oks in sorted(by_task.items())
        }
        different = {(p, t) for p, t, ok in zip(asked, texts, right, strict=True) if ok}
        scores["distinct_valid"] = len(different) / len(prompts)
    return scores


def _of_truth(
    cfg: DictConfig, world: Instructions, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> Scores:
    """Against the law of the answers: KL(truth || student), and how sure it is of choices."""
    generator, batch = np.random.default_rng(2), cfg.evaluation.batch_size
    prompts = [world.prompt(generator, cfg.evaluation.split) for _ in range(4 * cfg.evaluation.prompts)]
    answers = [world.answer(prompt, generator) for prompt in prompts]
    log_q = completion_log_probs(
        model,
        [tokenizer(f"{prompt}\n")["input_ids"] for prompt in prompts],
        [[*tokenizer(answer)["input_ids"], tokenizer.eos_token_id] for answer in answers],
        batch_size=batch,
    ).numpy()
    gaps = np.array([world.log_prob(p, a) for p, a in zip(prompts, answers, strict=True)]) - log_q
    asked = [world.prompt(generator, cfg.evaluation.split, "choose") for _ in range(cfg.evaluation.prompts)]
    choices = [sorted(world.answers(prompt)) for prompt in asked]
    p = choice_probabilities(model, tokenizer, [f"{a}\n" for a in asked], choices, batch_size=batch)  # (N, 2)
    sure, chosen = p.max(-1)
    answered = [[world.answer(prompt, generator) for _ in range(DRAWS)] for prompt in asked]
    correct = torch.tensor(
        [[given == c[i] for given in a] for a, c, i in zip(answered, choices, chosen.tolist(), strict=True)]
    )  # (N, DRAWS)
    sure = sure[:, None].expand_as(correct)
    return {
        "true_forward_kl": float(gaps.mean()),
        "true_forward_kl_se": float(gaps.std(ddof=1) / math.sqrt(len(gaps))),
        "choice_ece": expected_calibration_error(sure.flatten(), correct.flatten()),
        "choice_accuracy": float(correct.double().mean()),
    }


def text_loss(
    cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, texts: list[str]
) -> float:
    """Nats a token on plain text, the first token of each given."""
    longest = cfg.data.max_prompt_length + cfg.data.max_completion_length
    ids = [tokenizer(text)["input_ids"][:longest] for text in texts]
    ids = [row for row in ids if len(row) > 1]
    log_probs = completion_log_probs(
        model, [row[:1] for row in ids], [row[1:] for row in ids], batch_size=cfg.evaluation.batch_size
    )
    return -float(log_probs.sum()) / sum(len(row) - 1 for row in ids)
