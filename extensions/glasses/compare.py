"""Remedies side by side on the same items, with the controls that keep them honest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .adapters import HFCausalLM, check_language_model
from .answers import Answers, answer_items
from .comparison import PLAIN, Arm, Comparison, gains
from .encoding import split
from .gap import NORMS, final_states, norms_of
from .precision import check_dtype
from .remedies import Dilute, Filler, Scattered, Separators, TextRemedy, dilute_text
from .remedies.text import with_last_repeated
from .statistics import half_length, wilson
from .tasks import Item, Task

Remedy = TextRemedy | Callable[[HFCausalLM], AbstractContextManager[None]]


def compare(
    model: HFCausalLM,
    tasks: Sequence[Task],
    remedies: Sequence[Remedy],
    lengths: Sequence[int],
    *,
    trials: int | Sequence[int] = 32,
    dtypes: Sequence[str] | None = None,
    pairs: int | None = None,
    gap_lengths: Sequence[int] | None = None,
    norm: str = "linf",
    chance: float | None = None,
    chunk: int = 8,
    progress: Callable[[str, int], None] | None = None,
) -> Comparison:
    """Ask a model the same items plainly and with each remedy.

    Whatever is asked for, separators never stand alone. Counted from the left, they make n and n + 1 differ
    in how many elements follow the last one, which a model sees near at hand. So each `Dilute` comes with the
    same from the right, where that is not so; with as many at random places; with as many in front of a
    sequence that stays whole, which is what the tokens alone do; and with the gap of phase-matched pairs, n
    and n + k.

    Of items whose tokens are the same only one is asked: a run of ones of one length is one question, however
    often it is drawn.

    A pair for the gap is an item and the same with its last element repeated.

    Args:
        model: with its tokenizer, in eval mode.
        tasks: such as those of ``envs.sequence_tasks``.
        remedies: of text, such as ``Dilute(3)``; or functions from a model to a context, such as
            ``adaptive_temperature`` or ``functools.partial(sliding_window, window=64)``.
        lengths: ascending, in elements.
        trials: items drawn of each task and length; or as many for each length.
        dtypes: that answers are computed in; the model's own if None.
        pairs: how many items the gaps are means over, at most ``trials``; 4 or all if None; fewer if fewer
            are distinct.
        gap_lengths: at which of the lengths gaps are measured; at all if None.
        norm: of the gap, as in `representation_gap`.
        chance: accuracy of a model that knows nothing; if None, the task's own ``chance`` if it has one, else
            the share of the most frequent answer among all that are asked.
        chunk: sequences in one forward.
        progress: is called with a task's name and each length when it is done.

    Raises:
        ValueError: no tasks, two of one name, lengths that do not ascend, no trials or pairs, answers that
            are all the same, and what `answer_items` and the remedies raise.
    """
    check_language_model(model)
    if hasattr(tasks, "name") or any(isinstance(task, str) for task in tasks):
        raise TypeError('tasks must be a list of objects, such as [SequenceTask("copy_last")]')
    lengths, arms = tuple(lengths), _arms(remedies)
    if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        raise ValueError(f"lengths must be positive and ascending, got {lengths}")
    each = (trials,) * len(lengths) if isinstance(trials, int) else tuple(trials)
    if len(each) != len(lengths):
        raise ValueError(
            f"trials must be a number, or one for each of {len(lengths)} lengths; got {len(each)}"
        )
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")
    pairs = min(4, *each) if pairs is None else pairs
    if not 1 <= pairs <= min(each):
        raise ValueError(f"pairs must be from 1 to trials, {min(each)}; got {pairs}")
    if not tasks or len({task.name for task in tasks}) < len(tasks):
        raise ValueError(f"tasks must have names of their own, got {[task.name for task in tasks]}")
    names = [check_dtype(name) for name in dtypes or (model.dtype,)]
    asker = _Asker(model, names, _more(arms), pairs, norm, chunk)
    found: dict[str, Arm] = {}
    chances: dict[str, float] = {}
    faults: dict[str, tuple[str, ...]] = {}
    for task in tasks:
        items = {n: list(task.items(n, size)) for n, size in zip(lengths, each, strict=True)}
        if short := [n for n, size in zip(lengths, each, strict=True) if len(items[n]) != size]:
            raise ValueError(f"{task.name} has too few items at length {short[0]}: give fewer trials")
        items = {n: _distinct(model, group) for n, group in items.items()}
        faults[task.name] = _faults(model, arms, items[lengths[-1]][0])
        chances[task.name] = _chance(task, items) if chance is None else chance
        points: dict[str, list[_Point]] = {name: [] for name in arms}
        for length in lengths:
            for name, remedy in arms.items():
                measured = gap_lengths is None or length in gap_lengths
                points[name].append(asker.ask(remedy, items[length], measured))
            if progress is not None:
                progress(task.name, length)
        for arm in _judged(task.name, arms, points, lengths, chances[task.name]):
            found[f"{task.name}/{arm.remedy}"] = arm
    return Comparison(lengths, pairs, norm, chances, found, faults)


def check_remedies(model: HFCausalLM, remedies: Sequence[Remedy], items: Sequence[Item]) -> None:
    """Refuse at once what `compare` would refuse in the midst: two remedies of one name, settings that one
    cannot have, items that are too long for the model with one, or that one cannot be written into.

    Raises:
        ValueError, TypeError: as `compare`.
    """
    arms = _arms(remedies)
    longer = [with_last_repeated(item, max(_more(arms))) for item in items]
    for remedy in arms.values():
        if remedy is not None and not isinstance(remedy, TextRemedy):
            remedy(model)  # not entered: what it refuses it refuses here
            continue
        for item in (*items, *longer):
            model.ids([split(model.tokenizer, item if remedy is None else remedy(item))[0]])


def _arms(remedies: Sequence[Remedy]) -> dict[str, Remedy | None]:
    """All that is compared, by name: nothing, the remedies, and the controls of separators."""
    arms: dict[str, Remedy | None] = {PLAIN: None}
    for remedy in remedies:
        name = _name(remedy)
        if name in arms:
            raise ValueError(f"two remedies are named {name!r}: give each once, and lambdas a __name__")
        arms[name] = remedy
    for remedy in remedies:
        for control in _controls(remedy):
            arms.setdefault(control.name, control)
    return arms


def _name(remedy: Remedy) -> str:
    if not callable(remedy):
        raise TypeError(f"remedies are objects such as Dilute(3), or functions of a model; got {remedy!r}")
    if isinstance(remedy, TextRemedy):
        return remedy.name
    if isinstance(remedy, partial):
        given = [repr(x) for x in remedy.args] + [f"{key}={x!r}" for key, x in remedy.keywords.items()]
        return f"{remedy.func.__name__}({', '.join(given)})"
    return remedy.__name__


def _controls(remedy: Remedy | None) -> list[TextRemedy]:
    if not isinstance(remedy, Dilute):
        return []
    controls: list[TextRemedy] = [
        Dilute(remedy.every, remedy.sep, "right"),
        Scattered(remedy.every, remedy.sep),
        Filler(remedy.every, remedy.sep),
    ]
    return [control for control in controls if control != remedy]


def _more(arms: Mapping[str, Remedy | None]) -> list[int]:
    """By how many elements the two sequences of a pair differ: by one, and by each group."""
    return sorted({1} | {remedy.every for remedy in arms.values() if isinstance(remedy, Separators | Filler)})


def _distinct(model: HFCausalLM, items: Sequence[Item]) -> list[Item]:
    """Those that differ in a token, in their order."""
    found: dict[tuple[int, ...], Item] = {}
    for item in items:
        found.setdefault(tuple(split(model.tokenizer, item)[0]), item)
    return list(found.values())


def _chance(task: Task, items: Mapping[int, Sequence[Item]]) -> float:
    if (own := getattr(task, "chance", None)) is not None:
        return float(own)
    answers = Counter(item.answer for group in items.values() for item in group)
    share = max(answers.values()) / answers.total()
    if share == 1:
        raise ValueError(
            f"all answers of {task.name} are the same, so nothing tells them from a guess: give chance=0"
        )
    return share


def _faults(model: HFCausalLM, arms: Mapping[str, Remedy | None], item: Item) -> tuple[str, ...]:
    """What `dilute_text` warns of: what the tokenizer makes of separators, and of elements."""
    if not getattr(model.tokenizer, "is_fast", False):
        return ()
    found: list[str] = []
    for remedy in arms.values():
        if isinstance(remedy, Dilute):
            found += dilute_text(
                item.prompt,
                remedy.every,
                remedy.sep,
                tokenizer=model.tokenizer,
                span=item.payload_span,
                elements=item.payload,
                side=remedy.side,
            ).faults
    return tuple(dict.fromkeys(found))


# A gap that is a smaller part of its state is the rounding of float32, and no gap.
LEAST_GAP = 32 * torch.finfo(torch.float32).eps
NOT_MEASURED = torch.tensor(torch.nan, dtype=torch.float64)


@dataclass(frozen=True)
class _Point:
    """One arm at one length: answers by dtype, and gaps by how many elements more the second sequence has."""

    answers: dict[str, Answers]
    gap: dict[int, Tensor]


@dataclass(frozen=True)
class _Asker:
    """What is the same at each point; see `compare`."""

    model: HFCausalLM
    dtypes: Sequence[str]
    more: Sequence[int]
    pairs: int
    norm: str
    chunk: int

    def ask(self, remedy: Remedy | None, items: Sequence[Item], measured: bool) -> _Point:
        """Of these items, with a remedy or none; gaps too if they are to be measured, else NaN."""
        if isinstance(remedy, TextRemedy):
            return self._asked(items, remedy, measured)
        with nullcontext() if remedy is None else remedy(self.model):
            return self._asked(items, lambda item: item, measured)

    def _asked(self, items: Sequence[Item], write: Callable[[Item], Item], measured: bool) -> _Point:
        asked = [write(item) for item in items]
        longer = {m: [write(with_last_repeated(item, m)) for item in items[: self.pairs]] for m in self.more}
        return _Point(
            {name: self._answers(asked, name) for name in self.dtypes},
            self._gaps(asked[: self.pairs], longer) if measured else dict.fromkeys(self.more, NOT_MEASURED),
        )

    def _answers(self, items: Sequence[Item], dtype: str) -> Answers:
        own = dtype == self.model.dtype
        return answer_items(self.model, items, dtype=None if own else dtype, chunk=self.chunk)

    def _gaps(self, items: Sequence[Item], longer: Mapping[int, Sequence[Item]]) -> dict[int, Tensor]:
        """Means over pairs, in the last layer, where the answer begins."""
        states = self._states(items)
        least = LEAST_GAP * norms_of(states, [self.norm])  # (P, 1)
        gaps = {m: norms_of(states - self._states(side), [self.norm]) for m, side in longer.items()}
        return {m: torch.where(gap > least, gap, 0.0).mean() for m, gap in gaps.items()}

    def _states(self, items: Sequence[Item]) -> Tensor:
        """(P, d)"""
        asked = [split(self.model.tokenizer, item) for item in items]
        before = [torch.tensor(ids[:start]) for ids, start in asked]
        return final_states(self.model, before, chunk=self.chunk)


def _judged(
    task: str,
    arms: Mapping[str, Remedy | None],
    points: Mapping[str, Sequence[_Point]],
    lengths: Sequence[int],
    chance: float,
) -> list[Arm]:
    """The arms of a task, from what was seen at each length."""
    judged: list[Arm] = []
    trials = tuple(len(next(iter(point.answers.values())).right) for point in points[PLAIN])
    asked = torch.tensor(trials, dtype=torch.float64)
    for name, remedy in arms.items():
        at = points[name]
        dtypes = list(at[0].answers)
        answers = {dtype: [point.answers[dtype] for point in at] for dtype in dtypes}
        right = {dtype: torch.stack([x.right.sum() for x in answers[dtype]]) for dtype in dtypes}
        ends = {dtype: wilson(right[dtype], asked) for dtype in dtypes}
        accuracy = {dtype: right[dtype] / asked for dtype in dtypes}
        tokens = torch.stack([x.tokens.double().mean() for x in answers[dtypes[0]]])
        n50 = {dtype: half_length(lengths, accuracy[dtype], chance) for dtype in dtypes}
        plain_n50, plain_tokens = (judged[0].n50, judged[0].tokens) if judged else (n50, tokens)
        both = {dtype: gains(n50[dtype], plain_n50[dtype], lengths, tokens, plain_tokens) for dtype in dtypes}
        judged.append(
            Arm(
                task=task,
                remedy=name,
                every=remedy.every if isinstance(remedy, Separators | Filler) else None,
                controls=tuple(control.name for control in _controls(remedy)),
                trials=trials,
                tokens=tokens,
                accuracy=accuracy,
                low={dtype: ends[dtype][0] for dtype in dtypes},
                high={dtype: ends[dtype][1] for dtype in dtypes},
                margin={dtype: torch.stack([x.margin.mean() for x in answers[dtype]]) for dtype in dtypes},
                right={dtype: tuple(tuple(x.right.tolist()) for x in answers[dtype]) for dtype in dtypes},
                said={dtype: tuple(x.said for x in answers[dtype]) for dtype in dtypes},
                n50=n50,
                n50_within={
                    dtype: tuple(half_length(lengths, end, chance).length for end in ends[dtype])
                    for dtype in dtypes
                },
                gain={dtype: both[dtype][0] for dtype in dtypes},
                token_gain={dtype: both[dtype][1] for dtype in dtypes},
                gap={m: torch.stack([point.gap[m] for point in at]).cpu() for m in at[0].gap},
            )
        )
    return judged
