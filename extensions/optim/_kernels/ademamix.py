"""The fused step of AdEMAMix: one kernel for all tensors of a device."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .build import load_operators

if TYPE_CHECKING:
    from ..ademamix.moments import Moments, StepSettings
    from ..ademamix.schedules import Schedules

SOURCE = Path(__file__).with_suffix(".cpp")
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def fused_update_for(device: torch.device) -> Callable[..., None] | None:
    """The fused step for a device, compiled if it was not before; None, with a warning, if there is none."""
    if device.type == "cpu":
        return cpu_update if load_operators(SOURCE) else None
    if device.type == "cuda":
        return cuda_update if _triton_works(device) else None
    _warn_once(f"there is no fused step for {device.type}")
    return None


@functools.cache
def _triton_works(device: torch.device) -> bool:
    """Whether Triton is there and compiles for this device."""
    try:
        from .ademamix_triton import try_out  # Triton comes with CUDA builds of torch only

        try_out(device)
    except Exception as error:  # what can go wrong is Triton's, its compiler's and the driver's
        _warn_once(f"it wants Triton on CUDA, which did not work: {error!r}")
        return False
    return True


@functools.cache
def _warn_once(why: str) -> None:
    warnings.warn(
        f"fused=True: {why}. The for-loop is used instead, with the same results up to rounding, but much "
        "slower. Pass fused=False to use foreach",
        stacklevel=2,
    )


def cpu_update(
    tensors: Moments,
    schedules: Schedules,
    settings: StepSettings,
    *,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One step on CPU tensors, in place; none if ``found_inf``."""
    if found_inf is not None and found_inf.item():
        return
    with _laid_alike(tensors, writes_grads=grad_scale is not None) as laid:
        laid.count_step()
        lr = float(settings.lr)
        coefficients: list[float] = []
        for step, slow_step in zip(laid.state_steps, laid.slow_steps, strict=True):
            at = schedules.at(step.item(), slow_step.item())
            coefficients += (
                lr / at.fast_correction,
                at.alpha * at.fast_correction,
                1.0 / at.root_square_correction,
                at.slow_rate,
            )
        torch.ops.rl_extensions.ademamix_(
            laid.params,
            laid.grads,
            laid.exp_avgs,
            laid.exp_avg_slows,
            laid.exp_avg_sqs,
            coefficients,
            schedules.beta1,
            schedules.beta2,
            settings.eps,
            1.0 - lr * settings.weight_decay,
            settings.maximize,
            None if grad_scale is None else grad_scale.item(),
        )


def cuda_update(
    tensors: Moments,
    schedules: Schedules,
    settings: StepSettings,
    *,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """As :func:`cpu_update`, on CUDA tensors, without a look at anything on the device."""
    from .ademamix_triton import triton_update

    with _laid_alike(tensors, writes_grads=grad_scale is not None) as laid:
        laid.count_step()
        triton_update(laid, schedules, settings, grad_scale=grad_scale, found_inf=found_inf)
        if found_inf is not None:
            counters = [*laid.state_steps, *laid.slow_steps]
            # A scaler sums it over devices, so it may be more than 1.
            torch._foreach_sub_(counters, [(found_inf != 0).to(counters[0].dtype)] * len(counters))


@contextmanager
def _laid_alike(tensors: Moments, writes_grads: bool) -> Iterator[Moments]:
    """The tensors of each parameter in one memory layout, for a kernel to run through as flat arrays.

    Nearly always they are so already. What is not is copied, and copied back at the end if it was written.

    Raises:
        RuntimeError: types that no kernel is compiled for.
    """
    lists = [list(ts) for ts in tensors[:5]]
    copies: list[tuple[Tensor, Tensor]] = []
    for i, p in enumerate(tensors.params):
        if p.dtype not in TYPES:
            raise RuntimeError(f"fused=True takes parameters of {TYPES}, got {p.dtype}: pass fused=False")
        dense = p.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(p)
        for k, ts in enumerate(lists):
            if not ts:
                continue
            dtype = _gradient_type(p, ts[i]) if k == 1 else ts[i].dtype
            if dense and ts[i].stride() == p.stride() and ts[i].dtype == dtype:
                continue
            if dense:
                copy = torch.empty_like(p, dtype=dtype).copy_(ts[i])
            else:
                copy = ts[i].to(dtype, copy=True, memory_format=torch.contiguous_format)
            if k != 1 or writes_grads:
                copies.append((ts[i], copy))
            ts[i] = copy
    params, grads, exp_avgs, exp_avg_slows, exp_avg_sqs = lists
    yield tensors._replace(
        params=params,
        grads=grads,
        exp_avgs=exp_avgs,
        exp_avg_slows=exp_avg_slows,
        exp_avg_sqs=exp_avg_sqs,
    )
    for original, copy in copies:
        original.copy_(copy)


def _gradient_type(p: Tensor, gradient: Tensor) -> torch.dtype:
    """The parameter's type, but float32 where a half-precision parameter has such a gradient."""
    wider = gradient.dtype == torch.float32 and p.dtype in (torch.bfloat16, torch.float16)
    return gradient.dtype if wider else p.dtype
