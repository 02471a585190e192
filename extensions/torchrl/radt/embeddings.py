"""Returns and times as vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import RADTConfig

#: wavelengths of the Fourier embedding, in units of `return_scale`, from the coarsest to the finest
COARSEST, FINEST = 64.0, 0.25
FREQUENCIES = 16
BASE = 10_000.0


class ReturnEmbedding(nn.Module):
    """Return-to-go r to a vector, ``(*, 1)`` -> ``(*, D)``, of (r - shift) / scale.

    In "linear", the paper's, the vector is w r + b, so all returns lie on a line, and any norm of w r keeps
    little more than the sign of r; "mlp" and "fourier" bend the line.
    """

    waves: Tensor

    def __init__(self, config: RADTConfig) -> None:
        super().__init__()
        self.kind = config.return_embedding
        # with the weights, which mean nothing in other units
        self.register_buffer("shift", torch.tensor(float(config.return_shift)))
        self.register_buffer("scale", torch.tensor(float(config.return_scale)))
        width = config.n_embd
        if self.kind == "fourier":  # integers, which no cast of the module rounds
            self.register_buffer("waves", torch.arange(FREQUENCIES), persistent=False)
        inputs = {"linear": 1, "mlp": width, "fourier": 1 + 2 * FREQUENCIES}[self.kind]
        self.hidden = nn.Linear(1, width) if self.kind == "mlp" else None
        self.out = nn.Linear(inputs, width)

    def forward(self, return_to_go: Tensor) -> Tensor:
        with torch.autocast(return_to_go.device.type, enabled=False):  # eight bits would blur the return
            return self._embed(return_to_go.to(torch.promote_types(self.out.weight.dtype, torch.float32)))

    def _embed(self, return_to_go: Tensor) -> Tensor:
        dtype = self.out.weight.dtype
        r = (return_to_go - self.shift) / self.scale  # type: ignore[operator]  # (*, 1)
        if self.hidden is not None:
            r = F.silu(self.hidden(r.to(dtype)))
        elif self.kind == "fourier":
            finer = (COARSEST / FINEST) ** (self.waves.to(r.dtype) / (FREQUENCIES - 1))
            angles = r * (2 * math.pi / COARSEST) * finer  # (*, FREQUENCIES)
            r = torch.cat((r, angles.sin(), angles.cos()), -1)
        return self.out(r.to(dtype))


class TimeEmbedding(nn.Module):
    """Step of the episode to a vector, ``(*)`` int64 -> ``(*, D)``: sines and cosines, then one layer. It
    has no table, and so no last step."""

    pairs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # integers, which no cast of the module rounds
        self.register_buffer("pairs", torch.arange(0, width, 2), persistent=False)  # (D / 2,)
        self.out = nn.Linear(width, width)

    def forward(self, timestep: Tensor) -> Tensor:
        dtype = self.out.weight.dtype
        pairs = self.pairs.to(torch.promote_types(dtype, torch.float32))
        angles = timestep[..., None] * BASE ** -(pairs / self.out.in_features)  # (*, D / 2)
        return self.out(torch.cat((angles.sin(), angles.cos()), -1).to(dtype))
