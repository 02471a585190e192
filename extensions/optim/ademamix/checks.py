"""Refusing what AdEMAMix cannot do, in torch's own words where it has some."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .state import MOMENTS, moment_names

NUMBERS = ("eps", "weight_decay", "alpha", "alpha_warmup", "beta3_warmup")


def with_plain_numbers(group: dict[str, Any]) -> dict[str, Any]:
    """A copy whose settings are Python's own numbers, which ``torch.load(weights_only=True)`` takes back.

    Raises:
        ValueError: a setting is no number, or a Tensor where only ``lr`` may be one.
    """
    plain = dict(group)
    for name in NUMBERS:
        if plain.get(name) is not None:
            plain[name] = _plain_number(name, plain[name])
    if "lr" in plain and not isinstance(plain["lr"], Tensor):
        plain["lr"] = _plain_number("lr", plain["lr"])
    if "betas" in plain:
        betas = plain["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 3:
            raise ValueError(
                f"betas must be three numbers, (beta1, beta2, beta3), got {betas}. "
                "To AdamW's two add the decay of the slow average, e.g. 0.9999"
            )
        plain["betas"] = tuple(_plain_number(f"betas[{i}]", beta) for i, beta in enumerate(betas))
    return plain


def _plain_number(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        raise ValueError(f"{name} must be a number, got a Tensor: pass its .item()")
    if hasattr(value, "item"):  # a scalar of numpy
        value = value.item()
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return value


def check_group(group: dict[str, Any]) -> None:
    """Raise on an invalid setting of a parameter group, or a combination that is not supported.

    Raises:
        ValueError: a hyper-parameter is out of its range.
        RuntimeError: ``fused`` together with ``differentiable`` or ``foreach``.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if group["foreach"] and not group["capturable"]:
            raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not group["eps"] >= 0.0:
        raise ValueError(f"Invalid epsilon value: {group['eps']}")
    check_slow_settings(group)
    if not group["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")
    for name in ("alpha_warmup", "beta3_warmup"):
        warmup = group[name]
        if warmup is not None and (not 0.0 <= warmup < math.inf or 0.0 < warmup < 1.0):
            raise ValueError(
                f"Invalid {name} value: {warmup} (a number of steps, no share of them; None for no warm-up)"
            )
    if group["fused"]:
        if group["differentiable"]:
            raise RuntimeError("`fused` does not support `differentiable`")
        if group["foreach"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def check_slow_settings(group: dict[str, Any]) -> None:
    """The part of :func:`check_group` that is about alpha and the betas."""
    for i, beta in enumerate(group["betas"]):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if not 0.0 <= group["alpha"] < math.inf:
        raise ValueError(f"Invalid alpha value: {group['alpha']}")


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
    saved_ids = list(chain.from_iterable(group["params"] for group in state_dict["param_groups"]))
    strangers = [i for i in state_dict["state"] if i not in set(saved_ids)]
    if strangers:
        raise ValueError(
            f"loaded state dict has state for {strangers[:3]}, which no param group names: it was put "
            "together wrongly, or its keys went through a format that turns numbers into strings"
        )
    parameters = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    if len(saved_ids) != len(parameters):
        return  # torch says which group is of another size
    for i, p in zip(saved_ids, parameters, strict=True):
        for name in MOMENTS:
            moment = state_dict["state"].get(i, {}).get(name)
            if moment is not None and moment.shape != p.shape:
                raise ValueError(
                    f"loaded state dict has {name} of shape {tuple(moment.shape)} for parameter {i}, which "
                    f"is {tuple(p.shape)}: it was saved for another model, or another order of parameters"
                )
