"""Cells of a grid of many dimensions, each packed into one integer: `LANE` bits for each dimension.

For the tables a cell is cut into pieces of up to five dimensions.
"""

from typing import Any

import numpy as np

LANE = 3
GOAL_REWARD = 10.0


def differs(cells: Any, value: int, ones: int) -> Any:
    """1 in the dimensions of ``cells`` that are not ``value``; ``ones`` is a cell of ones."""
    if value:
        cells = cells ^ value * ones
    return (cells | cells >> 1 | cells >> 2) & ones


def lanes(chunk: int) -> np.ndarray:
    """The dimensions of every packed piece of a cell, ``(8^chunk, chunk)`` int64."""
    return np.arange(2 ** (LANE * chunk))[:, None] >> (LANE * np.arange(chunk)) & (2**LANE - 1)


def spread(chunk: int) -> np.ndarray:
    """What the digits of a piece of an action do: 1 forward, 2 back, 0 neither, packed, ``(4^chunk,)``."""
    digits = np.arange(4**chunk)[:, None] >> (2 * np.arange(chunk)) & 3
    return (np.array([0, 1, 2, 0])[digits] << (LANE * np.arange(chunk))).sum(-1)


def squares(chunk: int) -> np.ndarray:
    """Squared length of every packed piece of a cell, ``(8^chunk,)`` int64."""
    return (lanes(chunk) ** 2).sum(-1)


def rows(chunk: int, side: int) -> np.ndarray:
    """What is observed of every packed piece of a cell, ``(8^chunk, chunk)`` float32."""
    return np.clip(1.0 - 2.0 * lanes(chunk) / (side - 1), -1.0, 1.0).astype(np.float32)


def pays(dims: int, side: int) -> np.ndarray:
    """Reward for a squared distance to the goal, ``(dims (side - 1)^2 + 1,)`` float64."""
    pays = -np.sqrt(np.arange(dims * (side - 1) ** 2 + 1))
    pays[0] = GOAL_REWARD
    return pays
