"""The Return-Aligned Decision Transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import take
from .decision_transformer import PolicyAdapter, entry, needed, sequences
from .protocol import ACTION, RETURN, STATE, TIME


class RADTAdapter(PolicyAdapter):
    """RADT as a `SequenceModel`.

    Its returns are a stream beside its states and actions. Here each step has four tokens, R_t, s_t, a_t and
    the time of the step, so that all that goes in is in ``embed``. Returns and times come through the layers
    as they went in.

    Shares of its tokens are not comparable with those of a Decision Transformer: a token's share depends on
    the scale of its vector, and returns here are not normed with the rest. ``by_return`` and the shifts of
    `return_sensitivity`, which are of the return itself, are comparable.

    Args:
        model: ``RADTActor`` or ``OnlineRADTActor``, in eval mode. A batch is a mapping or tensordict with
            ``observation, action, return_to_go[, timestep, mask]``.

    Raises:
        TypeError: it is something else; the three streams, whose layers are not one after the other.
    """

    position = -3  # the state of the last step

    def __init__(self, model: nn.Module) -> None:
        inputs: Any = getattr(model, "transformer", None)
        if not hasattr(inputs, "embed_return") or not hasattr(inputs, "streams"):
            raise TypeError(f"RADTAdapter takes RADTActor or OnlineRADTActor, got {type(model).__name__}")
        self.inputs = inputs
        if self.inputs.streams is not None:
            raise TypeError('RADTAdapter takes architecture="radt", not "three_streams"')
        super().__init__(model, self.inputs.blocks)
        self.token_roles = torch.tensor([RETURN, STATE, ACTION, TIME])

    def embed(self, batch: Any) -> Tensor:
        """(B, 4 T, d)"""
        embed_state = self.inputs.embed_state
        features = {"observation": embed_state.in_features, "return_to_go": 1}
        if not self.inputs.discrete:
            features["action"] = self.inputs.embed_action.in_features
        observation, returns, *given = sequences(batch, features, embed_state.weight.dtype)
        timestep = entry(batch, "timestep")
        if timestep is None:
            timestep = torch.arange(observation.shape[1], device=observation.device)
        time = self.inputs.embed_time(timestep.reshape(-1, observation.shape[1])).expand(
            len(observation), -1, -1
        )
        state = embed_state(observation) + time
        action = self.inputs._embed_action(*given or [needed(batch, "action")]) + time
        embed_return = self.inputs.embed_return
        condition = torch.zeros_like(state) if embed_return is None else embed_return(returns)
        return _tokens(condition, state, action, time)

    def readout(self, state: Tensor) -> Tensor:
        """Actions of states; the means of ``OnlineRADTActor``."""
        layer = getattr(self.module, "action_layer", None)
        return self.module.action_layer_mean(state) if layer is None else layer(state)

    def read(
        self,
        emb: Tensor,
        mask: Tensor | None,
        layers: Sequence[int],
        *,
        position: Tensor | int | None = None,
        raw_last: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """As `Adapter.read`; rows of returns and times are those of ``emb`` in each layer."""
        returns, _, _, time = _rows(emb)
        states, final = super().read(emb, mask, layers, raw_last=raw_last)
        *states, final = (
            take(_tokens(returns, x[:, 0::2], x[:, 1::2], time), position) for x in (*states, final)
        )
        return states, final

    def _final(self, emb: Tensor, mask: Tensor | None) -> Tensor:
        returns, state, action, time = _rows(emb)
        steps = None if mask is None else mask[:, ::4]
        condition = None if self.inputs.embed_return is None else returns
        return self.inputs.through_layers(state, action, condition, time, steps, slice(None))  # (B, 2 T, d)


def _rows(emb: Tensor) -> tuple[Tensor, ...]:
    """(B, 4 T, d) -> returns, states, actions and times, (B, T, d) each."""
    return emb.unflatten(1, (-1, 4)).unbind(2)


def _tokens(*rows: Tensor) -> Tensor:
    """The way back."""
    return torch.stack(rows, 2).flatten(1, 2)
