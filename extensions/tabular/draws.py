"""The numbers that an agent draws in a step, made for many steps at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .randomness import Stream, candidates, integers

_STREAM, _PREDICTIONS, _EVALUATION = 0, 2, 3  # the environments have 1
_BLOCK = 64


class Choice(NamedTuple):
    """What an action is chosen with."""

    coin: Tensor  # (R,) uniform, of epsilon-greedy
    action: Tensor  # (R,) int64, if it explores
    tie: Tensor  # (R,) uniform, which of equal maxima
    ids: Tensor  # (R, k) int64, the candidates R


class Draw(NamedTuple):
    """What a step is made with."""

    act: Choice
    other: Choice  # of the maximum that is bootstrapped from, independent of the first
    side: Tensor  # (R,) uniform, which table of a double method


class Draws:
    """Draws of R runs, a function of the seeds and the number of steps made.

    Args:
        seeds: (R,) int64.
        n: number of actions.
        k: candidates, the size of R; 0 if all n are looked at.
        device: where they are made.

    Attributes:
        clock: steps made.
        predictions: stochastic predictions made.
    """

    def __init__(self, seeds: Tensor, n: int, k: int, device: torch.device) -> None:
        self.n, self.k, self._runs, self._device = n, k, len(seeds), device
        self.clock = self.predictions = 0
        self._steps = Stream(seeds, _STREAM, device)
        self._predictions = Stream(seeds, _PREDICTIONS, device)
        self._evaluation = Stream(seeds, _EVALUATION, device)
        self._block: Draw | None = None
        self._drawn = -1

    def next(self) -> Draw:
        """The draw of the next step."""
        block, at = divmod(self.clock, _BLOCK)
        if block != self._drawn or self._block is None:
            width = 3 + self.k
            u = self._steps.uniform(block * _BLOCK, _BLOCK, 2 * width + 1)
            self._block = Draw(
                self._choice(u[..., :width]), self._choice(u[..., width : 2 * width]), u[..., -1]
            )
            self._drawn = block
        self.clock += 1
        act, other, side = self._block
        return Draw(Choice(*(x[at] for x in act)), Choice(*(x[at] for x in other)), side[at])

    def for_prediction(self, batch: int) -> Choice:
        """Choices for ``batch`` states of each run, (R * batch, ...); never those of a step."""
        u = self._predictions.uniform(self.predictions, batch, 3 + self.k).transpose(0, 1)
        self.predictions += batch
        return self._choice(u.flatten(0, 1))

    def for_evaluation(self, many: int) -> Tensor:
        """Candidates of each run's greedy policy, the same at every call: (R, min(many, n)) int64."""
        if many >= self.n:
            return torch.arange(self.n, device=self._device).expand(self._runs, -1)
        return candidates(self._evaluation.uniform(0, 1, many)[0], self.n)

    def _choice(self, u: Tensor) -> Choice:
        return Choice(u[..., 0], integers(u[..., 1], self.n), u[..., 2], candidates(u[..., 3:], self.n))
