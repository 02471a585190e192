"""The last steps of a batch of episodes, as windows."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor


class History:
    """Windows of the last K steps, left-padded while there are fewer.

    Args:
        observation: (B, S), like the observations to come.
        empty_action: (B, A) or (B,), what stands for an action not yet taken.
        context: K.
    """

    def __init__(self, observation: Tensor, empty_action: Tensor, context: int) -> None:
        self.count = len(observation)
        self.observations = observation.new_zeros(self.count, context, *observation.shape[1:])
        self.returns = observation.new_zeros(self.count, context, 1)
        self.empty = empty_action
        self.actions = torch.stack([empty_action] * context, 1)  # (B, K, A) or (B, K)
        self.before = empty_action  # the action of the step before
        self.step = torch.full((self.count,), -1, device=observation.device)  # (B,)
        self.places = torch.arange(1 - context, 1, device=observation.device)  # (K,), 0 is the present

    def reset(self, rows: Tensor) -> None:
        """Forget the episodes where ``rows`` (B,) is True."""
        for name, blank in (("observations", 0), ("returns", 0), ("step", -1)):
            past = getattr(self, name)
            setattr(self, name, torch.where(_like(rows, past), blank, past))
        self.actions = torch.where(_like(rows, self.actions), self.empty[:, None], self.actions)
        self.before = torch.where(_like(rows, self.before), self.empty, self.before)

    def observe(self, observation: Tensor, return_to_go: Tensor) -> None:
        """Begin the next step: (B, S) and (B, 1)."""
        self.observations = _slide(self.observations, observation)
        self.returns = _slide(self.returns, return_to_go)
        self.actions = _slide(self.actions, self.empty)
        self.step = self.step + 1

    def act(self, action: Tensor) -> None:
        """The action of the present step."""
        self.actions[:, -1] = action
        self.before = action

    def window(self, observation: NestedKey, action: NestedKey, return_to_go: NestedKey) -> TensorDict:
        """What an actor takes, by these names and "timestep" and "mask", with batch size [B, K]."""
        timestep = self.step[:, None] + self.places  # (B, K), negative where there was no step yet
        return TensorDict(
            {
                observation: self.observations,
                action: self.actions,
                return_to_go: self.returns,
                "timestep": timestep.clamp(min=0),
                "mask": timestep >= 0,
            },
            timestep.shape,
        )


def _slide(window: Tensor, new: Tensor) -> Tensor:
    return torch.cat((window[:, 1:], new[:, None]), 1)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (x.ndim - 1))
