"""What AdEMAMix keeps for a parameter: two step counters and two or three moments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._torch import _get_scalar_dtype

COUNTERS = ("step", "slow_step")
MOMENTS = ("exp_avg", "exp_avg_slow", "exp_avg_sq")


def moment_names(group: dict[str, Any]) -> tuple[str, ...]:
    """The moments of a group's parameters. With beta1 = 0 the fast one is the gradient, and is not kept."""
    return MOMENTS if group["betas"][0] > 0 else MOMENTS[1:]


def moment_dtype(p: Tensor) -> torch.dtype:
    """At least float32: with beta3 = 0.9999 a bfloat16 average stalls at a fraction of what it averages."""
    return torch.promote_types(p.dtype, torch.float32)


def new_moment(p: Tensor) -> Tensor:
    """An empty average for ``p``, in its layout."""
    return torch.zeros_like(p, dtype=moment_dtype(p), memory_format=torch.preserve_format)


def new_counter(value: float, p: Tensor, group: dict[str, Any]) -> Tensor:
    """A 0-dim step count. As in torch's Adam it is on the CPU unless a kernel or a graph must read it."""
    on_device = group["capturable"] or group["fused"]
    dtype = _get_scalar_dtype(is_fused=group["fused"])
    return torch.tensor(value, dtype=dtype, device=p.device if on_device else "cpu")
