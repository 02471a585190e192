"""What a language model's report says of gaps: plain Python, kept as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import HFCausalLM
from ..curve import collapse_curve
from ..encoding import MinimalPairs, split
from ..gap import GapReport
from ..results import plain
from ..statistics import CriticalLength
from ..tasks import Task
from .config import ReportConfig, items_of
from .report import Part


def gap_part(model: HFCausalLM, task: Task, config: ReportConfig) -> Part:
    """How the gap of minimal pairs falls with length, and where it drowns in rounding."""
    reference, *others = config.dtypes

    def size(length: int) -> int:
        return items_of(config.pairs, model, task, length, config, least=1)

    family = MinimalPairs(model.tokenizer, task, size)
    a, _ = family.pairs(config.lengths[0])
    widths = {x.shape[-1] for x in model.states(model.embed(a[0][None]))}
    curve = collapse_curve(
        model,
        family,
        config.lengths,
        layers=None if len(widths) == 1 else [-1],
        dtypes=others,
        reference=reference,
        norms=("l1", "linf"),
        chunk=config.chunk,
    )
    slope, gaps = curve.slope(), curve.gap[reference][:, -1, 0].tolist()
    verdicts = [
        *_beyond(model, task, config.lengths),
        f"{task.name}: the gap of minimal pairs goes as n^{slope}, from {gaps[0]:.3g} at n = "
        f"{curve.lengths[0]} to {gaps[-1]:.3g} at n = {curve.lengths[-1]} (L1, last layer, {reference})",
    ]
    stars = {name: curve.n_star(name) for name in curve.snr}
    verdicts += [
        f"{task.name}: {name} n* = {star.length:g} (censored: {star.censored}): "
        + _noise(star, curve.snr[name][:, -1, 0].min().item(), curve.lengths[-1])
        for name, star in stars.items()
    ]
    # of two prompts in one state, whose answers begin with two tokens, one is answered right at most
    differ = [torch.tensor(family.first_tokens_differ(length)) for length in config.lengths]
    bitwise, greedy = (
        {
            name: [1 - share(at, name, apart) / 2 for at, apart in zip(curve.reports, differ, strict=True)]
            for name in curve.gap
        }
        for share in (_in_one_state, _in_one_token)
    )
    verdicts += [
        _ceiling(
            task.name, curve.lengths[-1], name, bitwise[name][-1], greedy[name][-1], bool(differ[-1].any())
        )
        for name in bitwise
    ]
    return {
        "lengths": list(curve.lengths),
        "layers": list(curve.layers),
        "reference": reference,
        "gap": plain({name: x[:, :, 0] for name, x in curve.gap.items()}),
        "rounding": plain({name: x[:, :, 0] for name, x in curve.rounding.items()}),
        "snr": plain({name: x[:, :, 0] for name, x in curve.snr.items()}),
        "gap_linf": plain(curve.gap[reference][:, :, 1]),
        "argmax_equal": plain(curve.argmax_equal),
        "reward_ceiling": bitwise,
        "greedy_ceiling": greedy,
        "slope": plain([slope.value, slope.low, slope.high]),
        "n_star": {name: star.as_dict() for name, star in stars.items()},
        "verdicts": verdicts,
    }


def _beyond(model: HFCausalLM, task: Task, lengths: Sequence[int]) -> list[str]:
    """From which length on prompts are longer than the model was made for."""
    most = getattr(model.module.config, "max_position_embeddings", None) or math.inf
    for length in lengths:
        tokens = split(model.tokenizer, task.items(length, 1)[0])[1]
        if tokens > most:
            return [
                f"{task.name}: from n = {length} on prompts have more tokens ({tokens}) than the {most} that "
                "the model was made for: what fails there need not be collapse"
            ]
    return []


def _noise(star: CriticalLength, least: float, longest: int) -> str:
    """What n* says of lengths up to the longest, with the least SNR among them."""
    if star.censored != "right":
        return "from there on a state's rounding is above the gap"
    if least >= 1:
        return f"rounding is never above the gap up to n = {longest}; least SNR {least:.2g}"
    return f"rounding is above the gap at a shorter n, but not at n = {longest}; least SNR {least:.2g}"


def _ceiling(task: str, length: int, dtype: str, bitwise: float, greedy: float, differ: bool) -> str:
    start = f"{task}: exact reward on minimal pairs of n = {length}"
    if not differ:
        return f"{start} is not bounded by one state: both answers begin with the same token ({dtype})"
    return (
        f"{start} is at most {bitwise:.2g} in {dtype}, as far as bits of states tell, and {greedy:.2g} for "
        "greedy answers as they are now"
    )


def _in_one_state(report: GapReport, dtype: str, apart: Tensor) -> float:
    return (report.bitwise_equal[dtype][:, -1] & apart).double().mean().item()


def _in_one_token(report: GapReport, dtype: str, apart: Tensor) -> float:
    return (report.argmax_equal[dtype] & apart).double().mean().item()
