"""Refusing what AdEMAMix cannot do, in torch's own words where it has some."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .state import MOMENTS, moment_names


def check_group(group: dict[str, Any]) -> None:
    """Raise on an invalid setting of a parameter group, or a combination that is not supported.

    Raises:
        ValueError: a hyper-parameter is out of its range.
        RuntimeError: ``fused`` together with ``differentiable`` or ``foreach``.
    """
    lr, betas, eps = group["lr"], group["betas"], group["eps"]
    if isinstance(lr, Tensor):
        if group["foreach"] and not group["capturable"]:
            raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    if len(betas) != 3:
        raise ValueError(
            f"betas must be three numbers, (beta1, beta2, beta3), got {len(betas)}: {betas}. "
            "To AdamW's two add the decay of the slow average, e.g. 0.9999"
        )
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor):
            raise ValueError(f"betas must be floats, got a Tensor at index {i}: pass betas[{i}].item()")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if not group["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")
    if not 0.0 <= group["alpha"] < math.inf:
        raise ValueError(f"Invalid alpha value: {group['alpha']}")
    for name in ("alpha_warmup", "beta3_warmup"):
        if group[name] is not None and not 0.0 <= group[name] < math.inf:
            raise ValueError(
                f"Invalid {name} value: {group[name]} (a number of steps, or None for no warm-up)"
            )
    if group["fused"]:
        if group["differentiable"]:
            raise RuntimeError("`fused` does not support `differentiable`")
        if group["foreach"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def check_state_dict(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Raise if ``state_dict`` was not made by AdEMAMix, or not for these parameters.

    Raises:
        ValueError: what is wrong, and the way out.
    """
    for group in state_dict["param_groups"]:
        betas = group.get("betas", ())
        if "min_8bit_size" in group:
            raise ValueError(
                "loaded state dict is of AdEMAMix8bit, whose moments are 8-bit codes: load it into an "
                "AdEMAMix8bit"
            )
        if "alpha" not in group or len(betas) != 3:
            way_out = "Load it into the optimizer that it was saved from"
            if len(betas) == 2:
                way_out = (
                    "It looks like Adam's. To go on from AdamW, load it into a torch.optim.AdamW and use "
                    "AdEMAMix.from_adamw(adamw)"
                )
            raise ValueError(f"loaded state dict is not of AdEMAMix: its groups lack alpha. {way_out}")
        for i in group["params"]:
            saved = state_dict["state"].get(i)
            missing = [name for name in ("step", *moment_names(group)) if saved and name not in saved]
            if missing:
                raise ValueError(
                    f"loaded state dict lacks {', '.join(missing)} for parameter {i}: it is of another "
                    "optimizer or was cut short"
                )
    ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    # torch itself says what is wrong if their numbers differ.
    for i, p in zip(ids, parameters, strict=False):
        for name in MOMENTS:
            moment = state_dict["state"].get(i, {}).get(name)
            if moment is not None and moment.shape != p.shape:
                raise ValueError(
                    f"loaded state dict has {name} of shape {tuple(moment.shape)} for parameter {i}, which "
                    f"is {tuple(p.shape)}: it was saved for another model, or another order of parameters"
                )
