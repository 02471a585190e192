"""Tabular Q-learning, double Q-learning and Sarsa over sampled actions, for gymnasium; many seeds at once."""

from .agents import DoubleQLearning, QLearning, Sarsa, StochDoubleQ, StochQ, StochSarsa
from .environments import Step, TensorEnv
from .mdp import TabularMDP
from .schedules import VisitCount

__all__ = [
    "DoubleQLearning",
    "QLearning",
    "Sarsa",
    "Step",
    "StochDoubleQ",
    "StochQ",
    "StochSarsa",
    "TabularMDP",
    "TensorEnv",
    "VisitCount",
]
