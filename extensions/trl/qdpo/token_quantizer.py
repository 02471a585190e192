"""Symmetric fake quantization of a token's vector: what a layer reads, or a key or a value of a head."""

from typing import Any

import torch
from torch import Tensor

MOST_TOKEN_BITS = 8


def fake_quantize_tokens(values: Tensor, bits: int) -> Tensor:
    """
    ``values`` (..., D) rounded to ``bits`` bits, each vector of D on a grid of its own; same shape and dtype.

    With q = 2^(bits - 1) - 1 and the scale s = max_d |x_d| / q, what is returned is s round(x / s): the grid
    is symmetric, -q to q, and the largest value keeps its place, so nothing is clipped and the
    straight-through gradient is 1 everywhere. It is computed in float32 at least and rounded once to the
    dtype of ``values``. A vector of zeros stays one. The scale is the token's own, so it is the same in a
    batch, in a padded batch and in one step of a generation.
    """
    return _FakeQuantizeTokens.apply(values, bits)


def check_token_bits(name: str, bits: int) -> None:
    """Raises ``ValueError`` unless there are 2 to 8 bits: 1 has no symmetric grid, and int8 holds 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= MOST_TOKEN_BITS:
        raise ValueError(f"{name} must be a whole number of bits from 2 to {MOST_TOKEN_BITS}, got {bits!r}.")


class _FakeQuantizeTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, bits: int) -> Tensor:
        exact = values.to(torch.promote_types(values.dtype, torch.float32))  # (..., D)
        largest = exact.abs().amax(-1, keepdim=True)  # (..., 1)
        scale = largest / (2 ** (bits - 1) - 1)
        # A scale of 0, of zeros or of values so small that the division underflows: they are 0 on any grid.
        codes = torch.where(scale > 0, exact / scale, 0.0).round()
        return (codes * scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
