"""Memory that is not there until it is written: for tables of which few rows are ever touched."""

from __future__ import annotations

import mmap
from typing import Any

import torch
from torch import Tensor


def lazy_zeros(*shape: int, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """Zeros, which on the CPU take no memory until they are written (Linux and macOS).

    ``torch.zeros`` writes its zeros; here the operating system gives pages that are zero already, and small
    ones: with huge pages, for which numpy asks, the first write to a row would clear and take 2 MB.
    """
    dtype = dtype or torch.get_default_dtype()
    size = torch.Size(shape).numel()
    if size == 0 or torch.device(device or "cpu").type != "cpu" or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(shape, dtype=dtype, device=device)
    # Private: of shared memory, even rows that are only read would take pages.
    pages = mmap.mmap(-1, size * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def flagged(flags: Tensor) -> Tensor:
    """The ids whose flag is set, in order: (n,) bool -> (U,) int64. Reads all n flags: not for each step."""
    return flags.nonzero().squeeze(1)
