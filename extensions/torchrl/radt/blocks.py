"""One layer: self-attention, SeqRA and an MLP, each with its norm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .cache import LayerCache
from .conditions import Condition
from .config import RADTConfig
from .dropout import Dropout
from .norms import Norm

MLP_ACTIVATIONS: dict[str, nn.Module] = {
    "gelu": nn.GELU(),
    "gelu_new": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
    "silu": nn.SiLU(),
    "tanh": nn.Tanh(),
}


ALL = slice(None)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, heads, N, D / heads)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, N, D / heads) -> (B, N, D)"""
    return x.transpose(1, 2).flatten(-2)


class SelfAttention(nn.Module):
    """Multi-head self-attention; projections without bias but for the last, as in the paper's code."""

    def __init__(self, config: RADTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.n_head, config.attn_pdrop
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.out = nn.Linear(config.n_embd, config.n_embd)

    def forward(
        self, x: Tensor, queries: slice, mask: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        """(B, N, D) -> (B, those of N, D)

        Args:
            x: (B, N, D).
            queries: tokens whose output is wanted.
            mask: (B or 1, 1, those of N, keys), True where a token may look; None: at all up to itself.
            cache: earlier keys and values, and where these go.
        """
        width = x.shape[-1]
        if queries == ALL:
            q, k, v = self.qkv(x).chunk(3, -1)
        else:
            q = F.linear(x[:, queries], self.qkv.weight[:width])
            k, v = F.linear(x, self.qkv.weight[width:]).chunk(2, -1)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        if cache is not None:
            k, v = cache.write_tokens(k, v)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)
        return self.out(join_heads(y))


class Gate(nn.Module):
    """alpha = W [z; x] + b, which starts at 0; kept as two matrices, so that nothing is concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_z = nn.Linear(width, width)
        self.of_x = nn.Linear(width, width, bias=False)

    def reset_parameters(self) -> None:
        """The gate starts at 0."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """1 + alpha, (B, N, D); the 1 is added to the bias, which is the smallest."""
        return F.linear(z, self.of_z.weight, self.of_z.bias + 1) + self.of_x(x)


class SeqRA(nn.Module):
    """Sequence return aligner: tokens attend to returns, x -> x + (1 + alpha) z, where z is what they read
    and alpha the gate, a number for each feature."""

    def __init__(self, config: RADTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.n_head, config.attn_pdrop
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.out = nn.Linear(config.n_embd, config.n_embd)
        self.gate = Gate(config.n_embd) if config.alpha_gate else None
        self.drop = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """What is to be added to x.

        Args:
            x: (B, N, D).
            keys, values: of T returns, (B, heads, T, D / heads).
            mask: (B or 1, 1, N, T), True where a token may look.
        """
        dropout = self.dropout if self.training else 0.0
        q = split_heads(self.query(x), self.heads)
        z = self.drop(self.out(join_heads(F.scaled_dot_product_attention(q, keys, values, mask, dropout))))
        return z if self.gate is None else z * self.gate(z, x)


class MLP(nn.Sequential):
    """Two layers."""

    def __init__(self, config: RADTConfig) -> None:
        super().__init__(
            nn.Linear(config.n_embd, config.inner),
            MLP_ACTIVATIONS[config.activation],
            nn.Linear(config.inner, config.n_embd),
            Dropout(config.resid_pdrop),
        )


class Block(nn.Module):
    """A layer of RADT.

    With ``placement="post"`` a norm stands after each sum, x <- N(x + f(x)); with "pre" before each part,
    x <- x + f(N(x)). StepRA gives the norms their scales and shifts, else they have their own.
    """

    def __init__(self, config: RADTConfig) -> None:
        super().__init__()
        self.post = config.placement == "post"
        self.attention = SelfAttention(config)
        self.seqra = SeqRA(config) if config.seqra else None
        self.mlp = MLP(config)
        self.drop = Dropout(config.resid_pdrop)
        self.norms = nn.ModuleList(
            Norm(config.n_embd, config.norm, adaptive=config.stepra) for _ in range(2 + config.seqra)
        )

    def forward(
        self,
        x: Tensor,
        queries: slice,
        condition: Condition,
        token_mask: Tensor | None,
        return_mask: Tensor,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, N, D) -> (B, those of N, D), N tokens; the rest as in the parts."""
        h = x if self.post else self._norm(0, x, condition)
        x = x[:, queries] + self.drop(self.attention(h, queries, token_mask, cache))
        x = self._norm(0, x, condition) if self.post else x
        if self.seqra is not None:
            assert condition.keys is not None
            assert condition.values is not None
            h = x if self.post else self._norm(1, x, condition)
            x = x + self.seqra(h, condition.keys, condition.values, return_mask)
            x = self._norm(1, x, condition) if self.post else x
        h = x if self.post else self._norm(-1, x, condition)
        x = x + self.mlp(h)
        return self._norm(-1, x, condition) if self.post else x

    def _norm(self, i: int, x: Tensor, condition: Condition) -> Tensor:
        if condition.scales is None or condition.shifts is None:
            return self.norms[i](x)
        return self.norms[i](x, condition.scales[i], condition.shifts[i])
