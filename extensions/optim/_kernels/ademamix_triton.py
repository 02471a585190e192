"""The fused step of AdEMAMix for CUDA: one Triton kernel over all tensors of a type.

It takes the step counts, the learning rate if that is a tensor, ``grad_scale`` and ``found_inf`` from the
device, so that nothing waits for the device and a CUDA graph may hold it. The formulas are those of
extensions/optim/ademamix/schedules.py and functional.py, whose for-loop is the oracle.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 32_768  # elements a program takes
BLOCK = 1_024  # elements it takes at a time
# Columns of the table: addresses of p, g, m1, m2, v, step, slow_start; elements; the tensor's first program.
COLUMNS = 9
TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def _double(bits):  # type: ignore[no-untyped-def]
    # Triton takes a Python float as float32; as the bits of a float64 it arrives whole.
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _update_block(  # type: ignore[no-untyped-def]
    p, g, fast, slow, square, mask, other, grad_scale, step_size, slow_weight,
    root_correction, slow_rate, fast_rate, square_decay, square_rate, epsilon, decay,
    P: tl.constexpr, G: tl.constexpr, T: tl.constexpr,
    has_fast: tl.constexpr, has_scale: tl.constexpr, maximize: tl.constexpr,
):  # fmt: skip
    gradient = tl.load(g, mask=mask, other=other).to(T)
    if has_scale:
        gradient = gradient / tl.load(grad_scale).to(T)
        tl.store(g, gradient.to(G), mask=mask)  # as torch's fused kernels, which leave gradients unscaled
    if maximize:
        gradient = -gradient
    m1 = gradient
    if has_fast:
        m1 = tl.load(fast, mask=mask, other=other)
        m1 += fast_rate * (gradient - m1)
        tl.store(fast, m1, mask=mask)
    m2 = tl.load(slow, mask=mask, other=other)
    m2 += slow_rate * (gradient - m2)
    tl.store(slow, m2, mask=mask)
    v = square_decay * tl.load(square, mask=mask, other=other) + square_rate * gradient * gradient
    tl.store(square, v, mask=mask)
    denominator = tl.sqrt(v) * root_correction + epsilon
    weight = tl.load(p, mask=mask, other=other).to(T) * decay
    weight -= step_size * (m1 + slow_weight * m2) / denominator
    tl.store(p, weight.to(P), mask=mask)


@triton.jit(do_not_specialize=[
    "lr", "beta1", "beta2", "log_beta1", "log_beta2", "inverse_log_beta1", "inverse_log_beta3",
    "final_slow_rate", "alpha", "alpha_warmup", "beta3_warmup", "weight_decay", "eps", "tensors",
])  # fmt: skip
def _ademamix_kernel(  # type: ignore[no-untyped-def]
    table,  # (tensors, COLUMNS) int64
    tensors,
    lr_pointer, grad_scale, found_inf,  # 0-dim float32 on the device, or anything where their flag is off
    lr, beta1, beta2, log_beta1, log_beta2, inverse_log_beta1, inverse_log_beta3, final_slow_rate,
    alpha, alpha_warmup, beta3_warmup, weight_decay, eps,  # bits of float64
    P: tl.constexpr, G: tl.constexpr, T: tl.constexpr,  # types of parameters, gradients, moments
    has_fast: tl.constexpr, warms_alpha: tl.constexpr, warms_beta3: tl.constexpr, maximize: tl.constexpr,
    lr_on_device: tl.constexpr, has_scale: tl.constexpr, has_found_inf: tl.constexpr, aligned: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # The last tensor whose first program is not after this one, by bisection.
    program = tl.program_id(0).to(tl.int64)
    low, high = program * 0, program * 0 + tensors
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(table + middle * COLUMNS + 8) <= program
        low, high = tl.where(before, middle, low), tl.where(before, high, middle)
    row = table + low * COLUMNS
    begin = (program - tl.load(row + 8)) * CHUNK
    p = tl.load(row).to(tl.pointer_type(P))
    g = tl.load(row + 1).to(tl.pointer_type(G))
    fast = tl.load(row + 2).to(tl.pointer_type(T))
    slow = tl.load(row + 3).to(tl.pointer_type(T))
    square = tl.load(row + 4).to(tl.pointer_type(T))
    step = tl.load(tl.load(row + 5).to(tl.pointer_type(tl.float32))).to(tl.float64)
    slow_start = tl.load(tl.load(row + 6).to(tl.pointer_type(tl.float32))).to(tl.float64)
    numel = tl.load(row + 7)
    if aligned:
        p, g, fast = tl.multiple_of(p, 16), tl.multiple_of(g, 16), tl.multiple_of(fast, 16)
        slow, square = tl.multiple_of(slow, 16), tl.multiple_of(square, 16)
    if has_found_inf:
        # No element is touched if there was an infinity.
        numel = tl.where(tl.load(found_inf) == 0, numel, 0)

    rate = tl.load(lr_pointer).to(tl.float64) if lr_on_device else _double(lr)
    t = step - slow_start
    fast_correction = step * 0 + 1
    if has_fast:
        fast_correction = 1 - tl.exp(step * _double(log_beta1))
    root_square_correction = tl.sqrt(1 - tl.exp(step * _double(log_beta2)))
    slow_rate = _double(final_slow_rate)
    if warms_beta3:
        mu = tl.minimum(t / _double(beta3_warmup), 1.0)
        log_beta3 = 1 / ((1 - mu) * _double(inverse_log_beta1) + mu * _double(inverse_log_beta3))
        slow_rate = 1 - tl.exp(log_beta3)
    slow_weight = _double(alpha) * fast_correction
    if warms_alpha:
        slow_weight *= tl.minimum(t / _double(alpha_warmup), 1.0)

    step_size = (rate / fast_correction).to(T)
    slow_weight = slow_weight.to(T)
    root_correction = (1 / root_square_correction).to(T)
    slow_rate = slow_rate.to(T)
    fast_rate = (1 - _double(beta1)).to(T)
    square_decay = _double(beta2).to(T)
    square_rate = (1 - _double(beta2)).to(T)
    epsilon = _double(eps).to(T)
    decay = (1 - rate * _double(weight_decay)).to(T)

    # Whole blocks go without a mask, so that they are read and written 16 bytes at a time.
    size = tl.minimum(numel - begin, CHUNK)
    whole = size // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        i = begin + first + tl.arange(0, BLOCK)
        _update_block(
            p + i, g + i, fast + i, slow + i, square + i, None, None, grad_scale, step_size, slow_weight,
            root_correction, slow_rate, fast_rate, square_decay, square_rate, epsilon, decay,
            P, G, T, has_fast, has_scale, maximize,
        )  # fmt: skip
    if whole < size:
        i = begin + whole + tl.arange(0, BLOCK)
        _update_block(
            p + i, g + i, fast + i, slow + i, square + i, i < numel, 0, grad_scale, step_size, slow_weight,
            root_correction, slow_rate, fast_rate, square_decay, square_rate, epsilon, decay,
            P, G, T, has_fast, has_scale, maximize,
        )  # fmt: skip


def triton_update(
    tensors: Any,
    schedules: Any,
    *,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One step on CUDA tensors (``Moments`` laid alike in memory), in place; none if ``found_inf``."""
    torch._foreach_add_(tensors.state_steps, 1)
    device = tensors.params[0].device
    by_type: dict[Any, list[int]] = {}
    for i, (p, g) in enumerate(zip(tensors.params, tensors.grads, strict=True)):
        if p.numel() > 0:
            by_type.setdefault((p.dtype, g.dtype), []).append(i)
    for (p_type, g_type), indices in by_type.items():
        rows, programs = _rows([[ts[i] for i in indices] if ts else [] for ts in tensors])
        table = _on_device(rows, device)
        lr_on_device = isinstance(lr, Tensor) and lr.device == device
        # Triton launches on the current device.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            _ademamix_kernel[(programs,)](
                table,
                len(rows),
                lr if lr_on_device else table,
                table if grad_scale is None else grad_scale,
                table if found_inf is None else found_inf,
                _bits(0.0 if lr_on_device else float(lr)),
                _bits(schedules.beta1),
                _bits(schedules.beta2),
                _bits(_log(schedules.beta1)),
                _bits(_log(schedules.beta2)),
                _bits(1 / _log(schedules.beta1)),
                _bits(1 / _log(schedules.beta3)),
                _bits(1.0 - schedules.beta3),
                _bits(schedules.alpha),
                _bits(schedules.alpha_warmup or 0.0),
                _bits(schedules.beta3_warmup or 0.0),
                _bits(weight_decay),
                _bits(eps),
                P=TYPES[p_type],
                G=TYPES[g_type],
                T=TYPES[tensors.exp_avg_sqs[indices[0]].dtype],
                has_fast=schedules.beta1 > 0,
                warms_alpha=bool(schedules.alpha_warmup),
                warms_beta3=bool(schedules.beta3_warmup) and schedules.beta3 > schedules.beta1,
                maximize=maximize,
                lr_on_device=lr_on_device,
                has_scale=grad_scale is not None,
                has_found_inf=found_inf is not None,
                aligned=all(address % 16 == 0 for row in rows for address in row[:5]),
                CHUNK=CHUNK,
                BLOCK=BLOCK,
                COLUMNS=COLUMNS,
            )
    if found_inf is not None:
        torch._foreach_sub_(tensors.state_steps, [found_inf] * len(tensors.state_steps))


def _rows(lists: list[list[Tensor]]) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The rows of the table, and how many programs they take."""
    addresses = [[t.data_ptr() for t in ts] if ts else [0] * len(lists[0]) for ts in lists]
    rows, programs = [], 0
    for *of_one, p in zip(*addresses, lists[0], strict=True):
        rows.append((*of_one, p.numel(), programs))
        programs += -(-p.numel() // CHUNK)
    return tuple(rows), programs


class _Tables:
    """Tables on the device: gradients mostly come back to the same addresses, so the last ones are kept.

    A copy to the device that nothing waits for must come from pinned memory, and a CUDA graph copies from
    there again at each replay. No pinned memory can be had during a capture, so every table that is made
    outside one leaves a spare; what a graph has taken is kept for good.
    """

    MOST = 32

    def __init__(self) -> None:
        self.kept: OrderedDict[Any, Tensor] = OrderedDict()
        self.spares: list[Tensor] = []
        self.in_graphs: list[tuple[Tensor, Tensor]] = []

    def get(self, rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
        key = (device, rows)
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        numbers = torch.tensor(rows, dtype=torch.int64)  # (tensors, COLUMNS)
        if device.type != "cuda":
            return numbers
        if torch.cuda.is_current_stream_capturing():
            pinned = self._take_spare(numbers.numel())
            table = pinned[: numbers.numel()].copy_(numbers.view(-1)).to(device, non_blocking=True)
            self.in_graphs.append((pinned, table))
            return table
        if len(self.spares) < self.MOST:
            self.spares.append(torch.empty(numbers.numel(), dtype=torch.int64, pin_memory=True))
        self.kept[key] = numbers.pin_memory().to(device, non_blocking=True)
        if len(self.kept) > self.MOST:
            self.kept.popitem(last=False)
        return self.kept[key]

    def _take_spare(self, size: int) -> Tensor:
        for i, spare in enumerate(self.spares):
            if spare.numel() >= size:
                return self.spares.pop(i)
        raise RuntimeError(
            "A CUDA graph captures AdEMAMix(fused=True).step only after a step outside it with the same "
            "parameters"
        )


_on_device = _Tables().get


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf
