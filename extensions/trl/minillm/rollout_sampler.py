"""The order in which prompts are read: each generation's prompts again for every batch it serves."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from itertools import count
from typing import Any

import torch
from datasets import IterableDataset
from torch.utils.data import IterableDataset as Stream
from torch.utils.data import Sampler

from .. import _host


class RolloutSampler(Sampler[int]):
    """
    Blocks of prompts, each repeated, in an order that depends on the seed and the epoch alone.

    TRL's ``RepeatSampler`` draws each epoch's order from a generator that starts over when training is
    resumed; this one can be told the epoch, so a resumed run reads what the uninterrupted one would
    have.

    Args:
        data: the dataset, for its length.
        block: prompts of one generation over all processes. Prompts that do not fill one are left out.
        repeats: times a block is read before the next.
        shuffle: draw the order, or keep the dataset's.
        seed: of the order.
    """

    def __init__(self, data: Sized, block: int, repeats: int, shuffle: bool, seed: int) -> None:
        self.data, self.block, self.repeats = data, block, repeats
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        n = len(self.data)
        order = list(range(n))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(n, generator=generator).tolist()
        for start in range(0, n - self.block + 1, self.block):
            for _ in range(self.repeats):
                yield from order[start : start + self.block]

    def __len__(self) -> int:
        return len(self.data) // self.block * self.block * self.repeats


class RolloutStream(Stream[Any]):
    """
    The same blocks of a dataset without a length, pass after pass without an end.

    Transformers skips what a resumed run has read of the first pass only. This is one long pass, so what is
    to be skipped is always in it; each pass over the data has an order of its own all the same.

    Args:
        data: the dataset, which can be read again.
        block, repeats, shuffle, seed: as for :class:`RolloutSampler`; a stream is shuffled within a buffer.

    Raises:
        ValueError: while it is read, if a pass does not fill one block.
    """

    def __init__(self, data: IterableDataset, block: int, repeats: int, shuffle: bool, seed: int) -> None:
        data = data.shuffle(seed=seed) if shuffle else data
        self.block = block
        self.data = _host.repeat_iterable_dataset(data, 1, batch_size=block, repeat_count=repeats)

    def __iter__(self) -> Iterator[Any]:
        for epoch in count():
            self.data.set_epoch(epoch)
            row = None
            for row in self.data:
                yield row
            if row is None:
                raise ValueError(
                    f"train_dataset has fewer prompts than one generation takes ({self.block} = "
                    "per_device_train_batch_size x steps_per_generation x processes). Lower one of them."
                )
