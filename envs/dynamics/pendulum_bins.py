"""PendulumBins: gymnasium's Pendulum whose torque is one of n values."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import entry, namespace, quotient, table
from .hashing import draw, stream, unit
from .pendulum_grid import (
    ANGLES,
    CELL,
    CELLS,
    CONVERGED,
    GRAVITY,
    MIDDLE,
    PUSH,
    SPEED,
    SPEEDS,
    STEP,
    STRIDE,
    TORQUE,
    WIDE,
    WORST,
    bounds,
    values,
)
from .world import State, World, require_integer

CANDIDATES = 41  # ids among which the oracle looks
TURN = 2 * math.pi


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
    theta uniform in [-pi, pi], angular velocity uniform in [-1, 1].

    ## Transition
    velocity <- clip(velocity + 0.05 (15 sin theta + 3 torque), -8, 8), then theta <- theta + 0.05 velocity,
    wrapped into [-pi, pi).

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
    a grid of 256 angles and 257 velocities. Over the same 20,000 episodes (standard errors of the oracle
    0.033, of uniform ids 0.13):

    | n         | upper bound | oracle | uniform ids | torque 0 |
    |-----------|-------------|--------|-------------|----------|
    | 2         | -7.68       | -8.63  |             |          |
    | 5         | -7.68       | -8.55  |             |          |
    | 11        | -7.68       | -8.54  |             |          |
    | 1_000_001 | -7.68       | -8.54  | -75.6       | -75.0    |

    So the optimum is within 10 % of the oracle, and a fine grid is no use here: two torques do nearly as well
    as a million. What n makes hard is only to find them.

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
        theta, velocity = unit(draw(h, 0)) * TURN - math.pi, unit(draw(h, 1)) * 2.0 - 1.0
        return {"key": key, "t": key * 0, "theta": theta, "velocity": velocity}

    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        xp = namespace(state["t"])
        theta, velocity, torque = state["theta"], state["velocity"], self.torque(action)
        cost = theta * theta + velocity * velocity * 0.1 + torque * torque * 0.001
        velocity = _bounded(velocity + xp.sin(theta) * GRAVITY + torque * PUSH)
        theta = theta + velocity * STEP
        # At most one turn too far: comparisons do what a remainder does, quicker
        theta = xp.where(theta >= math.pi, theta - TURN, theta)
        theta = xp.where(theta < -math.pi, theta + TURN, theta)
        t = state["t"] + 1
        return {**state, "t": t, "theta": theta, "velocity": velocity}, cost / -WORST, t < 0

    def observe(self, state: State) -> Any:
        xp = namespace(state["theta"])
        columns = [xp.cos(state["theta"]), xp.sin(state["theta"]), state["velocity"]]
        return xp.astype(xp.stack(columns, axis=-1), xp.float32)

    def torque(self, ids: Any) -> Any:
        """The torques that the actions ``ids`` stand for, float64 of the shape of ``ids``."""
        xp = namespace(ids)
        return xp.astype(2 * ids - (self.n - 1), xp.float64) / (self.n - 1) * TORQUE

    # The optimum

    def optimal_value(self, state: State) -> Any:
        """An upper bound of the return to come, ``(B,)`` float64, for any torques in [-2, 2]."""
        xp = namespace(state["t"])
        tables = table(bounds, like=state["t"])
        # With less to go no state costs more: the table for fewer steps bounds those in between as well
        row = xp.minimum(quotient(self.horizon - state["t"], STRIDE, 2**21), state["t"] * 0 + len(tables) - 1)
        i = xp.astype(xp.floor((state["theta"] + math.pi) * (1 / CELL)), xp.int64) % CELLS
        j = xp.astype(xp.floor(state["velocity"] * (1 / WIDE)), xp.int64) + MIDDLE
        return xp.astype(entry(tables, row, i, j), xp.float64) / -WORST

    def optimal_action(self, state: State) -> Any:
        """The best of 41 evenly spaced ids by the values on the grid, ``(B,)`` integers."""
        if isinstance(state["t"], int):
            return self.optimal_action({name: np.array([value]) for name, value in state.items()}).item()
        xp = namespace(state["t"])
        tables = table(values, like=state["t"])
        ids = table(_candidates, self.n, like=state["t"])  # (C,)
        after = xp.minimum(self.horizon - 1 - state["t"], state["t"] * 0 + CONVERGED)[:, None]  # steps to go
        torque = self.torque(ids)
        theta, velocity = state["theta"][:, None], state["velocity"][:, None]  # (B, 1)
        velocity = _bounded(velocity + xp.sin(theta) * GRAVITY + torque * PUSH)  # (B, C)
        across = (theta + velocity * STEP + math.pi) * (ANGLES / TURN)
        along = (velocity + SPEED) * ((SPEEDS - 1) / (2 * SPEED))
        i = xp.astype(xp.floor(across), xp.int64)
        j = xp.minimum(xp.astype(along, xp.int64), after * 0 + SPEEDS - 2)
        right, up = across - i, along - j
        near, far = i % ANGLES, (i + 1) % ANGLES
        left_of = tables[after, near, j] * (1 - up) + tables[after, near, j + 1] * up
        right_of = tables[after, far, j] * (1 - up) + tables[after, far, j + 1] * up
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
            f"angle {state['theta']:+.2f}, velocity {state['velocity']:+.2f}",
        ]
        if last is not None:
            lines.append(f"action {last[1]}: torque {self.torque(last[1]):+.3f}")
            lines.append(f"reward {last[2]:.3f}")
        return lines

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        canvas.line(0.5, 0.55, 0.5, 0.97, "light")  # where it shall be
        x, y = 0.5 - 0.4 * math.sin(state["theta"]), 0.55 + 0.4 * math.cos(state["theta"])
        canvas.line(0.5, 0.55, x, y, "blue", width=8)
        canvas.disc(x, y, 0.03, "blue")
        canvas.disc(0.5, 0.55, 0.02, "black")
        canvas.box(0.1, 0.02, 0.9, 0.06, "light")  # the torque: to the left is counter-clockwise
        if last is not None:
            end = 0.5 - 0.4 * self.torque(last[1]) / TORQUE
            canvas.box(min(0.5, end), 0.02, max(0.5, end), 0.06, "red")
        canvas.line(0.5, 0.0, 0.5, 0.08, "black")


def _bounded(velocity: Any) -> Any:
    xp = namespace(velocity)
    zero = velocity * 0.0  # torch.compile takes no mixture of tensors and numbers here
    return xp.minimum(xp.maximum(velocity, zero - SPEED), zero + SPEED)


def _candidates(n: int) -> np.ndarray:
    """Up to ``CANDIDATES`` evenly spaced ids, both ends included."""
    count = min(n, CANDIDATES)
    return np.array([round(i * (n - 1) / (count - 1)) for i in range(count)], dtype=np.int64)
