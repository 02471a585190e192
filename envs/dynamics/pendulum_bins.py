"""PendulumBins: gymnasium's Pendulum whose torque is one of n values."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import entry, namespace, quotient, table
from .hashing import MASK, below, draw, stream
from .pendulum_grid import (
    ANGLE_UNIT,
    ANGLES,
    CELL,
    CONVERGED,
    FASTEST,
    FINER,
    MIDDLE,
    PULLS,
    PUSH,
    SPEED,
    SPEED_UNIT,
    SPEEDS,
    STRIDE,
    TORQUE,
    TURN,
    WIDE,
    WORST,
    bounds,
    pulls,
    values,
)
from .world import State, World, require_integer

CANDIDATES = 41  # ids among which the oracle looks
SLOW = math.floor(1 / SPEED_UNIT)  # the largest velocity at the start
# Shifts that divide by these powers of two
PULL_BITS, CELL_BITS, WIDE_BITS, ANGLE_BITS = (
    (width - 1).bit_length() for width in (TURN // PULLS, CELL, WIDE, TURN // ANGLES)
)


@dataclass(frozen=True)
class PendulumBins(World):
    """Gymnasium's Pendulum-v1 with n torques instead of an interval of them.

    ## Description
    A pendulum is to be swung up and held upright by a torque too weak to lift it straight away. The physics
    are those of gymnasium's Pendulum-v1. Continuous control cut into up to a million actions is what
    Dulac-Arnold et al. (2015), "Deep reinforcement learning in large discrete action spaces", began with.
    Near ids do nearly the same, along one axis. **Structure of the action space: metric.**

    ## Action Space
    ``Discrete(n)``: id a is the torque 2 (2a - (n - 1)) / (n - 1), n values evenly spaced over [-2, 2], both
    ends included; 0 is among them for odd n. Positive torques are counter-clockwise.

    ## Observation Space
    ``Box((3,))``: cos theta and sin theta in [-1, 1], the angular velocity in [-8, 8] rad/s. Upright is
    theta = 0.

    ## Starting State
    theta uniform in [-pi, pi), angular velocity uniform in [-1, 1], both on the lattice below.

    ## Transition
    velocity <- clip(velocity + 0.05 (15 sin theta + 3 torque), -8, 8), then theta <- theta + 0.05 velocity,
    wrapped into [-pi, pi).

    The state is on a lattice of integers: angles 2 pi / 2^32 = 1.5e-9 rad apart, and velocities 1.8e-9 rad/s
    apart, 16 of which move the angle by one in a step. What a step adds is rounded to it, and the sine comes
    from a table: that is within 1.8e-8 rad/s and 2.4e-9 rad of the formulas. So numpy, torch, compiled code
    and plain Python have the same states to the last bit. Floats would not do: the sines of numpy and torch
    differ in the last bit, and a pendulum that is held upright lets that grow: after 200 steps of the oracle,
    to 0.003 in the reward of one of 2,000 episodes.

    ## Rewards
    -(theta^2 + 0.1 velocity^2 + 0.001 torque^2) / 16.2736, of the state that the torque acts on: that of
    Pendulum-v1, divided by the largest cost there is. In [-1, 0].

    ## Episode End
    Never terminates; truncated after ``horizon`` steps.

    ## Arguments
    - ``n`` (1_000_001): number of torques, in [2, 2^53], so that no two of them are the same float64.
    - ``horizon`` (200): steps in an episode.

    ## Optimum
    Not known exactly. ``optimal_value`` is an upper bound for any torques in [-2, 2], whether on a grid or
    not, proven by a dynamic programme over cells that favours the agent (`pendulum_grid.bounds`).
    ``optimal_action`` is a good policy: the best of 41 evenly spaced ids, by values that are interpolated on
    a grid of 256 angles and 257 velocities. Over the same 200,000 episodes (standard errors: bound 0.009,
    oracle 0.010, uniform ids 0.04, torque 0 0.05):

    | n         | upper bound | oracle | uniform ids | torque 0 |
    |-----------|-------------|--------|-------------|----------|
    | 2         | -7.64       | -8.58  |             |          |
    | 5         | -7.64       | -8.50  |             |          |
    | 11        | -7.64       | -8.49  |             |          |
    | 1_000_001 | -7.64       | -8.49  | -75.53      | -74.92   |

    So the oracle of a million torques costs at most 11.1 % more than the optimum. A fine grid is no use here:
    two torques do nearly as well as a million. What n makes hard is only to find them.

    ## Version History
    - v0: initial version.
    """

    n: int = 1_000_001
    horizon: int = 200

    structure = "metric"

    def __post_init__(self) -> None:
        require_integer("n", self.n, 2, 2**53)
        require_integer("horizon", self.horizon, 1, 2**20)

    # The world

    @property
    def reward_range(self) -> tuple[float, float]:
        return -1.0, 0.0

    @property
    def low(self) -> np.ndarray:
        return np.array([-1, -1, -SPEED], dtype=np.float32)

    @property
    def high(self) -> np.ndarray:
        return -self.low

    def reset(self, key: Any) -> State:
        h = stream(key)
        return {
            "key": key,
            "t": key * 0,
            "angle": draw(h, 0),
            "velocity": below(draw(h, 1), 2 * SLOW + 1) - SLOW,
        }

    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        theta, speed, torque = _radians(state["angle"]), _speed(state["velocity"]), self.torque(action)
        cost = theta * theta + speed * speed * 0.1 + torque * torque * 0.001
        angle, velocity = self._moved(state["angle"], state["velocity"], action)
        t = state["t"] + 1
        return {**state, "t": t, "angle": angle, "velocity": velocity}, cost / -WORST, t < 0

    def observe(self, state: State) -> Any:
        theta = _radians(state["angle"])
        xp = namespace(theta)
        columns = [xp.cos(theta), xp.sin(theta), _speed(state["velocity"])]
        return xp.astype(xp.stack(columns, axis=-1), xp.float32)

    def _moved(self, angle: Any, velocity: Any, ids: Any) -> tuple[Any, Any]:
        """The angle and the velocity after a step, in integers; the arguments broadcast."""
        xp = namespace(angle)
        sines = table(pulls, like=angle)
        place, share = angle >> PULL_BITS, angle & ((1 << PULL_BITS) - 1)
        before = entry(sines, place)
        pull = before + ((entry(sines, place + 1) - before) * share >> PULL_BITS)
        # One product, an integer before anything is added to it: no compiler can fuse the two
        push = xp.round(self._twice(ids) * (PUSH * TORQUE / SPEED_UNIT / (self.n - 1)))
        velocity = velocity + pull + xp.astype(push, xp.int64)
        zero = velocity * 0  # torch.compile takes no mixture of tensors and numbers here
        velocity = xp.minimum(xp.maximum(velocity, zero - FASTEST), zero + FASTEST)
        return (angle + (velocity >> FINER)) & MASK, velocity

    def _twice(self, ids: Any) -> Any:
        """Twice the distance of the ids from the middle, exact in float64."""
        xp = namespace(ids)
        return xp.astype(2 * ids - (self.n - 1), xp.float64)

    def torque(self, ids: Any) -> Any:
        """The torques that the actions ``ids`` stand for, float64 of the shape of ``ids``."""
        return self._twice(ids) / (self.n - 1) * TORQUE

    # The optimum

    def optimal_value(self, state: State) -> Any:
        """An upper bound of the return to come, ``(B,)`` float64, for any torques in [-2, 2]."""
        xp = namespace(state["t"])
        tables = table(bounds, like=state["t"])
        # With less to go no state costs more: the table for fewer steps bounds those in between as well
        zero = state["t"] * 0
        left = xp.maximum(self.horizon - state["t"], zero)
        row = xp.minimum(quotient(left, STRIDE, 2**21), zero + len(tables) - 1)
        i = ((state["angle"] + TURN // 2) & MASK) >> CELL_BITS
        j = (state["velocity"] >> WIDE_BITS) + MIDDLE
        return xp.astype(entry(tables, row, i, j), xp.float64) / -WORST

    def optimal_action(self, state: State) -> Any:
        """The best of 41 evenly spaced ids by the values on the grid, ``(B,)`` integers."""
        if isinstance(state["t"], int):
            return self.optimal_action({name: np.array([value]) for name, value in state.items()}).item()
        xp = namespace(state["t"])
        tables = table(values, like=state["t"])
        ids = table(_candidates, self.n, like=state["t"])  # (C,)
        zero = state["t"] * 0
        left = xp.maximum(self.horizon - 1 - state["t"], zero)  # steps to go after this one
        after = xp.minimum(left, zero + CONVERGED)[:, None]
        angle, velocity = self._moved(state["angle"][:, None], state["velocity"][:, None], ids)  # (B, C)
        across = (angle + TURN // 2) & MASK
        along = (_speed(velocity) + SPEED) * ((SPEEDS - 1) / (2 * SPEED))
        i = across >> ANGLE_BITS
        j = xp.minimum(xp.astype(along, xp.int64), after * 0 + SPEEDS - 2)
        right, up = xp.astype(across & ((1 << ANGLE_BITS) - 1), xp.float64) * (ANGLES / TURN), along - j
        near, far = i, (i + 1) % ANGLES
        left_of = tables[after, near, j] * (1 - up) + tables[after, near, j + 1] * up
        right_of = tables[after, far, j] * (1 - up) + tables[after, far, j + 1] * up
        torque = self.torque(ids)
        cost = torque * torque * 0.001 + left_of * (1 - right) + right_of * right
        return ids[xp.argmin(cost, axis=-1)]

    def good_fraction(self, eps: float) -> float:
        """Fraction of the ids whose torque is within ``eps`` of one in the middle, ``eps`` as a share of the
        range of torques."""
        return min(self.n, 2 * math.floor(eps * (self.n - 1) + 1e-9) + 1) / self.n

    def action_features(self, ids: Any) -> Any:
        """The torque, scaled to [-1, 1], ``(*ids.shape, 1)`` float32."""
        xp = namespace(ids)
        return xp.astype(xp.stack([self.torque(ids) * (1.0 / TORQUE)], axis=-1), xp.float32)

    # Pictures

    def describe(self, state: State, last: tuple[State, int, float] | None) -> list[str]:
        lines = [
            f"PendulumBins, {self.n} actions, step {state['t']} of {self.horizon}",
            f"angle {_radians(state['angle']):+.2f}, velocity {_speed(state['velocity']):+.2f}",
        ]
        if last is not None:
            lines.append(f"action {last[1]}: torque {self.torque(last[1]):+.3f}")
            lines.append(f"reward {last[2]:.3f}")
        return lines

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        """The pendulum in blue, upright where the light line is. The red bar below is the last torque, from
        none in the middle; to the left is counter-clockwise."""
        canvas.line(0.5, 0.55, 0.5, 0.97, "light")  # where it shall be
        theta = _radians(state["angle"])
        x, y = 0.5 - 0.4 * math.sin(theta), 0.55 + 0.4 * math.cos(theta)
        canvas.line(0.5, 0.55, x, y, "blue", width=8)
        canvas.disc(x, y, 0.03, "blue")
        canvas.disc(0.5, 0.55, 0.02, "black")
        canvas.box(0.1, 0.02, 0.9, 0.06, "light")  # the torque: to the left is counter-clockwise
        if last is not None:
            end = 0.5 - 0.4 * self.torque(last[1]) / TORQUE
            canvas.box(min(0.5, end), 0.02, max(0.5, end), 0.06, "red")
        canvas.line(0.5, 0.0, 0.5, 0.08, "black")


def _radians(angle: Any) -> Any:
    """The angle in radians, in [-pi, pi)."""
    xp = namespace(angle)
    return xp.astype(((angle + TURN // 2) & MASK) - TURN // 2, xp.float64) * ANGLE_UNIT


def _speed(velocity: Any) -> Any:
    """The velocity in rad/s, in [-8, 8]."""
    xp = namespace(velocity)
    return xp.astype(velocity, xp.float64) * SPEED_UNIT


def _candidates(n: int) -> np.ndarray:
    """Up to ``CANDIDATES`` evenly spaced ids, both ends included."""
    count = min(n, CANDIDATES)
    return np.array([round(i * (n - 1) / (count - 1)) for i in range(count)], dtype=np.int64)
