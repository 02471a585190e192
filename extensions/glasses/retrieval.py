"""Does a model find one thing among many, wherever it stands?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .adapters import HFCausalLM
from .answers import Answers, answer_items
from .encoding import differing, split
from .paths import spearman
from .results import Result
from .sensitivity import sensitivity_profile, u_index
from .statistics import wilson
from .tasks import Item

DEPTHS = tuple(i / 10 for i in range(11))


class DepthTask(Protocol):
    """A `Task` whose answer hangs on one element that can be put anywhere, as ``kv_recall`` of
    ``envs.sequence_tasks``."""

    @property
    def name(self) -> str: ...

    def items(self, length: int, size: int, depth: float | None = None) -> Sequence[Any]:
        """Items whose needle stands at a depth, 0 at the beginning and 1 at the end."""
        ...

    def minimal_pair(self, item: Any) -> tuple[Item, Item]: ...


@dataclasses.dataclass(frozen=True)
class RetrievalProbe(Result):
    """Answers by length and by where the needle stands.

    Attributes:
        task: its name.
        lengths: N of them, in elements.
        depths: D of them, 0 at the beginning and 1 at the end.
        trials: items of each cell.
        accuracy, low, high: shares of right answers and ends of their Wilson interval, (N, D).
        margin: logit of the answer less the largest other one, mean, (N, D).
        needle_share: of the sensitivity of the state that answers, the needle's tokens' part, mean over some
            of the items, (N, D); None if it was not asked for.
        margin_follows_share: rank correlation over all cells of margin and ``needle_share``; None likewise.
    """

    task: str
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    trials: int
    accuracy: Tensor
    low: Tensor
    high: Tensor
    margin: Tensor
    needle_share: Tensor | None
    margin_follows_share: float | None

    @property
    def u_index(self) -> list[float]:
        """Of each length, mean accuracy at the first and last tenth of depths over that in the middle fifth:
        above 1, the middle is forgotten."""
        return [u_index(row[None]) for row in self.accuracy]


def retrieval_probe(
    model: HFCausalLM,
    task: DepthTask,
    *,
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    trials: int = 64,
    dtype: str | None = None,
    sensitivities: int = 2,
    probes: int = 16,
    chunk: int = 32,
    generator: torch.Generator | None = None,
    progress: Callable[[int], None] | None = None,
) -> RetrievalProbe:
    """Ask for one element of a sequence, at every depth of every length.

    Args:
        model: with its tokenizer, in eval mode.
        task: such as ``SequenceTask("kv_recall")``.
        lengths: in elements.
        depths: of the needle, from 0 to 1.
        trials: items of each cell.
        dtype: the model answers in it; its own if None.
        sensitivities: items of each cell whose sensitivity to the needle is measured too, by
            `sensitivity_profile` with ``probes`` probes; 0 for none.
        probes, generator: of it.
        chunk: sequences in one forward.
        progress: is called with each length when it is done.

    Raises:
        ValueError: as `answer_items`; depths outside of [0, 1], no trials.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    if not depths or not all(0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depths must be from 0 to 1, got {list(depths)}")
    right, margin, share = (torch.zeros(len(lengths), len(depths), dtype=torch.float64) for _ in range(3))
    for i, length in enumerate(lengths):
        for j, depth in enumerate(depths):
            items = task.items(length, trials, depth)
            answers: Answers = answer_items(model, items, dtype=dtype, chunk=chunk)
            right[i, j], margin[i, j] = answers.right.sum(), answers.margin.mean()
            shares = [needle_share(model, task, item, probes, generator) for item in items[:sensitivities]]
            share[i, j] = sum(shares) / len(shares) if shares else 0.0
        if progress is not None:
            progress(length)
    low, high = wilson(right, trials)
    return RetrievalProbe(
        task=task.name,
        lengths=tuple(lengths),
        depths=tuple(depths),
        trials=trials,
        accuracy=right / trials,
        low=low,
        high=high,
        margin=margin,
        needle_share=share if sensitivities else None,
        margin_follows_share=spearman(margin.flatten(), share.flatten()) if sensitivities else None,
    )


def needle_share(
    model: HFCausalLM, task: DepthTask, item: Item, probes: int, generator: torch.Generator | None = None
) -> float:
    """The part that the needle has in the sensitivity of the state that answers: the tokens by which an item
    differs from the other one of its minimal pair."""
    ids, other = (split(model.tokenizer, side) for side in task.minimal_pair(item))
    start, end = differing(ids[0][: ids[1]], other[0][: other[1]])
    profile = sensitivity_profile(
        model, torch.tensor([ids[0][: ids[1]]]), mode="hutchinson", probes=probes, generator=generator
    )
    return profile.share[0, start:end].sum().item()
