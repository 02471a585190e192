"""Attention with its softmax written out: to be read, frozen or changed, in models that hide it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# beta as a polynomial of a row's entropy in nats, highest power first (Velickovic et al., "Softmax is not
# enough (for Sharp Size Generalisation)", ICML 2025).
ADAPTIVE = (-0.037, 0.481, -2.3, 4.917, -1.791)
ADAPTIVE_ABOVE = 0.5  # nats


@dataclass(frozen=True)
class Lens:
    """How attention is computed while one looks.

    Args:
        frozen: no gradient flows through the weights, as the theorem on over-squashing assumes.
        adaptive: each row is sharpened by its entropy (`adaptive_beta`).
        window: each token sees so many tokens, itself included; None for all.
        log_n: scores are multiplied by log(tokens seen) / log(this) where more are seen; None: not.
        float32: scores, weights and their sum of values are computed in float32 at least, and rounded after.
        record: is given the weights of each attention, ``(B, H, queries, keys)``, in their order.
    """

    frozen: bool = False
    adaptive: bool = False
    window: int | None = None
    log_n: int | None = None
    float32: bool = False
    record: Callable[[Tensor], None] | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1 token, got {self.window}")
        if self.log_n is not None and self.log_n < 2:
            raise ValueError(f"log_n is a length that the model was trained at, at least 2; got {self.log_n}")

    def behind(self, outer: Lens) -> Lens:
        """Both together: what either changes is changed, the narrower window counts and the inner ``log_n``,
        and both are given the weights."""
        windows = [w for w in (self.window, outer.window) if w is not None]
        return Lens(
            frozen=self.frozen or outer.frozen,
            adaptive=self.adaptive or outer.adaptive,
            window=min(windows, default=None),
            log_n=outer.log_n if self.log_n is None else self.log_n,
            float32=self.float32 or outer.float32,
            record=_both(self.record, outer.record),
        )


def _both(
    inner: Callable[[Tensor], None] | None, outer: Callable[[Tensor], None] | None
) -> Callable[[Tensor], None] | None:
    if inner is None or outer is None:
        return inner or outer

    def record(weights: Tensor) -> None:
        inner(weights)
        outer(weights)

    return record


def adaptive_beta(entropy: Tensor) -> Tensor:
    """By what the scores of a row are multiplied: max(1, a polynomial) above half a nat, else 1.

    Args:
        entropy: of the row's weights, in nats, any shape.
    """
    beta = torch.zeros_like(entropy)
    for coefficient in ADAPTIVE:
        beta = beta * entropy + coefficient
    return torch.where(entropy > ADAPTIVE_ABOVE, beta.clamp(min=1), 1.0)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor | None,
    scale: float,
    lens: Lens,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention.

    Args:
        query: (B, H, N, D).
        key, value: (B, H or a divisor of it, M, D).
        seen: what may be attended to, broadcast to (B, H, N, M): bool, or what is added to the scores; all if
            None. What is at most half the dtype's lowest number hides a token, as minus infinity does. The
            weights of a query that sees none are 0, as torch's own attention has it.
        scale: of the scores.
        lens: what differs from the model's own.
        softcap: scores are ``softcap * tanh(scores / softcap)``.
        sinks: a further score of each head, (H,), whose value is zero.

    Returns:
        Output (B, H, N, D) and weights (B, H, N, M).
    """
    key, value = (
        x.repeat_interleave(query.shape[1] // x.shape[1], 1) if x.shape[1] != query.shape[1] else x
        for x in (key, value)
    )
    own = query.dtype
    if lens.float32:
        query, key, value = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value))
    scores = query @ key.transpose(-2, -1) * scale  # (B, H, N, M)
    hidden = _hidden(scores, seen, lens.window)
    sees_none = hidden.all(-1, keepdim=True)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if lens.log_n is not None:
        scores = scores * _log_n_scale(scores, hidden, lens.log_n)
    if seen is not None and seen.dtype != torch.bool:
        scores = scores + torch.where(hidden, 0.0, seen)
    # bfloat16 and float16 go through float32, as in the models of transformers
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    out_of_sight = hidden & ~sees_none  # a softmax over nothing would be NaN
    if lens.adaptive:
        with torch.no_grad():  # which temperature is not part of the derivative
            p = wide.masked_fill(out_of_sight, -math.inf).softmax(-1)
            beta = adaptive_beta(torch.special.entr(p).sum(-1, keepdim=True))
        wide = wide * beta
    wide = wide.masked_fill(out_of_sight, -math.inf)
    if sinks is not None:
        column = sinks.to(wide.dtype)[None, :, None, None].expand(*wide.shape[:-1], 1)
        wide = torch.cat((wide, column), -1)
    weights = wide.softmax(-1).to(query.dtype)
    weights = weights[..., : key.shape[-2]].masked_fill(sees_none, 0)
    if lens.frozen:
        weights = weights.detach()
    if lens.record is not None:
        lens.record(weights)
    return (weights @ value).to(own), weights


def _hidden(scores: Tensor, seen: Tensor | None, window: int | None) -> Tensor:
    """Which keys a query does not see, broadcast to (B, H, N, M): by the mask or the window."""
    n, m = scores.shape[-2:]
    hidden = torch.zeros(n, m, dtype=torch.bool, device=scores.device)
    if seen is not None:
        hidden = hidden | (~seen if seen.dtype == torch.bool else seen <= torch.finfo(seen.dtype).min / 2)
    if window is not None:
        query = torch.arange(m - n, m, device=scores.device)[:, None]
        hidden = hidden | (query - torch.arange(m, device=scores.device) >= window)
    return hidden


def _log_n_scale(scores: Tensor, hidden: Tensor, trained: int) -> Tensor:
    """log(tokens seen) / log(trained), at least 1; (B or 1, H or 1, N, 1)."""
    count = (~hidden).sum(-1, keepdim=True)
    return (count.clamp(min=1).to(scores.dtype).log() / math.log(trained)).clamp(min=1)


class _OfTorch(TorchFunctionMode):
    """Takes the place of ``F.scaled_dot_product_attention``."""

    def __init__(self, lens: Lens) -> None:
        super().__init__()
        self.lens = lens

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p:
            raise ValueError("attention has dropout: call .eval() on the model first")
        if is_causal:
            attn_mask = torch.ones(
                query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device
            ).tril()
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return attend(query, key, value, attn_mask, scale, self.lens)[0]


_LENS: ContextVar[Lens] = ContextVar("lens")


def _of_transformers(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, Tensor]:
    """What the models of transformers call, by the name of `NAME`."""
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.shape[-2]]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out, weights = attend(query, key, value, attention_mask, scale, _LENS.get(), softcap, s_aux)
    return out.transpose(1, 2).contiguous(), weights


NAME = "glasses"


class HiddenAttentionError(ValueError):
    """A model of transformers takes no other attention than its own."""


@contextmanager
def looking_through(module: nn.Module, lens: Lens) -> Iterator[None]:
    """Within it, attention in ``module`` is `attend`.

    It reaches what calls ``torch.nn.functional.scaled_dot_product_attention`` and the models of transformers
    that take their attention from its ``AttentionInterface``. Of several in each other all count
    (`Lens.behind`).

    Args:
        module: a model, on its own or with models of transformers inside.
        lens: what differs from its own.

    Raises:
        HiddenAttentionError: a ValueError; a model of transformers inside takes no other attention than its
            own.
    """
    outer = _LENS.get(None)
    lens = lens if outer is None else lens.behind(outer)
    with ExitStack() as stack:
        for model in _models_of_transformers(module):
            stack.enter_context(_interface(model))
        token = _LENS.set(lens)
        stack.callback(_LENS.reset, token)
        stack.enter_context(_OfTorch(lens))
        yield


def _models_of_transformers(module: nn.Module) -> list[Any]:
    """The outermost ones."""
    if "transformers" not in sys.modules:
        return []
    from transformers import PreTrainedModel

    if isinstance(module, PreTrainedModel):
        return [module]
    return [model for child in module.children() for model in _models_of_transformers(child)]


@contextmanager
def _interface(model: Any) -> Iterator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _of_transformers)
    AttentionMaskInterface.register(NAME, eager_mask)
    before = [(config, config._attn_implementation_internal) for config in _configs(model)]
    try:
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise HiddenAttentionError(
                f"{type(model).__name__} takes no other attention than its own, so its weights cannot be "
                "read: it does not use the AttentionInterface of transformers"
            )
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


def _configs(model: Any) -> list[Any]:
    """Of the model and its parts, with those within them: a model that refuses another attention may have set
    it in some of them."""
    from transformers import PreTrainedModel

    waiting: list[Any] = [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
    found: dict[int, Any] = {}
    while waiting:
        config = waiting.pop()
        if config is not None and id(config) not in found:
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())
