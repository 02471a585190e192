"""What teacher and student learn from: instructions with answers, and plain text; made here or loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from .distill_models import readable
from .instructions import Instructions

ALPACA = (
    "Below is an instruction that describes a task{and_input}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n{input}### Response:\n"
)


@dataclass
class Data:
    """Splits with the columns ``prompt`` and ``completion``, and texts with the column ``text``.

    Attributes:
        train, valid, test: of instructions.
        finetuning: what teacher and warm start are finetuned on: ``train``, perhaps with plain text between.
        texts, valid_texts: plain; None if there are none.
        world: whose law the answers are drawn by; None if it is unknown.
    """

    train: Dataset
    valid: Dataset
    test: Dataset
    finetuning: Dataset
    texts: Dataset | None
    valid_texts: Dataset | None
    world: Instructions | None


def load_data(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> Data:
    """What ``cfg.data`` describes.

    Raises:
        ValueError: a column is missing, or nothing is left.
    """
    return _make(cfg.data) if cfg.data.name == "instructions" else _load(cfg.data, tokenizer)


def _make(c: DictConfig) -> Data:
    world = Instructions()

    def answered(split: str, n: int) -> Dataset:
        generator = np.random.default_rng((c.seed, ("train", "valid", "test").index(split)))
        prompts = [world.prompt(generator, split) for _ in range(n)]
        answers = [world.answer(prompt, generator) for prompt in prompts]
        return Dataset.from_dict({"prompt": [f"{prompt}\n" for prompt in prompts], "completion": answers})

    generator = np.random.default_rng((c.seed, 3))
    texts, held_out = (
        Dataset.from_dict({"text": [world.text(generator) for _ in range(n)]}) for n in (c.texts, c.test)
    )
    train, valid, test = (answered(split, c[split]) for split in ("train", "valid", "test"))
    n = round(c.text_share * len(train))
    # The split of a text does not show in its tokens.
    plain = [text.split(" ", 1) for text in texts["text"][:n]]
    kept = Dataset.from_dict({"prompt": [f"{a}\n" for a, _ in plain], "completion": [b for _, b in plain]})
    finetuning = concatenate_datasets([train, kept]).shuffle(seed=c.seed) if n else train
    return Data(train, valid, test, finetuning, texts, held_out, world)


def _load(c: DictConfig, tokenizer: PreTrainedTokenizerBase) -> Data:
    table = read_table("data.path", c.path, None, c.split)
    _check_columns(table, c, ("prompt", "completion", *(["input"] if c.input else [])), c.path)

    def to_prompt(row: dict[str, Any]) -> dict[str, str]:
        prompt, given = str(row[c.prompt]).strip("\n"), str(row[c.input] or "").strip() if c.input else ""
        if c.template == "alpaca":
            and_input = ", paired with an input that provides further context" if given else ""
            given = f"### Input:\n{given}\n\n" if given else ""
            prompt = ALPACA.format(and_input=and_input, prompt=prompt, input=given)
        else:
            prompt = "\n".join(part for part in (prompt, given) if part) + "\n"
        return {"prompt": prompt, "completion": str(row[c.completion]).strip()}

    table = table.map(to_prompt, remove_columns=table.column_names)
    table = table.filter(_short_enough(tokenizer, c.max_prompt_length))
    if len(table) <= c.valid + c.test:
        raise ValueError(
            f"{c.path}: {len(table)} rows have answers and prompts of at most {c.max_prompt_length} tokens, "
            f"which is not more than data.valid={c.valid} and data.test={c.test} take: lower these two"
        )
    table = table.shuffle(seed=c.seed)
    ends = (c.test, c.test + c.valid, len(table))
    test, valid, train = (table.select(range(a, b)) for a, b in zip((0, *ends), ends, strict=False))
    texts, held_out = _texts(c)
    return Data(train, valid, test, train, texts, held_out, None)


def _texts(c: DictConfig) -> tuple[Dataset | None, Dataset | None]:
    if c.text is None:
        return None, None
    table = read_table("data.text", c.text, c.text_config, c.text_split)
    _check_columns(table, c, ("text_column",), c.text)
    table = table.select_columns([c.text_column]).rename_columns({c.text_column: "text"})
    table = table.filter(lambda row: bool(row["text"].strip()))
    table = table.shuffle(seed=c.seed).select(range(min(c.texts, len(table))))
    held_out = max(1, min(500, len(table) // 10))
    return table.select(range(held_out, len(table))), table.select(range(held_out))


def read_table(key: str, path: str, config: str | None, split: str) -> Dataset:
    """A file by its suffix, a folder of ``save_to_disk``, or whatever else ``load_dataset`` takes."""
    suffix = Path(path).suffix.removeprefix(".").replace("jsonl", "json")
    with readable(key, path, "a data set"):
        if Path(path).is_file():
            return load_dataset(suffix, data_files=path, split="train")
        if (Path(path) / "dataset_dict.json").exists():
            return load_from_disk(path)[split]
        if (Path(path) / "state.json").exists():
            return load_from_disk(path)
        return load_dataset(path, config, split=split)


def _check_columns(table: Dataset, c: DictConfig, keys: tuple[str, ...], path: str) -> None:
    for key in keys:
        if c[key] not in table.column_names:
            there = ", ".join(table.column_names)
            raise ValueError(f"data.{key}={c[key]}: {path} has no such column; it has {there}")


def _short_enough(tokenizer: PreTrainedTokenizerBase, most: int) -> Callable[[dict[str, str]], bool]:
    return lambda row: bool(row["completion"]) and len(tokenizer(row["prompt"])["input_ids"]) <= most
