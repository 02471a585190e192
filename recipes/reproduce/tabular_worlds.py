"""The three worlds of the tabular experiments, and what is learned with in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from extensions.tabular import TabularMDP

GENERATED = "256 actions"


@dataclass(frozen=True)
class World:
    """A world, and the settings that all methods share in it.

    Attributes:
        steps: of each seed.
        gamma: discount.
        final_eps: the exploration rate from ``fraction`` of the steps on; 1 at first.
        fraction: share of the steps over which it falls.
        power: of the learning rate N(s, a)^-power.
        measure: what of a run's records is the score.
    """

    steps: int
    gamma: float
    final_eps: float
    fraction: float
    power: float
    measure: str

    def options(self) -> dict[str, Any]:
        return {
            "gamma": self.gamma,
            "exploration_final_eps": self.final_eps,
            "exploration_fraction": self.fraction,
        }


WORLDS = {
    "FrozenLake-v1": World(30_000, 0.95, 0.05, 0.5, 0.6, "rollout/ep_rew_mean"),
    "CliffWalking-v1": World(15_000, 0.95, 0.05, 0.5, 0.6, "rollout/ep_rew_mean"),
    GENERATED: World(15_000, 0.95, 0.1, 0.5, 0.6, "rollout/rew_mean"),
}


def make(name: str, runs: int) -> TabularMDP:
    """Copies of a world."""
    return generated(runs) if name == GENERATED else TabularMDP.from_gymnasium(name, n_runs=runs)


def generated(runs: int, states: int = 3, n: int = 256) -> TabularMDP:
    """An MDP of 256 actions with normal rewards: mean rewards N(0, 1), noise N(0, 1), no ends.

    Transitions from each state and action are proportional to exponential numbers, that is uniform among
    all distributions. The same for all seeds of a run.
    """
    random = torch.Generator().manual_seed(2024)
    p = torch.empty(states, n, states, dtype=torch.float64).exponential_(generator=random)
    means = torch.randn(states, n, generator=random, dtype=torch.float64)
    return TabularMDP(p / p.sum(-1, keepdim=True), means, reward_std=1.0, n_runs=runs)
