"""What reward is still to be had where a model holds prompts with different answers in one state."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .adapters import Adapter
from .batches import count, of_one_size, place_of
from .precision import check_dtype, check_reference
from .results import Result

CRITERIA = ("bitwise", "snr", "argmax")


@dataclasses.dataclass(frozen=True)
class RewardCeiling(Result):
    """The most that the expected exact reward of some prompts can be.

    Attributes:
        value: from 0 to 1; 1 if no two prompts with different answers are in one class.
        classes: number of each prompt's class, (P,), from 0 in order of appearance.
        shares: of each class, how many of its prompts have its commonest answer, (classes,).
        criterion, dtype: by which prompts were put in one class.
    """

    value: float
    classes: Tensor
    shares: Tensor
    criterion: str
    dtype: str


def reward_ceiling(
    model: Adapter,
    prompts: Any,
    answers: Sequence[Hashable],
    *,
    criterion: str = "bitwise",
    dtype: str = "bfloat16",
    reference: str = "float32",
    threshold: float = 1.0,
    position: int | None = None,
    chunk: int = 32,
) -> RewardCeiling:
    """The ceiling on expected exact reward, before any training.

    **Derivation.** Let the prompts of a class ``c`` be in one and the same state where the answer is read.
    Then whatever reads the answer off that state says ``y`` with one probability ``p_c(y)`` to all of them.
    Of the class's prompts a share ``s_c(y)`` has the answer ``y``, so its mean reward is
    ``sum_y s_c(y) p_c(y)``, at most ``max_y s_c(y)``. Over all N prompts, which are drawn alike, the ceiling
    is ``sum_c (n_c / N) max_y s_c(y)``, with ``n_c`` the size of a class: 1/2 on a pair with answers n and
    n + 1, 1 where all states differ.

    **What counts as one state**, the ``criterion``:

    - ``"bitwise"``: the states behind the final norm are the same to the last bit in ``dtype``. The
      derivation then holds for every readout of these states, sampled or greedy.
    - ``"snr"``: all pairs of a class are apart, in ``reference``, by less than ``threshold`` times what
      ``dtype`` rounds their states by, both in l1. What tells them apart is then as much their rounding as
      their contents. But rounding is the same each time, and could be learned: this is a rule of thumb, no
      bound.
    - ``"argmax"``: the likeliest token is the same in ``dtype``. This is a bound on greedy decoding with the
      model as it is, and says nothing of samples.

    **What it does not say.** It is of these states in this arithmetic. Training moves states, and may pull
    them apart. Only where they are one whatever the weights, as in a run of one token with nothing else in
    front and rotary or no positions, does it outlast training. Nor does it say that the ceiling is reached.

    Args:
        model: an adapter, in eval mode.
        prompts: P of them, as the adapter's batch, or as a list of ids (n,) of any lengths. Each of a list
            runs in a batch of its own, since the rounding of a matrix product depends on what is beside it.
            Of a batch as many run at once each time, for the same reason.
        answers: what is to be said in the next token, one for each prompt. Of answers of several tokens give
            the first, since all of it is no likelier to be right than that. Later tokens are read off other
            states, so that of whole answers the ceiling would be too low.
        criterion: see above.
        dtype: of the computation.
        reference: what stands for exact arithmetic; for "snr" alone.
        threshold: for "snr" alone.
        position: where the answer is read; if None, where the model has it.
        chunk: prompts of a batch in one forward, fewer if they are long.

    Raises:
        ValueError: unknown names, another number of answers than of prompts, none at all, a threshold that is
            not positive, "snr" of the reference itself, "argmax" of a model of actions, states that are not
            finite.
    """
    if isinstance(prompts, str) or (
        isinstance(prompts, (list, tuple)) and any(isinstance(x, str) for x in prompts)
    ):
        raise ValueError(
            "prompts are token ids: give [torch.tensor(tokenizer(text)['input_ids']) for text in ...]"
        )
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}; got {criterion!r}")
    dtype, reference = check_dtype(dtype), check_dtype(reference)
    if len(answers) != count(prompts):
        raise ValueError(
            f"each prompt needs an answer; got {count(prompts)} prompts and {len(answers)} answers"
        )
    if not len(answers):
        raise ValueError("there are no prompts")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 prompt, got {chunk}")
    if threshold <= 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    if criterion == "argmax" and not model.discrete:
        raise ValueError(
            "the model answers with actions, of which none is the likeliest: take another criterion"
        )
    if criterion == "snr" and dtype == reference:
        raise ValueError(f"snr compares two dtypes: give a reference other than {dtype}, such as float64")
    if criterion == "snr":
        check_reference(reference, [dtype])
    states, said = _read(model, prompts, dtype, position, chunk)
    if criterion == "bitwise":
        classes = classes_of(lambda i: (states == states[i]).all(-1), len(states))
    elif criterion == "argmax":
        classes = classes_of(lambda i: said == said[i], len(said))
    else:
        exact, _ = _read(model, prompts, reference, position, chunk)
        noise = (states - exact).abs().sum(-1)  # (P,)

        def alike(i: int) -> Tensor:
            gap = (exact - exact[i]).abs().sum(-1)
            return (gap == 0) | (gap < threshold * (noise + noise[i]) / 2)

        classes = classes_of(alike, len(states))
    value, shares = ceiling_of(classes.tolist(), answers)
    return RewardCeiling(value, classes, torch.tensor(shares), criterion, dtype)


def ceiling_of(classes: Sequence[int], answers: Sequence[Hashable]) -> tuple[float, list[float]]:
    """The ceiling of prompts whose classes are known.

    Args:
        classes: of each prompt.
        answers: of each prompt.

    Returns:
        The ceiling, and of each class the share of its commonest answer, in order of appearance.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    if not classes or len(classes) != len(answers):
        raise ValueError(f"need a class and an answer of each prompt; got {len(classes)} and {len(answers)}")
    by_class: dict[int, Counter[Hashable]] = {}
    for number, answer in zip(classes, answers, strict=True):
        by_class.setdefault(number, Counter())[answer] += 1
    commonest = [max(counts.values()) for counts in by_class.values()]
    sizes = [counts.total() for counts in by_class.values()]
    return sum(commonest) / len(classes), [n / size for n, size in zip(commonest, sizes, strict=True)]


def classes_of(alike: Callable[[int], Tensor], size: int) -> Tensor:
    """Classes within which all are alike, each to each.

    Being alike need not carry over: n and n + 1, n + 1 and n + 2 may be too near to be told apart, and n and
    n + 2 not. A chain would make one class of them all and the ceiling too low, so that each goes, in order,
    to the first class with all of whose members it is alike.

    Args:
        alike: of an index, which are like it, (P,) bool.
        size: P.

    Returns:
        Numbers from 0 in order of appearance, (P,).
    """
    classes: list[list[int]] = []
    numbers = torch.empty(size, dtype=torch.long)
    for i in range(size):
        like = alike(i).tolist()
        number = next((k for k, members in enumerate(classes) if all(like[j] for j in members)), len(classes))
        if number == len(classes):
            classes.append([])
        classes[number].append(i)
        numbers[i] = number
    return numbers


@torch.no_grad()
def _read(
    model: Adapter, prompts: Any, dtype: str, position: int | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """States behind the final norm, (P, d) in float64, and the likeliest answers, (P,)."""
    parts = (
        ((torch.as_tensor(ids)[None], 1) for ids in prompts)
        if isinstance(prompts, (list, tuple))
        else of_one_size(prompts, chunk)
    )
    states, said = [], []
    for batch, new in parts:
        with model.running_in(dtype):
            emb, mask = model.cast(model.embed(batch), dtype), model.mask(batch)
            place = place_of(model.position if position is None else position, emb.shape[1], mask)
            state = model.read(emb, mask, [model.depth], position=place)[1]
            if not bool(torch.isfinite(state).all()):
                raise ValueError(f"states in {dtype} are not all finite: the model overflows or holds NaN")
            states.append(state[-new:].double())
            said.append(model.readout(state)[-new:].argmax(-1))
    return torch.cat(states), torch.cat(said)
