"""The fused step of AdEMAMix for CUDA: one Triton kernel over all tensors of a type.

It takes the step counts, the learning rate if that is a tensor, ``grad_scale`` and ``found_inf`` from the
device, so that nothing waits for the device and a CUDA graph may hold it. The formulas are those of
extensions/optim/ademamix/schedules.py and functional.py, whose for-loop is the oracle.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 32_768  # elements a program takes
BLOCK = 1_024  # elements it takes at a time
COLUMNS = 8  # of the table of addresses: p, g, m1, m2, v, step, slow_start, and the number of elements
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


@triton.jit(do_not_specialize=[
    "lr", "beta1", "beta2", "log_beta1", "log_beta2", "inverse_log_beta1", "inverse_log_beta3",
    "final_slow_rate", "alpha", "alpha_warmup", "beta3_warmup", "weight_decay", "eps",
])  # fmt: skip
def _ademamix_kernel(  # type: ignore[no-untyped-def]
    table,  # (tensors, COLUMNS) int64
    chunks,  # (programs, 2) int32: tensor, number of the chunk in it
    lr_pointer, grad_scale, found_inf,  # 0-dim float32 on the device, or anything where their flag is off
    lr, beta1, beta2, log_beta1, log_beta2, inverse_log_beta1, inverse_log_beta3, final_slow_rate,
    alpha, alpha_warmup, beta3_warmup, weight_decay, eps,  # bits of float64
    P: tl.constexpr, G: tl.constexpr, T: tl.constexpr,  # types of parameters, gradients, moments
    has_fast: tl.constexpr, warms_alpha: tl.constexpr, warms_beta3: tl.constexpr, maximize: tl.constexpr,
    lr_on_device: tl.constexpr, has_scale: tl.constexpr, has_found_inf: tl.constexpr, aligned: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = table + tl.load(chunks + 2 * program).to(tl.int64) * COLUMNS
    begin = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK
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

    for first in range(0, tl.minimum(numel - begin, CHUNK), BLOCK):
        i = begin + first + tl.arange(0, BLOCK)
        inside = i < numel
        gradient = tl.load(g + i, mask=inside, other=0).to(T)
        if has_scale:
            gradient = gradient / tl.load(grad_scale).to(T)
            tl.store(g + i, gradient.to(G), mask=inside)  # as torch's fused kernels do
        if maximize:
            gradient = -gradient
        m1 = gradient
        if has_fast:
            m1 = tl.load(fast + i, mask=inside, other=0)
            m1 += fast_rate * (gradient - m1)
            tl.store(fast + i, m1, mask=inside)
        m2 = tl.load(slow + i, mask=inside, other=0)
        m2 += slow_rate * (gradient - m2)
        tl.store(slow + i, m2, mask=inside)
        v = square_decay * tl.load(square + i, mask=inside, other=0) + square_rate * gradient * gradient
        tl.store(square + i, v, mask=inside)
        denominator = tl.sqrt(v) * root_correction + epsilon
        weight = tl.load(p + i, mask=inside, other=0).to(T) * decay
        weight -= step_size * (m1 + slow_weight * m2) / denominator
        tl.store(p + i, weight.to(P), mask=inside)


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
    by_type: dict[Any, list[int]] = {}
    for i, (p, g) in enumerate(zip(tensors.params, tensors.grads, strict=True)):
        by_type.setdefault((p.dtype, g.dtype), []).append(i)
    for (p_type, g_type), indices in by_type.items():
        lists = [[ts[i] for i in indices] if ts else [] for ts in tensors]
        addresses = _addresses(lists)
        table, chunks = _tables(addresses, lists[0][0].device)
        if chunks.shape[0] == 0:
            continue
        lr_on_device = isinstance(lr, Tensor) and lr.device == table.device
        beta3_warms = bool(schedules.beta3_warmup) and schedules.beta3 > schedules.beta1
        _ademamix_kernel[(chunks.shape[0],)](
            table,
            chunks,
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
            warms_beta3=beta3_warms,
            maximize=maximize,
            lr_on_device=lr_on_device,
            has_scale=grad_scale is not None,
            has_found_inf=found_inf is not None,
            aligned=all(address % 16 == 0 for row in addresses for address in row[:5]),
            CHUNK=CHUNK,
            BLOCK=BLOCK,
            COLUMNS=COLUMNS,
        )
    if found_inf is not None:
        torch._foreach_sub_(tensors.state_steps, [found_inf] * len(tensors.state_steps))


def _addresses(lists: list[list[Tensor]]) -> tuple[tuple[int, ...], ...]:
    """A row of the table for each tensor that has elements."""
    columns = [[t.data_ptr() for t in ts] if ts else [0] * len(lists[0]) for ts in lists]
    columns.append([p.numel() for p in lists[0]])
    return tuple(row for row in zip(*columns, strict=True) if row[-1])


# Gradients mostly come back to the same addresses, so the last tables are kept. One that a CUDA graph reads
# is kept for good.
_kept: OrderedDict[Any, tuple[Tensor, Tensor]] = OrderedDict()
_captured: list[Any] = []
_spare_pinned: list[Tensor] = []
MOST_KEPT = 32


def _tables(addresses: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The table of addresses, and which chunk of which tensor each program takes; on ``device``."""
    key = (device, addresses)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    chunks = [(i, k) for i, row in enumerate(addresses) for k in range(-(-row[-1] // CHUNK))]
    table = torch.tensor(addresses, dtype=torch.int64).view(len(addresses), COLUMNS)
    programs = torch.tensor(chunks, dtype=torch.int32).view(len(chunks), 2)
    on_device = (_to_device(table, device), _to_device(programs, device))
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.append(on_device)
        return on_device
    _kept[key] = on_device
    if len(_kept) > MOST_KEPT:
        _kept.popitem(last=False)
    return on_device


def _to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that does not wait for it and may be captured."""
    if device.type != "cuda":
        return numbers
    size = numbers.numel() * numbers.element_size()
    if torch.cuda.is_current_stream_capturing():
        # No pinned memory can be had during a capture: the step before it has left some.
        fitting = next((i for i, spare in enumerate(_spare_pinned) if spare.numel() >= size), None)
        if fitting is None:
            raise RuntimeError(
                "Make one step with gradients before a CUDA graph captures AdEMAMix(fused=True).step"
            )
        pinned = _spare_pinned.pop(fitting)
        _captured.append(pinned)
    else:
        pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        if sum(spare.numel() >= size for spare in _spare_pinned) < 2:
            _spare_pinned.append(torch.empty(size, dtype=torch.uint8, pin_memory=True))
    staged = pinned[:size].view(numbers.dtype).view(numbers.shape).copy_(numbers)
    return staged.to(device, non_blocking=True)


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf
