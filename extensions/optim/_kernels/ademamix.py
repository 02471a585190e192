"""The fused step of AdEMAMix: one kernel for all tensors of a device."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .build import load_operators

SOURCE = Path(__file__).with_suffix(".cpp")


def fused_update_for(device: torch.device) -> Callable[..., None] | None:
    """The fused step for a device, compiled if it was not before; None, with a warning, if there is none."""
    if device.type == "cpu":
        return cpu_update if load_operators(SOURCE) else None
    if device.type == "cuda" and _has_triton():
        return cuda_update
    return None


@functools.cache
def _has_triton() -> bool:
    if find_spec("triton") is not None:
        return True
    warnings.warn(
        "fused=True on CUDA wants Triton, which is not installed, so the for-loop is used instead: same "
        "results, much slower. Install triton, or pass fused=False",
        stacklevel=2,
    )
    return False


def cpu_update(
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
    """One step on CPU tensors (``Moments`` of the functional), in place; none if ``found_inf``."""
    if found_inf is not None and found_inf.item():
        return
    torch._foreach_add_(tensors.state_steps, 1)
    lr = float(lr)
    coefficients: list[float] = []
    for step, slow_start in zip(tensors.state_steps, tensors.slow_starts, strict=True):
        at = schedules.at(step.item(), slow_start.item())
        coefficients += (
            lr / at.fast_correction,
            at.alpha * at.fast_correction,
            1.0 / at.root_square_correction,
            at.slow_rate,
        )
    with _laid_alike(tensors) as laid:
        torch.ops.rl_extensions.ademamix_(
            laid.params,
            laid.grads,
            laid.exp_avgs,
            laid.exp_avg_slows,
            laid.exp_avg_sqs,
            coefficients,
            schedules.beta1,
            schedules.beta2,
            eps,
            1.0 - lr * weight_decay,
            maximize,
            None if grad_scale is None else grad_scale.item(),
        )


def cuda_update(tensors: Any, schedules: Any, **options: Any) -> None:
    """As :func:`cpu_update`, on CUDA tensors."""
    from .ademamix_triton import triton_update  # Triton is there only with a CUDA build of torch

    with _laid_alike(tensors) as laid:
        triton_update(laid, schedules, **options)


@contextmanager
def _laid_alike(tensors: Any) -> Iterator[Any]:
    """The tensors of each parameter in one memory layout, for a kernel to run through as flat arrays.

    Nearly always they are so already. What is not is copied, and copied back at the end.
    """
    lists = [list(ts) for ts in tensors[:5]]
    copies = []
    for i, p in enumerate(tensors.params):
        dense = p.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(p)
        for ts in lists:
            if ts and not (dense and ts[i].stride() == p.stride()):
                if dense:
                    copy = torch.empty_like(p, dtype=ts[i].dtype).copy_(ts[i])
                else:
                    copy = ts[i].clone(memory_format=torch.contiguous_format)
                copies.append((ts[i], copy))
                ts[i] = copy
    yield type(tensors)(*lists, *tensors[5:])
    for original, copy in copies:
        original.copy_(copy)
