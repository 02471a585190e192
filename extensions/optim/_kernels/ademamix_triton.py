"""The fused step of AdEMAMix for CUDA: one Triton kernel over all tensors of a type.

It takes the step counts, the learning rate if that is a tensor, ``grad_scale`` and ``found_inf`` from the
device, so that nothing waits for the device and a CUDA graph may hold it. The formulas are those of
extensions/optim/ademamix/schedules.py and functional.py, whose for-loop is the oracle.
"""

from __future__ import annotations

import math
import struct
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .address_tables import COLUMNS, AddressTables

if TYPE_CHECKING:
    from ..ademamix.moments import Moments, StepSettings
    from ..ademamix.schedules import Schedules

CHUNK = 32_768  # elements a program takes
BLOCK = 1_024  # elements it takes at a time
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
def _lerp(start, end, rate):  # type: ignore[no-untyped-def]
    # As torch's: from the nearer end, or the smaller number would be lost beside the other.
    return tl.where(rate < 0.5, start + rate * (end - start), end - (1 - rate) * (end - start))


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
        m1 = _lerp(m1, gradient, fast_rate)
        tl.store(fast, m1, mask=mask)
    m2 = tl.load(slow, mask=mask, other=other)
    m2 = _lerp(m2, gradient, slow_rate)
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
    # Bits of float64, all declared as i64: a 0 would else be an i32, and another kernel.
    lr: tl.int64, beta1: tl.int64, beta2: tl.int64, log_beta1: tl.int64, log_beta2: tl.int64,
    inverse_log_beta1: tl.int64, inverse_log_beta3: tl.int64, final_slow_rate: tl.int64,
    alpha: tl.int64, alpha_warmup: tl.int64, beta3_warmup: tl.int64, weight_decay: tl.int64, eps: tl.int64,
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
    t = tl.load(tl.load(row + 6).to(tl.pointer_type(tl.float32))).to(tl.float64)
    numel = tl.load(row + 7)
    if aligned:
        p, g, fast = tl.multiple_of(p, 16), tl.multiple_of(g, 16), tl.multiple_of(fast, 16)
        slow, square = tl.multiple_of(slow, 16), tl.multiple_of(square, 16)
    if has_found_inf:
        # No element is touched if there was an infinity.
        numel = tl.where(tl.load(found_inf) == 0, numel, 0)

    rate = tl.load(lr_pointer).to(tl.float64) if lr_on_device else _double(lr)
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


@triton.jit
def _write_one(there):  # type: ignore[no-untyped-def]
    tl.store(there, 1.0)


def try_out(device: torch.device) -> None:
    """Compile and run a kernel; raises whatever is wrong with Triton on ``device``."""
    with torch.cuda.device(device):
        _write_one[(1,)](torch.empty(1, device=device))


def triton_update(
    tensors: Moments,
    schedules: Schedules,
    settings: StepSettings,
    *,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One step, already counted, on tensors of one device that are laid alike; none if ``found_inf``."""
    device = tensors.params[0].device
    lr = settings.lr
    if isinstance(lr, Tensor) and (lr.is_cuda or device.type != "cuda"):
        lr = lr.to(device, non_blocking=True)
    # Triton launches on the current device.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for alike in tensors.split(lambda p, g: (p.dtype, g.dtype)):
            table = tables.get(alike)
            if table.programs == 0:
                continue
            on_device = table.on_device
            _ademamix_kernel[(table.programs,)](
                on_device,
                on_device.shape[0],
                lr if isinstance(lr, Tensor) else on_device,
                on_device if grad_scale is None else grad_scale,
                on_device if found_inf is None else found_inf,
                0 if isinstance(lr, Tensor) else _bits(lr),
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
                _bits(settings.weight_decay),
                _bits(settings.eps),
                P=TYPES[alike.params[0].dtype],
                G=TYPES[alike.grads[0].dtype],
                T=TYPES[alike.exp_avg_sqs[0].dtype],
                has_fast=schedules.beta1 > 0,
                warms_alpha=bool(schedules.alpha_warmup),
                warms_beta3=bool(schedules.beta3_warmup) and schedules.beta3 > schedules.beta1,
                maximize=settings.maximize,
                lr_on_device=isinstance(lr, Tensor),
                has_scale=grad_scale is not None,
                has_found_inf=found_inf is not None,
                aligned=table.aligned,
                CHUNK=CHUNK,
                BLOCK=BLOCK,
                COLUMNS=COLUMNS,
            )


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf


tables = AddressTables(CHUNK)
