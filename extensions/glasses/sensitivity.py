"""How much the answer depends on each input: the norm of the Jacobian, token by token."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .adapters import Adapter, check_adapter
from .attention import HiddenAttentionError, Lens
from .batches import place_of
from .results import Result

EXACT_BYTES = 256 * 2**20  # mode="auto" holds no larger Jacobian
CHUNK_SCORES = 2**18  # attention scores of a head and layer in one backward pass: more of them are slower
MODES = ("auto", "exact", "hutchinson", "spectral")


@dataclasses.dataclass(frozen=True)
class SensitivityProfile(Result):
    """Norms of d output / d input token, for B sequences of n tokens.

    Attributes:
        mode: how it was found.
        attention: "full", or "frozen": without the derivative of the attention weights.
        output: "state", "logits" or "function": what was derived.
        source_layer, target_layer: by the states of which layer, and of which; from 0 to L. 0 is the vectors
            of tokens, as the adapter's ``embed`` gives them.
        fro: Frobenius norm, (B, n); 0 for padding and for what comes later than the output.
        spec: spectral norm, (B, n); None but in mode "spectral".
        stderr: standard error of ``fro``, (B, n); None if it is exact.
        share: ``fro`` over its sum, (B, n).
        roles: of each token, (n,); None if all are alike.
        per_role_sum: sum of ``share`` by role, (B, roles); None likewise.
        target: index of the output's token, (B,).
        real: whether a token is no padding, (B, n).
    """

    mode: str
    attention: str
    output: str
    source_layer: int
    target_layer: int
    fro: Tensor
    spec: Tensor | None
    stderr: Tensor | None
    share: Tensor
    roles: Tensor | None
    per_role_sum: Tensor | None
    target: Tensor
    real: Tensor

    @property
    def u_index(self) -> float:
        """Mean share of the first and last tenth over that of the middle fifth: above 1, a U. Mean over
        sequences, as of the other two, each over its real tokens up to the output's; NaN of single tokens."""
        return _mean([u_index(row) for row in self._in_sight(self.share)])

    @property
    def primacy_slope(self) -> float:
        """Slope of log fro along the first half, which has length 1: below 0, the start stands out."""
        return _mean([_primacy_slope(row) for row in self._in_sight(self.fro)])

    @property
    def recency_ratio(self) -> float:
        """Share of the output's own token over the mean of the ten before it."""
        rows = self._in_sight(self.share)
        return _mean([(row[-1] / row[-11:-1].mean()).item() for row in rows])

    def _in_sight(self, values: Tensor) -> list[Tensor]:
        """Of each sequence, those of its real tokens up to the output's."""
        rows = zip(values, self.real, self.target.tolist(), strict=True)
        return [row[: target + 1][real[: target + 1]] for row, real, target in rows]


def u_index(share: Tensor) -> float:
    """Mean of the first and last tenth over the mean of the middle fifth, along the last dimension; NaN if
    that has but one."""
    n = share.shape[-1]
    if n == 1:
        return math.nan
    tenth = max(1, math.ceil(n / 10))
    middle = share[..., math.floor(0.4 * n) : max(math.floor(0.4 * n) + 1, math.ceil(0.6 * n))].mean(-1)
    ends = (share[..., :tenth].mean(-1) + share[..., -tenth:].mean(-1)) / 2
    return (ends / middle).mean().item()


def _primacy_slope(fro: Tensor) -> float:
    """(n,) -> a slope; NaN of a single token."""
    half = fro[: max(2, len(fro) // 2)].double().clamp(min=torch.finfo(torch.float64).tiny)
    if len(half) == 1:
        return math.nan
    x = torch.linspace(0, 1, len(half), dtype=torch.float64)
    x = x - x.mean()
    return ((half.log() * x).sum() / x.square().sum()).item()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def sensitivity_profile(
    model: Adapter,
    batch: Any,
    *,
    target: int | None = None,
    source_layer: int = 0,
    target_layer: int = -1,
    mode: str = "auto",
    probes: int = 32,
    attention: str = "full",
    output: str | Callable[[Tensor], Tensor] = "state",
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> SensitivityProfile:
    """Norms of the Jacobian of one output with respect to each token (Barbero et al., theorem 5.1).

    It is computed in float32, or in float64 for a model in it.

    Args:
        model: an adapter, in eval mode.
        batch: B sequences as the adapter's batch.
        target: the token whose output is taken, of real ones; if None, where the model's answer is read.
        source_layer: with respect to the states of this layer; 0 is the vectors of tokens. Where a model
            norms or scales them before the first layer, as BLOOM and Granite do, that is part of the
            Jacobian.
        target_layer: the output is of this layer; -1 is behind the final norm.
        mode: "exact", a backward pass for each feature of the output; "hutchinson", ``probes`` passes for all
            tokens at once, along random directions that are orthogonal to one another: squared norms have a
            relative error of at most sqrt(2 (1 / probes - 1 / m)) for m features; "spectral",
            as many as "exact" or more, for spectral norms too; "auto", exact as long as the Jacobian has at
            most 256 MB.
        probes: of "hutchinson"; no more are used than there are features, which make it exact.
        attention: "full", or "frozen": no gradient through the weights, as the theorem assumes. Look at both:
            where attention is sharp, most of the Jacobian goes through the weights.
        output: "state", "logits" (for policies, the action), or a function of the state, (B, d) -> (B, m).
        generator: of the probes.
        chunk: vectors carried through one backward pass together; chosen by length if None, and 1 where the
            model takes no attention but its own.

    Raises:
        ValueError: unknown words, train mode, no such token or layer; attention is to be frozen and the model
            hides it; a Jacobian that is not finite, or not 0 at padding.
    """
    check_adapter(model)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if attention not in ("full", "frozen"):
        raise ValueError(f'attention must be "full" or "frozen", got {attention!r}')
    if probes < 2:
        raise ValueError(f"probes must be at least 2, so that their error is known; got {probes}")
    source_layer, target_layer = model.layer_numbers([source_layer, target_layer])
    if source_layer >= target_layer:
        raise ValueError(f"source_layer must be below target_layer, got {source_layer} and {target_layer}")
    mask = model.mask(batch)
    dtype = "float64" if model.dtype == "float64" else "float32"
    with torch.no_grad(), model.running_in(dtype):
        emb = model.cast(model.embed(batch), dtype)
    place = place_of(model.position if target is None else target, emb.shape[1], mask)
    if chunk is None:
        chunk = max(1, CHUNK_SCORES // (len(emb) * emb.shape[1] ** 2))
    with model.running_in(dtype), _attention(model, attention, chunk) as chunk, torch.enable_grad():
        source, state = _leaf_and_state(model, emb, mask, place, source_layer, target_layer)
        out = _output_of(model, output)(state)  # (B, m)
    pull = partial(_pulled_back, out, source, chunk)

    width = out.shape[-1]
    if mode == "auto":
        mode = "exact" if 4 * width * source.numel() <= EXACT_BYTES else "hutchinson"
    spec = stderr = None
    if mode == "hutchinson":
        u = _probes(min(probes, width), out, generator)
        squares = torch.cat([rows.square().sum(-1) for rows in pull(u)])  # (K, B, n)
        fro = squares.mean(0).sqrt()
        # of the square, as of K directions out of m without replacement; and of its root by the derivative
        left = 1 - len(u) / width
        spread = squares.std(0) * math.sqrt(left / len(u)) if left else torch.zeros_like(fro)
        stderr = spread / (2 * fro).clamp(min=torch.finfo(fro.dtype).tiny)
    else:
        unit = torch.eye(width).to(out)[:, None].expand(-1, len(out), -1)  # (m, B, m)
        fro = torch.stack([rows.square().sum((0, -1)) for rows in pull(unit)]).sum(0).sqrt()
        if mode == "spectral":
            spec = _spectral(pull, unit, source)
    fro = fro.cpu()
    if not bool(torch.isfinite(fro).all()):
        raise ValueError(f"the Jacobian in {dtype} is not finite: the model overflows or holds NaN")
    if mask is not None and bool(fro[~mask.cpu()].any()):
        raise ValueError(
            f"{type(model.module).__name__} reads its padding, whatever the mask says: give it sequences of "
            "one length"
        )
    share = fro / fro.sum(1, keepdim=True)
    roles = model.roles(emb.shape[1])
    return SensitivityProfile(
        mode=mode,
        attention=attention,
        output="function" if callable(output) else output,
        source_layer=source_layer,
        target_layer=target_layer,
        fro=fro,
        spec=None if spec is None else spec.cpu(),
        stderr=None if stderr is None else stderr.cpu(),
        share=share,
        roles=roles,
        per_role_sum=None if roles is None else _by_role(share, roles),
        target=torch.as_tensor(place).cpu().expand(len(emb)).clone(),
        real=torch.ones(emb.shape[:2], dtype=torch.bool) if mask is None else mask.cpu(),
    )


def _output_of(model: Adapter, output: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    if callable(output):
        return output
    if output not in ("state", "logits"):
        raise ValueError(f'output must be "state", "logits" or a function, got {output!r}')
    return model.readout if output == "logits" else lambda state: state


def _probes(count: int, out: Tensor, generator: torch.Generator | None) -> Tensor:
    """Orthogonal directions of length sqrt(m), each uniform on its sphere, (K, B, m)."""
    batch, width = out.shape
    drawn = torch.randn(batch, width, count, generator=generator, dtype=torch.float64)
    return (torch.linalg.qr(drawn).Q * math.sqrt(width)).permute(2, 0, 1).to(out)


@contextmanager
def _attention(model: Adapter, attention: str, chunk: int) -> Iterator[int]:
    """Attention that vectors can be carried back through together, or frozen; and how many of them."""
    if attention == "full" and chunk == 1:
        yield 1  # the model's own, which may need less memory
        return
    seen: list[Tensor] = []
    with ExitStack() as stack:
        try:
            stack.enter_context(model.looking(Lens(frozen=attention == "frozen", record=seen.append)))
        except HiddenAttentionError:
            if attention == "frozen":
                raise
            chunk = 1  # its own attention, through which they may not go together
        yield chunk
    if attention == "frozen" and not seen:
        raise ValueError(
            "attention cannot be frozen: the model neither calls torch's scaled_dot_product_attention nor "
            'takes its attention from transformers; use attention="full"'
        )


def _leaf_and_state(
    model: Adapter,
    emb: Tensor,
    mask: Tensor | None,
    place: Tensor | int,
    source_layer: int,
    target_layer: int,
) -> tuple[Tensor, Tensor]:
    """What is derived by, (B, n, d), and the state that is derived, (B, d)."""
    leaf = emb.detach().requires_grad_()
    if source_layer == 0:
        return leaf, model.states(leaf, mask, [target_layer], position=place)[0]
    leaves: list[Tensor] = []

    def cut(module: Any, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, (tuple, list)) else output
        if first.shape[:2] != emb.shape[:2]:
            raise ValueError(
                f"layer {source_layer} of {type(model.module).__name__} does not hold the tokens that go in: "
                "take source_layer=0"
            )
        leaves.append(first.detach().requires_grad_())
        return type(output)((leaves[0], *output[1:])) if isinstance(output, (tuple, list)) else leaves[0]

    hook = model.blocks[source_layer - 1].register_forward_hook(cut)
    try:
        state = model.states(emb, mask, [target_layer], position=place)[0]
    finally:
        hook.remove()
    return leaves[0], state


def _pulled_back(out: Tensor, source: Tensor, chunk: int, vectors: Tensor) -> Iterator[Tensor]:
    """u^T J of vectors u (K, B, m), in parts of (k, B, n, d)."""
    for part in vectors.split(chunk):
        if len(part) == 1:
            yield torch.autograd.grad(out, source, part[0], retain_graph=True)[0][None]
        else:
            yield torch.autograd.grad(out, source, part, retain_graph=True, is_grads_batched=True)[0]


def _spectral(pull: Callable[[Tensor], Iterator[Tensor]], unit: Tensor, source: Tensor) -> Tensor:
    """Largest singular values, (B, n), from J^T J summed over rows of J, for as many tokens at once as fit.

    Power iteration would need two passes a round for each token, which is more as soon as there are tokens.
    """
    batch, tokens, width = source.shape
    size = max(1, EXACT_BYTES // (batch * width**2 * source.element_size()))
    found = []
    for start in range(0, tokens, size):
        gram = source.new_zeros(batch, min(size, tokens - start), width, width)
        for rows in pull(unit):
            part = rows[:, :, start : start + size]  # (k, B, size, d)
            gram += torch.einsum("kbnd,kbne->bnde", part, part)
        found.append(torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt())
    return torch.cat(found, 1)


def _by_role(share: Tensor, roles: Tensor) -> Tensor:
    """(B, n) -> (B, roles)"""
    return torch.stack([share[:, roles == role].sum(1) for role in range(int(roles.max()) + 1)], 1)
