"""ScatterChain: n actions without any structure, and the exact optimum of every one of them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .arrays import lookup, namespace, one_hot
from .feistel import Permutation
from .hashing import below, draw, stream, unit, word
from .world import State, World, require, require_integer, require_number

TRAP_REWARD = 0.6
TRAP, ADVANCE, STAY = 0, 1, 2
CLASS_NAMES = ("trap", "advance", "stay")


@dataclass(frozen=True)
class ScatterChain(World):
    """A chain of levels in which a secret permutation says what each of n actions is worth.

    ## Description
    The agent climbs a chain of ``levels`` levels. At each level, and in each context, a keyed bijection of {0
    .. n-1} gives every action id its *rank*, and the rank alone decides what the action does. Neighbouring
    ids have unrelated ranks, so nothing generalises from one action to another: an agent can only remember
    which ids were good. **Structure of the action space: none.** The bijection is computed, never stored: n
    may be anything from 2 to 2^62 in constant memory.

    ## Action Space
    ``Discrete(n)``. Ranks fall in three classes, ``traps`` and ``advance`` being fractions of n:

    | rank r       | class   | reward below the top          | at the top | next level         |
    |--------------|---------|-------------------------------|------------|--------------------|
    | 0 <= r < kt  | trap    | 0.6                           | 0.6        | 0                  |
    | kt <= r < ka | advance | 0                             | 0          | one up, or the top |
    | ka <= r < n  | stay    | 0.5 (level + 1) / levels g(r) | g(r - ka)  | the same           |

    with kt = round(traps n), ka = kt + max(1, round(advance n)) and g(r) = (1 - r / (n - 1))^kappa. Level
    counts from 0. At the top one action pays 1 (rank ka), and ``kappa`` says how rare the good ones are:
    about eps / kappa of all actions pay more than 1 - eps, and the best of m random ones pays m / (m + kappa)
    on average.

    ## Observation Space
    ``Box(0, 1, (levels,))``, or ``(levels + contexts,)`` if there are several contexts: one-hot level,
    one-hot context. The time is not observed.

    ## Starting State
    Level 0; the context is drawn uniformly and kept for the episode.

    ## Rewards
    In [0, 1], as in the table.

    ## Episode End
    Never terminates; truncated after ``horizon`` steps.

    ## Arguments
    - ``n`` (1_000_000): number of actions, in [2, 2^62].
    - ``kappa`` (1.0): > 0, how steeply the reward falls with the rank. ``kappa=n`` is a needle in a haystack.
    - ``traps`` (0.01), ``advance`` (0.10): fractions of the actions in these classes.
    - ``levels`` (5): >= 2. ``contexts`` (1): >= 1, each with permutations of its own.
    - ``slip`` (0.0): probability that the next level is drawn uniformly instead.
    - ``horizon`` (50): steps in an episode. ``layout`` (0): which permutations, in [0, 2^62).

    ## Optimum
    Exact for every n, from a dynamic programme over levels and classes: ``optimal_value``,
    ``optimal_action``, ``q_star``, ``optimal_return`` and ``random_return``. With the default arguments the
    optimum climbs four levels and stays at the top, 46 in 50 steps; looping over traps would bring 30.

    ## Version History
    - v0: initial version.
    """

    n: int = 1_000_000
    kappa: float = 1.0
    traps: float = 0.01
    advance: float = 0.10
    levels: int = 5
    contexts: int = 1
    slip: float = 0.0
    horizon: int = 50
    layout: int = 0

    structure = "unstructured"

    def __post_init__(self) -> None:
        require_integer("n", self.n, 2, 2**62)
        require_integer("levels", self.levels, 2, 2**20)
        require_integer("contexts", self.contexts, 1, 2**20)
        require_integer("horizon", self.horizon, 1, 2**20)
        require_integer("layout", self.layout, 0, 2**62 - 1)
        require_number("kappa", self.kappa, 0, 1e19)
        require(self.kappa > 0, f"kappa must be positive, got {self.kappa!r}")
        require_number("slip", self.slip, 0, 1)
        require_number("traps", self.traps, 0, 1)
        require_number("advance", self.advance, 0, 1)
        require(
            self.traps >= 0 and self.advance > 0 and self.bounds[1] < self.n,
            "traps and advance are fractions whose actions must leave some to stay: traps >= 0, advance > 0, "
            f"together below 1, got traps={self.traps!r} and advance={self.advance!r} at n={self.n}",
        )

    # The world

    @property
    def reward_range(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def bounds(self) -> tuple[int, int]:
        """(kt, ka): the first rank that is no trap, the first that stays."""
        kt = round(self.traps * self.n)
        return kt, kt + max(1, round(self.advance * self.n))

    @property
    def low(self) -> np.ndarray:
        return np.zeros(self.levels + (self.contexts if self.contexts > 1 else 0), dtype=np.float32)

    @property
    def high(self) -> np.ndarray:
        return self.low + np.float32(1)

    def reset(self, key: Any) -> State:
        return {
            "key": key,
            "t": key * 0,
            "level": key * 0,
            "context": below(word(key, 0), self.contexts),
        }

    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        reward, level = self._move(state, action)
        t = state["t"] + 1
        if self.slip > 0:
            xp = namespace(t)
            h = stream(state["key"])
            slipped = unit(draw(h, 2 * t)) < self.slip
            level = xp.where(slipped, below(draw(h, 2 * t + 1), self.levels), level)
        return {**state, "t": t, "level": level}, reward, t < 0

    def observe(self, state: State) -> Any:
        if self.contexts == 1:
            return one_hot(state["level"], self.levels)
        # one row of two ones: shift the context past the levels
        size = self.levels + self.contexts
        return one_hot(state["level"], size) + one_hot(state["context"] + self.levels, size)

    def rank(self, state: State, action: Any) -> Any:
        """Ranks of ``action`` at the levels and contexts of ``state``, integers in [0, n), ``(B,)``."""
        return Permutation(self.n).forward(action, self._permutation_key(state))

    def action_of_rank(self, state: State, rank: Any) -> Any:
        """The ids that have ``rank`` at the levels and contexts of ``state``. Integers, ``(B,)``."""
        return Permutation(self.n).inverse(rank, self._permutation_key(state))

    def _permutation_key(self, state: State) -> Any:
        return word(self.layout, state["context"] * self.levels + state["level"])

    def _move(self, state: State, action: Any) -> tuple[Any, Any]:
        """Reward, and the next level if nothing slips."""
        level, rank = state["level"], self.rank(state, action)
        xp = namespace(rank)
        kt, ka = self.bounds
        top = level == self.levels - 1
        trap, stay = rank < kt, rank >= ka
        place = xp.astype(xp.maximum(rank - ka * top, rank * 0), xp.float64)  # r - ka at the top, r below it
        share = xp.astype(level + 1, xp.float64) * (0.5 / self.levels)
        pay = xp.where(top, share * 0.0 + 1.0, share) * xp.pow(
            1.0 - place / float(self.n - 1), float(self.kappa)
        )
        reward = xp.where(trap, TRAP_REWARD, xp.where(stay, pay, pay * 0.0))
        climbed = level + ((rank >= kt) & (rank < ka) & (level < self.levels - 1))
        return reward, xp.where(trap, level * 0, climbed)

    # The optimum, by dynamic programming over (steps to go, level) and the best action of each class

    def optimal_values(self, gamma: float = 1.0) -> np.ndarray:
        """V[k, l]: the most that k further steps from level l can bring, ``(horizon + 1, levels)``."""
        return _optimal_tables(self, gamma)[0]

    def random_values(self, gamma: float = 1.0) -> np.ndarray:
        """V[k, l]: what k uniformly random steps from level l bring on average, ``(horizon + 1, levels)``."""
        return _random_table(self, gamma)

    def stationary_values(self, gamma: float) -> np.ndarray:
        """Optimal values without a horizon, discounted by ``gamma`` < 1, ``(levels,)`` float64."""
        require(0 <= gamma < 1, f"gamma must be in [0, 1) without a horizon, got {gamma!r}")
        v, change = np.zeros(self.levels), 1.0
        while change > 1e-13:
            new = self._class_values(v, gamma).max(axis=0)
            v, change = new, float(np.abs(new - v).max())
        return v

    @property
    def exact(self) -> bool:
        return True

    def optimal_value(self, state: State, gamma: float = 1.0) -> Any:
        """Exact optimal value of ``state`` for the steps that are left, ``(B,)`` float64."""
        return lookup(self.optimal_values(gamma), self.horizon - state["t"], state["level"])

    def optimal_action(self, state: State, gamma: float = 1.0) -> Any:
        """The best action for the steps that are left, at O(1) cost whatever n, ``(B,)`` integers."""
        ranks = np.array([0, *self.bounds])[
            _optimal_tables(self, gamma)[1]
        ]  # the best rank of the best class
        return self.action_of_rank(state, lookup(ranks, self.horizon - state["t"], state["level"]))

    def q_star(self, state: State, action: Any, gamma: float = 1.0) -> Any:
        """Exact value of taking ``action`` in ``state`` and acting optimally after, ``(B,)`` float64."""
        reward, level = self._move(state, action)
        v = self.optimal_values(gamma)
        v = (1 - self.slip) * v + self.slip * v.mean(
            axis=1, keepdims=True
        )  # what is left after a slip or none
        later = lookup(v, namespace(level).maximum(self.horizon - state["t"] - 1, level * 0), level)
        return self.if_left(state, reward + gamma * later)

    def optimal_return(self) -> float:
        """Exact expected return of an optimal policy that knows the time."""
        return float(self.optimal_values()[-1, 0])

    def random_return(self) -> float:
        """Exact expected return of uniformly random actions."""
        return float(self.random_values()[-1, 0])

    def random_value(self, state: State | None = None) -> Any:
        """Exact expected sum of rewards to come of uniformly random actions: ``(B,)`` float64 from
        ``state``, a float from the start of an episode."""
        if state is None:
            return self.random_return()
        return lookup(self.random_values(), self.horizon - state["t"], state["level"])

    def best_of(self, m: int) -> float:
        """Expected reward at the top of the best of ``m`` distinct uniform ids, those that do not stay paying
        0.

        This is where an agent without a memory must level off that knows all values but looks at m random
        actions a step. It is sum_j P(the best has place j) g(j): for kappa = 1 and no other classes 1 - (n -
        m) / ((m + 1)(n - 1)), and m / (m + kappa) for large n. Summed exactly up to some millions of terms,
        from there on as an integral, relative error O((m + kappa) / n).
        """
        require_integer("m", m, 1, self.n)
        staying = self.n - self.bounds[1]
        terms = min(
            staying, int(40 * self.n / (m + self.kappa)) + 1
        )  # beyond these both factors have vanished
        if terms > 4_000_000:
            return m / (m + self.kappa) * (1 - (1 - staying / self.n) ** (m + self.kappa))
        j = np.arange(terms, dtype=np.float64)
        # P(all m miss the j best) = prod_{i<j} (1 - m / (n - i)); clipped: there it is 0 anyway
        miss = np.cumprod(np.clip(1 - m / (self.n - j), 0, 1))
        first = np.concatenate([[1.0], miss[:-1]]) * np.minimum(m / (self.n - j), 1)
        return float(first @ (1 - j / (self.n - 1)) ** self.kappa)

    def good_fraction(self, eps: float) -> float:
        """Fraction of the ids that pay at least 1 - ``eps`` at the top: about eps / kappa."""
        share = -np.expm1(np.log1p(-eps) / self.kappa) if eps < 1 else 1.0
        return min(int(share * (self.n - 1)) + 1, self.n - self.bounds[1]) / self.n

    def action_features(self, ids: Any) -> Any:
        """Sixteen hashed numbers in [-1, 1) that tell ids apart, no more, ``(*ids.shape, 16)`` float32."""
        xp = namespace(ids)
        columns = [unit(word(ids, i)) * 2.0 - 1.0 for i in range(16)]
        return xp.astype(xp.stack(columns, axis=-1), xp.float32)

    def _class_values(self, v: np.ndarray, gamma: float) -> np.ndarray:
        """Value of the best action of each class at each level, given those of the next, ``(3, levels)``."""
        kt, ka = self.bounds
        v_next = gamma * ((1 - self.slip) * v + self.slip * v.mean())
        q = np.empty((3, self.levels))
        q[TRAP] = TRAP_REWARD + v_next[0] if kt > 0 else -np.inf
        q[ADVANCE] = v_next[[*range(1, self.levels), self.levels - 1]]
        q[STAY] = (
            v_next + 0.5 * np.arange(1, self.levels + 1) / self.levels * (1 - ka / (self.n - 1)) ** self.kappa
        )
        q[STAY, -1] = v_next[-1] + 1.0
        return q

    def _sum_g(self, start: int, stop: int) -> float:
        """Sum of g(r) over start <= r < stop: a million terms one by one, then the smooth rest at once."""
        front = min(stop - start, 1 << 20)
        top = float(self.n - 1)
        total = float(((1 - (start + np.arange(front)) / top) ** self.kappa).sum())
        if start + front == stop:
            return total
        # The rest is the sum of f(x) = (x / top)^kappa over x = low .. high, by the trapezoid rule.
        low, high = float(self.n - stop), float(self.n - 1 - start - front)
        f_low, f_high = (low / top) ** self.kappa, (high / top) ** self.kappa
        return total + (f_high * high - f_low * low) / (self.kappa + 1) + (f_low + f_high) / 2

    # Pictures

    def describe(self, state: State, last: tuple[State, int, float] | None) -> list[str]:
        lines = [
            f"ScatterChain, {self.n} actions",
            f"level {state['level'] + 1} of {self.levels}, step {state['t']} of {self.horizon}"
            + (f", context {state['context']}" if self.contexts > 1 else ""),
        ]
        if last is not None:
            before, action, reward = last
            rank = self.rank(before, action)
            kind = CLASS_NAMES[(rank >= self.bounds[0]) + (rank >= self.bounds[1])]
            lines.append(f"action {action}: rank {rank}, {kind}")
            lines.append(f"reward {reward:.3f}")
        return lines

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        """A column for each level, higher from left to right; the blue one, with the red disc, is where the
        chain is."""
        width = 1.0 / self.levels
        for level in range(self.levels):
            x, height = level * width, 0.15 + 0.6 * (level + 1) / self.levels
            here = level == state["level"]
            canvas.box(x + 0.1 * width, 0.0, x + 0.9 * width, height, "blue" if here else "light")
            if here:
                canvas.disc(x + 0.5 * width, height + 0.3 * min(width, 0.2), 0.25 * min(width, 0.2), "red")


@lru_cache(maxsize=64)
def _optimal_tables(world: ScatterChain, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Values and best classes for 0 .. horizon steps to go, both ``(horizon + 1, levels)``."""
    values = np.zeros((world.horizon + 1, world.levels))
    classes = np.full((world.horizon + 1, world.levels), STAY)
    for k in range(1, world.horizon + 1):
        q = world._class_values(values[k - 1], gamma)
        values[k], classes[k] = q.max(axis=0), q.argmax(axis=0)
    return values, classes


@lru_cache(maxsize=64)
def _random_table(world: ScatterChain, gamma: float) -> np.ndarray:
    """Values of uniformly random actions for 0 .. horizon steps to go, ``(horizon + 1, levels)``."""
    kt, ka = world.bounds
    n, levels = world.n, world.levels
    pay = kt / n * TRAP_REWARD + 0.5 * np.arange(1, levels + 1) / levels * world._sum_g(ka, n) / n
    pay[-1] = kt / n * TRAP_REWARD + world._sum_g(0, n - ka) / n
    up = [*range(1, levels), levels - 1]
    values = np.zeros((world.horizon + 1, levels))
    for k in range(1, world.horizon + 1):
        v = (1 - world.slip) * values[k - 1] + world.slip * values[k - 1].mean()
        values[k] = pay + gamma * (kt * v[0] + (ka - kt) * v[up] + (n - ka) * v) / n
    return values
