"""The fused step of AdEMAMix: one kernel for all tensors of a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .build import load_operators

SOURCE = Path(__file__).with_suffix(".cpp")


def fused_update_for(device: torch.device) -> Callable[..., None] | None:
    """The fused step for a device, compiled now if it was not before; None, with a warning, if there is none."""
    if device.type == "cpu":
        return cpu_update if load_operators(SOURCE) else None
    return None


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
    with _LaidAlike(tensors) as laid:
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


class _LaidAlike:
    """The tensors of each parameter in one memory layout, so that a kernel may run through them as flat arrays.

    Nearly always they are so already. What is not is copied, and copied back at the end.
    """

    def __init__(self, tensors: Any) -> None:
        self.tensors = tensors
        self.copies: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> Any:
        lists = [list(ts) for ts in self.tensors[:5]]
        for i, p in enumerate(self.tensors.params):
            flat = _is_dense(p)
            for ts in lists:
                if ts and not (flat and ts[i].stride() == p.stride()):
                    if flat:
                        copy = torch.empty_like(p, dtype=ts[i].dtype).copy_(ts[i])
                    else:
                        copy = ts[i].clone(memory_format=torch.contiguous_format)
                    self.copies.append((ts[i], copy))
                    ts[i] = copy
        return type(self.tensors)(*lists, *self.tensors[5:])

    def __exit__(self, *_: Any) -> None:
        for original, copy in self.copies:
            original.copy_(copy)


def _is_dense(p: Tensor) -> bool:
    return p.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(p)
