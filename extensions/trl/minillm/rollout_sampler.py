"""The order in which prompts are read: each generation's prompts again for every batch it serves."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler


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
