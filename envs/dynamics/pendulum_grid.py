"""The pendulum's lattice of states, and grids over it: values for an oracle, and a proven bound of them."""

import math
from functools import lru_cache

import numpy as np

GRAVITY = 0.75  # what a step adds to the velocity, times sin(angle)
PUSH = 0.15  # what it adds, times the torque
STEP = 0.05  # seconds
TORQUE, SPEED = 2.0, 8.0  # the largest
WORST = math.pi**2 + 0.1 * SPEED**2 + 0.001 * TORQUE**2  # cost of a step

ANGLES, SPEEDS, TORQUES = 256, 257, 21  # of the grid of `values`

# The lattice that states are on: integers, so that every backend has the same ones
TURN = 2**32  # units of the angle in a turn
ANGLE_UNIT = 2 * math.pi / TURN  # radians
FINER = 4  # a step moves the angle by velocity >> FINER
SPEED_UNIT = ANGLE_UNIT / STEP / 2**FINER  # rad/s
FASTEST = math.floor(SPEED / SPEED_UNIT)
HARDEST = round(PUSH * TORQUE / SPEED_UNIT)  # what a step adds to the velocity, by the largest torque
PULLS = 2**14  # sines a turn in the table of `pulls`

# The grid of `bounds`
CELLS = 2048  # angles; four times an integer, so that sin is monotonous in a cell
CELL = TURN // CELLS  # width of a cell in the angle, in units
WIDE = CELL << FINER  # ... and in the velocity
MIDDLE = math.ceil(SPEED / SPEED_UNIT / WIDE)  # cells of velocity on each side of 0
STRIDE = 10  # `bounds` keeps the table of every tenth number of steps to go
CONVERGED = 100  # more steps to go add 0.002 % on average; what there is then bounds them as well


def pulls() -> np.ndarray:
    """What gravity adds to the velocity in a step, in units, at ``PULLS`` angles from 0 (upright) to a turn,
    both included: ``(PULLS + 1,)`` int64. A straight line between two of them is at most 1.4e-8 rad/s off."""
    sines = np.sin(2 * math.pi / PULLS * np.arange(PULLS + 1))
    return np.rint(GRAVITY / SPEED_UNIT * sines).astype(np.int64)


@lru_cache(maxsize=1)
def values() -> np.ndarray:
    """Nearly the least cost of 0 .. CONVERGED further steps, ``(CONVERGED + 1, ANGLES, SPEEDS)`` float32.

    By value iteration with linear interpolation, over ``TORQUES`` torques. Angles start at -pi and leave out
    pi; velocities go from -SPEED to SPEED. It is an estimate: neither an upper nor a lower bound.
    """
    angle = -math.pi + 2 * math.pi / ANGLES * np.arange(ANGLES)
    speed = np.linspace(-SPEED, SPEED, SPEEDS)
    cost = (angle[:, None] ** 2 + 0.1 * speed**2).astype(np.float32)

    # First the angle moves by STEP times the new speed: per column, a shift by whole cells and a share
    shift = STEP * speed * ANGLES / (2 * math.pi)
    whole = np.floor(shift).astype(np.int64)
    share = (shift - whole).astype(np.float32)
    rows = (np.arange(ANGLES)[:, None] + whole) % ANGLES
    here = rows * SPEEDS + np.arange(SPEEDS)
    beyond = (rows + 1) % ANGLES * SPEEDS + np.arange(SPEEDS)
    # ... then the torque says which new speed that is
    pushes = []
    for torque in np.linspace(-TORQUE, TORQUE, TORQUES):
        after = np.clip(speed + GRAVITY * np.sin(angle)[:, None] + PUSH * torque, -SPEED, SPEED)
        place = (after + SPEED) * ((SPEEDS - 1) / (2 * SPEED))
        left = np.minimum(place.astype(np.int64), SPEEDS - 2)
        part = (place - left).astype(np.float32)
        pushes.append((left + np.arange(ANGLES)[:, None] * SPEEDS, part, np.float32(0.001 * torque**2)))

    tables = np.zeros((CONVERGED + 1, ANGLES, SPEEDS), dtype=np.float32)
    for k in range(CONVERGED):
        moved = (1 - share) * tables[k].take(here) + share * tables[k].take(beyond)
        slope = np.diff(moved, axis=1, append=0)
        options = [moved.take(left) + part * slope.take(left) + effort for left, part, effort in pushes]
        tables[k + 1] = cost + np.min(options, axis=0)
    return tables


@lru_cache(maxsize=1)
def bounds() -> np.ndarray:
    """No torques make the cost of STRIDE m further steps less, for m = 0 .. CONVERGED // STRIDE, per cell of
    angle and velocity: ``(CONVERGED // STRIDE + 1, CELLS, 2 MIDDLE)`` float32.

    A dynamic programme over cells in which, at every step, the state may be moved for free to any point of
    its cell. That only helps, so that its optimum costs no more than the true one: L(cell) = the least cost
    in the cell + the least L of the cells that its points can get to, by any torque of at most TORQUE.
    A cell is as wide in velocity as it takes to move the angle by one cell more in a step. So the cell (i, j)
    of the new velocity leads to the cells i + j and i + j + 1 of the angle, and to no others. That is exact
    for the integers of the lattice; costs are rounded, for which a share of 1e-5 is allowed.
    """
    i, j = np.arange(CELLS), np.arange(-MIDDLE, MIDDLE)
    angle, speed = _least_square(CELL * (i - CELLS // 2), CELL), _least_square(WIDE * j, WIDE)
    cost = ANGLE_UNIT**2 * angle[:, None] + 0.1 * SPEED_UNIT**2 * speed
    cost = (cost * (1 - 1e-5)).astype(np.float32)
    first, last = reached()

    # The least of a range is that of two ranges of 2^p that cover it, one from its start, one to its end
    span = 1 << int((last - first).max() + 1).bit_length() - 1
    starts = i[:, None] * (2 * MIDDLE) + np.minimum(first, 2 * MIDDLE - span)
    stops = i[:, None] * (2 * MIDDLE) + np.maximum(last - span + 1, 0)
    leads = (i[:, None] + j) % CELLS * (2 * MIDDLE) + j + MIDDLE

    table: np.ndarray = np.zeros((CELLS, 2 * MIDDLE), dtype=np.float32)
    kept = [table]
    for k in range(1, CONVERGED + 1):
        next_to = np.minimum(table, np.roll(table, -1, axis=0)).take(leads)  # by cell of the new velocity
        width = 1
        while width < span:
            np.minimum(next_to[:, :-width], next_to[:, width:], out=next_to[:, :-width])
            width *= 2
        table = cost + np.minimum(next_to.take(starts), next_to.take(stops))
        if k % STRIDE == 0:
            kept.append(table)
    return np.stack(kept)


def reached() -> tuple[np.ndarray, np.ndarray]:
    """First and last cell of the velocities that the points of each cell can get to in a step, by any torque:
    two arrays ``(CELLS, 2 MIDDLE)`` of integers from 0 to 2 MIDDLE - 1.

    In the integers that a step computes with, so that no slack is needed. Both ends of a cell are entries of
    `pulls`. In between gravity is a line through entries that only rise or only fall, rounded down, which
    keeps it between those of the ends. Rounding keeps order, so that no push is above that of the largest
    torque; that one is 0.14 from an integer, and no last bit changes what it is rounded to.
    """
    ends = (np.arange(CELLS + 1) - CELLS // 2) % CELLS * (PULLS // CELLS)  # of the cells, from -pi to pi
    pull, speed = pulls()[ends][:, None], WIDE * np.arange(-MIDDLE, MIDDLE)
    least = speed + np.minimum(pull[:-1], pull[1:]) - HARDEST
    most = speed + (WIDE - 1) + np.maximum(pull[:-1], pull[1:]) + HARDEST
    first, last = (np.clip(end, -FASTEST, FASTEST) // WIDE + MIDDLE for end in (least, most))
    return first, last


def _least_square(start: np.ndarray, width: int) -> np.ndarray:
    """The least square from each ``start`` to ``start + width``; 0 is never within, but may be an end."""
    return np.minimum(start.astype(float) ** 2, (start + width).astype(float) ** 2)
