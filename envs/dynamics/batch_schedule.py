"""BatchSchedule: n = J! orders of J jobs, period after period."""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from .arrays import arange, constant, namespace, table
from .hashing import below, draw, random_ids, stream, word
from .held_karp import best_orders
from .lehmer import decode, encode
from .lehmer import sizes as lehmer_sizes
from .world import State, World, require, require_integer

LARGEST = 20  # processing time, and weight
LONGEST_SETUP = 10
AHEAD, SAMPLES = 8, 256  # periods ahead that the oracle counts on, and sets of jobs behind a mean
COLOURS = ("blue", "green", "red", "grey", "orange", "teal", "purple", "yellow", "brown", "pink")
HALF = 2**16  # a word's low half gives a processing time, its high half a weight


@dataclass(frozen=True)
class BatchSchedule(World):
    """Bring J jobs into an order, period after period, heavy and short ones first.

    ## Description
    Each period brings ``jobs`` new jobs, each with a processing time and a weight. One machine does them one
    after another, in the order that the agent names, and a job costs its weight times the time at which it is
    done. Without set-ups (``families=0``) the best order is known: Smith's rule, weight / time from high to
    low (Smith, 1956, "Various optimizers for single-stage production"); and every period is a problem of its
    own. With ``families`` of jobs, the machine needs a set-up between jobs of different families, whose time
    depends on both, and it stays set up for the last job's family until the next period. **Structure of the
    action space: permutation.** Ids that differ in a late digit alone share the first jobs, and an id's
    neighbours differ in their first job.

    ## Action Space
    ``Discrete(J!)``, a Lehmer code: digit k, the least significant first, is one of J - k numbers and chooses
    the next job among those left, in the order of their numbers. The last job is what is left, so there are J
    - 1 digits.

    ## Observation Space
    ``Box(0, 1, (2 J,))``: time / 20 of each job, then weight / 20. With set-ups ``(2 J + F (J + 1),)``: after
    that, family by family, whether each job belongs to it, then one-hot the family that the machine is set up
    for. Set-up times are not observed, and are the same in all episodes.

    ## Starting State
    Jobs of the first period; with set-ups, the machine is set up for a uniformly random family.

    ## Transition
    Whatever the actions, the jobs of each period are new: times and weights uniform on 1 .. 20 (up to one
    part in 4,000), families uniform. Set-up times between different families are uniform on 1 .. 10, drawn
    from ``layout``, and not symmetric.

    ## Rewards
    -(cost - best) / (worst - best), in [-1, 0], where cost is the sum of weight x time when done. Without
    set-ups best and worst are the least and the greatest cost of any order (the reward is 0 if these are
    equal), so that a uniformly random order has an expected reward of exactly -1/2. With set-ups best is the
    same, the cost of the jobs alone, and worst is increased by what set-ups of 10 before every job cost at
    most: a reward of 0 is then mostly out of reach.

    ## Episode End
    Never terminates; truncated after ``horizon`` steps.

    ## Arguments
    - ``jobs`` (10): J, in [2, 20], with set-ups in [2, 12]. There are J! actions.
    - ``families`` (0): of jobs, F; 0 for no set-ups, or in [2, 16].
    - ``horizon`` (20): periods in an episode. ``layout`` (0): which set-up times, in [0, 2^62).

    ## Optimum
    Exact without set-ups: ``optimal_value`` is 0, ``optimal_action`` is Smith's rule, and ``q_star`` is the
    reward. ``random_return`` is -``horizon`` / 2 times the probability that not all orders are equal, which
    is 1 - 1e-13 for ten jobs.

    With set-ups there is a sandwich. ``optimal_value`` is an upper bound, the return of the best orders if
    one knows all jobs of the episode beforehand. ``optimal_action`` is the best order, by Held and Karp's
    programme (1962, "A dynamic programming approach to sequencing problems") over sets of jobs, for this
    period and what a family at its end is worth on average after it. Ten jobs of four families, over 20,000
    episodes (uniform ids: 200,000; the best order of each period alone: 2,000):

    | policy                         | return  | standard error |
    |--------------------------------|---------|----------------|
    | upper bound                    | -1.0698 | 0.0005         |
    | oracle                         | -1.1971 | 0.0006         |
    | best order of the period alone | -1.2408 | 0.0019         |
    | uniform ids                    | -6.8690 | 0.0009         |

    The oracle is backward induction with means over 256 samples; four times as many change its return by
    0.0003 +- 0.0004. So nearly all that the bound is above it is what knowing the jobs beforehand is worth.
    For one environment the oracle takes 1 ms a step, and the bound 11 ms at the start of an episode.

    ## Version History
    - v0: initial version.
    """

    jobs: int = 10
    families: int = 0
    horizon: int = 20
    layout: int = 0

    structure = "permutation"
    batched = True

    def __post_init__(self) -> None:
        require_integer("jobs", self.jobs, 2, 20)  # 21! is more than 2^62
        require_integer("horizon", self.horizon, 1, 2**20)
        require_integer("layout", self.layout, 0, 2**62 - 1)
        require_integer("families", self.families, 0, 16)
        require(self.families != 1, "families must be 0, for no set-ups, or at least 2, got 1")
        require(
            self.families == 0 or self.jobs <= 12,
            f"with set-ups jobs must be at most 12, for the oracle takes 2^jobs sets, got {self.jobs}",
        )

    # The world

    @property
    def n(self) -> int:
        return math.factorial(self.jobs)

    @property
    def sizes(self) -> tuple[int, ...]:
        return lehmer_sizes(self.jobs)

    @property
    def reward_range(self) -> tuple[float, float]:
        return -1.0, 0.0

    @property
    def low(self) -> np.ndarray:
        return self.high * 0

    @property
    def high(self) -> np.ndarray:
        return np.ones(2 * self.jobs + self.families * (self.jobs + 1), dtype=np.float32)

    def reset(self, key: Any) -> State:
        state = {"key": key, "t": key * 0}
        if self.families:
            state["family"] = below(word(key, 0), self.families)
        return state

    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        xp = namespace(state["t"])
        times, weights, families = self._jobs(state)
        best, worst = self._bounds(times, weights)
        cost, family = self._cost(state, times, weights, families, decode(action, self.jobs))
        # Whole numbers below 2^24 so far: no rounding depends on the backend
        spread = xp.astype(worst - best, xp.float64)
        reward = xp.astype(best - cost, xp.float64) / xp.maximum(spread, spread * 0.0 + 1.0)
        after = {**state, "t": state["t"] + 1}
        if self.families:
            after["family"] = family
        return after, reward, after["t"] < 0

    def observe(self, state: State) -> Any:
        xp = namespace(state["t"])
        times, weights, families = self._jobs(state)
        rows = [times * (1.0 / LARGEST), weights * (1.0 / LARGEST)]
        if self.families:
            kinds = table(np.arange, self.families, like=state["t"])[:, None, None]
            belongs = xp.astype(families[None] == kinds, xp.float32)  # (F, J, B)
            rows += [xp.reshape(belongs, (self.families * self.jobs, -1))]
            rows += [xp.astype(state["family"][None] == kinds[:, 0], xp.float32)]
        return xp.concat(rows, axis=0).T

    # The optimum

    @property
    def exact(self) -> bool:
        return self.families == 0

    def optimal_value(self, state: State) -> Any:
        """0 if `exact`; else what the best orders bring if one knows all jobs of the episode beforehand, an
        upper bound of the optimum, ``(B,)`` float64. It takes a programme over 2^J sets for each period."""
        if self.exact:
            return namespace(state["t"]).astype(state["t"], namespace(state["t"]).float64) * 0.0
        host = _on_host(state)
        values = np.zeros((len(host["t"]), self.families))  # by the family before
        for t in reversed(range(int(host["t"].min()), self.horizon)):
            period = {**host, "t": np.full_like(host["t"], t)}
            values = np.where((host["t"] <= t)[:, None], self._best(period, values)[0], values)
        return constant(values[np.arange(len(values)), host["family"]], state["t"])

    def optimal_action(self, state: State) -> Any:
        """Smith's rule, an optimum, if `exact`; else the best order for this period and what the family at
        its end is worth on average after it, ``(B,)`` int64."""
        xp = namespace(state["t"])
        if not self.exact:
            host = _on_host(state)
            later = np.minimum(self.horizon - 1 - host["t"], AHEAD)
            _, order = self._best(host, _mean_values(self)[later])
            return constant(encode(order.argsort(axis=1).T), state["t"])
        times, weights, _ = self._jobs(state)
        ahead, behind = weights[:, None] * times[None], weights[None] * times[:, None]  # (J, J, B)
        number = arange(self.jobs, state["t"])[:, None, None]
        # of equal ones the job of the lower number: then every backend has the same order
        first = (ahead > behind) | ((ahead == behind) & (number < number[:, 0][None]))
        return encode(xp.sum(xp.astype(first, xp.int64), axis=0))

    def q_star(self, state: State, action: Any) -> Any:
        """Exact value of ``action`` and optimal ones after it, ``(B,)`` float64: where the world is `exact`,
        the reward."""
        if not self.exact:
            return super().q_star(state, action)
        return self.if_left(state, self.step(state, action)[1])

    def optimal_return(self) -> float | None:
        """Exact expected return of an optimal policy, where the world is `exact`: 0."""
        return 0.0 if self.exact else None

    def random_return(self) -> float | None:
        """Exact expected return of uniform ids without set-ups: -1/2 a period, unless all orders are equal.

        Each of two jobs is before the other in half of the orders, so that the mean cost is midway between
        the best and the worst. All orders are equal if w / p is the same for all jobs.
        """
        if not self.exact:
            return None
        share = np.bincount(np.arange(HALF) * LARGEST >> 16) / HALF  # of each time, and of each weight
        ratios: dict[Fraction, float] = {}
        for time, p in enumerate(share):
            for weight, q in enumerate(share):
                ratio = Fraction(weight + 1, time + 1)
                ratios[ratio] = ratios.get(ratio, 0.0) + p * q
        return -0.5 * self.horizon * (1 - sum(p**self.jobs for p in ratios.values()))

    def good_fraction(self, eps: float) -> float:
        """Fraction of the ids whose reward is within ``eps`` of the period's best one: the mean of 16 first
        periods, with 2^14 ids each if there are more."""
        state = self.reset(np.arange(16))
        best = self.step(state, self.optimal_action(state))[1]
        ids = np.arange(self.n) if self.n <= 2**14 else random_ids(self.n, 2**14)
        shares = []
        for i in range(16):
            alike = {name: np.repeat(value[i : i + 1], len(ids)) for name, value in state.items()}
            shares.append(np.mean(self.step(alike, ids)[1] >= best[i] - eps - 1e-12))
        return float(np.mean(shares))

    def action_features(self, ids: Any) -> Any:
        """When each job's turn comes, from 0, first, to 1, last, ``(*ids.shape, J)`` float32."""
        xp = namespace(ids)
        place = xp.argsort(decode(ids, self.jobs), axis=0)
        return xp.astype(xp.moveaxis(place, 0, -1), xp.float32) / (self.jobs - 1.0)

    def _best(self, state: State, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """With set-ups, numpy: the most that this period and ``after`` can bring, by the family before it,
        ``(B, F)``, and the orders that bring it. ``after`` is what is to come, by the family of the last
        job."""
        times, weights, families = self._jobs(state)
        best, worst = self._bounds(times, weights)
        spread = (worst - best).astype(np.float64)[:, None]
        setups = _setups(self.families, self.layout).reshape(self.families, self.families)
        costs, order = best_orders(
            times.T.astype(np.float64),
            weights.T.astype(np.float64),
            families.T,
            setups,
            state["family"],
            -after * spread,
        )
        return (best[:, None] - costs) / spread, order

    # Inside, jobs are the first axis and the batch is the last: short sums over jobs are quick there

    def _jobs(self, state: State) -> tuple[Any, Any, Any]:
        """Processing times and weights ``(J, B)``, float32 integers; families, int64, or None."""
        t = state["t"]
        xp = namespace(t)
        h = stream(state["key"])
        places = table(np.arange, self.jobs, like=t)[:, None]
        first = 1 + t * (2 * self.jobs)
        words = draw(h, first + places)
        times = xp.astype(1 + ((words & (HALF - 1)) * LARGEST >> 16), xp.float32)
        weights = xp.astype(1 + ((words >> 16) * LARGEST >> 16), xp.float32)
        if not self.families:
            return times, weights, None
        return times, weights, below(draw(h, first + self.jobs + places), self.families)

    def _cost(self, state: State, times: Any, weights: Any, families: Any, order: Any) -> tuple[Any, Any]:
        """Sum of weight x completion time ``(B,)``, float32 integers, and the family of the last job."""
        xp = namespace(times)
        jobs = xp.astype(times, xp.int64) + 32 * xp.astype(weights, xp.int64)
        if self.families:
            jobs = jobs + 1024 * families
        batch = jobs.shape[1]
        jobs = xp.reshape(jobs, (-1,))[xp.astype(order, xp.int64) * batch + arange(batch, jobs)]  # (J, B)
        times, weights = xp.astype(jobs & 31, xp.float32), xp.astype(jobs >> 5 & 31, xp.float32)
        last = None
        if self.families:
            families = jobs >> 10
            before = xp.concat([state["family"][None], families[:-1]], axis=0)
            setups = table(_setups, self.families, self.layout, like=jobs)  # (F^2,) float32
            times = times + setups[before * self.families + families]
            last = families[-1]
        clock = times[0]
        cost = clock * weights[0]
        for place in range(1, self.jobs):
            clock = clock + times[place]
            cost = cost + clock * weights[place]
        return cost, last

    def _bounds(self, times: Any, weights: Any) -> tuple[Any, Any]:
        """No order costs less, or more, ``(B,)`` each, float32 integers; without set-ups some order does.

        Of two jobs, the first delays the second: that costs w_j p_i or w_i p_j, whatever is between them.
        Smith's rule, w / p from high to low, takes the cheaper way round for all pairs at once, its reverse
        the dearer one. A set-up delays the jobs that are left: most if all are longest, light jobs first.
        """
        xp = namespace(times)
        cheaper = (times[:-1] * weights[1:])[0] * 0.0
        late = cheaper
        for lag in range(1, self.jobs):
            cheaper = cheaper + xp.sum(
                xp.minimum(times[:-lag] * weights[lag:], times[lag:] * weights[:-lag]), axis=0
            )
            if self.families:
                late = late + xp.sum(xp.maximum(weights[lag:], weights[:-lag]), axis=0)
        own, total = xp.sum(times * weights, axis=0), xp.sum(weights, axis=0)
        worst = xp.sum(times, axis=0) * total - cheaper
        if self.families:
            worst = worst + LONGEST_SETUP * (total + late)
        return own + cheaper, worst

    # Pictures

    def describe(self, state: State, last: tuple[State, int, float] | None) -> list[str]:
        lines = [f"BatchSchedule, orders of {self.jobs} jobs, step {state['t'][0]} of {self.horizon}"]
        shown, order, jobs = state, range(self.jobs), "jobs"
        if last is not None:
            shown, action, reward = last
            order, jobs = decode(np.array([action]), self.jobs)[:, 0].tolist(), "order"
            lines.append(f"action {action}: reward {reward:.3f}")
        times, weights, families = self._jobs(shown)
        parts = [f"{times[j, 0]:.0f}:{weights[j, 0]:.0f}" for j in order]
        if self.families:
            lines.append(f"set up for family {state['family'][0]}")
            parts = [f"{part}:{families[j, 0]}" for j, part in zip(order, parts, strict=True)]
            jobs += " (time:weight:family)"
        else:
            jobs += " (time:weight)"
        return [*lines, f"{jobs} {' '.join(parts)}"]

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        """The last period's order above, and the oracle's below it; before the first step, the jobs as they
        are numbered. A job is as wide as its time and as high as its weight, in the colour of its family
        (there are ten colours); set-ups are gaps."""
        orders = np.arange(self.jobs)[None]
        if last is not None:
            state = last[0]
            orders = decode(np.array([last[1], self.optimal_action(state)[0]]), self.jobs).T.astype(np.int64)
        times, weights, families = self._jobs(state)
        times, weights = times[:, 0], weights[:, 0]
        families = times.astype(np.int64) * 0 if families is None else families[:, 0]
        ends = []
        for order in orders:
            lasts = times[order]
            if self.families:
                before = np.concatenate([state["family"], families[order[:-1]]])
                lasts = lasts + _setups(self.families, self.layout)[before * self.families + families[order]]
            ends.append(np.cumsum(lasts))
        longest = max(end[-1] for end in ends)
        for bottom, order, end in zip((0.55, 0.0), orders, ends, strict=False):
            canvas.line(0.0, bottom, 1.0, bottom, "black")
            for job, x in zip(order, end, strict=True):
                colour = COLOURS[families[job] % len(COLOURS)]
                left, right = (x - times[job]) / longest + 0.003, x / longest - 0.003
                canvas.box(left, bottom, right, bottom + 0.4 * weights[job] / LARGEST, colour)


@lru_cache(maxsize=16)
def _mean_values(world: BatchSchedule) -> np.ndarray:
    """What 0 .. AHEAD periods bring on average, by the family before them, ``(AHEAD + 1, F)``.

    Backward induction, with the mean over SAMPLES sets of jobs for the expectation. Only differences within
    a row matter, and those no longer change from a few periods on.
    """
    values = np.zeros((AHEAD + 1, world.families))
    keys = word(0, np.arange(AHEAD * SAMPLES)).reshape(AHEAD, SAMPLES)
    for to_go in range(1, AHEAD + 1):
        state = world.reset(keys[to_go - 1])
        values[to_go] = world._best(state, values[to_go - 1][None])[0].mean(axis=0)
    return values


def _on_host(state: State) -> State:
    """``state`` in numpy."""
    return {name: np.asarray(x if isinstance(x, np.ndarray) else x.cpu()) for name, x in state.items()}


@lru_cache(maxsize=16)
def _setups(families: int, layout: int) -> np.ndarray:
    """Set-up times from one family to another, ``(F^2,)`` float32: none within one, else 1 .. 10."""
    times = 1 + below(word(layout, np.arange(families**2)), LONGEST_SETUP)
    times[:: families + 1] = 0
    return times.astype(np.float32)
