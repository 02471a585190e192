"""Rewards for TRL's ``GRPOTrainer`` on datasets of `to_hf_dataset`::

    from trl import GRPOTrainer
    trainer = GRPOTrainer(
        model, reward_funcs=[exact_reward, format_reward], train_dataset=to_hf_dataset(config, 1000), ...
    )

TRL calls a reward function by keyword with ``prompts``, ``completions`` (strings, or lists of messages),
``completion_ids``, every other column of the dataset, and ``log_metric(name, value)`` among others. It gives
a float for each completion, or None for one that it has nothing to say of.

`exact_reward` is the score to report. `graded_count_reward` has a slope to follow where exact answers are
rare, and pays for guesses that are near: a model can gain by it without counting.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from .config import NUMERIC
from .parsing import has_answer_line, parse_answer

FORMAT_REWARD = 0.1
ROUND_NUMBERS = {10, 20, 30, 40, 50, 100}  # what models guess when they do not count

LogMetric = Callable[[str, float], None]


def exact_reward(
    completions: Sequence[Any],
    answer: Sequence[str],
    kind: Sequence[str],
    length: Sequence[int] | None = None,
    log_metric: LogMetric | None = None,
    **others: Any,
) -> list[float]:
    """1 for the right answer, 0 for any other and for none.

    Logs, of answers that are numbers, ``abs_error/len_LO-HI``, their mean distance from the right one by
    length, in bins up to powers of two, and ``round_number_rate``, the share of 10, 20, .., 50 and 100.
    """
    given = _parsed(completions, kind)
    _log_errors(given, answer, kind, length, log_metric)
    return [float(one == right) for one, right in zip(given, answer, strict=True)]


def graded_count_reward(
    completions: Sequence[Any],
    answer: Sequence[str],
    kind: Sequence[str],
    length: Sequence[int] | None = None,
    log_metric: LogMetric | None = None,
    **others: Any,
) -> list[float | None]:
    """exp(-error / max(1, y / 10)) of an answer at a distance from the right one, y; 0 where none is given.

    None where the answer is not a number: copying, recall, parity. Logs what `exact_reward` does.
    """
    given = _parsed(completions, kind)
    _log_errors(given, answer, kind, length, log_metric)
    rewards: list[float | None] = []
    for one, right, its_kind in zip(given, answer, kind, strict=True):
        if its_kind not in NUMERIC:
            rewards.append(None)
        elif one is None:
            rewards.append(0.0)
        else:
            rewards.append(math.exp(-abs(int(one) - int(right)) / max(1.0, 0.1 * int(right))))
    return rewards


def format_reward(
    prompts: Sequence[Any], completions: Sequence[Any], kind: Sequence[str], **others: Any
) -> list[float]:
    """0.1 for an answer that can be read, right or wrong; in the line that the prompt asks for, if any."""
    rewards = []
    for prompt, completion, its_kind in zip(prompts, completions, kind, strict=True):
        text = text_of(completion)
        readable = parse_answer(text, its_kind) is not None
        asked = has_answer_line(text_of(prompt), its_kind)
        rewards.append(FORMAT_REWARD if readable and (has_answer_line(text, its_kind) or not asked) else 0.0)
    return rewards


def length_penalty(per_token: float) -> Callable[..., list[float]]:
    """A reward function that takes ``per_token`` off for each token of a completion.

    Raises:
        ValueError: ``per_token`` is negative: it would pay for length.
    """
    if per_token < 0:
        raise ValueError(f"per_token must be at least 0, got {per_token}")

    def length_penalty(completion_ids: Sequence[Sequence[int]], **others: Any) -> list[float]:
        return [-per_token * len(ids) for ids in completion_ids]

    return length_penalty  # TRL logs rewards by the functions' names


def text_of(completion: Any) -> str:
    """A string as it is; of messages, or of the blocks of one, the last one's text, which may be empty."""
    if isinstance(completion, str):
        return completion
    if not completion:
        return ""
    last = completion[-1]
    return text_of(last.get("content") or last.get("text"))


def _parsed(completions: Sequence[Any], kind: Sequence[str]) -> list[str | None]:
    return [parse_answer(text_of(one), its_kind) for one, its_kind in zip(completions, kind, strict=True)]


def _log_errors(
    given: list[str | None],
    answer: Sequence[str],
    kind: Sequence[str],
    length: Sequence[int] | None,
    log_metric: LogMetric | None,
) -> None:
    """What the answers that are numbers look like. No metric without any: TRL averages over those it gets."""
    if log_metric is None:
        return
    lengths = [None] * len(given) if length is None else length
    errors: dict[str, list[int]] = defaultdict(list)
    numbers = []
    for one, right, its_kind, n in zip(given, answer, kind, lengths, strict=True):
        if its_kind in NUMERIC and one is not None:
            numbers.append(int(one))
            if n is not None:
                errors[f"abs_error/len_{_bin(n)}"].append(abs(int(one) - int(right)))
    for name, values in errors.items():
        log_metric(name, sum(values) / len(values))
    if numbers:
        log_metric("round_number_rate", sum(n in ROUND_NUMBERS for n in numbers) / len(numbers))


def _bin(length: int) -> str:
    """Of 17 to 32, ``17-32``."""
    upper = 1 << (length - 1).bit_length()
    return f"{upper // 2 + 1}-{upper}"
