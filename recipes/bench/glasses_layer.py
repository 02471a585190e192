"""One random attention layer, in which the theory of collapse can be checked without training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POSITIONS = ("nope", "rope", "alibi", "steep_alibi", "learned")
SLOPES = {"alibi": 2.0**-8, "steep_alibi": 0.5}
LONGEST = 1 << 14


class RandomAttention(nn.Module):
    """y = norm(x + A V x) with one head, queries, keys and values N(0, 1); positions in one of five ways.

    Args:
        positions: "nope", none; "rope"; "alibi" with slope 2^-8; "steep_alibi" with slope 1/2; "learned", a
            random vector for each place, added to the residual stream.
        width: d.
        vocabulary: tokens, each a random vector.
        seed: of all weights.
    """

    def __init__(self, positions: str, width: int = 64, vocabulary: int = 64, seed: int = 0) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}; got {positions!r}")
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(
                torch.randn(*shape, generator=generator, dtype=torch.float64), requires_grad=False
            )

        self.positions, self.width = positions, width
        self.tokens = draw(vocabulary, width)
        # inputs are N(0, 1) in each feature, and so are queries, keys and values
        self.query, self.key, self.value = (
            nn.Parameter(draw(width, width) / math.sqrt(width), False) for _ in range(3)
        )
        self.places = draw(LONGEST, width) if positions == "learned" else None

    def embed(self, ids: Tensor) -> Tensor:
        """(B, n) -> (B, n, d)"""
        return F.embedding(ids, self.tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, d) -> (B, n, d)"""
        if self.places is not None:
            x = x + self.places[: x.shape[1]].to(x)
        h = F.layer_norm(x, (self.width,))
        q, k, v = (
            F.linear(h, weight)[:, None] for weight in (self.query, self.key, self.value)
        )  # (B, 1, n, d)
        bias = None
        if self.positions == "rope":
            q, k = rotate(q), rotate(k)
        if self.positions in SLOPES:
            bias = _alibi(x.shape[1], SLOPES[self.positions]).to(x)
        y = F.scaled_dot_product_attention(q, k, v, bias, is_causal=bias is None)
        return F.layer_norm(x + y[:, 0], (self.width,))


def rotate(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions: (*, n, d) with features i and i + d / 2 turned by place times a frequency."""
    n, d = x.shape[-2:]
    frequencies = base ** (-torch.arange(0, d, 2, dtype=torch.float64, device=x.device) / d)
    angles = torch.arange(n, dtype=torch.float64, device=x.device)[:, None] * frequencies
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _alibi(n: int, slope: float) -> Tensor:
    """(n, n): -slope times the distance, -inf for what comes later."""
    distance = torch.arange(n)[:, None] - torch.arange(n)
    return torch.where(distance < 0, -math.inf, -slope * distance.double())
