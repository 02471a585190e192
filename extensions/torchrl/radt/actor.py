"""RADT with heads: drop-ins for TorchRL's DTActor and OnlineDTActor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .cache import StepCache
from .config import RADTConfig
from .model import RADTransformer

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


class Head(nn.Linear):
    """A last layer as TorchRL's DTActor has it: it starts orthogonal, with bias 0."""

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)


class _Actor(nn.Module):
    """What both have: a transformer, whose features ``act`` turns into actions."""

    transformer: RADTransformer

    def act(self, hidden: Tensor) -> Any:
        """Actions from features, ``(*, D)``."""
        raise NotImplementedError

    def forward(
        self,
        observation: Tensor,
        action: Tensor,
        return_to_go: Tensor,
        timestep: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Any:
        """What ``act`` makes of each step, ``(*, T, A)``; arguments as in :meth:`RADTransformer.forward`."""
        return self.act(self.transformer(observation, action, return_to_go, timestep, mask))

    def step(self, observation: Tensor, action: Tensor, return_to_go: Tensor, cache: StepCache) -> Any:
        """What it makes of the present step, ``(B, A)``; arguments as in :meth:`RADTransformer.step`."""
        return self.act(self.transformer.step(observation, action, return_to_go, cache))

    @classmethod
    def default_config(cls) -> RADTConfig:
        """The paper's for MuJoCo."""
        return RADTConfig()


class RADTActor(_Actor):
    """Return-Aligned Decision Transformer with one output a feature of the action; in the place of
    :class:`torchrl.modules.DTActor`.

    The output is not squashed: put a ``TanhDelta`` behind it in a ``ProbabilisticActor``, as for ``DTActor``.
    Without ``timestep`` and ``mask`` a step's place in the window stands for its time and padding is attended
    to, as in TorchRL's; the paper has both.

    Args:
        state_dim: features of an observation, S.
        action_dim: features of an action, A; with ``discrete`` the number of actions, n.
        transformer_config: a :class:`RADTConfig`, TorchRL's ``DTConfig``, or a dict of their fields; the
            paper's for MuJoCo if None.
        device: where the parameters are made.
        discrete: actions are indices, ``(*, T)`` int64 with -1 for one not yet taken, or one-hot,
            ``(*, T, n)``; outputs are logits, ``(*, T, n)``.

    Raises:
        TypeError, ValueError: as :class:`RADTConfig`.

    Examples:
        >>> actor = RADTActor(state_dim=4, action_dim=2)
        >>> actor(torch.randn(32, 10, 4), torch.randn(32, 10, 2), torch.randn(32, 10, 1)).shape
        torch.Size([32, 10, 2])
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        transformer_config: RADTConfig | dict[str, Any] | None = None,
        device: torch.device | str | int | None = None,
        *,
        discrete: bool = False,
    ) -> None:
        super().__init__()
        self.transformer = RADTransformer(
            state_dim, action_dim, transformer_config, device, discrete=discrete
        )
        self.action_layer = Head(self.transformer.hidden_size, action_dim, device=device)

    def act(self, hidden: Tensor) -> Tensor:
        """Actions from features, ``(*, D)`` -> ``(*, A)``, or logits."""
        return self.action_layer(hidden)


class OnlineRADTActor(_Actor):
    """RADT whose actions are Gaussian before they are squashed; in the place of
    :class:`torchrl.modules.OnlineDTActor`.

    Arguments and calls as for :class:`RADTActor`, actions continuous; returns mean and standard deviation,
    ``(*, T, A)`` each, the latter in (exp(-5), exp(2)).
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        transformer_config: RADTConfig | dict[str, Any] | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        self.transformer = RADTransformer(state_dim, action_dim, transformer_config, device)
        self.action_layer_mean = Head(self.transformer.hidden_size, action_dim, device=device)
        self.action_layer_logstd = Head(self.transformer.hidden_size, action_dim, device=device)
        self.log_std_min, self.log_std_max = LOG_STD_MIN, LOG_STD_MAX

    def act(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation from features, ``(*, D)`` -> ``(*, A)``."""
        unit = torch.tanh(self.action_layer_logstd(hidden))  # in (-1, 1)
        low, high = self.log_std_min, self.log_std_max
        return self.action_layer_mean(hidden), (low + (high - low) * (unit + 1) / 2).exp()
