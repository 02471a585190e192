"""What a quantized model is asked: dialogues made here, or prompts from a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from extensions.trl.evaluation import Judge
from extensions.trl.evaluation.inputs import encode_prompts

from .dialogues import Dialogue, dialogues
from .distill_data import read_table
from .rubric import rubric, rubric_judge


@dataclass
class Data:
    """Prompts, all strings or all conversations.

    Attributes:
        train, valid: with the column ``prompt``.
        report: to which replies are compared in the end: held out from both.
        dialogues: those that ``report`` are the beginnings of; None of others than `recipes.dialogues`.
    """

    train: Dataset
    valid: Dataset
    report: list[Any]
    dialogues: list[Dialogue] | None

    @property
    def judge(self) -> Judge | None:
        """Who knows which of two answers is better."""
        return None if self.dialogues is None else rubric_judge(self.dialogues)

    def mean_rubric(self, answers: list[str]) -> float:
        """What answers to ``report`` are worth, 0 to 1; NaN if nobody knows."""
        if self.dialogues is None:
            return float("nan")
        scores = [rubric(answer, d) for answer, d in zip(answers, self.dialogues, strict=True)]
        return sum(scores) / len(scores)


def load_data(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> Data:
    """What ``cfg.data`` describes.

    Raises:
        ValueError: it cannot be read, the column is missing, or too little is left.
    """
    return _make(cfg) if cfg.data.name == "dialogues" else _load(cfg, tokenizer)


def _make(cfg: DictConfig) -> Data:
    c = cfg.data
    train = dialogues(c.train, c.seed, "train")
    valid = dialogues(c.valid + c.test, c.seed, "valid")
    report = dialogues(c.test, c.seed, "test") if cfg.report_on == "test" else valid[c.valid :]
    of_train, of_valid = (_prompts(d.prompt for d in part) for part in (train, valid[: c.valid]))
    return Data(of_train, of_valid, [dialogue.prompt for dialogue in report], report)


def _load(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> Data:
    c = cfg.data
    table = read_table("data.path", c.path, None, c.split)
    if c.column not in table.column_names:
        there = ", ".join(table.column_names)
        raise ValueError(f"data.column={c.column}: {c.path} has no such column; it has {there}")
    table = table.shuffle(seed=c.seed)
    found: list[Any] = []
    wanted = c.train + c.valid + 2 * c.test
    for row in table.select_columns([c.column]):
        if len(found) == wanted:
            break
        prompt = _to_be_answered(row[c.column])
        if prompt and len(encode_prompts(tokenizer, [prompt])[0]) <= c.max_prompt_length:
            found.append(prompt)
    held_out = c.valid + 2 * c.test
    if len(found) <= held_out:
        raise ValueError(
            f"{c.path}: {len(found)} prompts have at most {c.max_prompt_length} tokens, which is not more "
            f"than data.valid={c.valid} and twice data.test={c.test} take: lower these two"
        )
    test, rest = found[: c.test], found[c.test :]
    valid, others = rest[: c.valid], rest[c.valid : c.valid + c.test]
    report = test if cfg.report_on == "test" else others
    return Data(_prompts(rest[c.valid + c.test :]), _prompts(valid), report, None)


def _to_be_answered(prompt: Any) -> Any:
    """A string, or a conversation up to the last message that is not the assistant's."""
    if isinstance(prompt, str):
        return prompt
    end = max((i + 1 for i, message in enumerate(prompt) if message["role"] != "assistant"), default=0)
    return [{"role": message["role"], "content": message["content"]} for message in prompt[:end]]


def _prompts(prompts: Any) -> Dataset:
    return Dataset.from_list([{"prompt": prompt} for prompt in prompts])
