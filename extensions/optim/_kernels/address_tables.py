"""Tables of addresses, for one kernel to reach the tensors of many parameters; torch alone, no Triton."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..ademamix.moments import Moments

# Addresses of p, g, m1, m2, v, step, slow_step; the number of elements; the tensor's first program.
COLUMNS = 9
Rows = tuple[tuple[int, ...], ...]


class Table(NamedTuple):
    """A table on the device, and what a launch must know of it."""

    on_device: Tensor  # (tensors, COLUMNS) int64
    programs: int
    aligned: bool  # whether all begin at multiples of 16 bytes


class AddressTables:
    """The tables of the last steps: gradients mostly come back to the same addresses.

    A copy to the device that nothing waits for must come from pinned memory, and a CUDA graph copies from
    there again at each replay. No pinned memory can be had during a capture, so every table leaves a spare
    for one. What a graph reads is kept for good, since nothing says when it is gone: some kilobytes each.

    Args:
        chunk: elements that a program takes.
        most: tables that are kept.
    """

    def __init__(self, chunk: int, most: int = 32) -> None:
        self.chunk, self.most = chunk, most
        self.kept: OrderedDict[Any, Table] = OrderedDict()
        self.spares: dict[Any, Tensor] = {}  # by the key of the table that left it
        self.in_graphs: list[Any] = []
        self.lock = threading.Lock()

    def get(self, tensors: Moments) -> Table:
        """The table of these tensors, which are of one device and type each."""
        device = tensors.params[0].device
        capturing = self._capturing(device)
        rows, programs = self._rows(tensors)
        # A stream may read only what it has waited for, so each has its own.
        key = (device, self._stream(device), rows)
        with self.lock:
            table = self.kept.get(key)
            if table is None:
                _check(tensors)
                numbers = torch.tensor(rows, dtype=torch.int64).view(-1, COLUMNS)
                pinned = (
                    self._take_spare(numbers.numel()) if capturing else self._pinned(numbers.numel(), device)
                )
                staged = pinned[: numbers.numel()].view_as(numbers).copy_(numbers)
                aligned = all(address % 16 == 0 for row in rows for address in row[:5])
                table = Table(staged.to(device, non_blocking=True), programs, aligned)
                if capturing:
                    self.in_graphs.append((pinned, table))
                    return table
                self.kept[key] = table
            elif capturing:
                self.in_graphs.append(table)
                return table
            if key not in self.spares:
                self.spares[key] = self._pinned(len(rows) * COLUMNS, device)
            self.kept.move_to_end(key)
            if len(self.kept) > self.most:
                oldest, _ = self.kept.popitem(last=False)
                self.spares.pop(oldest, None)
            return table

    def _rows(self, tensors: Moments) -> tuple[Rows, int]:
        rows, programs = [], 0
        empty = [0] * len(tensors.params)
        addresses = [[t.data_ptr() for t in ts] or empty for ts in tensors]
        for *of_one, p in zip(*addresses, tensors.params, strict=True):
            n = p.numel()
            if n > 0:
                rows.append((*of_one, n, programs))
                programs += -(-n // self.chunk)
        return tuple(rows), programs

    def _take_spare(self, size: int) -> Tensor:
        for key, spare in self.spares.items():
            if spare.numel() >= size:
                return self.spares.pop(key)
        raise RuntimeError(
            "A CUDA graph can capture AdEMAMix(fused=True).step only after a step outside it with the same "
            "parameters"
        )

    # What is CUDA's, apart, so that the rest can be tested without.

    def _capturing(self, device: torch.device) -> bool:
        return device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _stream(self, device: torch.device) -> int:
        return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0

    def _pinned(self, size: int, device: torch.device) -> Tensor:
        return torch.empty(size, dtype=torch.int64, pin_memory=device.type == "cuda")


def _check(tensors: Moments) -> None:
    """Raise where a kernel would read what is not there.

    Raises:
        RuntimeError: a tensor is on another device, of another size, or of a type that its column has not.
    """
    moments = tensors.exp_avg_sqs[0].dtype
    columns: list[tuple[str, list[Tensor], torch.dtype]] = [
        ("gradient", tensors.grads, tensors.grads[0].dtype),
        ("exp_avg", tensors.exp_avgs, moments),
        ("exp_avg_slow", tensors.exp_avg_slows, moments),
        ("exp_avg_sq", tensors.exp_avg_sqs, moments),
        ("step", tensors.state_steps, torch.float32),
        ("slow_step", tensors.slow_steps, torch.float32),
    ]
    for name, ts, dtype in columns:
        for t, p in zip(ts, tensors.params, strict=True) if ts else ():
            elements = 1 if "step" in name else p.numel()
            if (t.device, t.dtype, t.numel()) != (p.device, dtype, elements):
                raise RuntimeError(
                    f"fused=True: {name} is {t.dtype} of {t.numel()} elements on {t.device}, of a parameter "
                    f"of {p.numel()} elements on {p.device}. If the parameters were moved or cast, or fused "
                    "was set after the first step, call optimizer.load_state_dict(optimizer.state_dict())"
                )
