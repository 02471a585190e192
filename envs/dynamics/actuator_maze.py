"""ActuatorMaze: 2^k subsets of k actuators push a point to its goal."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .arrays import entry, may_look, namespace, table
from .hashing import draw, random_ids, stream, unit
from .walls import LAYOUTS, Wall, longest_way, stop, way
from .world import State, World, require, require_integer, require_number

CHUNK = 10  # bits of an action that one table answers
STEP_COST = 0.05
MOST_RADIUS = 0.15  # of a goal between two walls


@dataclass(frozen=True)
class ActuatorMaze(World):
    """A point in a square room, moved by any subset of k actuators at once.

    ## Description
    k actuators point in k evenly spaced directions, the i-th at the angle 2 pi i / k. An action switches on a
    subset, one bit of the id for each, and the point moves by the sum of their unit vectors, scaled so that
    no subset moves it further than ``step_size``. Most subsets nearly cancel: a random one moves the point by
    at least a share rho of ``step_size`` with a probability of roughly exp(-4 rho^2 k / pi^2). Ids that
    differ in one bit do nearly the same, and many do exactly the same. **Structure of the action space:
    combinatorial.** The room is open, or has one or two thin walls inside. After Chandak et al. (2019),
    "Learning action representations for reinforcement learning", and Akkerman et al. (2024), "Dynamic
    neighborhood construction".

    ## Action Space
    ``Discrete(2^k)``: bit i, the least significant first, switches on actuator i.

    ## Observation Space
    ``Box((4,))``: 2 position - 1 in [-1, 1]^2, then 2 (goal - position) in [-2, 2]^2.

    ## Starting State
    Position and goal uniform in [0, 1]^2. With walls no goal is closer than ``radius`` to the line of a wall:
    its first coordinate is uniform in the rest of [0, 1].

    ## Transition
    position <- clip(position + (1 + noise z) displacement, 0, 1), where z is the sum of four uniform numbers,
    centred and scaled to variance 1. It is close to normal and bounded, |z| < 2 sqrt(3), so that there is a
    true bound on the steps to the goal, and it is exact arithmetic, so that all backends agree to the last
    bit.

    A wall is a segment: with ``walls`` = 1 at x = 1/2 from y = 0 to 2/3; with ``walls`` = 2 at x = 1/3 from y
    = 0 to 2/3, and at x = 2/3 from y = 1/3 to 1. A move is straight from the position to where it would end,
    and stops where it first meets a wall: the intersection of two segments, exact, without sub-steps. A point
    at the wall's own x is on its right, and a move from the left stops 1e-9 in front of it, so that rounding
    puts no point on the wrong side. Walls are not observed: they are always the same.

    ## Rewards
    -0.05 a step, and +1 for arriving: in [-0.05, 0.95].

    ## Episode End
    Terminates within ``radius`` of the goal after a step; truncated after ``horizon`` steps.

    ## Arguments
    - ``k`` (20): actuators, in [7, 62]. There are 2^k actions, from 128.
    - ``step_size`` (0.2): the furthest move, ``radius`` (0.05): of the goal, ``noise`` (0.1): in [0, 0.28].
    - ``horizon`` (150): steps in an episode. ``walls`` (0): 0, 1 or 2; with walls ``radius`` is at most
      0.15.

    ## Optimum
    Not known exactly. ``optimal_value`` is an upper bound, in general 1 - 0.05 ``steps_bound``, and
    ``optimal_action`` a policy near the best: an agent is to be compared with its mean number of steps. Over
    200,000 episodes (uniform ids: 20,000; standard errors of the oracle's steps 0.003):

    | k  | oracle: steps | return | steps_bound | uniform ids: return | arrive within 150 steps |
    |----|---------------|--------|-------------|---------------------|-------------------------|
    | 10 | 3.03          | 0.848  | 2.49        | -5.53               | 37 %                    |
    | 20 | 2.90          | 0.855  | 2.49        | -6.04               | 27 %                    |
    | 30 | 2.88          | 0.856  | 2.49        | -6.30               | 22 %                    |

    With any move of at most ``step_size`` allowed, instead of 2^k, value iteration gives 2.87 steps: the
    oracle at k = 20 is about 1 % above the best that actuators could do.

    With walls the bound takes the length of the shortest way around them, in closed form: it is straight
    between the ends of the walls. For k = 20, over as many episodes (standard errors of the oracle's steps
    0.004 and 0.005), all of which the oracle ends at the goal, within 13 steps:

    | walls | oracle: steps | return | steps_bound | uniform ids: return | arrive within 150 steps |
    |-------|---------------|--------|-------------|---------------------|-------------------------|
    | 1     | 3.48          | 0.826  | 2.89        | -6.18               | 24 %                    |
    | 2     | 4.18          | 0.791  | 3.33        | -6.29               | 22 %                    |

    ## Version History
    - v0: initial version.
    """

    k: int = 20
    step_size: float = 0.2
    radius: float = 0.05
    noise: float = 0.1
    horizon: int = 150
    walls: int = 0

    structure = "combinatorial"

    def __post_init__(self) -> None:
        require_integer("k", self.k, 7, 62)  # fewer move on so coarse a lattice that they miss the goal
        require_integer("horizon", self.horizon, 1, 2**20)
        require_number("step_size", self.step_size, 0, 1)
        require_number("radius", self.radius, 0, 1)
        require_number("noise", self.noise, 0, 1)
        require(0 < self.step_size <= 1, f"step_size must be in (0, 1], got {self.step_size!r}")
        require(0 < self.radius < 1, f"radius must be in (0, 1), got {self.radius!r}")
        require(
            0 <= self.noise <= 0.28,
            f"noise must be in [0, 0.28], so that no step goes back, got {self.noise!r}",
        )
        require_integer("walls", self.walls, 0, len(LAYOUTS) - 1)
        require(
            self.walls == 0 or self.radius <= MOST_RADIUS,
            f"radius must be at most {MOST_RADIUS} with walls: goals keep clear of them, got {self.radius!r}",
        )

    # The world

    @property
    def n(self) -> int:
        return 2**self.k

    @property
    def sizes(self) -> tuple[int, ...]:
        return (2,) * self.k

    @property
    def reward_range(self) -> tuple[float, float]:
        return -STEP_COST, 1.0 - STEP_COST

    @property
    def low(self) -> np.ndarray:
        return np.array([-1, -1, -2, -2], dtype=np.float32)

    @property
    def high(self) -> np.ndarray:
        return -self.low

    def reset(self, key: Any) -> State:
        h = stream(key)
        x, y, goal_x, goal_y = (unit(draw(h, i)) for i in range(4))
        if self.walls:  # no goal closer than its radius to the line of a wall: so none reaches through one
            goal_x = goal_x * (1.0 - 2 * self.radius * self.walls)
            for wall in self.segments:
                past = goal_x >= wall.x - self.radius
                goal_x = namespace(goal_x).where(past, goal_x + 2 * self.radius, goal_x)
        return {"key": key, "t": key * 0, "x": x, "y": y, "goal_x": goal_x, "goal_y": goal_y}

    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        xp = namespace(state["t"])
        dx, dy = self.displacement(action)
        h = stream(state["key"])
        a, b = draw(h, 4 + 2 * state["t"]), draw(h, 5 + 2 * state["t"])
        total = (a & 0xFFFF) + (a >> 16) + (b & 0xFFFF) + (b >> 16)  # of four uniform numbers of 16 bits
        z = xp.astype(total - 2 * 0xFFFF, xp.float64) * (math.sqrt(3) / 2**16)
        scale = z * self.noise + 1.0
        zero = state["x"] * 0.0
        x, y = _clip(state["x"] + dx * scale, state["y"] + dy * scale)
        if self.walls:
            x, y = stop(self.segments, state["x"], state["y"], x, y)
        across, up = state["goal_x"] - x, state["goal_y"] - y
        arrived = across * across + up * up <= self.radius**2
        reward = xp.where(arrived, zero + (1.0 - STEP_COST), zero - STEP_COST)
        return {**state, "t": state["t"] + 1, "x": x, "y": y}, reward, arrived

    def observe(self, state: State) -> Any:
        xp = namespace(state["x"])
        x, y = state["x"], state["y"]
        columns = [2.0 * x - 1.0, 2.0 * y - 1.0, 2.0 * (state["goal_x"] - x), 2.0 * (state["goal_y"] - y)]
        return xp.astype(xp.stack(columns, axis=-1), xp.float32)

    @property
    def segments(self) -> tuple[Wall, ...]:
        """The walls."""
        return LAYOUTS[self.walls]

    def displacement(self, ids: Any) -> tuple[Any, Any]:
        """How the actions ``ids`` move the point without noise: dx, dy, float64 of the shape of ``ids``."""
        dx = dy = 0.0
        moves = table(_moves, self.k, self.step_size, like=ids)  # (2, chunks, 2^CHUNK)
        for i in range(moves.shape[1]):
            part = (ids >> (CHUNK * i)) & (2**CHUNK - 1)
            dx, dy = dx + entry(moves[0, i], part), dy + entry(moves[1, i], part)
        return dx, dy

    # The optimum

    def distance(self, state: State) -> Any:
        """Length of the shortest way to the goal, around the walls, ``(B,)`` float64."""
        if self.walls:
            return way(self.segments, state["x"], state["y"], state["goal_x"], state["goal_y"])[0]
        across, up = state["goal_x"] - state["x"], state["goal_y"] - state["y"]
        return (across * across + up * up) ** 0.5

    def steps_bound(self, state: State) -> Any:
        """No policy that always arrives needs fewer steps on average, ``(B,)`` float64, at least 1.

        The larger of two bounds, where distance is that of the shortest way around the walls. For sure
        (`least_steps`): no step is longer than ``step_size`` (1 + 2 sqrt(3) noise). On average: a step
        shortens the distance by at most ``step_size`` in expectation, so that at least (distance - radius) /
        step_size are needed (optional stopping). Clipping to the convex room and stopping at a wall make no
        step longer. ceil((distance - radius) / step_size) is *not* a bound: a lucky step is longer than
        ``step_size``.
        """
        xp = namespace(state["x"])
        gap = self.distance(state) - self.radius
        return xp.maximum(self.least_steps(state), gap / self.step_size)

    def least_steps(self, state: State) -> Any:
        """No policy arrives in fewer steps, however lucky, ``(B,)`` float64, at least 1."""
        xp = namespace(state["x"])
        gap = self.distance(state) - self.radius
        furthest = self.step_size * (1 + 2 * math.sqrt(3) * self.noise)
        return xp.maximum(xp.ceil(gap / furthest), gap * 0.0 + 1.0)

    def optimal_value(self, state: State) -> Any:
        """An upper bound of the expected return to come, ``(B,)`` float64.

        If fewer steps are left than `least_steps`, they will all be paid, and it is exact: -0.05 each.
        Otherwise it is 1 - 0.05 ``steps_bound``, or with `least_steps` instead if ``step_size`` is at most
        0.05 times the longest gap there is. That is: let p be the probability of arriving, sigma the steps
        that are taken, and g = distance - radius, which is at most G. Optional stopping gives E[sigma] >=
        (g - (1 - p) G) / step_size, so that p - 0.05 E[sigma] is at most a linear function of p, which is
        1 - 0.05 g / step_size at p = 1 and grows up to there if step_size >= 0.05 G.
        """
        xp = namespace(state["x"])
        left = xp.astype(state["t"] * -1 + self.horizon, xp.float64)
        least = self.least_steps(state)
        longest = longest_way(self.segments) - self.radius
        steps = self.steps_bound(state) if self.step_size >= STEP_COST * longest else least
        return xp.where(least > left, left * -STEP_COST, 1.0 - STEP_COST * steps)

    def optimal_action(self, state: State) -> Any:
        """A subset that moves straight at the goal, no further than into its middle, ``(B,)`` integers; with
        walls one that leaves a short way.

        From afar it is every actuator with a part towards the goal, the longest move there is. Near the goal
        one actuator after another is switched, each time the one that brings the move closest to the distance
        left.

        With walls it is the best of this subset, aimed at the goal or beyond the next end of a wall, and of
        all that are some actuators side by side: the one that leaves the shortest way, without running into a
        wall.
        """
        if isinstance(state["t"], int):
            return self.optimal_action({name: np.array([value]) for name, value in state.items()}).item()
        x, y, goal_x, goal_y = state["x"], state["y"], state["goal_x"], state["goal_y"]
        if not self.walls:
            return self._towards(goal_x - x, goal_y - y)
        xp = namespace(x)
        _, aim_x, aim_y = way(self.segments, x, y, goal_x, goal_y)
        ids = self._towards(aim_x - x, aim_y - y)  # (B,)
        least = self._left_after(state, *self.displacement(ids))
        wide = {name: value[:, None] for name, value in state.items()}  # (B, 1)
        arcs = table(_arcs, self.k, like=ids)  # (lengths, k)
        for i in range(arcs.shape[0]):
            left = self._left_after(wide, *self.displacement(arcs[i]))  # (B, k)
            shorter = xp.min(left, axis=-1) < least
            least = xp.where(shorter, xp.min(left, axis=-1), least)
            ids = xp.where(shorter, xp.take(arcs[i], xp.argmin(left, axis=-1)), ids)
        return ids

    def _left_after(self, state: State, dx: Any, dy: Any) -> Any:
        """Length of the shortest way to the goal that is left after a move without noise; 1 more where noise
        could drive the move into a wall, or where it is no move, unless it arrives.

        For at the foot of a wall's end no longer move would bring the point nearer, and it would stay.
        """
        xp = namespace(state["x"])
        x, y = _clip(state["x"] + dx, state["y"] + dy)
        x, y = stop(self.segments, state["x"], state["y"], x, y)
        left = way(self.segments, x, y, state["goal_x"], state["goal_y"])[0]
        furthest = 1 + 2 * math.sqrt(3) * self.noise
        far_x, far_y = _clip(state["x"] + dx * furthest, state["y"] + dy * furthest)
        stopped = stop(self.segments, state["x"], state["y"], far_x, far_y)[0] != far_x
        useless = stopped | (dx * dx + dy * dy < 1e-12)
        return xp.where(useless & (left > self.radius), left + 1.0, left)

    def _towards(self, across: Any, up: Any) -> Any:
        """The subsets that move by (across, up), or as far as one step goes in that direction, ``(B,)``."""
        # Elementwise, without a matrix product: then no rounding depends on the backend or the batch.
        xp = namespace(across)
        vectors = table(_vectors, self.k, self.step_size, like=across)  # (k, 2)
        places = table(np.arange, self.k, like=across)  # (k,)
        towards = across[:, None] * vectors[:, 0] + up[:, None] * vectors[:, 1] > 0.0  # (B, k)
        ids = (xp.astype(towards, xp.int64) << places).sum(-1)  # (B,)
        near = across * across + up * up < self.step_size**2
        for _ in range(2 * self.k if not may_look(near) or xp.any(near) else 0):
            dx, dy = self.displacement(ids)
            rest_x, rest_y = across - dx, up - dy
            turn = 2 * ((ids[:, None] >> places) & 1) - 1  # (B, k): switching takes a vector away or adds it
            after = (rest_x[:, None] + turn * vectors[:, 0]) ** 2 + (
                rest_y[:, None] + turn * vectors[:, 1]
            ) ** 2
            better = near & (xp.min(after, axis=-1) < rest_x**2 + rest_y**2)
            ids = xp.where(better, ids ^ (ids * 0 + 1 << xp.argmin(after, axis=-1)), ids)
        return ids

    def good_fraction(self, eps: float) -> float:
        """Fraction of the ids that move by at least (1 - ``eps``) ``step_size``; for k > 20 of 2^20 that are
        sampled, so that less than a millionth is 0."""
        ids = random_ids(self.n, 2**20) if self.k > 20 else np.arange(self.n)
        dx, dy = self.displacement(ids)
        return float(np.mean(np.hypot(dx, dy) >= (1 - eps) * self.step_size - 1e-12))

    def action_features(self, ids: Any) -> Any:
        """The k bits, least significant first, ``(*ids.shape, k)`` float32."""
        xp = namespace(ids)
        return xp.astype(xp.stack([(ids >> i) & 1 for i in range(self.k)], axis=-1), xp.float32)

    # Pictures

    def describe(self, state: State, last: tuple[State, int, float] | None) -> list[str]:
        lines = [
            f"ActuatorMaze, 2^{self.k} actions, step {state['t']} of {self.horizon}",
            f"at ({state['x']:.2f}, {state['y']:.2f}), goal ({state['goal_x']:.2f}, {state['goal_y']:.2f})",
        ]
        if last is not None:
            _, action, reward = last
            dx, dy = self.displacement(action)
            lines.append(f"action {action}: {action.bit_count()} on, ({dx:+.2f}, {dy:+.2f})")
            lines.append(f"reward {reward:.2f}")
        return lines

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        """The room, with its walls in black; the red point is the agent, the green disc the goal. Blue is the
        last move, and the grey rays are the actuators that were on."""
        for x0, y0, x1, y1 in [(0, 0, 1, 0), (1, 0, 1, 1), (1, 1, 0, 1), (0, 1, 0, 0)]:
            canvas.line(x0, y0, x1, y1, "grey")
        for wall in self.segments:
            canvas.line(wall.x, 0.0 if wall.stands else 1.0, wall.x, wall.tip, "black", width=5)
        canvas.disc(state["goal_x"], state["goal_y"], self.radius, "green")
        if last is not None:
            canvas.line(last[0]["x"], last[0]["y"], state["x"], state["y"], "blue")
            for i, (dx, dy) in enumerate(_vectors(self.k, 0.5)):  # a dial of the actuators that were on
                if last[1] >> i & 1:
                    canvas.line(state["x"], state["y"], state["x"] + dx, state["y"] + dy, "grey", width=1)
        canvas.disc(state["x"], state["y"], 0.015, "red")


def _clip(x: Any, y: Any) -> tuple[Any, Any]:
    """The nearest point of the room."""
    xp = namespace(x)
    zero = x * 0.0
    return xp.minimum(xp.maximum(x, zero), zero + 1.0), xp.minimum(xp.maximum(y, zero), zero + 1.0)


@lru_cache(maxsize=64)
def _vectors(k: int, step: float) -> np.ndarray:
    """What each actuator alone adds to a move, ``(k, 2)`` float64."""
    # The longest sum of a subset: half of the directions for even k, one more or less for odd k.
    longest = 1 / math.sin(math.pi / k) if k % 2 == 0 else 1 / (2 * math.sin(math.pi / (2 * k)))
    angles = 2 * math.pi * np.arange(k) / k
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1) * (step / longest)


def _moves(k: int, step: float) -> np.ndarray:
    """For every ten bits of an action the moves of their 1024 subsets, ``(2, chunks, 1024)``: no table of
    2^k."""
    vectors = np.zeros((-(-k // CHUNK) * CHUNK, 2))
    vectors[:k] = _vectors(k, step)
    bits = np.arange(2**CHUNK)[:, None] >> np.arange(CHUNK) & 1  # (1024, CHUNK)
    return (bits @ vectors.reshape(-1, CHUNK, 2)).transpose(2, 0, 1).copy()


def _arcs(k: int) -> np.ndarray:
    """The subsets of actuators side by side, ``(half of k, k)`` int64: [i, j] has i + 1, from the j-th on."""
    lengths = range(1, (k + 1) // 2 + 1)
    return np.array([[sum(1 << (j + i) % k for i in range(length)) for j in range(k)] for length in lengths])
