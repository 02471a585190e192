"""Norms whose scale and shift may come from the return."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6


def normalise(x: Tensor, kind: str) -> Tensor:
    """Rows of unit variance, or of unit mean square if ``kind`` is "rmsnorm"; in float32 at least.

    Args:
        x: ``(*, D)``.
        kind: one of `config.NORMS`.
    """
    if kind == "rmsnorm":
        return F.rms_norm(x, x.shape[-1:], eps=EPS)
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


class Norm(nn.Module):
    """A norm, affine by its own parameters or by given scales and shifts (StepRA).

    Args:
        width: D.
        kind: one of `config.NORMS`; those but "layernorm" have no shift of their own.
        adaptive: scale and shift are given to ``forward`` and there are no parameters.
    """

    def __init__(self, width: int, kind: str, adaptive: bool) -> None:
        super().__init__()
        self.kind, self.adaptive = kind, adaptive
        self.weight = None if adaptive else nn.Parameter(torch.ones(width))
        self.bias = None if adaptive or kind != "layernorm" else nn.Parameter(torch.zeros(width))

    def reset_parameters(self) -> None:
        """The identity, after the norm."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """N(x) (1 + scale) + shift.

        Args:
            x: (B, N, D), N tokens.
            scale, shift: of M steps, (B, M, D); a step's are those of N / M tokens that follow one another.
                With fewer tokens than steps, the tokens are of the last ones.
        """
        normal = normalise(x, self.kind)
        if scale is None or shift is None:
            normal = normal if self.weight is None else normal * self.weight
            return normal if self.bias is None else normal + self.bias
        scale, shift = scale[:, -x.shape[1] :], shift[:, -x.shape[1] :]
        groups = normal.unflatten(-2, (scale.shape[-2], -1))  # (B, M, N / M, D)
        return torch.addcmul(shift.unsqueeze(-2), groups, 1 + scale.unsqueeze(-2)).flatten(-3, -2)
