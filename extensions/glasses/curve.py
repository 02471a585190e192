"""How the gap falls with length, and from which length on it is under the noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .adapters import Adapter
from .families import PairFamily
from .gap import GapReport, representation_gap
from .results import Result
from .statistics import CriticalLength, critical_length

RESAMPLES = 1_000
LEAST_PAIRS = 4


@dataclasses.dataclass(frozen=True)
class Slope:
    """Exponent of a power law, by least squares on the logarithms of the mean.

    Attributes:
        value: NaN where a mean is 0.
        low, high: 95% bootstrap interval over pairs; NaN where a length has fewer than `LEAST_PAIRS`, or so
            many gaps of 0 that a mean of drawn ones is 0.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = "no interval" if math.isnan(self.low) else f"{self.low:.2f}, {self.high:.2f}"
        return f"{self.value:.2f} [{interval}]"


@dataclasses.dataclass(frozen=True)
class CollapseCurve(Result):
    """Gaps of a family of pairs at several lengths; means over pairs.

    Attributes:
        family: its name.
        lengths: N of them, in payload tokens.
        layers, norms: as in `GapReport`.
        gap, rounding, snr, distortion, paired_snr: by dtype, (N, layers, norms).
        argmax_equal: share of pairs, by dtype, (N,).
        reports: all there is, one for each length.
    """

    family: str
    lengths: tuple[int, ...]
    layers: tuple[int, ...]
    norms: tuple[str, ...]
    reference: str
    gap: dict[str, Tensor]
    rounding: dict[str, Tensor]
    snr: dict[str, Tensor]
    distortion: dict[str, Tensor]
    paired_snr: dict[str, Tensor]
    argmax_equal: dict[str, Tensor]
    reports: tuple[GapReport, ...]

    def slope(self, layer: int = -1, norm: str = "l1", dtype: str | None = None, seed: int = 0) -> Slope:
        """The exponent of gap against length.

        Args:
            layer: its place in ``layers``.
            norm: one of ``norms``.
            dtype: the reference if None; in others the gap ends at a floor.
            seed: of the bootstrap.
        """
        rows = []
        for report in self.reports:
            gaps = report.gap[dtype or self.reference][:, layer, self.norms.index(norm)]  # (P,)
            # one seed for all lengths: those with as many pairs draw the same ones
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randint(len(gaps), (RESAMPLES, len(gaps)), generator=generator)
            rows.append(torch.cat((gaps.mean()[None], gaps[drawn].mean(1))))
        means = torch.stack(rows)  # (N, 1 + resamples)
        if bool((means[:, 0] <= 0).any()) or len(self.lengths) < 2:
            return Slope(math.nan, math.nan, math.nan)
        x = torch.tensor(self.lengths, dtype=torch.float64).log()
        x = x - x.mean()
        slopes = (x[:, None] * means.log()).sum(0) / x.square().sum()
        pairs = min(len(report.argmax_equal[self.reference]) for report in self.reports)
        if pairs < LEAST_PAIRS or bool((means <= 0).any()):
            return Slope(slopes[0].item(), math.nan, math.nan)
        low, high = torch.quantile(slopes[1:], torch.tensor([0.025, 0.975], dtype=slopes.dtype)).tolist()
        return Slope(slopes[0].item(), low, high)

    def n_star(self, dtype: str, layer: int = -1, norm: str = "l1", paired: bool = False) -> CriticalLength:
        """From which length on rounding is larger than the gap: mean SNR below 1.

        Args:
            dtype: any but the reference.
            layer: its place in ``layers``.
            norm: one of ``norms``.
            paired: of ``paired_snr``, not ``snr``.
        """
        snr = self.paired_snr if paired else self.snr
        if dtype not in snr:
            raise ValueError(f"no rounding of {dtype!r} was measured, only of {', '.join(snr) or 'none'}")
        of_lengths = snr[dtype][:, layer, self.norms.index(norm)]
        return critical_length(self.lengths, (~(of_lengths >= 1)).tolist())


def collapse_curve(
    model: Adapter,
    family: PairFamily,
    lengths: Sequence[int],
    *,
    progress: Callable[[int], None] | None = None,
    **same: Any,
) -> CollapseCurve:
    """`representation_gap` of a family at each length.

    Args:
        model: an adapter, in eval mode.
        family: such as `Ones`.
        lengths: ascending, in payload tokens.
        progress: is called with each length when it is done.
        same: arguments of `representation_gap`.

    Raises:
        ValueError: as there; no lengths, or not ascending.
    """
    if not hasattr(family, "pairs"):
        raise TypeError(
            f"collapse_curve takes a family of pairs, such as Ones(..); put a task into "
            f"MinimalPairs(tokenizer, task, size). Got {type(family).__name__}"
        )
    lengths = tuple(lengths)
    if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        raise ValueError(f"lengths must be positive and ascending, got {lengths}")
    reports = []
    for length in lengths:
        reports.append(representation_gap(model, *family.pairs(length), **same))
        if progress is not None:
            progress(length)
    first = reports[0]
    return CollapseCurve(
        family=family.name,
        lengths=lengths,
        layers=first.layers,
        norms=first.norms,
        reference=first.reference,
        gap=_means(reports, "gap"),
        rounding=_means(reports, "rounding"),
        snr=_ratio(_means(reports, "gap")[first.reference], _means(reports, "rounding")),
        distortion=_means(reports, "distortion"),
        paired_snr=_ratio(_means(reports, "gap")[first.reference], _means(reports, "distortion")),
        argmax_equal=_means(reports, "argmax_equal"),
        reports=tuple(reports),
    )


def _means(reports: Sequence[GapReport], field: str) -> dict[str, Tensor]:
    """By dtype, (N, ...) of means over pairs."""
    values = [getattr(report, field) for report in reports]
    return {name: torch.stack([value[name].double().mean(0) for value in values]) for name in values[0]}


def _ratio(gap: Tensor, rounding: dict[str, Tensor]) -> dict[str, Tensor]:
    """No gap over no noise is 0: there is nothing to be told apart."""
    return {name: (gap / noise).nan_to_num(nan=0.0, posinf=math.inf) for name, noise in rounding.items()}
