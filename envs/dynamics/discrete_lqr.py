"""DiscreteLQR: a linear system with quadratic costs whose inputs come from a grid of bins^dims points."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .arrays import lookup, namespace
from .digits import join, split
from .hashing import bell, draw, stream, unit
from .linear_quadratic import EFFORT, REACH, extent, riccati, system
from .world import State, World, require, require_integer, require_number

SWEEPS = 2  # over the inputs, in the search of the oracle


@dataclass(frozen=True)
class DiscreteLQR(World):
    """Linear dynamics, quadratic costs, and inputs on a grid: the linear-quadratic regulator, discretised.

    ## Description
    The state x of ``states`` numbers is to be brought to 0 by ``dims`` inputs u. Left alone, pairs of its
    components turn around 0 and decay by 5 % a step. Each of the inputs takes one of ``bins`` values, and
    together they make bins^dims actions. Near inputs do nearly the same. **Structure of the action space:
    metric.** The inputs overlap: the best value of one depends on the others, and each of them moves every
    component of the state.

    ## Action Space
    ``Discrete(bins^dims)``: digit i of the id to the base ``bins``, the least significant first, is input i
    on an even grid from -2 to 2, both included. ``bins`` is odd, so that 0 is among them.

    ## Observation Space
    ``Box((states,))``: x itself. The bounds are the furthest that each component can get, whatever the
    actions: 10.1 and 10.3 with the default arguments, where uniform ids get to a standard deviation of 0.7.

    ## Starting State
    x uniform in [-1, 1]^states.

    ## Transition
    x <- A x + B u + ``noise`` z. A is 0.95 times a rotation of each pair of components, by an angle of its
    own in [0.3, 1.2]; for odd ``states`` the last one only decays. The columns of B have length 0.2 and, if
    there are no more inputs than states, cosines of 1/2 between any two of them; directions and angles depend
    on ``layout``. z are independent, bounded by 2 sqrt(3), of mean 0 and variance 1, and close to normal.

    ## Rewards
    -(|x|^2 + 0.3 |u|^2) / ``states``, with the x that the step leads to; never clipped, for then the bound
    below would be none. ``reward_range`` bounds what any actions can bring, [-105.5, 0] with the default
    arguments. A resonance gets to about half of that; uniform ids are paid -0.9 a step.

    ## Episode End
    Never terminates; truncated after ``horizon`` steps.

    ## Arguments
    - ``dims`` (2): inputs, in [1, 16]. ``bins`` (1001): values of each, odd. bins^dims is at most 2^62, and
      bins at most 2^53, so that no two of them are the same float64.
    - ``states`` (2): components of the state, in [1, 16]. ``noise`` (0.0): in [0, 1].
    - ``horizon`` (20): steps in an episode. ``layout`` (0): which A and B, in [0, 2^62).

    ## Optimum
    Bounded from both sides. ``optimal_value`` is the value of the same problem with any real inputs, from the
    Riccati recursion for the steps to go: quadratic in x, and an upper bound, which only the grid and the
    ends of the inputs keep from being exact. ``return_bound`` is its average over the starts.
    ``optimal_action`` is the id whose next state this value ranks best, sought one input after another from
    the grid point nearest to the best real inputs. The optimum is between the two. Over 100,000 episodes
    (standard errors of the oracle 0.002 or less; the gap is from these episodes, the bound exact):

    | arguments                 | n             | return_bound | oracle | gap      | uniform ids | u = 0 |
    |---------------------------|---------------|--------------|--------|----------|-------------|-------|
    | bins=5                    | 25            | -0.636       | -0.963 | 52 %     | -24.48      | -2.69 |
    | bins=11                   | 121           | -0.636       | -0.697 | 9.9 %    | -20.12      | -2.69 |
    | bins=101                  | 10,201        | -0.636       | -0.635 | 0.14 %   | -17.51      | -2.69 |
    | bins=1001                 | 1,002,001     | -0.636       | -0.635 | 0.0016 % | -17.25      | -2.69 |
    | dims=1, bins=1_000_001    | 1,000,001     | -0.911       | -0.909 | < 1e-6   | -9.95       | -2.69 |
    | dims=3, states=3          | 1,003,003,001 | -0.690       | -0.689 | 0.0015 % | -17.25      | -2.69 |
    | dims=6, states=6, bins=11 | 1,771,561     | -0.739       | -0.797 | 7.9 %    | -20.12      | -2.69 |
    | states=4                  | 1,002,001     | -1.067       | -1.066 | 0.027 %  | -9.97       | -2.68 |

    So the bound is as good as exact on fine grids, and loose on coarse ones, six inputs of 11 values among
    them. With more states than inputs the best real inputs leave [-2, 2] at some starts (4 % for states=4),
    which the grid cannot follow.
    ``random_return`` is exact.

    ## Version History
    - v0: initial version.
    """

    dims: int = 2
    bins: int = 1001
    states: int = 2
    noise: float = 0.0
    horizon: int = 20
    layout: int = 0

    structure = "metric"

    def __post_init__(self) -> None:
        require_integer("dims", self.dims, 1, 16)
        require_integer("bins", self.bins, 3, 2**53)
        require(
            self.bins % 2 == 1,
            f"bins must be odd, so that an input can be 0: {self.bins - 1} or {self.bins + 1} "
            f"instead of {self.bins}",
        )
        if self.bins**self.dims > 2**62:
            most = round(2 ** (62 / self.dims)) + 2  # more than fit
            while most**self.dims > 2**62 or most % 2 == 0:
                most -= 1
            require(False, f"bins^dims must be at most 2^62: bins at most {most} for dims={self.dims}")
        require_integer("states", self.states, 1, 16)
        require_number("noise", self.noise, 0, 1)
        require_integer("horizon", self.horizon, 1, 10_000)
        require_integer("layout", self.layout, 0, 2**62 - 1)

    # The world

    @property
    def n(self) -> int:
        return self.bins**self.dims

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.bins,) * self.dims

    @property
    def reward_range(self) -> tuple[float, float]:
        worst = float((self.high.astype(np.float64) ** 2).sum()) + EFFORT * REACH**2 * self.dims
        return -worst / self.states, 0.0

    @property
    def low(self) -> np.ndarray:
        return -self.high

    @property
    def high(self) -> np.ndarray:
        furthest = extent(self.dims, self.states, self.layout, self.noise).astype(np.float32)
        return np.nextafter(furthest, np.float32(np.inf))

    @cached_property
    def names(self) -> list[str]:
        """Names of the components of x in a state: x0, x1, ..."""
        return [f"x{i}" for i in range(self.states)]

    @cached_property
    def rows(self) -> list[tuple[list[int], list[float]]]:
        """For each component of the state: which ones it comes from, then its weights for them and for the
        inputs. Python floats, so that a step is nothing but products and sums."""
        a, b = system(self.dims, self.states, self.layout)
        near = [[i, i ^ 1] if i ^ 1 < self.states else [i] for i in range(self.states)]
        return [(js, [*(float(a[i, j]) for j in js), *b[i].tolist()]) for i, js in enumerate(near)]

    def reset(self, key: Any) -> State:
        h = stream(key)
        x = {name: unit(draw(h, i)) * 2.0 - 1.0 for i, name in enumerate(self.names)}
        return {"key": key, "t": key * 0, **x}

    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        x, u = [state[name] for name in self.names], self.inputs(action)
        x = [_dot(weights, [x[j] for j in near] + u) for near, weights in self.rows]
        t = state["t"] + 1
        if self.noise > 0:
            h = stream(state["key"])
            x = [xi + bell(draw(h, t * self.states + i)) * self.noise for i, xi in enumerate(x)]
        reward = (_dot(x, x) + _dot(u, u) * EFFORT) * (-1.0 / self.states)
        return {"key": state["key"], "t": t, **dict(zip(self.names, x, strict=True))}, reward, t < 0

    def observe(self, state: State) -> Any:
        xp = namespace(state["x0"])
        return xp.astype(xp.stack([state[name] for name in self.names], axis=-1), xp.float32)

    def inputs(self, ids: Any) -> list[Any]:
        """The inputs that the actions ``ids`` stand for: ``dims`` float64 arrays of the shape of ``ids``."""
        xp = namespace(ids)
        half = self.bins // 2
        return [xp.astype(digit - half, xp.float64) * (REACH / half) for digit in split(ids, self.sizes)]

    # The optimum, from the same problem without the grid

    def optimal_value(self, state: State) -> Any:
        """What the best real inputs bring: an upper bound of the expected return to come, ``(B,)``."""
        p, _, _, rest = riccati(self.dims, self.states, self.layout, self.noise, self.horizon)
        x = [state[name] for name in self.names]
        to_go = self.horizon - state["t"]
        value = lookup(rest, to_go)
        for i in range(self.states):
            value = value + x[i] * _dot([lookup(p[:, i, j], to_go) for j in range(self.states)], x)
        return value * (-1.0 / self.states)

    def optimal_action(self, state: State) -> Any:
        """The grid point that the Riccati value of the next state ranks best, as found by a search over one
        input after another, ``(B,)`` integers."""
        if isinstance(state["t"], int):
            return self.optimal_action({name: np.array([value]) for name, value in state.items()}).item()
        xp = namespace(state["t"])
        _, gain, curvature, _ = riccati(self.dims, self.states, self.layout, self.noise, self.horizon)
        x = [state[name] for name in self.names]
        to_go = self.horizon - state["t"]
        half = self.bins // 2
        step = REACH / half
        # In steps of the grid: the real optimum, and how far each digit is from it
        real = [
            _dot([lookup(gain[:, i, j] / step, to_go) for j in range(self.states)], x)
            for i in range(self.dims)
        ]
        digits = [self._nearest(xp, one) for one in real]
        for _ in range(SWEEPS if self.dims > 1 else 0):
            for i in range(self.dims):
                # The cost of u is a quadratic form of u - real: its least value along input i
                best = real[i]
                for j in range(self.dims):
                    if j != i:
                        share = lookup(curvature[:, i, j] / curvature[:, i, i], to_go)
                        best = best - share * (digits[j] - real[j])
                digits[i] = self._nearest(xp, best)
        return join([xp.astype(digit + half, xp.int64) for digit in digits], self.sizes)

    def _nearest(self, xp: Any, place: Any) -> Any:
        """The place on the grid, counted from the middle, next to a real one. Float64."""
        half = float(self.bins // 2)
        return xp.maximum(xp.minimum(xp.floor(place + 0.5), place * 0.0 + half), place * 0.0 - half)

    def return_bound(self) -> float:
        """No policy's expected undiscounted return is higher: `optimal_value` on average over the starts."""
        p, _, _, rest = riccati(self.dims, self.states, self.layout, self.noise, self.horizon)
        return -float(np.trace(p[-1]) / 3 + rest[-1]) / self.states

    def random_return(self) -> float:
        """Exact expected undiscounted return of uniform ids: their second moments go through a linear
        system."""
        a, b = system(self.dims, self.states, self.layout)
        variance = REACH**2 / 3 * (self.bins + 1) / (self.bins - 1)  # of a uniform point of the grid
        moment, total = np.eye(self.states) / 3, 0.0
        for _ in range(self.horizon):
            moment = a @ moment @ a.T + variance * b @ b.T + self.noise**2 * np.eye(self.states)
            total -= np.trace(moment) + EFFORT * variance * self.dims
        return float(total) / self.states

    def good_fraction(self, eps: float) -> float:
        """Fraction of the ids whose inputs are all within ``eps`` of those of a point in the middle of the
        grid, ``eps`` as a share of the range of an input."""
        near = min(self.bins, 2 * math.floor(eps * (self.bins - 1) + 1e-9) + 1)
        return (near / self.bins) ** self.dims

    def action_features(self, ids: Any) -> Any:
        """The inputs, scaled to [-1, 1], ``(*ids.shape, dims)`` float32."""
        xp = namespace(ids)
        return xp.astype(xp.stack([u * (1.0 / REACH) for u in self.inputs(ids)], axis=-1), xp.float32)

    # Pictures

    def describe(self, state: State, last: tuple[State, int, float] | None) -> list[str]:
        lines = [f"DiscreteLQR, {self.bins}^{self.dims} actions, step {state['t']} of {self.horizon}"]
        if last is not None:
            inputs = " ".join(f"{u:+.2f}" for u in self.inputs(last[1]))
            lines += [f"action {last[1]}: reward {last[2]:.4f}", f"inputs {inputs}"]
        return [*lines, "at " + " ".join(f"{state[name]:+.2f}" for name in self.names)]

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        """Each pair of components of x is a red point of the plane, from -3 to 3, and the way that it came is
        blue; the square in the middle has the starts. Below are the last inputs, as bars from 0."""

        def place(components: list[float], i: int) -> tuple[float, float]:
            pair = [*components[i : i + 2], 0.0][:2]
            x, y = (min(max(0.5 + value / 6, 0.0), 1.0) for value in pair)
            return x, 0.2 + 0.8 * y

        canvas.box(1 / 3, 0.2 + 0.8 / 3, 2 / 3, 0.2 + 1.6 / 3, "light")  # where episodes start
        canvas.line(0.5, 0.2, 0.5, 1.0, "grey", width=1)
        canvas.line(0.0, 0.6, 1.0, 0.6, "grey", width=1)
        now = [state[name] for name in self.names]
        for i in range(0, self.states, 2):
            if last is not None:
                canvas.line(*place([last[0][name] for name in self.names], i), *place(now, i), "blue")
            canvas.disc(*place(now, i), 0.015, "red")
        if last is not None:
            shares = [0.5 + u / (2 * REACH) for u in self.inputs(last[1])]
            canvas.bars(shares, 0.0, 0.02, 1.0, 0.15, "blue", zero=0.5)
            canvas.line(0.0, 0.085, 1.0, 0.085, "grey", width=1)


def _dot(weights: Any, values: Any) -> Any:
    """The sum of the products, in this order, which is the same on every backend."""
    total = values[0] * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + value * weight
    return total
