"""A small decoder-only transformer in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Decoder(nn.Module):
    """Tokens in, scores of the next token out.

    Layer norms come first in each block, positions are told by turning queries and keys (RoPE, arXiv
    2104.09864), there are no biases, and the embedding of tokens is also the last layer. Weights begin as
    N(0, 1 / D), the layers that add to the residual stream less by the root of their number.

    Args:
        vocab_size: V.
        context: the most tokens in a sequence.
        d_model: D, a multiple of twice ``n_heads``.
        n_layers, n_heads: blocks, and heads of attention in each.
    """

    turns: Tensor

    def __init__(self, vocab_size: int, context: int, d_model: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model, bias=False)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                std = d_model**-0.5
                adds = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=std / (2 * n_layers) ** 0.5 if adds else std)
        half = d_model // n_heads // 2
        rates = 1000.0 ** (-torch.arange(half) / half)
        angles = torch.arange(context)[:, None] * rates  # (context, D / heads / 2)
        self.register_buffer("turns", torch.stack((angles.cos(), angles.sin())), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores, (B, L, V), of what follows each of ``tokens``, (B, L) int64."""
        x = self.tokens(tokens)  # (B, L, D)
        turns = self.turns[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x, turns)
        return self.norm(x) @ self.tokens.weight.T


class Block(nn.Module):
    """Causal self-attention, then a layer for each position."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(d_model, bias=False)
        self.query_key_value = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.norm = nn.LayerNorm(d_model, bias=False)
        self.up = nn.Linear(d_model, 4 * d_model, bias=False)
        self.down = nn.Linear(4 * d_model, d_model, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """(B, L, D) in and out; ``turns`` are cosines and sines, (2, L, D / heads / 2)."""
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.n_heads, -1))
        heads = heads.permute(2, 0, 3, 1, 4)  # (3, B, heads, L, D / heads)
        query, key = turned(heads[:2], *turns)
        seen = F.scaled_dot_product_attention(query, key, heads[2], is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm(x))))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Features i and i + D / 2 of (..., L, D), as pairs, turned by the angles of their positions."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def token_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """Cross entropies in nats, (B, L), of all tokens but the first of ``tokens``, (B, L + 1) int64."""
    scores = model(tokens[:, :-1])
    return F.cross_entropy(scores.transpose(1, 2), tokens[:, 1:], reduction="none")
