"""Before a long run: does the model, in the dtype it will run in, still hear single tokens of its prompts?"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .adapters import HFCausalLM, check_language_model
from .encoding import encode
from .gap import representation_gap
from .precision import check_dtype
from .results import Result

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SNR = 3.0


@dataclasses.dataclass(frozen=True)
class Preflight(Result):
    """What one token of a prompt does to the state at its end, for P pairs of prompts.

    Attributes:
        dtype: that the model will run in.
        prompt: which of the prompts each pair is made of, (P,).
        depth: where the token stands, from 0 to 1, (P,); NaN for pairs that were given.
        tokens: of the first side, (P,).
        gap: L1 distance of the two states behind the final norm, in float32 (float64 if the model will run in
            that), (P,).
        snr: gap over the rounding of a state in ``dtype``, (P,).
        paired_snr: gap over what ``dtype`` changes in the difference, (P,).
        argmax_equal: whether the next token is the same in ``dtype``, (P,).
        overflows: whether a state or a logit is not finite in ``dtype``, (P,); its SNR is 0 then.
        warnings: lines with numbers; none if all is well.
    """

    dtype: str
    prompt: Tensor
    depth: Tensor
    tokens: Tensor
    gap: Tensor
    snr: Tensor
    paired_snr: Tensor
    argmax_equal: Tensor
    overflows: Tensor
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no warnings."""
        return not self.warnings


def preflight(
    model: HFCausalLM,
    prompts: Sequence[str | tuple[str, str]],
    dtype: str = "bfloat16",
    *,
    depths: Sequence[float] = DEPTHS,
    snr: float = SNR,
    seed: int = 0,
    chunk: int = 4,
) -> Preflight:
    """Compare prompts with themselves but for one token, and warn where the model hardly tells them apart.

    Args:
        model: with its tokenizer, in eval mode.
        prompts: texts: at each depth one token is exchanged for another of the same prompt. Or pairs of texts
            that ask for different things: then it is warned too if the next token is the same for both.
        dtype: that the model will run in.
        depths: from 0, the first token behind special ones such as a beginning of sequence, to 1, the last.
        snr: it is warned below this.
        seed: which token comes in the place.
        chunk: pairs in one forward.

    Returns:
        What was found; its warnings are also given by ``warnings.warn``, as one.

    Raises:
        ValueError: no prompts, one text in place of a list, no tokenizer, two sides with the same tokens,
            train mode.
    """
    check_language_model(model)
    if isinstance(prompts, str):
        raise ValueError("prompts must be a list: give [prompt] for one")
    if not prompts:
        raise ValueError("preflight needs at least one prompt")
    if not all(0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depths must be from 0 to 1, got {list(depths)}")
    generator = torch.Generator().manual_seed(seed)
    a, b, which, where = [], [], [], []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            ids = torch.tensor(encode(model.tokenizer, prompt))
            first = _first_of_text(ids.tolist(), model.tokenizer)
            sides = [(ids, _exchanged(ids, first, depth, generator), depth) for depth in depths]
        else:
            one, other = (torch.tensor(encode(model.tokenizer, text)) for text in prompt)
            if torch.equal(one, other):
                raise ValueError(f"prompts of pair {number} have the same tokens: {prompt[0][:60]!r}")
            sides = [(one, other, float("nan"))]
        for one, other, depth in sides:
            a.append(one)
            b.append(other)
            which.append(number)
            where.append(depth)
    name = check_dtype(dtype)
    reference = "float64" if name == "float64" else "float32"
    report = representation_gap(
        model, a, b, layers=[-1], dtypes=(name,), reference=reference, norms=("l1",), chunk=chunk
    )
    gap = report.gap[reference][:, 0, 0]
    exact = torch.full_like(gap, torch.inf)  # a reference has no rounding against itself
    found = Preflight(
        dtype=name,
        prompt=torch.tensor(which),
        depth=torch.tensor(where, dtype=torch.float64),
        tokens=torch.tensor([len(ids) for ids in a]),
        gap=gap,
        snr=report.snr[name][:, 0, 0] if report.snr else exact,
        paired_snr=report.paired_snr[name][:, 0, 0] if report.snr else exact,
        argmax_equal=report.argmax_equal[name],
        overflows=report.gap[name][:, 0, 0].isinf() | report.logit_l1[name].isinf(),
        warnings=(),
    )
    found = dataclasses.replace(found, warnings=tuple(_warnings(found, snr)))
    if found.warnings:
        warnings.warn("\n".join(found.warnings), stacklevel=2)
    return found


def _first_of_text(ids: Sequence[int], tokenizer: Any) -> int:
    """The place of the first token that is not special."""
    special = set(tokenizer.all_special_ids)
    return next((place for place, token in enumerate(ids) if token not in special), len(ids))


def _exchanged(ids: Tensor, first: int, depth: float, generator: torch.Generator) -> Tensor:
    """The same with the token at a depth exchanged for another one of them, counted from ``first`` on."""
    text = ids[first:]
    if len(text.unique()) < 2:
        raise ValueError("a prompt needs two different tokens at least, so that one can be exchanged")
    place = first + round(depth * (len(text) - 1))
    others = text[text != ids[place]].unique()
    changed = ids.clone()
    changed[place] = others[torch.randint(len(others), (), generator=generator)]
    return changed


def _warnings(found: Preflight, least: float) -> list[str]:
    lines = []
    for i, depth in enumerate(found.depth.tolist()):
        given = depth != depth
        pair = f"prompt {found.prompt[i]}, {found.tokens[i]} tokens" + ("" if given else f", depth {depth:g}")
        if found.overflows[i]:
            lines.append(f"{pair}: overflows in {found.dtype}: run in a dtype of wider range")
        elif found.gap[i] == 0:
            lines.append(f"{pair}: not heard at all at the end: beyond the model's windows?")
        elif found.snr[i] < least:
            lines.append(
                f"{pair}: one token moves the last state by {found.gap[i]:.3g}, {found.snr[i]:.2f} times its "
                f"rounding in {found.dtype} (below {least:g}): run in a wider dtype, or shorten or divide it"
            )
        if given and found.argmax_equal[i]:
            lines.append(f"{pair}: the next token is the same for both prompts")
    return lines
