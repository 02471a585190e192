"""What a language model's report says of answers, sensitivities and retrieval: plain Python, kept as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import HFCausalLM
from ..compare import Remedy, compare
from ..comparison import Arm, Comparison
from ..encoding import differing, split
from ..paths import path_profile, spearman
from ..results import plain
from ..retrieval import retrieval_probe
from ..sensitivity import SensitivityProfile, sensitivity_profile
from ..statistics import LEAST_RATIOS, sign_test
from ..tasks import Item, Question, Task
from .config import ReportConfig, items_of
from .report import Part


def answers_part(model: HFCausalLM, task: Task, config: ReportConfig) -> Part:
    """What is answered, plainly and with each remedy, and whether precision or dispersion is to blame."""
    reference, *others = config.dtypes
    trials = [items_of(config.trials, model, task, length, config) for length in config.lengths]
    some = config.lengths[-2::-2]  # the longest costs as much as all others

    def asked(remedies: Sequence[Remedy], dtypes: Sequence[str]) -> Comparison:
        return compare(
            model,
            [task],
            remedies,
            config.lengths,
            trials=trials,
            dtypes=dtypes,
            pairs=1,
            gap_lengths=some if len(some) >= LEAST_RATIOS else config.lengths,
            chunk=config.chunk,
        )

    comparison = asked(config.remedies, [reference])
    arms = {arm.remedy: arm.as_dict() for arm in comparison.arms.values()}
    verdicts = comparison.verdicts()
    if others:  # without remedies alone: precision is a question of its own
        plain_arm = asked([], others).arm(task.name)
        for key in ("accuracy", "low", "high", "margin", "said"):
            arms["plain"][key] |= plain_arm.as_dict()[key]
        first = comparison.arm(task.name)
        both = {key: getattr(first, key) | getattr(plain_arm, key) for key in ("n50", "right")}
        verdicts += _blame(task.name, dataclasses.replace(first, **both))
    return {
        "lengths": list(comparison.lengths),
        "trials": list(comparison.arm(task.name).trials),
        "chance": comparison.chance[task.name],
        "arms": arms,
        "said": {
            dtype: [dict(Counter(said).most_common()) for said in by_length]
            for dtype, by_length in arms["plain"]["said"].items()
        },
        "verdicts": verdicts,
    }


def _blame(task: str, arm: Arm) -> list[str]:
    """Whether a lower dtype fails where the reference does not, on the very same items."""
    reference, *others = arm.n50
    wide = [right for by_length in arm.right[reference] for right in by_length]
    lines = []
    for name in others:
        low = [right for by_length in arm.right[name] for right in by_length]
        lost = sum(a and not b for a, b in zip(wide, low, strict=True))
        won = sum(b and not a for a, b in zip(wide, low, strict=True))
        seen = f"of {len(wide)} items {name} loses {lost} and wins {won}"
        if sign_test(lost, won) < 0.05:
            lines.append(
                f"{task}: {name} {'fails' if lost > won else 'answers'} where {reference} does not: {seen}"
            )
        elif not all(wide):
            lines.append(
                f"{task}: no sign that the failure is of precision, {reference} fails too "
                f"({len(wide) - sum(wide)} of {len(wide)} items): {seen}"
            )
    return lines


def sensitivity_part(model: HFCausalLM, task: Task, config: ReportConfig) -> Part:
    """On which tokens the state that answers hangs, at the longest length that is not too long for it."""
    chosen = None
    for length in config.lengths:
        item = task.items(length, 1)[0]
        tokens, lead = split(model.tokenizer, item)
        if lead <= config.sensitivity_tokens or chosen is None:
            chosen = length, item, torch.tensor([tokens[:lead]])
    assert chosen is not None
    length, item, ids = chosen
    start, end = _bearing(model, task, item)
    full = _profile(model, ids, config, "full")
    needle = full.share[0, start:end].sum().item()
    found: Part = {
        "length": length,
        "tokens": ids.shape[1],
        "full": plain(full.share[0]),
        "bearing": [start, end],
        "bearing_share": needle,
        "u_index": full.u_index,
        "verdicts": [
            f"{task.name}: at n = {length} ({ids.shape[1]} tokens) what bears the answer has {needle:.2%} of "
            f"the sensitivity, {needle * ids.shape[1] / (end - start):.3g} times an even share; "
            f"U index {full.u_index:.3g}",
        ],
    }
    with torch.no_grad():
        weights = model.attentions(model.embed(ids))
    if weights is None:
        found["verdicts"].append(
            f"{task.name}: the model hides its attention: no paths, and none of it frozen"
        )
        return found
    frozen = _profile(model, ids, config, "frozen")
    path = path_profile(weights)[0].to(full.fro)
    first = torch.stack([x[0, :, -1, 0].mean() for x in weights]).mean().item()
    ratio = (frozen.fro.sum() / full.fro.sum()).item()
    rank = spearman(full.fro[0], path)
    if ratio < 0.8:
        judged = "attention is sharp here, so do not judge by paths alone"
    elif rank < 0.8:
        judged = "attention is flat here, but paths order the tokens otherwise: do not judge by them alone"
    else:
        judged = "the path profile describes this model"
    found["verdicts"].append(
        f"{task.name}: the first token gets {first:.1%} of the last token's attention; paths have rank "
        f"correlation {rank:.2f} with sensitivity, and without the derivative of the weights {ratio:.0%} of "
        f"it is left: {judged}"
    )
    return {
        **found,
        "frozen": plain(frozen.share[0]),
        "path": plain(path / path.sum()),
        "first_attention": first,
        "frozen_over_full": ratio,
        "spearman": rank,
    }


def _bearing(model: HFCausalLM, task: Task, item: Item) -> tuple[int, int]:
    """From and up to which token a prompt bears the answer: where its minimal pair differs, or in the whole
    sequence where that differs in length or all elements count."""
    one, other = task.minimal_pair(item)
    all_count = getattr(getattr(item, "asked", item), "target", 0) is None
    if all_count or len(one.payload) != len(other.payload):
        start, stop = item.payload_span
        one, other = item, Question.of(item, prompt=item.prompt[:start] + item.prompt[stop:])
    sides = (split(model.tokenizer, side) for side in (one, other))
    return differing(*(ids[:lead] for ids, lead in sides))


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
    chance = getattr(config.retrieval, "chance", None)
    found["u_index"] = plain(probe.u_index)
    found["verdicts"] = [
        f"{probe.task}, {length} pairs: accuracy {_of(accuracy)} at depths {_of(probe.depths)}"
        + (f"; U index {u:.3g}" if sum(accuracy) else "")
        + ("" if chance is None else _over(chance, low))
        for length, accuracy, low, u in zip(
            probe.lengths, probe.accuracy.tolist(), probe.low.tolist(), probe.u_index, strict=True
        )
    ]
    return found


def _over(chance: float, low: Sequence[float]) -> str:
    over = sum(x > chance for x in low)
    return f"; more than chance, {chance:.2g}, at {over} of {len(low)} depths by their intervals"


def _of(values: Sequence[float]) -> str:
    return ", ".join(f"{x:.2g}" for x in values)
