"""Prioritised replay in plain torch, where TorchRL's C++ trees do not load."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchrl.data import PrioritizedSampler


class SegmentTree:
    """The sum, or the least, of ``size`` numbers, kept in O(log size); what TorchRL's C++ trees do.

    Args:
        size: how many leaves, >= 1.
        least: the least of them instead of the sum.
    """

    def __init__(self, size: int, least: bool, dtype: torch.dtype, device: torch.device) -> None:
        self.levels = max(1, math.ceil(math.log2(size)))
        self.first = 1 << self.levels  # of the leaves; node i has children 2i and 2i + 1, the root is 1
        self.least = least
        neutral = float("inf") if least else 0.0
        self.nodes = torch.full((2 * self.first,), neutral, dtype=dtype, device=device)

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.nodes.device

    def __getitem__(self, index: Any) -> Tensor:
        return self.nodes[torch.as_tensor(index, device=self.device) + self.first]

    def __setitem__(self, index: Any, values: Any) -> None:
        """Where an index is there twice, one of its values is taken, the same one in every tree."""
        place = torch.as_tensor(index, device=self.device).reshape(-1) + self.first
        values = torch.as_tensor(values, dtype=self.nodes.dtype, device=self.device).expand(place.shape)
        # Two values for one place have no order on a GPU, so the last one is found by its number.
        order = torch.arange(len(place), device=self.device)
        last = torch.zeros_like(place).scatter_reduce_(
            0, self._same(place), order, "amax", include_self=False
        )
        self.nodes[place] = values[last[self._same(place)]]
        for _ in range(self.levels):
            place = place // 2
            self.nodes[place] = self._join(self.nodes[2 * place], self.nodes[2 * place + 1])

    @staticmethod
    def _same(place: Tensor) -> Tensor:
        """For each place the position of its first copy in sorted order: equal for equal places."""
        ordered = place.sort().values
        return torch.searchsorted(ordered, place)

    def _join(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.minimum(a, b) if self.least else a + b

    def query(self, left: Any, right: Any) -> Tensor:
        """Of the numbers in [left, right), 0-dim; TorchRL asks from 0 only, to the number of items.

        Those that were never written are neutral, so the root has it.
        """
        return self.nodes[1]

    def scan_lower_bound(self, mass: Any) -> Tensor:
        """For each mass the first leaf up to which the sum exceeds it: any shape, int64."""
        mass = torch.as_tensor(mass, dtype=self.nodes.dtype, device=self.device).clone()
        node = torch.ones_like(mass, dtype=torch.int64)
        for _ in range(self.levels):
            left = self.nodes[2 * node]
            right = mass >= left
            mass = torch.where(right, mass - left, mass)
            node = 2 * node + right
        return node - self.first


class TorchPrioritizedSampler(PrioritizedSampler):
    """:class:`torchrl.data.PrioritizedSampler` with trees in plain torch, on any device.

    With torch 2.13 the C++ trees of TorchRL 0.14 do not load, and its sampler raises. All else is the host's:
    arguments, sampling weights, and that replay buffers take ``"td_error"`` to it.

    Examples:
        >>> buffer = TensorDictReplayBuffer(
        ...     storage=LazyTensorStorage(1000), sampler=TorchPrioritizedSampler(1000, alpha=0.7, beta=0.5),
        ...     priority_key="td_error", batch_size=32)
        >>> batch = buffer.sample(); loss(batch); buffer.update_tensordict_priority(batch)
    """

    def _init(self) -> None:
        device = torch.device("cpu") if self._device is None else self._device
        dtype = torch.float64 if self.dtype in (torch.double, torch.DoubleTensor) else torch.float32
        self._sum_tree = SegmentTree(self._max_capacity, False, dtype, device)
        self._min_tree = SegmentTree(self._max_capacity, True, dtype, device)
        self._max_priority = None
