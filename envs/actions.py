"""Actions as gymnasium's environments take them: one flat integer, or its digits; checked."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import InvalidAction

from .dynamics.digits import join
from .dynamics.world import World

ACTION_FORMATS = ["flat", "factored"]


def single_spaces(world: World, action_format: str) -> tuple[gym.spaces.Box, gym.spaces.Space[Any]]:
    """Observation and action space of one environment."""
    if action_format not in ACTION_FORMATS:
        raise ValueError(f"action_format must be one of {ACTION_FORMATS}, got {action_format!r}")
    observations = gym.spaces.Box(world.low, world.high, dtype=np.float32)
    if action_format == "factored":
        return observations, gym.spaces.MultiDiscrete(list(world.sizes))
    return observations, gym.spaces.Discrete(world.n)


def check_action(action: Any, n: int) -> int:
    """``action`` as a Python integer; InvalidAction unless it is one integer in [0, n)."""
    if isinstance(action, np.ndarray) and action.shape == ():
        action = action[()]
    if not isinstance(action, (int, np.integer)) or isinstance(action, bool) or not 0 <= action < n:
        raise InvalidAction(
            f"An action is one integer in [0, {n}), got {action!r} ({type(action).__name__})."
        )
    return int(action)


def check_digits(action: Any, sizes: tuple[int, ...], batch: tuple[int, ...] = ()) -> np.ndarray:
    """The ids of actions that are given by their digits, int64 of shape ``batch``; InvalidAction unless
    ``action`` has integers in [0, sizes), shape ``(*batch, len(sizes))``."""
    digits = np.asarray(action)
    shape = (*batch, len(sizes))
    if digits.dtype.kind not in "iu" or digits.shape != shape:
        raise InvalidAction(f"Actions are integers of shape {shape}, got {digits.dtype}, {digits.shape}.")
    if (digits < 0).any() or (digits >= np.array(sizes)).any():
        raise InvalidAction(f"Actions are below {list(sizes)} and not negative, got {action!r}.")
    return np.asarray(join(list(np.moveaxis(digits.astype(np.int64), -1, 0)), sizes))


def check_ids(actions: Any, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """``actions`` as int64; InvalidAction unless they are integers in [0, n), of this shape."""
    actions = np.asarray(actions)
    if actions.dtype.kind not in "iu" or actions.shape != shape:
        raise InvalidAction(f"Actions are integers of shape {shape}, got {actions.dtype}, {actions.shape}.")
    if actions.min() < 0 or actions.max() >= n:
        raise InvalidAction(f"Actions are in [0, {n}), got {actions.min()} .. {actions.max()}.")
    return actions.astype(np.int64)
