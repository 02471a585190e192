"""The linear system behind `DiscreteLQR`, and its optimum with real inputs."""

import math
from functools import lru_cache

import numpy as np

from .hashing import bell, unit, word

REACH = 2.0  # inputs are in [-REACH, REACH]
DECAY = 0.95  # what a step without inputs leaves of the length of the state
AUTHORITY = 0.2  # the length of what an input of 1 adds to the state
OVERLAP = 0.5  # the cosine between what two inputs do
EFFORT = 0.3  # cost of an input of 1, where a deviation of 1 costs 1


@lru_cache(maxsize=64)
def system(dims: int, states: int, layout: int) -> tuple[np.ndarray, np.ndarray]:
    """A, ``(states, states)``, and B, ``(states, dims)``, float64."""
    a = DECAY * np.eye(states)
    for i in range(0, states - 1, 2):
        angle = 0.3 + 0.9 * unit(word(layout, i))
        c, s = math.cos(angle), math.sin(angle)
        a[i : i + 2, i : i + 2] = DECAY * np.array([[c, -s], [s, c]])
    # Orthonormal columns, or rows if there are more inputs than states, in a random direction ...
    long, short = max(dims, states), min(dims, states)
    random = bell(word(layout, 100 + np.arange(long * short))).reshape(long, short)
    frame = np.linalg.qr(random)[0]
    frame = frame if states >= dims else frame.T
    # ... times a square root of the matrix of cosines that the inputs shall have
    values, vectors = np.linalg.eigh((1 - OVERLAP) * np.eye(dims) + OVERLAP)
    return a, AUTHORITY * frame @ (vectors * np.sqrt(values)) @ vectors.T


@lru_cache(maxsize=64)
def riccati(
    dims: int, states: int, layout: int, noise: float, horizon: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For 0 .. horizon steps to go, of the problem with real inputs and costs of |x|^2 + EFFORT |u|^2.

    Returns:
        P ``(horizon + 1, states, states)`` and rest ``(horizon + 1,)``, the cost to go being x P x + rest;
        between them gains ``(.., dims, states)``, the best inputs being gain x, and the curvature
        ``(.., dims, dims)`` of the cost around those.
    """
    a, b = system(dims, states, layout)
    p, rest = np.zeros((states, states)), 0.0
    steps = [(p, np.zeros(b.T.shape), np.eye(dims), rest)]
    for _ in range(horizon):
        m = np.eye(states) + p  # what the next state costs, in all
        curvature = b.T @ m @ b + EFFORT * np.eye(dims)
        gain = -np.linalg.solve(curvature, b.T @ m @ a)
        p, rest = a.T @ m @ (a + b @ gain), rest + noise**2 * float(np.trace(m))
        p = (p + p.T) / 2
        steps.append((p, gain, curvature, rest))
    ps, gains, curvatures, rests = zip(*steps, strict=True)
    return np.stack(ps), np.stack(gains), np.stack(curvatures), np.array(rests)


@lru_cache(maxsize=64)
def extent(dims: int, states: int, layout: int, noise: float) -> np.ndarray:
    """The furthest that each component of the state can get from 0, whatever the actions, ``(states,)``."""
    a, b = system(dims, states, layout)
    power, pushed, furthest = np.eye(states), np.zeros(states), np.ones(states)
    for _ in range(1000):  # after that what comes is below the last bit
        pushed = pushed + REACH * np.abs(power @ b).sum(axis=1)
        pushed = pushed + 2 * math.sqrt(3) * noise * np.abs(power).sum(axis=1)
        power = power @ a
        furthest = np.maximum(furthest, np.abs(power).sum(axis=1) + pushed)
    return furthest * (1 + 1e-9)
