"""How far apart a model holds two sequences, and whether that is more than the noise of its arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .adapters import Adapter, check_adapter
from .batches import in_pairs, place_of
from .precision import check_dtype, check_reference, has_overflowed, spacing
from .results import Result

NORMS = ("l1", "l2", "linf")


@dataclasses.dataclass(frozen=True)
class GapReport(Result):
    """The distance between the states of P pairs of sequences, at the token where the answer is read.

    Dictionaries are by dtype. States are in the units of the residual stream, behind the final norm in the
    last layer; logits in theirs. The reference is the model in the dtype ``reference``.

    A dtype that overflows is a finding: where a state of a pair is not finite in it, gap, relative, rounding
    and distortion are infinite, both SNRs 0, ``ulp_collapsed`` 1 and the cosine NaN; where an answer is not,
    ``logit_l1`` is infinite, ``js_divergence`` NaN and ``argmax_equal`` False.

    Attributes:
        layers: numbers of the layers, 0 what goes into the first, the largest behind the final norm.
        norms: names of the norms in the last dimension.
        gap: norm of the difference, (P, layers, norms).
        relative: the same over the norm of the first sequence's state in the reference.
        cosine: of the two states, (P, layers).
        rounding: norm of what the dtype changes in a state against the reference, mean of both sequences,
            (P, layers, norms); not of the reference itself.
        snr: gap in the reference over rounding: below 1, the noise is larger than the signal. 0 where the gap
            is 0, even if nothing is rounded.
        distortion: norm of what the dtype changes in the *difference* of the two states. Rounding that both
            sides share, as of a last token that is the same in both, is not in it.
        paired_snr: gap in the reference over distortion. Who compares the two sides of a pair meets this
            noise; who reads one of them, as a model's head does, that of ``snr``.
        ulp_collapsed: share of features whose two values, in the reference, are nearer than half a spacing of
            the dtype, (P, layers).
        bitwise_equal: whether the two states are the same to the last bit, (P, layers).
        logit_l1: sum of the differences of logits or actions, (P,).
        js_divergence: Jensen-Shannon divergence of the two predictions in nats, (P,); NaN for actions.
        argmax_equal: whether the likeliest token is the same, (P,); for actions, whether all are equal.
    """

    layers: tuple[int, ...]
    norms: tuple[str, ...]
    reference: str
    gap: dict[str, Tensor]
    relative: dict[str, Tensor]
    cosine: dict[str, Tensor]
    rounding: dict[str, Tensor]
    snr: dict[str, Tensor]
    distortion: dict[str, Tensor]
    paired_snr: dict[str, Tensor]
    ulp_collapsed: dict[str, Tensor]
    bitwise_equal: dict[str, Tensor]
    logit_l1: dict[str, Tensor]
    js_divergence: dict[str, Tensor]
    argmax_equal: dict[str, Tensor]


@torch.no_grad()
def representation_gap(
    model: Adapter,
    seq_a: Any,
    seq_b: Any,
    *,
    position: int | None = None,
    layers: Sequence[int] | None = None,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    reference: str = "float32",
    norms: Sequence[str] = NORMS,
    chunk: int = 8,
    raw_last: bool = False,
) -> GapReport:
    """Compare the states of pairs of sequences in several precisions (Barbero et al., "Transformers need
    glasses!", NeurIPS 2024, theorem 4.2).

    The raw gap in a low precision does not go to 0: it ends at a floor of rounding. So the gap of the
    reference is set against the rounding of the dtype, as ``snr``.

    Args:
        model: an adapter, in eval mode.
        seq_a, seq_b: P sequences each, in pairs, as the adapter's batches; the two may differ in length.
        position: the token whose states are compared, of real ones; if None, where the model's answer is
            read.
        layers: which; all if None. Negative ones count from the last.
        dtypes: of the computation; parameters are cast as they are used. ``float8_e4m3fn`` and
            ``float8_e5m2`` are simulated: weights and outputs of layers are rounded, and computed with in
            float32.
        reference: the dtype that stands for exact arithmetic. "float64" costs about twice of "float32", and
            gives rounding and SNR of float32 as well.
        norms: of "l1", "l2" and "linf".
        chunk: pairs in one forward; both sides of a pair run in batches of equal size, since the rounding of
            a matrix product depends on it.
        raw_last: the last layer before the final norm.

    Raises:
        ValueError: train mode, unknown names, a reference that rounds more than another dtype, no sequences,
            another number of them on the two sides, states or answers that are not finite in the reference.
    """
    check_adapter(model)
    dtypes = tuple(dict.fromkeys(check_dtype(name) for name in (reference, *dtypes)))
    reference = dtypes[0]
    check_reference(reference, dtypes)
    if unknown := set(norms) - set(NORMS):
        raise ValueError(f"norms must be of {', '.join(NORMS)}; got {', '.join(sorted(unknown))}")
    numbers = model.layer_numbers(layers)
    reader = _Reader(model, position, numbers, raw_last)
    pairs = [
        _compare({name: reader.read(a, b, name) for name in dtypes}, reference, model.discrete, tuple(norms))
        for a, b in in_pairs(seq_a, seq_b, chunk)
    ]
    return GapReport(
        layers=tuple(numbers),
        norms=tuple(norms),
        reference=reference,
        **{key: _joined([pair[key] for pair in pairs]) for key in pairs[0]},
    )


@torch.no_grad()
def final_states(model: Adapter, batch: Any, dtype: str = "float32", chunk: int = 8) -> Tensor:
    """States behind the final norm where the answer is read, (P, d) float64; see `representation_gap`.

    Raises:
        ValueError: as there.
    """
    reader = _Reader(model, None, [model.depth], raw_last=False)
    name = check_dtype(dtype)
    states = torch.cat([reader.side(part, name)[0][:, 0] for part, _ in in_pairs(batch, batch, chunk)])
    if not bool(torch.isfinite(states).all()):
        raise ValueError(f"states in {name} are not all finite: the model overflows or holds NaN")
    return states


@dataclasses.dataclass
class _Reader:
    model: Adapter
    position: int | None
    layers: list[int]
    raw_last: bool

    def read(self, a: Any, b: Any, dtype: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States (P, layers, d) and answers (P, outputs) of both sides."""
        return (*self.side(a, dtype), *self.side(b, dtype))

    def side(self, batch: Any, dtype: str) -> tuple[Tensor, Tensor]:
        if dtype == self.model.dtype != "float64":
            return self._forward(batch, dtype)
        with self.model.running_in(dtype):
            return self._forward(batch, dtype)

    def _forward(self, batch: Any, dtype: str) -> tuple[Tensor, Tensor]:
        model = self.model
        emb, mask = model.cast(model.embed(batch), dtype), model.mask(batch)
        place = place_of(model.position if self.position is None else self.position, emb.shape[1], mask)
        states, last = model.read(emb, mask, self.layers, position=place, raw_last=self.raw_last)
        if len(widths := {x.shape[-1] for x in states}) > 1:
            raise ValueError(f"states are {sorted(widths)} wide: ask for one layer, as layers=[-1]")
        return torch.stack(states, 1).double().cpu(), model.readout(last).double().cpu()


Sides = tuple[Tensor, Tensor, Tensor, Tensor]


def _compare(
    read: dict[str, Sides], reference: str, discrete: bool, norms: tuple[str, ...]
) -> dict[str, Any]:
    """What a `GapReport` holds, of some pairs; ``read`` is by dtype, the reference first."""
    ref_a, ref_answer_a, ref_b, ref_answer_b = read[reference]
    if not bool(torch.isfinite(ref_a).all() and torch.isfinite(ref_b).all()):
        raise ValueError(f"states in {reference} are not all finite: the model overflows or holds NaN")
    if bool((has_overflowed(ref_answer_a) | has_overflowed(ref_answer_b)).any()):
        raise ValueError(f"answers in {reference} are not all finite: the model overflows or holds NaN")
    ref_gap, ref_size = norms_of(ref_a - ref_b, norms), norms_of(ref_a, norms)
    found: dict[str, dict[str, Tensor]] = {name: {} for name in _PER_DTYPE}
    for name, (a, answer_a, b, answer_b) in read.items():
        finite = (torch.isfinite(a) & torch.isfinite(b)).all(-1)  # (P, layers)
        gap = _or_inf(norms_of(a - b, norms), finite)
        found["gap"][name] = gap
        found["relative"][name] = gap / ref_size
        found["cosine"][name] = torch.cosine_similarity(a, b, dim=-1)
        found["bitwise_equal"][name] = (a == b).all(-1)
        apart = (ref_a - ref_b).abs()
        collapsed = (apart < spacing(ref_a, name) / 2).double().mean(-1)
        found["ulp_collapsed"][name] = collapsed.masked_fill(~finite, 1)
        if name != reference:
            rounding = _or_inf((norms_of(a - ref_a, norms) + norms_of(b - ref_b, norms)) / 2, finite)
            found["rounding"][name] = rounding
            found["snr"][name] = _over(ref_gap, rounding)
            distortion = _or_inf(norms_of((a - b) - (ref_a - ref_b), norms), finite)
            found["distortion"][name] = distortion
            found["paired_snr"][name] = _over(ref_gap, distortion)
        lost = has_overflowed(answer_a) | has_overflowed(answer_b)  # (P,)
        # equal ones first: both may be minus infinity
        moved = (answer_a - answer_b).abs().masked_fill(answer_a == answer_b, 0)
        found["logit_l1"][name] = moved.sum(-1).masked_fill(lost, math.inf)
        found["js_divergence"][name] = (
            js_divergence(answer_a, answer_b) if discrete else gap.new_full(gap.shape[:1], math.nan)
        )
        same = answer_a.argmax(-1) == answer_b.argmax(-1) if discrete else (answer_a == answer_b).all(-1)
        found["argmax_equal"][name] = same & ~lost
    return found


_PER_DTYPE = (
    "gap", "relative", "cosine", "rounding", "snr", "distortion", "paired_snr", "ulp_collapsed",
    "bitwise_equal", "logit_l1", "js_divergence", "argmax_equal",
)  # fmt: skip


def norms_of(x: Tensor, names: Sequence[str]) -> Tensor:
    """Of the last dimension, (*, d) -> (*, norms)."""
    order = {"l1": 1, "l2": 2, "linf": math.inf}
    return torch.stack([torch.linalg.vector_norm(x, order[name], -1) for name in names], -1)


def _or_inf(noise: Tensor, finite: Tensor) -> Tensor:
    """(P, layers, norms) and (P, layers): infinite where a state is not finite."""
    return noise.masked_fill(~finite[..., None], math.inf)


def _over(gap: Tensor, noise: Tensor) -> Tensor:
    """A signal of 0 is no signal, even without noise."""
    return torch.where(gap == 0, 0.0, gap / noise)


def js_divergence(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two predictions, in nats, from 0 to log 2.

    Args:
        logits_a, logits_b: (*, V).
    """
    a, b = logits_a.log_softmax(-1), logits_b.log_softmax(-1)
    middle = torch.logaddexp(a, b) - math.log(2)
    return (_divergence(a, middle) + _divergence(b, middle)) / 2


def _divergence(a: Tensor, b: Tensor) -> Tensor:
    """Kullback-Leibler divergence of log probabilities, (*, V) -> (*); what is never said adds nothing."""
    return torch.where(a == -math.inf, 0.0, a.exp() * (a - b)).sum(-1)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
