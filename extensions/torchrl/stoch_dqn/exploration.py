"""Epsilon-greedy exploration that costs the same at any number of actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import expand_as_right, unravel_key, unravel_key_list
from torch import Tensor
from torchrl.data import TensorSpec
from torchrl.envs.utils import ExplorationType, exploration_type

from ...stochmax.actions import IdCodec
from ...stochmax.sources import Query
from .keys import flat_observation, read
from .specs import Actions, action_leaf, count_actions, what_is_legal


class StochEGreedyModule(TensorDictModuleBase):
    """:class:`torchrl.modules.EGreedyModule` in O(1): uniform ids are drawn as numbers, never from n weights.

    Args:
        spec: the action's spec, ``Categorical`` or ``MultiCategorical``, or a Composite that has it.
        eps_init: epsilon at first, in [0, 1].
        eps_end: epsilon at last, at most ``eps_init``.
        annealing_num_steps: steps until then, in a straight line.

    Keyword Args:
        action_key: where the action is.
        action_mask_key: where each step's mask of n is, for up to 10,000 actions.
        device: where it is.
        legal_actions: ids legal everywhere, or a callable from observations to ids (B, L), padded with -1.
        observation_key: what such a callable is given; of a list of keys a dict of them by name, as the actor
            gives of its ``in_keys``.

    .. note:: As with TorchRL's, epsilon falls only if ``step`` is called in the training loop.

    Raises:
        ValueError: a one-hot spec, one of several actions, a mask of n above 10,000 actions, both a mask and
            legal_actions, an epsilon that rises or leaves [0, 1].
        KeyError: when called with a tensordict that lacks an ``in_key``.
    """

    def __init__(
        self,
        spec: TensorSpec,
        eps_init: float = 1.0,
        eps_end: float = 0.1,
        annealing_num_steps: int = 1000,
        *,
        action_key: NestedKey = "action",
        action_mask_key: NestedKey | None = None,
        device: torch.device | str | None = None,
        legal_actions: Sequence[int] | Tensor | Any = None,
        observation_key: NestedKey | list[NestedKey] = "observation",
    ) -> None:
        if not 0.0 <= eps_end <= eps_init <= 1.0:
            raise ValueError(f"0 <= eps_end <= eps_init <= 1 is needed, got {eps_end} and {eps_init}")
        if annealing_num_steps < 1:
            raise ValueError(f"annealing_num_steps must be at least 1, got {annealing_num_steps}")
        self.action_key = unravel_key(action_key)
        self.action_mask_key = None if action_mask_key is None else unravel_key(action_mask_key)
        self.in_keys = [self.action_key]
        if self.action_mask_key is not None:
            self.in_keys.append(self.action_mask_key)
        keys = observation_key if isinstance(observation_key, list) else [observation_key]
        self.observation_keys = unravel_key_list(keys) if callable(legal_actions) else []
        self.in_keys += self.observation_keys
        self.out_keys = [self.action_key]
        super().__init__()
        self._spec = spec
        leaf = action_leaf(spec, self.action_key)
        self.n = count_actions(leaf, masked=self.action_mask_key is not None)
        codec = IdCodec(self.n)
        self.actions = Actions(leaf, codec)
        self.legal = what_is_legal(legal_actions, self.action_mask_key is not None, codec)
        self.annealing_num_steps = annealing_num_steps
        for name, value in (("eps_init", eps_init), ("eps_end", eps_end), ("eps", eps_init)):
            self.register_buffer(name, torch.tensor(float(value), device=device))

    @property
    def spec(self) -> TensorSpec:
        """The action's spec, as given."""
        return self._spec

    def step(self, frames: int = 1) -> None:
        """Let epsilon fall by ``frames`` of its ``annealing_num_steps`` steps."""
        fall = (self.eps_init - self.eps_end) * (frames / self.annealing_num_steps)
        self.eps.copy_(torch.maximum(self.eps_end, self.eps - fall))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Put uniform actions in the place of some, each with probability epsilon."""
        if exploration_type() not in (ExplorationType.RANDOM, None):
            return tensordict
        action = read(tensordict, self.action_key, ": put this module behind the actor")
        batch = action.shape[: action.ndim - len(self.actions.shape)]
        coin = torch.rand(batch, device=action.device) < self.eps
        drawn = self.actions.of(self._draw(tensordict, batch, action.device))
        tensordict.set(self.action_key, torch.where(expand_as_right(coin, action), drawn, action))
        return tensordict

    def _draw(self, tensordict: TensorDictBase, batch: torch.Size, device: torch.device) -> Tensor:
        if self.legal is None:
            return torch.randint(self.n, batch, device=device)
        query = Query(batch.numel(), device)
        if self.action_mask_key is not None:
            mask = read(tensordict, self.action_mask_key)
            query.mask = mask.reshape(-1, mask.shape[-1])
        elif self.observation_keys:
            inputs = [
                read(tensordict, key, ": say where it is, with observation_key")
                for key in self.observation_keys
            ]
            query.obs = flat_observation(self.observation_keys, inputs, len(batch))
        return self.legal.draw(query, 1).reshape(batch)
