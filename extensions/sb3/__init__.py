"""Stochastic Q-learning for Stable-Baselines3."""

from .stoch_dqn import StochDDQN, StochDQN

__all__ = ["StochDDQN", "StochDQN"]
