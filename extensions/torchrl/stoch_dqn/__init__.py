"""Stochastic Q-learning: acting and bootstrapping on O(log n) of n actions."""

from .actor import StochQValueActor
from .exploration import StochEGreedyModule
from .loss import StochDQNLoss
from .network import StochQNetwork
from .prioritized import TorchPrioritizedSampler
from .updaters import HardUpdate, SoftUpdate

__all__ = [
    "HardUpdate",
    "SoftUpdate",
    "StochDQNLoss",
    "StochEGreedyModule",
    "StochQNetwork",
    "StochQValueActor",
    "TorchPrioritizedSampler",
]
