"""The parts of a language model's report: each is plain Python, so that it can be kept as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import HFCausalLM
from ..attention import Lens
from ..compare import Remedy, compare
from ..comparison import Comparison
from ..curve import collapse_curve
from ..encoding import MinimalPairs, differing, encode, split
from ..paths import path_profile, spearman
from ..results import plain
from ..retrieval import retrieval_probe
from ..sensitivity import SensitivityProfile, sensitivity_profile
from ..statistics import CriticalLength
from ..tasks import Task
from .config import ReportConfig
from .report import Part


def gap_part(model: HFCausalLM, task: Task, config: ReportConfig) -> Part:
    """How the gap of minimal pairs falls with length, and where it drowns in rounding."""
    reference, *others = config.dtypes

    def size(length: int) -> int:
        return _items(config.pairs, model, task, length, config, least=1)

    curve = collapse_curve(
        model,
        MinimalPairs(model.tokenizer, task, size),
        config.lengths,
        dtypes=others,
        reference=reference,
        norms=("l1", "linf"),
        chunk=config.chunk,
    )
    slope, gaps = curve.slope(), curve.gap[reference][:, -1, 0].tolist()
    verdicts = [
        f"{task.name}: the gap of minimal pairs goes as n^{slope.value:.2f} "
        f"[{slope.low:.2f}, {slope.high:.2f}], from {gaps[0]:.3g} at n = {curve.lengths[0]} to "
        f"{gaps[-1]:.3g} at n = {curve.lengths[-1]} (L1, last layer, {reference})"
    ]
    stars = {name: curve.n_star(name) for name in curve.snr}
    for name, star in stars.items():
        least = curve.snr[name][:, -1, 0].min().item()
        verdicts.append(
            f"{task.name}: {name} n* = {star.length:g} (censored: {star.censored}): "
            + (
                f"rounding is never above the gap up to n = {curve.lengths[-1]}; least SNR {least:.2g}"
                if star.censored == "right"
                else "from there on a state's rounding is above the gap"
            )
        )
    # of two prompts in one state, with two answers, one is answered right at most
    ceilings = {
        name: [1 - report.bitwise_equal[name][:, -1].double().mean().item() / 2 for report in curve.reports]
        for name in curve.gap
    }
    for name, ceiling in ceilings.items():
        greedy = 1 - curve.argmax_equal[name][-1].item() / 2
        verdicts.append(
            f"{task.name}: exact reward on minimal pairs of n = {curve.lengths[-1]} is at most "
            f"{ceiling[-1]:.2g} in {name} while states are what they are, and {greedy:.2g} for the likeliest "
            "first token"
        )
    return {
        "lengths": list(curve.lengths),
        "layers": list(curve.layers),
        "reference": reference,
        "gap": plain({name: x[:, :, 0] for name, x in curve.gap.items()}),
        "rounding": plain({name: x[:, :, 0] for name, x in curve.rounding.items()}),
        "snr": plain({name: x[:, :, 0] for name, x in curve.snr.items()}),
        "gap_linf": plain(curve.gap[reference][:, :, 1]),
        "argmax_equal": plain(curve.argmax_equal),
        "reward_ceiling": ceilings,
        "slope": plain([slope.value, slope.low, slope.high]),
        "n_star": {name: star.as_dict() for name, star in stars.items()},
        "verdicts": verdicts,
    }


def answers_part(model: HFCausalLM, task: Task, config: ReportConfig) -> Part:
    """What is answered, plainly and with each remedy, and whether precision or dispersion is to blame."""
    reference, *others = config.dtypes
    trials = [_items(config.trials, model, task, length, config) for length in config.lengths]

    def asked(remedies: Sequence[Remedy], dtypes: Sequence[str]) -> Comparison:
        return compare(
            model,
            [task],
            remedies,
            config.lengths,
            trials=trials,
            dtypes=dtypes,
            pairs=1,
            chunk=config.chunk,
        )

    comparison = asked(config.remedies, [reference])
    arms = {arm.remedy: arm.as_dict() for arm in comparison.arms.values()}
    n50 = dict(comparison.arm(task.name).n50)
    verdicts = comparison.verdicts()
    if others:  # without remedies alone: precision is a question of its own
        plain_arm = asked([], others).arm(task.name)
        n50 |= plain_arm.n50
        for key in ("accuracy", "low", "high", "margin", "said"):
            arms["plain"][key] |= plain_arm.as_dict()[key]
        verdicts += _blame(task.name, n50)
    return {
        "lengths": list(comparison.lengths),
        "trials": list(comparison.trials),
        "chance": comparison.chance[task.name],
        "arms": arms,
        "said": {
            dtype: [dict(Counter(said).most_common()) for said in by_length]
            for dtype, by_length in arms["plain"]["said"].items()
        },
        "verdicts": verdicts,
    }


def _items(
    most: int, model: HFCausalLM, task: Task, length: int, config: ReportConfig, least: int = 2
) -> int:
    """How many items of a length have `trial_tokens` tokens together."""
    item = task.items(length, 1)[0]
    tokens = len(encode(model.tokenizer, item.prompt + item.lead))
    return max(least, min(most, config.trial_tokens // tokens))


def _blame(task: str, n50: dict[str, CriticalLength]) -> list[str]:
    """Whether the widest dtype fails as well."""
    reference, *others = n50
    wide = n50[reference]
    lines = []
    for name in others:
        low = n50[name]
        if low.censored == "right" or wide.censored == "left":
            continue
        both = f"n50 {wide.length:.3g} in {reference}, {low.length:.3g} in {name}"
        if wide.length == low.length or (wide.censored != "right" and low.length > 0.8 * wide.length):
            lines.append(f"{task}: the failure is not of precision, {reference} fails too: {both}")
        else:
            lines.append(f"{task}: {name} fails earlier than {reference}: {both}")
    return lines


def sensitivity_part(model: HFCausalLM, task: Task, config: ReportConfig) -> Part:
    """On which tokens the state that answers hangs, at the longest length that is not too long for it."""
    chosen = None
    for length in config.lengths:
        item = task.items(length, 1)[0]
        one, other = (
            x[:start] for x, start in (split(model.tokenizer, side) for side in task.minimal_pair(item))
        )
        if len(one) <= config.sensitivity_tokens or chosen is None:
            chosen = length, torch.tensor([one]), differing(one, other)
    assert chosen is not None
    length, ids, (start, end) = chosen
    full, frozen = (_profile(model, ids, config, kind) for kind in ("full", "frozen"))
    weights: list[Tensor] = []
    with torch.no_grad(), model.looking(Lens(record=weights.append)):
        model.states(model.embed(ids), layers=[-1])
    path = path_profile(weights)[0]
    first = torch.stack([x[0, :, -1, 0].mean() for x in weights]).mean().item()
    needle = full.share[0, start:end].sum().item()
    ratio = (frozen.fro.sum() / full.fro.sum()).item()
    rank = spearman(full.fro[0], path.to(full.fro))
    return {
        "length": length,
        "tokens": ids.shape[1],
        "full": plain(full.share[0]),
        "frozen": plain(frozen.share[0]),
        "path": plain(path / path.sum()),
        "bearing": [start, end],
        "bearing_share": needle,
        "first_attention": first,
        "frozen_over_full": ratio,
        "spearman": rank,
        "u_index": full.u_index,
        "verdicts": [
            f"{task.name}: at n = {length} ({ids.shape[1]} tokens) what bears the answer has {needle:.2%} of "
            f"the sensitivity, {needle * ids.shape[1] / (end - start):.3g} times an even share; "
            f"U index {full.u_index:.3g}",
            f"{task.name}: the first token gets {first:.0%} of the last token's attention; paths have rank "
            f"correlation {rank:.2f} with sensitivity, and without the derivative of the weights {ratio:.0%} "
            "of it is left: "
            + (
                "the path profile describes this model"
                if ratio > 0.8 and rank > 0.8
                else "attention is sharp here, so do not judge by paths alone"
            ),
        ],
    }


def _profile(model: HFCausalLM, ids: Tensor, config: ReportConfig, attention: str) -> SensitivityProfile:
    generator = torch.Generator().manual_seed(config.seed)
    return sensitivity_profile(
        model, ids, mode="hutchinson", probes=config.probes, attention=attention, generator=generator
    )


def retrieval_part(model: HFCausalLM, config: ReportConfig) -> Part:
    """Whether one thing among many is found, wherever it stands."""
    assert config.retrieval is not None
    probe = retrieval_probe(
        model,
        config.retrieval,
        lengths=config.retrieval_lengths,
        depths=(0.0, 0.25, 0.5, 0.75, 1.0),
        trials=config.retrieval_trials,
        sensitivities=1,
        probes=max(2, config.probes // 4),
        chunk=config.chunk,
        generator=torch.Generator().manual_seed(config.seed),
    )
    found = probe.as_dict()
    found["u_index"] = plain(probe.u_index)
    found["verdicts"] = [
        f"{probe.task}, {length} pairs: accuracy {_of(accuracy)} at depths {_of(probe.depths)}; "
        f"U index {u:.3g}"
        for length, accuracy, u in zip(probe.lengths, probe.accuracy.tolist(), probe.u_index, strict=True)
    ]
    return found


def _of(values: Sequence[float]) -> str:
    return ", ".join(f"{x:.2g}" for x in values)
