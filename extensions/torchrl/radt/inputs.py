"""What the transformer takes: each shape and kind, or one message that says which was wanted."""

from __future__ import annotations

import torch
from torch import Tensor


def check_window(
    state_dim: int,
    action_dim: int,
    discrete: bool,
    n_positions: int,
    observation: Tensor,
    action: Tensor,
    return_to_go: Tensor,
    timestep: Tensor | None,
    mask: Tensor | None,
) -> None:
    """Raises ValueError where an argument of :meth:`RADTransformer.forward` does not fit the others."""
    if observation.ndim < 2 or observation.shape[-1] != state_dim:
        raise ValueError(f"observation must be (*, T, {state_dim}), got {tuple(observation.shape)}")
    lead, beside = observation.shape[:-1], f"beside an observation {tuple(observation.shape)}"
    if 3 * lead[-1] > n_positions:
        raise ValueError(
            f"{lead[-1]} steps are {3 * lead[-1]} tokens, more than n_positions={n_positions}; raise "
            "n_positions or shorten the window"
        )
    check_action(action, lead, action_dim, discrete, beside)
    if return_to_go.shape != (*lead, 1):
        raise ValueError(
            f"return_to_go must be {(*lead, 1)} {beside}, got {tuple(return_to_go.shape)}"
            + ("; use return_to_go.unsqueeze(-1)" if return_to_go.shape == lead else "")
        )
    if timestep is not None:
        _check_steps("timestep", timestep, lead, beside)
        if timestep.is_floating_point() or timestep.dtype == torch.bool:
            raise ValueError(f"timestep must be of integers, steps of the episode, got {timestep.dtype}")
    if mask is not None:
        _check_steps("mask", mask, lead, beside)
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be of bool, True where a step is real, got {mask.dtype}")


def check_action(action: Tensor, lead: torch.Size, action_dim: int, discrete: bool, beside: str) -> None:
    """Raises ValueError unless actions fit steps of shape ``lead`` and their kind."""
    shape, index = (*lead, action_dim), action.shape == lead
    if not (action.shape == shape or (index and discrete)):
        wanted = f"{shape}" if not discrete else f"{tuple(lead)} of integers, or one-hot {shape},"
        hint = "; for indices of actions, build the actor with discrete=True" if index else ""
        raise ValueError(f"action must be {wanted} {beside}, got {tuple(action.shape)}{hint}")
    if index and (action.is_floating_point() or action.dtype == torch.bool):
        raise ValueError(f"indices of actions must be integers, got {action.dtype}; use action.long()")


def _check_steps(name: str, x: Tensor, lead: torch.Size, beside: str) -> None:
    if x.shape not in (lead, (*lead, 1)):
        raise ValueError(f"{name} must be {tuple(lead)} or {(*lead, 1)} {beside}, got {tuple(x.shape)}")
