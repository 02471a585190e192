"""Tables of which few rows are ever touched: which ones, and memory that is not there until then."""

from __future__ import annotations

import mmap
from typing import Any

import torch
from torch import Tensor


class RowSet:
    """A set of int64 row ids that grows a minibatch at a time.

    ``add`` only appends, so a training step neither scans n flags nor waits for the device; duplicates are
    dropped now and then, which costs O(log) a row when spread over the additions.
    """

    #: duplicates are dropped once this many ids, or as many as are already known, have been added
    PATIENCE = 1 << 16

    def __init__(self) -> None:
        self._known: Tensor | None = None  # (U,) sorted, unique
        self._added: list[Tensor] = []
        self._n_added = 0
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Move to ``device``, where all ids added from now on are."""
        self._known = None if self._known is None else self._known.to(device)
        self._added = [ids.to(device) for ids in self._added]
        self._device = device

    def add(self, ids: Tensor) -> None:
        """Add ``ids`` (any shape, int64); repeats are welcome."""
        if ids.device != self._device:
            self.to(ids.device)
        self._added.append(ids.detach().reshape(-1))
        self._n_added += ids.numel()
        if self._n_added > max(self.PATIENCE, 0 if self._known is None else self._known.numel()):
            self.ids()

    def ids(self) -> Tensor:
        """Every id added so far, sorted and unique: (U,) int64."""
        if self._added:
            known = [] if self._known is None else [self._known]
            self._known = torch.unique(torch.cat([*known, *self._added]))
            self._added, self._n_added = [], 0
        if self._known is None:
            return torch.empty(0, dtype=torch.int64, device=self._device)
        return self._known

    def clear(self) -> None:
        self._known, self._added, self._n_added = None, [], 0

    def __len__(self) -> int:
        return self.ids().numel()


def lazy_zeros(n: int, width: int, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """(n, width) zeros, which on the CPU take no memory until they are written (Linux and macOS).

    ``torch.zeros`` writes its zeros; here the operating system gives pages that are zero already, and small
    ones: with huge pages, for which numpy asks, the first write to a row would clear and take 2 MB.
    """
    dtype = dtype or torch.get_default_dtype()
    if n * width == 0 or torch.device(device or "cpu").type != "cpu" or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(n, width, dtype=dtype, device=device)
    # Private: of shared memory, even rows that are only read would take pages.
    pages = mmap.mmap(-1, n * width * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(n, width)
