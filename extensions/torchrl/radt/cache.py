"""Keys and values of the steps behind, for a batch of episodes that may have begun at different times."""

from __future__ import annotations

import torch
from torch import Tensor

from .conditions import Condition
from .config import RADTConfig


class StepCache:
    """A ring of keys and values for each environment: one of W + 1 slots a step.

    Step t of an environment is in slot t mod (W + 1). At step t come two tokens, the action of step t - 1 and
    the state of step t; the state sees steps t - W + 1 .. t, the action one step further back, which is why
    there is a slot more than the window W has steps. What a slot held before must not be seen, so masks are
    made from the steps that the slots hold.

    Args:
        config: the model's.
        batch: environments, B.
        window: steps a token sees, W.
        like: a tensor of the device and dtype that keys and values are to have.
    """

    def __init__(self, config: RADTConfig, batch: int, window: int, like: Tensor) -> None:
        self.window, self.slots = window, window + 1
        layers, heads, width = config.n_layer, config.n_head, config.n_embd // config.n_head
        tokens = (layers, batch, heads, 2 * self.slots, width)
        returns = (layers, batch, heads, self.slots, width)
        self.keys, self.values = like.new_zeros(tokens), like.new_zeros(tokens)
        self.return_keys, self.return_values = like.new_zeros(returns), like.new_zeros(returns)
        # scales and shifts of the step before, by layer and norm; none before the first call
        self.before: list[Condition | None] = [None] * layers
        self.step = torch.full((batch,), -1, device=like.device)  # (B,), -1 before an episode's first
        self.places = torch.arange(self.slots, device=like.device)  # (slots,)

    def reset(self, rows: Tensor) -> None:
        """Forget the episodes of the environments where ``rows`` (B,) is True."""
        if rows.device.type == "cpu" and not rows.any():
            return
        self.step = torch.where(rows, -1, self.step)
        # Masked keys and values count for nothing as long as they are numbers: 0 times NaN is NaN.
        for ring in (self.keys, self.values, self.return_keys, self.return_values):
            ring.masked_fill_(rows[:, None, None, None], 0)
        for condition in self.before:
            for parts in (condition and condition.scales, condition and condition.shifts):
                for part in parts or ():
                    part.masked_fill_(rows[:, None, None], 0)

    def advance(self) -> None:
        """Begin the next step of every environment."""
        self.step = self.step + 1

    @property
    def slot(self) -> Tensor:
        """Of the present step, (B,)."""
        return self.step % self.slots

    def masks(self) -> tuple[Tensor, Tensor]:
        """What the action before and the present state may see: of tokens, (B, 1, 2, 2 slots), and of
        returns, (B, 1, 2, slots). An action before the first step sees anything, and nothing sees it."""
        step = torch.stack((self.step - 1, self.step), 1)[:, :, None]  # (B, 2, 1)
        now = self.step[:, None]
        held = (now - (now - self.places) % self.slots)[:, None]  # (B, 1, slots), negative where none yet
        states = (held >= 0) & (held <= step) & (held > step - self.window)  # (B, 2, slots)
        actions = states & (held < now[:, None])
        none = step < 0
        tokens = torch.stack((states, actions), -1).flatten(-2) | none
        return tokens[:, None], (states | none)[:, None]

    def write_condition(self, layer: int, new: Condition) -> Condition:
        """What the two tokens take: scales and shifts of both their steps, and all returns in the ring."""
        before, self.before[layer] = self.before[layer] or new, new
        scales, shifts = (
            past and now and [torch.cat(pair, 1) for pair in zip(past, now, strict=True)]  # (B, 2, D)
            for past, now in ((before.scales, new.scales), (before.shifts, new.shifts))
        )
        keys, values = new.keys, new.values
        if keys is not None and values is not None:
            where = self.slot[:, None, None, None].expand_as(keys)  # (B, heads, 1, D / heads)
            keys = _put(self.return_keys[layer], where, keys)
            values = _put(self.return_values[layer], where, values)
        return Condition(scales, shifts, keys, values)

    def layer(self, layer: int) -> LayerCache:
        """The part that a layer writes."""
        before = (self.step - 1) % self.slots
        where = torch.stack((2 * before + 1, 2 * self.slot), 1)  # (B, 2)
        return LayerCache(self.keys[layer], self.values[layer], where)


class LayerCache:
    """One layer's keys and values, (B, heads, 2 slots, D / heads): of state and action of each slot."""

    def __init__(self, keys: Tensor, values: Tensor, where: Tensor) -> None:
        self.keys, self.values, self.where = keys, values, where

    def write_tokens(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put in the keys and values of the two tokens, (B, heads, 2, D / heads); returns all."""
        where = self.where[:, None, :, None].expand_as(keys)
        return _put(self.keys, where, keys), _put(self.values, where, values)


def _put(ring: Tensor, where: Tensor, new: Tensor) -> Tensor:
    return ring.scatter_(2, where, new.to(ring.dtype))  # under autocast a layer's output has another
