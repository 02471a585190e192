"""A hash map from int64 keys to consecutive slots, in tensors: batched, on any device, as large as used."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 1024
_GOLDEN = -0x61C8864680B583EB  # 2**64 / golden ratio, as an int64: the highest bits of products spread keys


class Slots:
    """Keys met are numbered 0, 1, 2, ... in the order in which they come.

    Open addressing with linear probing, at most half full. A look-up of any number of keys takes as many
    rounds as its worst key has collisions, each round a few tensor operations.

    Attributes:
        count: how many keys there are.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = 0
        self._keys = torch.empty(_SMALLEST // 2, dtype=torch.int64, device=device)  # by slot
        self._index = torch.full(
            (_SMALLEST,), -1, device=device
        )  # by place: the slot, -1 where there is none

    @property
    def keys(self) -> Tensor:
        """(count,) int64, by slot."""
        return self._keys[: self.count]

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._index.nbytes

    def find(self, keys: Tensor) -> Tensor:
        """The slots of keys of any shape, -1 for those that are not there."""
        place = self._place(keys)
        slot = self._index[place]
        while True:
            wrong = (slot >= 0) & (self._keys[slot] != keys)
            if not bool(wrong.any()):
                return slot
            place = (place + wrong) & (len(self._index) - 1)
            slot = self._index[place]

    def insert(self, keys: Tensor) -> Tensor:
        """The slots of distinct keys (N,), new ones for those that are not there."""
        slot = self.find(keys)
        new = slot < 0
        many = int(new.sum())
        if not many:
            return slot
        while self.count + many > len(self._keys):
            self._grow()
        slot[new] = torch.arange(self.count, self.count + many, device=keys.device)
        self._keys[slot[new]] = keys[new]
        self.count += many
        self._enter(keys[new], slot[new])
        return slot

    def _place(self, keys: Tensor) -> Tensor:
        size = len(self._index)  # a power of 2
        return ((keys * _GOLDEN) >> (65 - size.bit_length())) & (size - 1)

    def _enter(self, keys: Tensor, slots: Tensor) -> None:
        place = self._place(keys)
        while len(slots):
            free = self._index[place] < 0
            self._index[place[free]] = slots[free]  # of several at one place, one stays
            left = self._index[place] != slots
            place, slots = (place[left] + 1) & (len(self._index) - 1), slots[left]

    def _grow(self) -> None:
        self._keys = torch.cat([self._keys, torch.empty_like(self._keys)])
        self._index = torch.full((2 * len(self._index),), -1, device=self._index.device)
        self._enter(self.keys, torch.arange(self.count, device=self._keys.device))
