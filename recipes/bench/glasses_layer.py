"""One random attention layer, in which the theory of collapse can be checked without training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POSITIONS = ("nope", "rope", "alibi", "steep_alibi", "learned")
SLOPES = {"alibi": 2.0**-8, "steep_alibi": 0.5}


class RandomAttention(nn.Module):
    """y = norm(v + A v) with one head, as in the paper's experiment on random vectors (figure 10).

    Each token has a query, a key and a value, N(0, 1) in each feature and independent of one another. With
    matrices that make all three of one vector, attention would not average values away: its mean has a part
    that stays, and gaps of long random sequences fall as n^-1 in the place of n^-3/2.

    Args:
        positions: "nope", none; "rope"; "alibi" with slope 2^-8; "steep_alibi" with slope 1/2; "learned", a
            random vector for each place, added to the values.
        width: d.
        vocabulary: tokens there are; more than a sequence is long, or its mean does not go on falling.
        seed: of all that is random.
    """

    def __init__(self, positions: str, width: int = 64, vocabulary: int = 1 << 14, seed: int = 0) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}; got {positions!r}")
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator), requires_grad=False)

        self.positions, self.width = positions, width
        self.tokens = draw(vocabulary, 3 * width)
        self.places = draw(vocabulary, width) if positions == "learned" else None

    def embed(self, ids: Tensor) -> Tensor:
        """(B, n) -> (B, n, 3 d)"""
        return F.embedding(ids, self.tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, 3 d) -> (B, n, d)"""
        q, k, v = x[:, None].chunk(3, -1)  # (B, 1, n, d)
        if self.places is not None:
            v = v + self.places[: x.shape[1]].to(x)
        bias = None
        if self.positions == "rope":
            q, k = rotate(q), rotate(k)
        if self.positions in SLOPES:
            bias = _alibi(x.shape[1], SLOPES[self.positions]).to(x)
        y = v + F.scaled_dot_product_attention(q, k, v, bias, is_causal=bias is None)
        return F.layer_norm(y[:, 0], (self.width,))


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
