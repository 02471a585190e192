"""
Divergences between two language models' next-token distributions, token by token, straight from the
hidden states.

Logits of a whole batch, (batch, time, vocabulary) in float32, are the largest tensor of a distillation
step: 10 GB for 64 answers of 256 tokens over 152k tokens, and a plain implementation holds several. Here
both heads are applied to a few positions at a time; each tile gives all that an objective asks of it and
is dropped, and the backward pass computes it again, with the gradient of the tile in closed form. With z
the student's logits, q and p the two distributions over the vocabulary:

    d KL(q || p) / dz = q * (log q - log p - KL(q || p))
    d KL(p || q) / dz = q - p
    d log q(y)   / dz = onehot(y) - q
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers in one vocabulary-wide tensor of a tile (16 MB in float32), and the fewest rows for a matrix product
# to be worth its reading of the head.
TILE_ELEMENTS = 2**22
MIN_ROWS = 128
ROWS_ADDED = 2**14  # tokens whose part of a half-precision head's gradient is made at once


@dataclass(frozen=True)
class Head:
    """
    How a model turns a hidden state into logits: ``softcap * tanh(scale * (W h + b) / softcap)``.

    Args:
        weight: (V, H).
        bias: (V,), or none.
        scale: factor of the logits.
        softcap: bound of the logits, or none.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        return self.weight.size(0)

    def first(self, vocabulary: int) -> Head:
        """The head of the first ``vocabulary`` tokens only."""
        bias = self.bias if self.bias is None else self.bias[:vocabulary]
        return Head(self.weight[:vocabulary], bias, self.scale, self.softcap)


@dataclass(frozen=True)
class TokenDivergences:
    """
    What both models say at each of N positions, in nats; (N,) each, float32 (float64 for float64 models).

    Args:
        log_q: log q(y) of the target under the student. Has a gradient.
        reverse_kl: KL(q || p). Has a gradient; ``None`` without a teacher.
        forward_kl: KL(p || q). Has a gradient; ``None`` unless asked for.
        log_p: log p(y) of the target under the teacher. ``None`` without a teacher.
        entropy: of the student.
    """

    log_q: Tensor
    reverse_kl: Tensor | None
    forward_kl: Tensor | None
    log_p: Tensor | None
    entropy: Tensor

    def to(self, device: torch.device) -> TokenDivergences:
        """The same on a device."""
        values = (getattr(self, field.name) for field in fields(self))
        moved: list[Any] = [x if x is None else x.to(device) for x in values]
        return TokenDivergences(*moved)


def tiled_divergences(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    targets: Tensor,
    temperature: float = 1.0,
    with_forward_kl: bool = False,
    tile_elements: int = TILE_ELEMENTS,
    gathered: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> TokenDivergences:
    """
    Reverse KL, log-probabilities and entropy at N positions in one pass over the heads.

    The gradient flows to the student's hidden states and head only.

    Args:
        student_hidden: (N, H), what the student's head is applied to.
        student_head: of the student.
        teacher_hidden: (N, H'), or ``None`` for the student alone.
        teacher_head: over the same V tokens.
        targets: (N,) int64, the tokens whose log-probabilities are wanted.
        temperature: both distributions are softmax(logits / temperature).
        with_forward_kl: also KL(p || q).
        tile_elements: numbers in one (rows, V) tensor.
        gathered: opens a context in which both heads' weights are whole, for models sharded over processes;
            entered in the forward and again in the backward pass.

    Raises:
        ValueError: the two heads have vocabularies of different sizes.
    """
    log_q, reverse, forward, log_p, entropy = _TiledDivergences.apply(
        student_hidden,
        student_head.weight,
        student_head.bias,
        (student_head.scale, student_head.softcap),
        teacher_hidden,
        teacher_head,
        targets,
        temperature,
        with_forward_kl,
        tile_elements,
        gathered,
    )
    return TokenDivergences(log_q, reverse, forward, log_p, entropy)


class _TiledDivergences(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,  # (N, H)
        weight: Tensor,  # (V, H)
        bias: Tensor | None,
        shape: tuple[float, float | None],
        teacher_hidden: Tensor | None,  # (N, H')
        teacher: Head | None,
        targets: Tensor,  # (N,)
        temperature: float,
        with_forward_kl: bool,
        tile_elements: int,
        gathered: Callable[[], AbstractContextManager[Any]],
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        n = student_hidden.size(0)
        # A Function's forward sees autocast, its backward does not: the type to compute in is settled here,
        # and autocast is left, which would round logits and sums over the vocabulary to it as well.
        ctx.student_dtype = _compute_dtype(student_hidden)
        ctx.teacher_dtype = None if teacher_hidden is None else _compute_dtype(teacher_hidden)
        results = student_hidden.new_zeros((5, n), dtype=_result_dtype(student_hidden))
        log_q, reverse, forward, log_p, entropy = results
        with torch.autocast(student_hidden.device.type, enabled=False), gathered():
            student = Head(weight, bias, *shape)
            if teacher is not None and teacher.vocabulary != student.vocabulary:
                raise ValueError(
                    f"The student has {student.vocabulary} tokens and the teacher {teacher.vocabulary}: a "
                    "divergence needs the same vocabulary. `Head.first(n)` cuts a padded one."
                )
            student, teacher_head = _ready(student, ctx.student_dtype), _ready(teacher, ctx.teacher_dtype)
            for rows in _tiles(n, student.vocabulary, tile_elements):
                y = targets[rows].unsqueeze(1)  # (n, 1)
                log_qs, _ = _log_probs(student_hidden[rows], student, ctx.student_dtype, temperature)
                q = log_qs.exp()
                log_q[rows] = log_qs.gather(1, y).squeeze(1)
                entropy[rows] = -_row_dot(q, log_qs)
                if teacher_head is not None and teacher_hidden is not None:
                    log_ps, _ = _log_probs(teacher_hidden[rows], teacher_head, ctx.teacher_dtype, temperature)
                    log_p[rows] = log_ps.gather(1, y).squeeze(1)
                    difference = log_qs.sub_(log_ps)  # (n, V)
                    reverse[rows] = _row_dot(q, difference)
                    if with_forward_kl:
                        forward[rows] = -_row_dot(log_ps.exp_(), difference)
                    del log_ps, difference
                del log_qs, q  # before the next tile's take their place
        ctx.save_for_backward(student_hidden, weight, bias, teacher_hidden, targets, reverse)
        ctx.shape, ctx.teacher = shape, teacher
        ctx.temperature, ctx.tile_elements, ctx.gathered = temperature, tile_elements, gathered
        has_teacher = teacher is not None
        outputs = (
            log_q,
            reverse if has_teacher else None,
            forward if has_teacher and with_forward_kl else None,
            log_p if has_teacher else None,
            entropy,
        )
        ctx.mark_non_differentiable(*(x for x in (outputs[3], entropy) if x is not None))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_log_q: Tensor | None, d_reverse: Tensor | None, d_forward: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        if d_log_q is None and d_reverse is None and d_forward is None:
            return (None,) * 11
        kind = ctx.saved_tensors[0].device.type
        with torch.autocast(kind, enabled=False), ctx.gathered():  # should backward() be called under it
            return _TiledDivergences._gradients(ctx, d_log_q, d_reverse, d_forward)

    @staticmethod
    def _gradients(
        ctx: Any, d_log_q: Tensor | None, d_reverse: Tensor | None, d_forward: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        student_hidden, weight, bias, teacher_hidden, targets, reverse = ctx.saved_tensors
        student, teacher = _ready(Head(weight, bias, *ctx.shape), ctx.student_dtype), None
        if d_reverse is not None or d_forward is not None:
            teacher = _ready(ctx.teacher, ctx.teacher_dtype)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        accumulate = reverse.dtype  # float32 sums, whatever the model is in
        d_hidden = torch.empty_like(student_hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=accumulate) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=accumulate) if wants_bias and bias is not None else None

        for rows in _tiles(student_hidden.size(0), student.vocabulary, ctx.tile_elements):
            log_qs, slope = _log_probs(
                student_hidden[rows], student, ctx.student_dtype, ctx.temperature, with_slope=True
            )  # (n, V)
            log_ps: Any = None
            if teacher is not None:
                log_ps, _ = _log_probs(teacher_hidden[rows], teacher, ctx.teacher_dtype, ctx.temperature)
            q = log_qs.exp()
            # Every term but the one-hot is q times something, or p: gather the something first.
            if d_reverse is not None:
                gradient = log_qs.sub_(log_ps).sub_(reverse[rows].unsqueeze(1))
                gradient.mul_(d_reverse[rows].unsqueeze(1))
            else:
                gradient = log_qs.zero_()
            if d_log_q is not None:
                gradient.sub_(d_log_q[rows].unsqueeze(1))
            if d_forward is not None:
                gradient.add_(d_forward[rows].unsqueeze(1))
            gradient.mul_(q)
            if d_forward is not None and log_ps is not None:
                gradient.sub_(log_ps.exp_().mul_(d_forward[rows].unsqueeze(1)))
            if d_log_q is not None:
                gradient.scatter_add_(1, targets[rows].unsqueeze(1), d_log_q[rows].unsqueeze(1))
            gradient = gradient.mul_(slope)  # d logits / d (W h + b)

            if d_bias is not None:
                d_bias += gradient.sum(0)
            gradient = _factor(gradient, ctx.student_dtype)
            if d_hidden is not None:
                d_hidden[rows] = _product(gradient, student.weight).to(d_hidden.dtype)
            if d_weight is not None:
                _add_product(d_weight, gradient.t(), _factor(student_hidden[rows], ctx.student_dtype))
            del log_qs, log_ps, q, gradient  # before the next tile's take their place
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *(None,) * 8,
        )


def _tiles(n: int, vocabulary: int, tile_elements: int) -> list[slice]:
    rows = max(MIN_ROWS, tile_elements // vocabulary)
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def _log_probs(
    hidden: Tensor, head: Head, dtype: torch.dtype, temperature: float, with_slope: bool = False
) -> tuple[Tensor, Tensor | float]:
    """log softmax(logits / temperature), (n, V), and if asked the slope of those logits in W h + b."""
    logits = _product(_factor(hidden, dtype), head.weight.t())
    if head.bias is not None:
        logits.add_(head.bias.to(logits.dtype))
    slope: Tensor | float = head.scale / temperature
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.softcap is not None:
        bent = torch.tanh(logits / head.softcap)
        logits = head.softcap * bent
        if with_slope:
            slope = slope * (1.0 - bent * bent)
    if temperature != 1.0:
        logits = logits / temperature
    return torch.log_softmax(logits, dim=-1), slope


def _ready(head: Any, dtype: Any) -> Any:
    """The head with its weight as :func:`_product` takes it: made once for all tiles."""
    return None if head is None else replace(head, weight=_factor(head.weight, dtype))


def _factor(x: Tensor, dtype: torch.dtype) -> Tensor:
    """
    ``x`` in the type to compute in, as a factor of products that are float32 at least.

    Only CUDA multiplies half-precision factors into a float32 product: elsewhere they are widened again.
    """
    x = x.to(dtype)
    return x if x.device.type == "cuda" else x.to(torch.promote_types(dtype, torch.float32))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32 (float64): of half-precision factors, but not rounded to half precision."""
    return a @ b if a.dtype in (torch.float32, torch.float64) else torch.mm(a, b, out_dtype=torch.float32)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a b``, all in the type of ``total``."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
        return
    for sums, rows in zip(total.split(ROWS_ADDED), a.split(ROWS_ADDED), strict=True):
        sums += _product(rows, b)


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the vocabulary of ``a * b``, (n,)."""
    return torch.einsum("nv,nv->n", a, b)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _result_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
