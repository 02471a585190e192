"""A negative control: states attend to actions and to returns, with no alignment beyond that."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import MLP, join_heads, split_heads
from .config import RADTConfig
from .dropout import Dropout
from .masks import step_mask


class CrossAttention(nn.Module):
    """Multi-head attention from one stream to another."""

    def __init__(self, config: RADTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.n_head, config.attn_pdrop
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.key_value = nn.Linear(config.n_embd, 2 * config.n_embd, bias=False)
        self.out = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) from (B, T, D), where mask (B or 1, 1, T, T) is True."""
        dropout = self.dropout if self.training else 0.0
        q, k, v = (
            split_heads(part, self.heads) for part in (self.query(x), *self.key_value(other).chunk(2, -1))
        )
        return self.out(join_heads(F.scaled_dot_product_attention(q, k, v, mask, dropout)))


class ThreeStreams(nn.Module):
    """Post-norm layers over states: x <- N(x + SA(x) + CA(x, actions) + CA(x, returns)), and then
    x <- N(x + MLP(x))."""

    def __init__(self, config: RADTConfig) -> None:
        super().__init__()
        width, layers = config.n_embd, range(config.n_layer)
        self.to_states, self.to_actions, self.to_returns = (
            nn.ModuleList(CrossAttention(config) for _ in layers) for _ in range(3)
        )
        self.mlps = nn.ModuleList(MLP(config) for _ in layers)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * config.n_layer))
        self.drop = Dropout(config.resid_pdrop)

    def forward(
        self, states: Tensor, actions: Tensor, returns: Tensor, mask: Tensor | None, window: int | None
    ) -> Tensor:
        """Features of each step, (B, T, D), from embedded streams of that shape."""
        if mask is not None:  # the first real step has none before it, padded or not
            actions = actions.masked_fill(~mask[..., None], 0)
        actions = F.pad(actions[:, :-1], (0, 0, 1, 0))  # that of the step before
        seen = step_mask(states.shape[1], mask, window, states.device)[:, None]
        x = states
        layers = zip(self.to_states, self.to_actions, self.to_returns, self.mlps, strict=True)
        for i, (to_states, to_actions, to_returns, mlp) in enumerate(layers):
            read = to_states(x, x, seen) + to_actions(x, actions, seen) + to_returns(x, returns, seen)
            x = self.norms[2 * i](x + self.drop(read))
            x = self.norms[2 * i + 1](x + mlp(x))
        return x
