"""
Weights on a grid of a few bits: which scales, which integers, and the straight-through estimator.

A row of a linear layer's weight, or each group of its inputs, has a scale ``s`` and perhaps an integer zero
point ``z``. With codes ``c`` from ``-2^(b-1)`` to ``2^(b-1) - 1``,

    c = clip(round(w / s) + z)        Q(w) = (c - z) s

Scales live on the grid of a half-precision type, in which a packed file keeps them: what is trained and what
is read back from the file are then the same numbers. ``c - z`` has at most nine bits, so that the product is
exact in float32 and is rounded once, to whatever type the layer computes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: shares of the largest weight at which ``clip="mse"`` looks for the smallest rounding error
CLIPS = torch.linspace(1.0, 0.2, 81).tolist()
SCALE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class WeightScheme:
    """
    How weights are rounded.

    Args:
        bits: of an integer, 2 to 8.
        group_size: inputs that share a scale. If None, there is one scale per output channel.
        symmetric: whether zero is the middle of the grid; else each scale comes with an integer zero point.
        clip: ``"absmax"`` covers every weight (round to nearest, RTN). ``"mse"`` clips the outermost ones
            where that makes the squared error smaller.
        scale_dtype: the type on whose grid scales live: ``"bfloat16"``, ``"float16"`` or ``"float32"``.

    Raises:
        ValueError: a value out of range.
    """

    bits: int = 4
    group_size: int | None = None
    symmetric: bool = True
    clip: str = "absmax"
    scale_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be an integer from 2 to 8, not {self.bits!r}.")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(
                f"group_size must be positive, or None for one scale per output channel, not "
                f"{self.group_size}."
            )
        if self.clip not in ("absmax", "mse"):
            raise ValueError(f'clip must be "absmax" or "mse", not {self.clip!r}.')
        if self.scale_dtype not in SCALE_DTYPES:
            raise ValueError(
                f"scale_dtype must be one of {', '.join(SCALE_DTYPES)}, not {self.scale_dtype!r}."
            )

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1

    @property
    def steps(self) -> int:
        """Steps from the smallest code to the largest."""
        return 2**self.bits - 1


def choose_scales(weight: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor | None]:
    """
    Scales and zero points for a weight.

    Args:
        weight: (O, I), I a multiple of the group size.
        scheme: how it is to be rounded.

    Returns:
        Scales (O, G), on the grid of ``scheme.scale_dtype``, and zero points (O, G) int8, or None if
        symmetric. A group of zeros gets the scale 1.
    """
    groups = _grouped(_wide(weight), scheme)  # (O, G, g)
    best = _scales_at(groups, 1.0, scheme)
    if scheme.clip == "absmax":
        return best
    least = _error(groups, *best, scheme)  # (O, G)
    for share in CLIPS[1:]:
        candidate = _scales_at(groups, share, scheme)
        error = _error(groups, *candidate, scheme)
        better = error < least
        least = torch.where(better, error, least)
        scale, zero_point = torch.where(better, candidate[0], best[0]), best[1]
        if zero_point is not None and candidate[1] is not None:
            zero_point = torch.where(better, candidate[1], zero_point)
        best = scale, zero_point
    return best


def encode(weight: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme) -> Tensor:
    """Codes of a weight (O, I), int8."""
    groups = _grouped(_wide(weight), scheme)  # (O, G, g)
    return _codes(groups, scale, zero_point, scheme).to(torch.int8).reshape(weight.shape)


def decode(codes: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme) -> Tensor:
    """The weight (O, I) that codes stand for, in the type of the scales."""
    groups = _grouped(codes.to(scale.dtype), scheme)  # (O, G, g)
    return _values(groups, scale, zero_point).reshape(codes.shape)


def fake_quantize(weight: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme) -> Tensor:
    """
    ``Q(w)`` with a straight-through gradient: 1 for a weight inside the clip range, 0 for one outside of it.

    A scale that requires a gradient gets that of learned step sizes (Esser et al. 2020, arXiv 1902.08153,
    Eq. 3): ``round(w / s) - w / s`` inside the range and ``c - z`` outside of it.

    Args:
        weight: (O, I), the latent weight in full precision.
        scale: (O, G).
        zero_point: (O, G) int8, or None.
        scheme: how it is rounded.

    Returns:
        (O, I), float32, or float64 if the weight is.
    """
    return _FakeQuantize.apply(weight, scale, zero_point, scheme)


class _FakeQuantize(torch.autograd.Function):
    """Keeps nothing but its arguments: what is inside the range is found anew in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme
    ) -> Tensor:
        ctx.save_for_backward(weight, scale, zero_point)
        ctx.scheme = scheme
        groups = _grouped(_wide(weight), scheme)  # (O, G, g)
        return _values(_codes(groups, scale, zero_point, scheme), scale, zero_point).reshape(weight.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, zero_point = ctx.saved_tensors
        scheme = ctx.scheme
        groups = _grouped(_wide(weight), scheme)  # (O, G, g)
        position = groups / scale.unsqueeze(-1)  # w / s
        shift = 0 if zero_point is None else zero_point.unsqueeze(-1).to(groups.dtype)
        inside = (position >= scheme.lowest - 0.5 - shift) & (position <= scheme.highest + 0.5 - shift)
        upstream = _grouped(gradient, scheme)
        d_weight = d_scale = None
        if ctx.needs_input_grad[0]:
            d_weight = torch.where(inside, upstream, 0).reshape(weight.shape).to(weight.dtype)
        if ctx.needs_input_grad[1]:
            steps = _codes(groups, scale, zero_point, scheme) - shift  # c - z
            slope = torch.where(inside, steps - position, steps)
            d_scale = (upstream * slope).sum(-1).to(scale.dtype)
        return d_weight, d_scale, None, None


def _scales_at(groups: Tensor, share: float, scheme: WeightScheme) -> tuple[Tensor, Tensor | None]:
    """Scales whose grid reaches to ``share`` of the outermost weights of groups (O, G, g)."""
    if scheme.symmetric:
        return on_grid(groups.abs().amax(-1) * (share * 2 / scheme.steps), scheme), None
    low = groups.amin(-1).clamp(max=0) * share  # the grid holds zero
    high = groups.amax(-1).clamp(min=0) * share
    scale = on_grid((high - low) / scheme.steps, scheme)
    zero_point = (scheme.lowest - (low / scale).round()).clamp(scheme.lowest, scheme.highest)
    return scale, zero_point.to(torch.int8)


def on_grid(scale: Tensor, scheme: WeightScheme) -> Tensor:
    """Scales rounded up to the type they are kept in, so that the outermost weight stays in the range."""
    kept = scale.to(SCALE_DTYPES[scheme.scale_dtype])
    bits = torch.int32 if kept.dtype == torch.float32 else torch.int16
    above = (kept.view(bits) + 1).view(kept.dtype)  # of a positive number, the next
    rounded = torch.where(kept.to(scale.dtype) < scale, above, kept).to(scale.dtype)
    return torch.where(kept > 0, rounded, 1)


def nearest_on_grid(scale: Tensor, scheme: WeightScheme) -> Tensor:
    """
    Trained scales rounded to the nearest that the type they are kept in has, positive; the gradient is 1.

    A scale that an update has made 0 or negative is the smallest normal number of that type, and the gradient
    that still reaches it can bring it back.
    """
    return _NearestOnGrid.apply(scale, SCALE_DTYPES[scheme.scale_dtype])


class _NearestOnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: Tensor, kept: torch.dtype) -> Tensor:
        return scale.clamp(min=torch.finfo(kept).tiny).to(kept).to(scale.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _codes(groups: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme) -> Tensor:
    codes = (groups / scale.unsqueeze(-1)).round_()  # (O, G, g)
    if zero_point is not None:
        codes += zero_point.unsqueeze(-1)
    return codes.clamp_(scheme.lowest, scheme.highest)


def _values(codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    if zero_point is not None:
        codes = codes - zero_point.unsqueeze(-1)
    return codes * scale.unsqueeze(-1)


def _error(groups: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme) -> Tensor:
    """Squared rounding error of each group, (O, G)."""
    return (_values(_codes(groups, scale, zero_point, scheme), scale, zero_point) - groups).square().sum(-1)


def _grouped(weight: Tensor, scheme: WeightScheme) -> Tensor:
    """(O, I) as (O, G, g)."""
    return weight.unflatten(-1, (-1, scheme.group_size or weight.shape[-1]))


def _wide(weight: Tensor) -> Tensor:
    """In float32 at least: a weight in half precision is rounded to its few bits as if it were in full."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
