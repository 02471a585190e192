"""All that the blocks take from the returns, for all layers at once.

The stream of returns is not changed by the layers, so what each layer makes of it, scales and shifts for
StepRA and keys and values for SeqRA, needs one matrix product in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import RADTConfig
from .norms import normalise


@dataclass
class Condition:
    """What one layer takes from the returns; None where an aligner is off.

    Attributes:
        scales, shifts: of each norm, (B, M, D).
        keys, values: (B, heads, T, D / heads).
    """

    scales: Sequence[Tensor] | None
    shifts: Sequence[Tensor] | None
    keys: Tensor | None
    values: Tensor | None


class Conditions(nn.Module):
    """Embedded returns to a `Condition` for each layer.

    Keys are made of the returns and their times, values of the returns alone, each behind a norm. The norm of
    the keys has no shift, since it would add the same to all scores of a query.
    """

    def __init__(self, config: RADTConfig) -> None:
        super().__init__()
        self.layers, self.heads, self.norm = config.n_layer, config.n_head, config.norm
        width, self.norms = config.n_embd, 2 + config.seqra
        if config.stepra:
            self.modulation = nn.Linear(width, self.layers * 2 * self.norms * width)
        if config.seqra:
            self.key = nn.Linear(width, self.layers * width, bias=False)
            self.value = nn.Linear(width, self.layers * width, bias=False)
            self.key_scale = nn.Parameter(torch.ones(self.layers, width))
            self.value_scale = nn.Parameter(torch.ones(self.layers, width))
            shift = torch.zeros(self.layers, width)
            self.value_shift = nn.Parameter(shift) if self.norm == "layernorm" else None
        self.stepra, self.seqra = config.stepra, config.seqra

    def reset_parameters(self) -> None:
        """Scales and shifts of StepRA start at 0, norms that know nothing of returns (adaLN-Zero)."""
        if self.stepra:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
        if self.seqra:
            nn.init.ones_(self.key_scale)
            nn.init.ones_(self.value_scale)
            if self.value_shift is not None:
                nn.init.zeros_(self.value_shift)

    def forward(self, returns: Tensor, time: Tensor) -> list[Condition]:
        """For returns and times embedded, each (B, T, D)."""
        scales: Any = (None,) * self.layers
        shifts, keys, values = scales, scales, scales
        if self.stepra:
            parts = self.modulation(F.silu(returns)).chunk(2 * self.layers * self.norms, -1)
            scales, shifts = (
                [parts[first : first + self.norms] for first in range(start, len(parts), 2 * self.norms)]
                for start in (0, self.norms)
            )
        if self.seqra:
            keys = self._project(self.key, self.key_scale, None, returns + time)
            values = self._project(self.value, self.value_scale, self.value_shift, returns)
        return [Condition(*parts) for parts in zip(scales, shifts, keys, values, strict=True)]

    def _project(
        self, linear: nn.Linear, scale: Tensor, shift: Tensor | None, x: Tensor
    ) -> tuple[Tensor, ...]:
        """W_l (N(x) scale_l + shift_l) of every layer l, each (B, heads, T, D / heads).

        The norm is the same in all layers, so scales and shifts go into the weights: small matrices instead
        of long sequences.
        """
        weight = linear.weight.view(self.layers, -1, linear.in_features)  # (L, D, D)
        bias = None if shift is None else torch.einsum("loi,li->lo", weight, shift).flatten()
        weight = (weight * scale[:, None]).flatten(0, 1)
        out = F.linear(normalise(x, self.norm), weight, bias)  # (B, T, L D)
        return out.unflatten(-1, (self.layers, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
