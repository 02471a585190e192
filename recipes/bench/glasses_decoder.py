"""Tiny decoders, several seeds side by side, for `glasses_trained`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extensions.glasses import ModuleAdapter

from .glasses_layer import rotate

POSITIONS = ("rope", "nope", "learned")


class Decoders(nn.Module):
    """S decoders of one shape, of which none knows of the others: pre-norm blocks, RMS norms without a gain,
    one answer for a sequence.

    They run as one. The S * B sequences of a batch belong to the first seed, then to the second, and so on.
    With one seed it is an ordinary decoder.

    Args:
        positions: "rope", "nope" (none), or "learned", a vector for each place, added to the token's.
        vocabulary: tokens.
        classes: answers.
        seeds: of the weights, one for each decoder.
        width: d, a multiple of twice ``heads``.
        heads, layers: of attention in each block, and blocks.
        places: rows of the table of learned positions.
    """

    def __init__(
        self,
        positions: str,
        vocabulary: int,
        classes: int,
        seeds: tuple[int, ...],
        width: int = 48,
        heads: int = 4,
        layers: int = 3,
        places: int = 1,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}; got {positions!r}")
        self.shape: dict[str, Any] = {
            "positions": positions, "vocabulary": vocabulary, "classes": classes, "width": width,
            "heads": heads, "layers": layers, "places": places,
        }  # fmt: skip
        self.seeds, self.width = seeds, width
        self.tokens = nn.Parameter(torch.empty(len(seeds), vocabulary, width))
        self.places = nn.Parameter(torch.empty(len(seeds), places, width)) if positions == "learned" else None
        self.blocks = nn.ModuleList(
            Block(len(seeds), width, heads, positions == "rope") for _ in range(layers)
        )
        self.answer = Linears(len(seeds), width, classes)
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        """N(0, 1 / d), what adds to the residual stream less by the root of its number; tables N(0, 1)."""
        layers = len(self.blocks)
        for i, seed in enumerate(self.seeds):
            generator = torch.Generator().manual_seed(seed)
            for name, p in self.named_parameters():
                std = 1.0 if name in ("tokens", "places") else p.shape[1] ** -0.5
                if name.endswith(("out.weight", "down.weight")):
                    std /= (2 * layers) ** 0.5
                p[i] = torch.randn(p[i].shape, generator=generator) * std

    def embed(self, ids: Tensor, first: Tensor | None = None) -> Tensor:
        """(S B, n) -> (S B, n, d); ``first``: the place of each sequence's first token, (S B,), 0 if None."""
        x = self._rows(self.tokens, ids)
        if self.places is None:
            return x
        place = torch.arange(ids.shape[1]) + (0 if first is None else first[:, None])
        return x + self._rows(self.places, place.expand(ids.shape))

    def _rows(self, tables: Tensor, index: Tensor) -> Tensor:
        """Rows of each seed's own table: (S, rows, d), (S B, n) -> (S B, n, d)"""
        own = torch.arange(len(self.seeds)).repeat_interleave(len(index) // len(self.seeds))
        return F.embedding(index + own[:, None] * tables.shape[1], tables.flatten(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(S B, n, d) -> (S B, n, d), behind the final norm."""
        for block in self.blocks:
            x = block(x)
        return F.rms_norm(x, (self.width,))

    def readout(self, state: Tensor) -> Tensor:
        """(S B, d) -> (S B, classes)"""
        return self.answer(state)

    def of_seed(self, i: int) -> Decoders:
        """A decoder alone, with a copy of its weights, in eval mode."""
        alone = Decoders(**self.shape, seeds=self.seeds[i : i + 1])
        alone.load_state_dict({name: p[i : i + 1] for name, p in self.state_dict().items()})
        return alone.eval()

    def adapter(self) -> ModuleAdapter:
        """For `extensions.glasses`."""
        return ModuleAdapter(self, embed=self.embed, readout=self.readout, blocks=list(self.blocks))


class Block(nn.Module):
    """Causal self-attention, then a layer for each token; each seed its own."""

    def __init__(self, seeds: int, width: int, heads: int, rope: bool) -> None:
        super().__init__()
        self.width, self.heads, self.rope = width, heads, rope
        self.query_key_value = Linears(seeds, width, 3 * width)
        self.out = Linears(seeds, width, width)
        self.up = Linears(seeds, width, 2 * width)
        self.down = Linears(seeds, 2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(S B, n, d) -> (S B, n, d)"""
        parts = self.query_key_value(F.rms_norm(x, (self.width,))).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (S B, H, n, d / H) each
        if self.rope:
            query, key = rotate(query), rotate(key)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(F.rms_norm(x, (self.width,)))))


class Linears(nn.Module):
    """A linear map a seed, without bias."""

    def __init__(self, seeds: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(seeds, inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(S B, *, inputs) -> (S B, *, outputs)"""
        seeds, inputs, outputs = self.weight.shape
        return torch.bmm(x.reshape(seeds, -1, inputs), self.weight).reshape(*x.shape[:-1], outputs)
