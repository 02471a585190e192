"""Batches of plain text for L_PT, the language-modelling loss that MiniLLM adds to its policy gradient."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class PretrainingText:
    """
    The k-th batch of a text dataset, as a function of k: nothing is to be saved for an exact resume.

    Every batch is read by one process; the texts of batch k over all processes are the next ones after
    those of batch k - 1, in an order drawn anew for each pass over a dataset with a length, in its own
    order for a stream.

    Args:
        dataset: with a ``"text"`` column, or ``"input_ids"`` for text that is tokenized already.
        tokenizer: of the student. What it begins a text with, it begins one here with.
        end: the token that closes a text which is not cut.
        batch_size: texts of a batch on this process.
        max_length: tokens after which a text is cut.
        seed: of the order.
        rank, world_size: of this process and how many there are.
        positions: tokens that the models can read; if a text is cut for it, there is a warning.

    Raises:
        TypeError: no dataset of Hugging Face's.
        ValueError: no such column, an empty dataset, or one of empty texts.
    """

    def __init__(
        self,
        dataset: Dataset | IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        end: int,
        batch_size: int,
        max_length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        positions: int = sys.maxsize,
    ) -> None:
        if not isinstance(dataset, Dataset | IterableDataset):
            raise TypeError(
                f"pretraining_dataset must be a datasets.Dataset or IterableDataset, got a "
                f"{type(dataset).__name__}. Make one: Dataset.from_dict({{'text': [...]}})."
            )
        columns = dataset.column_names
        if columns is not None and not {"text", "input_ids"} & set(columns):
            raise ValueError(
                "pretraining_dataset must have a 'text' (or tokenized 'input_ids') column, it has: "
                f"{', '.join(columns)}. Rename yours with dataset.rename_column(...)."
            )
        self.streams = isinstance(dataset, IterableDataset)
        if not self.streams and len(dataset) == 0:
            raise ValueError("pretraining_dataset is empty. Leave it out to train without L_PT.")
        if not self.streams:
            column = "input_ids" if "input_ids" in dataset.column_names else "text"
            if not any(row[column] for row in dataset.select_columns([column])):
                raise ValueError(
                    f"pretraining_dataset has nothing but empty texts in its column {column!r}. Leave it out "
                    "to train without L_PT."
                )
        self.dataset, self.tokenizer, self.end = dataset, tokenizer, end
        self.batch_size, self.seed = batch_size, seed
        self.max_length, self.positions = max_length, positions
        self._warned = False
        self.rank, self.world_size = rank, world_size
        self._order: tuple[int, list[int]] = (-1, [])  # of the pass it belongs to
        self._stream: Iterator[Any] | None = None
        self._read = 0  # texts the stream has given

    def batch(self, k: int) -> dict[str, Tensor]:
        """Batch ``k`` of this process: ``input_ids`` and ``attention_mask``, (B, L), padded on the right."""
        first = (k * self.world_size + self.rank) * self.batch_size
        texts = [self._tokens(self._row(first + i)) for i in range(self.batch_size)]
        length = max(len(ids) for ids in texts)
        input_ids = torch.full((len(texts), length), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for i, ids in enumerate(texts):
            input_ids[i, : len(ids)] = torch.tensor(ids)
            mask[i, : len(ids)] = 1
        return {"input_ids": input_ids, "attention_mask": mask}

    def _row(self, i: int) -> Any:
        if self.streams:
            return self._next_of_stream(i)
        in_pass, place = divmod(i, len(self.dataset))
        if self._order[0] != in_pass:
            generator = torch.Generator().manual_seed(self.seed + in_pass)
            self._order = in_pass, torch.randperm(len(self.dataset), generator=generator).tolist()
        return self.dataset[self._order[1][place]]

    def _next_of_stream(self, i: int) -> Any:
        """Text ``i`` of the stream, which is read from its beginning again if it is past it or has ended."""
        if self._stream is None or i < self._read:
            self._stream, self._read = iter(self.dataset), 0
        row = None
        while self._read <= i:
            try:
                row = next(self._stream)
            except StopIteration:
                if self._read == 0:
                    raise ValueError(
                        "pretraining_dataset gave no text. Leave it out to train without L_PT."
                    ) from None
                self._stream = iter(self.dataset)
                row = next(self._stream)
            self._read += 1
        return row

    def _tokens(self, row: Any) -> list[int]:
        if "input_ids" in row:
            ids = list(row["input_ids"])
        else:
            ids = list(self.tokenizer(row["text"])["input_ids"])
            if ids[-1:] != [self.end]:
                ids.append(self.end)
        if len(ids) < 2:  # nothing to predict: the end of an empty text
            ids = [self.end] * 2
        ids = ids[: self.max_length]
        if len(ids) > self.positions and not self._warned:
            self._warned = True
            logger.warning(
                "A text of the pretraining_dataset has more tokens than a model has positions: it is cut "
                f"after {self.positions}, and so are others. Set pretraining_max_length={self.positions}."
            )
        return ids[: self.positions]
