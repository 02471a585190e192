"""The transformer of RADT: states and actions in one stream, returns beside it.

r_t --embed--> c_t ------------------------------------+----------------------+
                |  keys and values of c_0 .. c_t       | scales and shifts    |
                v                                      v                      |
s_0 a_0 s_1 ..  SA -> norm(c_t) -> SeqRA -> norm(c_t) -> MLP -> norm(c_t) -> ..  x layers -> h(s_t)
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import ALL, Block, Gate
from .cache import StepCache
from .conditions import Condition, Conditions
from .config import RADTConfig
from .embeddings import ReturnEmbedding, TimeEmbedding
from .inputs import check_window
from .masks import causal_mask, token_masks
from .norms import Norm
from .three_streams import ThreeStreams

STD = 0.02
NONE_YET = -1  # the index of an action not yet taken


class RADTransformer(nn.Module):
    """Return-Aligned Decision Transformer (Tanaka et al.), without a head.

    Args:
        state_dim: features of an observation, S.
        action_dim: features of an action, A; with ``discrete`` the number of actions, n.
        config: a :class:`RADTConfig`, or one of TorchRL's ``DTConfig``, or a dict of their fields.
        device: where the parameters are made.
        discrete: actions are given as indices, ``(*, T)`` int64 with -1 for none yet, or one-hot,
            ``(*, T, n)``, with all zeros for none yet.

    Raises:
        TypeError: ``config`` is something else, or has an unknown field.
        ValueError: a field out of range; no features of observations or actions.
    """

    DTConfig = RADTConfig

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        config: RADTConfig | dict[str, Any] | None = None,
        device: torch.device | str | int | None = None,
        *,
        discrete: bool = False,
    ) -> None:
        super().__init__()
        if min(state_dim, action_dim) < 1:
            raise ValueError(f"state_dim and action_dim must be at least 1, got {state_dim} and {action_dim}")
        self.config = config = RADTConfig.of(config)
        self.state_dim, self.action_dim, self.discrete = state_dim, action_dim, discrete
        self.hidden_size = width = config.n_embd
        with nullcontext() if device is None else torch.device(device):
            self.embed_state = nn.Linear(state_dim, width)
            if discrete:  # the first row is for an action not yet taken
                self.embed_action: nn.Module = nn.Embedding(action_dim + 1, width)
            else:
                self.embed_action = nn.Linear(action_dim, width)
            self.embed_time = TimeEmbedding(width)
            self.embed_return = ReturnEmbedding(config) if config.uses_returns else None
            self.streams = ThreeStreams(config) if config.architecture == "three_streams" else None
            self.conditions = self.final_norm = None
            self.blocks = nn.ModuleList()
            if self.streams is None:
                self.blocks.extend(Block(config) for _ in range(config.n_layer))
                if config.uses_returns:
                    self.conditions = Conditions(config)
                if config.placement == "pre":
                    self.final_norm = Norm(width, config.norm, adaptive=False)
        self.reset_parameters()

    @classmethod
    def default_config(cls) -> RADTConfig:
        """The paper's for MuJoCo."""
        return RADTConfig()

    def reset_parameters(self) -> None:
        """Weights N(0, 0.02^2) and biases 0, norms at identity, gates and modulations at 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, (Gate, Conditions, Norm)):
                module.reset_parameters()

    def forward(
        self,
        observation: Tensor,
        action: Tensor,
        return_to_go: Tensor,
        timestep: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Features of each step, from states and returns up to it and the actions before it.

        Args:
            observation: ``(*, T, S)``.
            action: ``(*, T, A)``; discrete ``(*, T)`` of integers or ``(*, T, n)``. The last one is not
                looked at.
            return_to_go: ``(*, T, 1)``, sum of rewards from the step on, that of the step included.
            timestep: ``(*, T)`` or ``(*, T, 1)`` int64, steps since the episode began; the place in the
                window if None.
            mask: ``(*, T)`` or ``(*, T, 1)`` bool, True where a step is real; all are if None. What is
                padded may hold anything.

        Returns:
            ``(*, T, D)``

        Raises:
            ValueError: shapes or kinds that do not fit, more steps than ``n_positions`` allows.
        """
        check_window(
            self.state_dim, self.action_dim, self.discrete, self.config.n_positions,
            observation, action, return_to_go, timestep, mask,
        )  # fmt: skip
        batch, steps = observation.shape[:-2], observation.shape[-2]
        timestep, mask = (None if x is None else x.reshape(*batch, steps) for x in (timestep, mask))
        if timestep is None:
            timestep = torch.arange(steps, device=observation.device).expand(*batch, steps)
        flat = len(batch) != 1
        if flat:
            count = batch.numel()
            observation, action, return_to_go, timestep = (
                x.reshape(count, *x.shape[len(batch) :])
                for x in (observation, action, return_to_go, timestep)
            )
            mask = None if mask is None else mask.reshape(count, steps)
        if mask is not None:  # nothing that is padded, NaN neither, is to reach a gradient
            padded = ~mask[..., None]  # (B, T, 1)
            observation, return_to_go = (x.masked_fill(padded, 0) for x in (observation, return_to_go))
            action = action.masked_fill(padded if action.ndim == 3 else ~mask, 0)
        hidden = self._hidden(observation, action, return_to_go, timestep, mask)
        return hidden.reshape(*batch, steps, self.hidden_size) if flat else hidden

    def _hidden(
        self, observation: Tensor, action: Tensor, return_to_go: Tensor, timestep: Tensor, mask: Tensor | None
    ) -> Tensor:
        time = self.embed_time(timestep)  # (B, T, D)
        states = self.embed_state(observation) + time
        actions = self._embed_action(action) + time
        returns = None if self.embed_return is None else self.embed_return(return_to_go)
        if self.streams is not None:
            return self.streams(states, actions, returns + time, mask, self.config.attention_window)
        return self.through_layers(states, actions, returns, time, mask)

    def through_layers(
        self,
        states: Tensor,
        actions: Tensor,
        returns: Tensor | None,
        time: Tensor,
        mask: Tensor | None = None,
        queries: slice = slice(0, None, 2),
    ) -> Tensor:
        """Features of tokens s_0, a_0, s_1, .., of states, actions, returns and times, (B, T, D) each.

        Args:
            states, actions: with their times added.
            returns: without; None if nothing reads them.
            time: of each step.
            mask: (B, T), True where a step is real; all are if None.
            queries: the tokens whose features are wanted, of 2 T: states.
        """
        x = torch.stack((states, actions), 2).flatten(1, 2)  # (B, 2 T, D)
        masks = token_masks(states.shape[1], mask, self.config.attention_window, x.device)
        conditions = self._conditions(returns, time)
        return self._through_blocks(x, queries, conditions, *masks)

    def step(self, observation: Tensor, action: Tensor, return_to_go: Tensor, cache: StepCache) -> Tensor:
        """Features of the present step, (B, D), from it and what ``cache`` holds of earlier ones.

        Args:
            observation: (B, S) of this step.
            action: (B, A) or (B,), of the step before; not looked at in an episode's first step.
            return_to_go: (B, 1) of this step.
            cache: of earlier steps; goes on by one step.
        """
        cache.advance()
        times = torch.stack((cache.step - 1, cache.step), 1).clamp(min=0)
        time = self.embed_time(times)  # (B, 2, D)
        before = self._embed_action(action[:, None]) + time[:, :1]
        now = self.embed_state(observation[:, None]) + time[:, 1:]
        returns = None if self.embed_return is None else self.embed_return(return_to_go[:, None])
        x = torch.cat((before, now), 1)  # (B, 2, D)
        conditions = self._conditions(returns, time[:, 1:])
        conditions = [cache.write_condition(i, new) for i, new in enumerate(conditions)]
        return self._through_blocks(x, slice(1, 2), conditions, *cache.masks(), cache).squeeze(1)

    def _through_blocks(
        self,
        x: Tensor,
        states: slice,
        conditions: list[Condition],
        token_mask: Tensor | None,
        return_mask: Tensor,
        cache: StepCache | None = None,
    ) -> Tensor:
        """Features of the states among the tokens x, (B, N, D); the last layer computes nothing else."""
        for i, (block, condition) in enumerate(zip(self.blocks, conditions, strict=True)):
            queries = ALL
            if i + 1 == len(self.blocks):
                queries, return_mask = states, return_mask[:, :, states]
                if token_mask is None:
                    token_mask = causal_mask(x.shape[1], x.device)
                token_mask = token_mask[:, :, states]
            layer_cache = None if cache is None else cache.layer(i)
            x = block(x, queries, condition, token_mask, return_mask, layer_cache)
        return x if self.final_norm is None else self.final_norm(x)

    def _conditions(self, returns: Tensor | None, time: Tensor) -> list[Condition]:
        if self.conditions is None or returns is None:
            return [Condition(None, None, None, None)] * self.config.n_layer
        return self.conditions(returns, time)

    def _embed_action(self, action: Tensor) -> Tensor:
        """(B, T, D) from actions (B, T, A), or discrete ones (B, T) or (B, T, n)."""
        if not self.discrete:
            return self.embed_action(action)
        if action.ndim == 3:  # one-hot
            action = torch.where(action.any(-1), action.float().argmax(-1), NONE_YET)
        return self.embed_action(action.long() - NONE_YET)
