"""What `glasses_trained` asks of a trained decoder, far beyond its training: answers, gaps, sensitivities."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from extensions.glasses import representation_gap, sensitivity_profile
from extensions.glasses.adapters import Adapter
from extensions.glasses.attention import looking_through

from . import glasses_trained_plan as plan
from .glasses_questions import EVERY, Batch, ask, ones
from .glasses_trained_plan import Arm

#: the length that a pair differs by, by name; those of "answer" differ in the answer
PAIRS = {"next": 1, "matched": EVERY}
SCORES = 2**24  # attention scores of a head in one forward pass


def measured(model: Adapter, task: str, arm: Arm) -> dict[str, Any]:
    """All of it, for one seed of one arm."""
    with _seen_as(model, arm):
        return {
            "answers": [
                {"length": length, **answers(model, questions(task, arm.layout, length), task)}
                for length in plan.LENGTHS[task]
            ],
            "gaps": [{"length": n, **gaps(model, task, arm.layout, n)} for n in plan.GAP_LENGTHS],
            "shares": []
            if task == "count"
            else [
                {"length": n, "share": share(model, task, arm.layout, n)} for n in plan.SENSITIVITY_LENGTHS
            ],
        }


def _seen_as(model: Adapter, arm: Arm) -> AbstractContextManager[Any]:
    return nullcontext() if arm.lens is None else looking_through(model.module, arm.lens)


def questions(task: str, layout: str, length: int) -> Batch:
    """The test's questions of one length, the same for every seed and arm.

    To copy, each answer in each phase. To count, so many ones as the answer says, which is
    uniform up to the longest of training.
    """
    generator = torch.Generator().manual_seed(length)
    if task == "count":
        most = min(length, plan.LONGEST)
        number = (torch.rand(plan.COUNTED, generator=generator) * (most + 1)).long()
        return ask(task, layout, torch.full_like(number, length), number, generator)
    lengths = torch.tensor(plan.phases(layout, length)).repeat_interleave(2)
    return ask(task, layout, lengths, torch.arange(len(lengths)) % 2, generator)


@torch.no_grad()
def answers(model: Adapter, batch: Batch, task: str) -> dict[str, Any]:
    """By dtype: the share of right answers; the margin of the right one's logit over the best other, for each
    answer in copying; in counting, how far off the count is."""
    found: dict[str, Any] = {"right": {}, "margin": {}}
    if task == "count":
        found["error"] = {}
    for dtype in plan.DTYPES:
        logits = _logits(model, batch, dtype)
        right = logits.gather(1, batch.answer[:, None])[:, 0]
        margin = right - logits.scatter(1, batch.answer[:, None], -torch.inf).amax(1)
        found["right"][dtype] = float((margin > 0).double().mean())
        if task == "count":
            found["margin"][dtype] = [float(margin.mean())]
            found["error"][dtype] = float((logits.argmax(1) - batch.answer).abs().double().mean())
        else:
            found["margin"][dtype] = [float(margin[batch.answer == digit].mean()) for digit in (0, 1)]
    return found


def _logits(model: Adapter, batch: Batch, dtype: str) -> Tensor:
    """(B, classes), float64"""
    part = max(1, SCORES // batch.ids.shape[1] ** 2)
    found = []
    with model.running_in(dtype):
        for ids, question in zip(batch.ids.split(part), batch.question.split(part), strict=True):
            emb = model.cast(model.embed(ids), dtype)
            state = model.states(emb, layers=[-1], position=question)[0]
            found.append(model.readout(state).double())
    return torch.cat(found)


def pairs(kind: str, task: str, layout: str, length: int) -> tuple[list[Tensor], list[Tensor]]:
    """Pairs of token ids, one in each phase: of "answer", two sequences to copy from with other answers; of
    "next", n ones and n + 1; of "matched", n ones and n + 3, whose last groups are alike."""
    a, b = [], []
    for n in plan.phases(layout, length):
        generator = torch.Generator().manual_seed(n)
        if kind == "answer":
            one, other = (
                ask(task, layout, torch.tensor([n]), torch.tensor([digit]), generator.manual_seed(n)).ids[0]
                for digit in (0, 1)
            )
        else:
            one, other = ones(layout, n, PAIRS[kind], generator)
        a.append(one)
        b.append(other)
    return a, b


def gaps(model: Adapter, task: str, layout: str, length: int) -> dict[str, Any]:
    """By pair: the largest feature of the difference of the last states, means over the phases; what bfloat16
    makes of it; its rounding; and how often the answers are the same."""
    found = {}
    for kind in PAIRS if task == "count" else ("answer", *PAIRS):
        report = representation_gap(
            model,
            *pairs(kind, task, layout, length),
            layers=[-1],
            dtypes=plan.DTYPES,
            norms=("linf",),
            chunk=1,
        )
        gap, low, noise = (
            float(x.mean())
            for x in (report.gap["float32"], report.gap["bfloat16"], report.rounding["bfloat16"])
        )
        same = {dtype: float(report.argmax_equal[dtype].double().mean()) for dtype in plan.DTYPES}
        found[kind] = {"gap": gap, "gap_bfloat16": low, "rounding": noise, "snr": gap / noise, "same": same}
    return found


def share(model: Adapter, task: str, layout: str, length: int) -> float:
    """How much of the answer's sensitivity, over all tokens, is that to the digit to be copied, a 0."""
    generator = torch.Generator().manual_seed(length)
    batch = ask(task, layout, torch.tensor([length]), torch.tensor([0]), generator)
    profile = sensitivity_profile(
        model,
        batch.ids,
        mode="hutchinson",
        probes=plan.PROBES,
        generator=generator,
    )
    return float(profile.share[0, batch.bearer[0]])
