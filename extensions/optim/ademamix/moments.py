"""What a step of AdEMAMix works on: lists of tensors, one entry a parameter, and numbers for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Parameters, gradients and state; ``exp_avgs`` is empty where beta1 is 0."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]  # m1, fast
    exp_avg_slows: list[Tensor]  # m2
    exp_avg_sqs: list[Tensor]  # nu
    state_steps: list[Tensor]  # 0-dim, steps made
    slow_steps: list[Tensor]  # 0-dim, steps since the slow average was begun

    def count_step(self) -> None:
        """Add one to all counters, in place."""
        counters = [*self.state_steps, *self.slow_steps]
        if counters[0].is_cpu and not torch.compiler.is_compiling():
            # A number would be wrapped into a tensor once for each counter.
            torch._foreach_add_(counters, torch.tensor(1.0, device="cpu"), alpha=1.0)
        else:
            torch._foreach_add_(counters, 1)

    def split(self, key: Callable[[Tensor, Tensor], Hashable]) -> list[Moments]:
        """Apart by ``key`` of parameter and gradient, in the order in which the keys are met."""
        places: dict[Hashable, list[int]] = {}
        for i, (p, g) in enumerate(zip(self.params, self.grads, strict=True)):
            places.setdefault(key(p, g), []).append(i)
        if len(places) <= 1:
            return [self] * len(places)
        return [Moments(*([ts[i] for i in at] if ts else [] for ts in self)) for at in places.values()]


class StepSettings(NamedTuple):
    """The settings of a group that a step takes as they are."""

    lr: float | Tensor
    weight_decay: float
    eps: float
    maximize: bool
