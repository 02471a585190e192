"""What would go wrong later is said before work is lost."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .minillm_config import MiniLLMConfig

logger = logging.getLogger(__name__)

# Settings of transformers' generate, and the values under which it draws from the model's own distribution.
OWN_DISTRIBUTION: dict[str, tuple[Any, ...]] = {
    "do_sample": (None, True),
    "num_beams": (None, 1),
    "top_p": (None, 1.0),
    "top_k": (None, 0),
    "top_h": (None,),
    "min_p": (None, 0.0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "sequence_bias": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0),
    "penalty_alpha": (None, 0.0),
    "watermarking_config": (None,),
}


def check_datasets(train: Any, evaluation: Any) -> None:
    """Every dataset has prompts.

    Raises:
        ValueError: one has no ``"prompt"`` column.
    """
    sets = {"train_dataset": train}
    if isinstance(evaluation, dict):
        sets |= {f"eval_dataset[{name!r}]": dataset for name, dataset in evaluation.items()}
    else:
        sets["eval_dataset"] = evaluation
    for name, dataset in sets.items():
        if isinstance(dataset, Dataset | IterableDataset):
            columns = dataset.column_names
            if columns is not None and "prompt" not in columns:
                raise ValueError(
                    f"{name} must have a 'prompt' column, which the student answers by itself. It has: "
                    f"{', '.join(columns) or 'no columns'}. Rename yours with dataset.rename_column(..., "
                    "'prompt')."
                )


def check_size(train: Any, block: int) -> None:
    """There is at least one generation's worth of prompts, else no step would ever be made."""
    if isinstance(train, Dataset) and len(train) < block:
        raise ValueError(
            f"train_dataset has {len(train)} prompts, fewer than one generation takes ({block} = "
            "per_device_train_batch_size x steps_per_generation x processes). Lower one of them; "
            "steps_per_generation=gradient_accumulation_steps draws new answers for every update."
        )


def warn_without_baseline(answers: int, processes: int, same_coins: bool) -> None:
    """
    A leave-one-out baseline needs another answer, which is independent of the one it is for.

    Of two or more on a process some always are: they flip coins in two groups.

    Args:
        answers: of a generation on each process.
        processes: how many there are.
        same_coins: whether all processes go by the same coins.
    """
    if answers == 1 and (processes == 1 or same_coins):
        logger.warning(
            "baseline='leave_one_out' has no effect: a generation has no other answer, drawn by other coins, "
            "that the baseline could come from. Raise per_device_train_batch_size or steps_per_generation, "
            "or set baseline='none'."
        )


def check_sampling(args: MiniLLMConfig) -> None:
    """
    The log-probabilities that enter the objective are those answers are drawn with.

    Raises:
        ValueError: answers come from other distributions than the ones that weigh them.
    """
    generation: Any = args.generation_kwargs or {}
    temperature = generation.get("temperature", args.temperature)
    if temperature != args.temperature:
        raise ValueError(
            f"generation_kwargs sets temperature {temperature}, the objective uses "
            f"temperature={args.temperature}. Set `temperature` alone, which serves both."
        )
    if not temperature > 0.0:
        raise ValueError(f"temperature must be > 0, got {temperature}: it divides the logits of both models.")
    if args.max_completion_length is None or args.max_completion_length < 1:
        raise ValueError(
            f"max_completion_length must be at least 1, got {args.max_completion_length}: set the number of "
            "tokens an answer may have."
        )
    if args.teacher_mix_alpha and (ignored := set(generation) - {"temperature"}):
        raise ValueError(
            f"Teacher-mixed sampling does not use generation_kwargs ({', '.join(sorted(ignored))}). Remove "
            "them, or set teacher_mix_alpha=0.0 to let transformers generate."
        )
    own = {name: getattr(args, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
    if changed := changed_sampling({**own, **generation}):
        names = ", ".join(changed)
        if args.teacher_mix_alpha:
            raise ValueError(
                "Teacher-mixed sampling draws from the whole distributions, as its weights w_t = q / p~ do, "
                f"but {names} would cut them. Remove the setting, or set teacher_mix_alpha=0.0."
            )
        logger.warning(
            f"{names} draws answers from another distribution than the student's own, which the policy "
            "gradient takes them for: the gradient is biased. Remove the setting for an unbiased one."
        )
    if args.temperature != 1.0:
        logger.warning(
            f"temperature={args.temperature}: both distributions are tempered, in sampling and in the KL. "
            "The student is trained to be sampled at this temperature; the paper uses 1."
        )


def check_generation_config(ours: GenerationConfig, models: GenerationConfig, alpha: float) -> None:
    """
    Warns of what a model's own ``generation_config`` adds to the trainer's.

    Transformers takes from it all that is not set otherwise, whenever the student writes alone: in training
    without teacher mixing, and in evaluation.

    Args:
        ours: what the trainer generates with.
        models: the student's ``generation_config``.
        alpha: the teacher's share in training.
    """
    set_by_us = {name: getattr(ours, name, None) for name in OWN_DISTRIBUTION}
    added = {name: getattr(models, name, None) for name, value in set_by_us.items() if value is None}
    if changed := changed_sampling(added):
        biased = "the evaluation loss is not its reverse KL" if alpha else "the gradient is biased"
        clear = "; ".join(f"model.generation_config.{name} = None" for name in changed)
        logger.warning(
            f"The student's generation_config sets {', '.join(changed)}, which draws answers from another "
            f"distribution than the student's own: {biased}. Clear it before training: {clear}"
        )


def changed_sampling(settings: Mapping[str, Any]) -> list[str]:
    """Names of the settings of ``generate`` with which it does not draw from the model's own distribution."""
    return [name for name, own in OWN_DISTRIBUTION.items() if name in settings and settings[name] not in own]


def check_end(tokenizer: PreTrainedTokenizerBase, endings: Iterable[int]) -> None:
    """Something ends an answer: the rewards of an answer that never ends are not the student's.

    Raises:
        ValueError: nothing does, or nothing can be put after it.
    """
    if not list(endings):
        raise ValueError(
            f"Neither the tokenizer ({type(tokenizer).__name__}) nor the model's generation_config has an "
            "end-of-sequence token. Set tokenizer.eos_token, or model.generation_config.eos_token_id."
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) has neither a padding token nor an end-of-sequence "
            "token to pad with. Set tokenizer.pad_token."
        )


def check_given(prompts: Sequence[Any], first: int) -> None:
    """None of the prompts of the rows from ``first`` on is missing."""
    missing = [first + i for i, prompt in enumerate(prompts) if prompt is None]
    if missing:
        raise ValueError(
            f"train_dataset has no prompt in {len(missing)} rows, first in row {missing[0]}: it is None. "
            "Remove them: dataset.filter(lambda row: row['prompt'] is not None)."
        )


def check_length(
    prompts: Sequence[Sequence[int]], completion: int, models: dict[str, PreTrainedModel]
) -> None:
    """Prompts have tokens, and fit with their answers into both models' positions."""
    if not all(len(ids) for ids in prompts):
        raise ValueError(
            "A prompt has no token, so there is nothing to predict an answer's first token from. Remove it "
            "(dataset.filter), or use a tokenizer that begins with a token (tokenizer.bos_token)."
        )
    longest = max((len(ids) for ids in prompts), default=0)
    for name, model in models.items():
        left = positions_left(prompts, {name: model})
        if left < completion:
            positions = left + longest
            room = positions - completion
            cut = f"Filter or cut the prompts to at most {room} tokens, or lower" if room > 0 else "Lower"
            raise ValueError(
                f"A prompt of {longest} tokens and an answer of {completion} (max_completion_length) do not "
                f"fit into the {name}'s {positions} positions. {cut} max_completion_length."
            )


def positions_left(prompts: Sequence[Sequence[int]], models: dict[str, PreTrainedModel]) -> int:
    """How many tokens fit after the longest of the prompts, into all models; many if none has a bound."""
    configs = [model.config.get_text_config() for model in models.values()]
    bounds = [getattr(config, "max_position_embeddings", None) for config in configs]
    fewest = min((bound for bound in bounds if bound is not None), default=sys.maxsize)
    return fewest - max((len(ids) for ids in prompts), default=0)
