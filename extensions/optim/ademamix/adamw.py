"""Switching between AdamW and AdEMAMix in mid-run: their groups and states in each other's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from .state import moment_dtype, new_moment

SHARED = ("lr", "eps", "weight_decay", "maximize", "foreach", "capturable", "differentiable", "fused")
ONLY_ADAMW = ("amsgrad", "decoupled_weight_decay")
ONLY_ADEMAMIX = ("alpha", "alpha_warmup", "beta3_warmup", "min_8bit_size")


def check_adamw(optimizer: Any) -> None:
    """Raise if AdEMAMix cannot go on from ``optimizer``."""
    if not isinstance(optimizer, Adam):
        raise TypeError(
            f"from_adamw takes a torch.optim.AdamW, got {type(optimizer).__name__}"
            + (
                ": pass its .optimizer"
                if isinstance(getattr(optimizer, "optimizer", None), Optimizer)
                else ""
            )
        )
    for group in optimizer.param_groups:
        if group["amsgrad"]:
            raise ValueError("AdEMAMix has no amsgrad: go on from an AdamW with amsgrad=False")
        if group["weight_decay"] != 0 and not group["decoupled_weight_decay"]:
            raise TypeError(
                "from_adamw takes a torch.optim.AdamW: this Adam adds its weight_decay to the gradient, "
                "AdEMAMix decays weights apart from it"
            )


def settings_for_ademamix(optimizer: Adam, beta3: float) -> dict[str, Any]:
    """The arguments of AdEMAMix's constructor that ``optimizer`` was constructed with."""
    return {**{name: optimizer.defaults[name] for name in SHARED}, "betas": _betas(optimizer.defaults, beta3)}


def groups_for_ademamix(optimizer: Adam, beta3: float) -> list[dict[str, Any]]:
    """The groups of ``optimizer``, with all that others (LR schedulers) have put there."""
    groups = [_copy(group, without=ONLY_ADAMW) for group in optimizer.param_groups]
    return [{**group, "betas": _betas(group, beta3)} for group in groups]


def state_for_ademamix(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    """AdamW's ``state`` of ``p`` with an empty slow average, begun now."""
    taken = {"step": state["step"], "slow_step": torch.zeros_like(state["step"])}
    if group["betas"][0] > 0:
        taken["exp_avg"] = state["exp_avg"].to(moment_dtype(p))
    return {**taken, "exp_avg_slow": new_moment(p), "exp_avg_sq": state["exp_avg_sq"].to(moment_dtype(p))}


def to_adamw(optimizer: Optimizer, state_of: Mapping[Tensor, dict[str, Any]]) -> AdamW:
    """An AdamW with the settings, step counts, fast and squared moments of an AdEMAMix.

    ``state_of`` is the optimizer's state, with moments that are not codes.
    """
    groups = [
        {**_copy(group, without=ONLY_ADEMAMIX), "betas": group["betas"][:2]}
        for group in optimizer.param_groups
    ]
    settings = {name: optimizer.defaults[name] for name in SHARED}
    adamw = AdamW(groups, betas=optimizer.defaults["betas"][:2], **settings)
    for group in adamw.param_groups:
        for p in group["params"]:
            state = state_of.get(p)
            if state:
                # torch's Adam has its moments in the parameter's type.
                fast = state["exp_avg"].to(p.dtype) if "exp_avg" in state else torch.zeros_like(p)
                squared = state["exp_avg_sq"].to(p.dtype)
                adamw.state[p] = {"step": state["step"], "exp_avg": fast, "exp_avg_sq": squared}
    return adamw


def _betas(group: dict[str, Any], beta3: float) -> tuple[float, float, float]:
    beta1, beta2 = group["betas"]
    return float(beta1), float(beta2), beta3


def _copy(group: dict[str, Any], without: tuple[str, ...]) -> dict[str, Any]:
    copy = {key: value for key, value in group.items() if key not in (*without, "param_names")}
    params = group["params"]
    copy["params"] = (
        list(zip(group["param_names"], params, strict=True)) if "param_names" in group else list(params)
    )
    return copy
