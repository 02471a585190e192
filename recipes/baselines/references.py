"""The two ends of the scale: uniformly random ids, and the oracle of the world."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase

from .loop import Evaluation, Policy, Record, Task


def play_random(task: Task, seed: int, device: Any = "cpu") -> list[Record]:
    """Uniformly random ids. Nothing is learned and no step is spent: one evaluation, on the common
    episodes."""
    n = task.make(1, seed).dynamics.n
    generator = torch.Generator(device).manual_seed(seed)

    def policy(td: TensorDictBase) -> TensorDictBase:
        return td.set("action", torch.randint(n, td.shape, generator=generator, device=device))

    return _evaluated(task, policy, device)


def play_oracle(task: Task, seed: int, device: Any = "cpu") -> list[Record]:
    """The world's ``optimal_action``: optimal where the world is exact, else the best policy that is
    known."""
    world = task.make(1, seed).dynamics

    def policy(td: TensorDictBase) -> TensorDictBase:
        return td.set("action", world.optimal_action(dict(td["world"].items())))

    return _evaluated(task, policy, device)


def _evaluated(task: Task, policy: Policy, device: Any) -> list[Record]:
    greedy, length = Evaluation(task, device)(policy)
    return [Record(0, 0, greedy, length, 0.0, 0.0)]
