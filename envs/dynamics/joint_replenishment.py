"""JointReplenishment: one order for d products at once, and a fixed cost that they share."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import constant, lookup, namespace, table
from .digits import join, split
from .hashing import draw, stream
from .inventory import (
    LEVELS,
    TOP,
    Apart,
    Plans,
    Product,
    alias_table,
    demand_words,
    random_play,
    review_plans,
    solve_apart,
)
from .world import State, World, require_integer, require_number

MEANS, STEPS = (20, 10), (7, 5)  # of the demand, and between two levels: of even and of odd products
SHIFT = 26  # a word's leading 6 bits choose a column of the alias table, the other 26 one of its two demands


@dataclass(frozen=True)
class JointReplenishment(World):
    """Keep d products in stock under random demand, with a fixed cost for every order, however large.

    ## Description
    Each period the agent names a level for each of ``products`` products, and what is below its level is
    filled up to it at once. Then customers come. Stock left over costs ``holding`` a unit, unmet demand waits
    and costs ``backlog`` a unit. Ordering anything at all costs ``fixed_cost``, for one product or for all:
    that is what couples the products, for it pays to order them together and to wait between orders. With
    ``fixed_cost=0`` they do not touch each other, and each digit of an action has a best value of its own.
    **Structure of the action space: factored.**

    After the joint replenishment problem of Akkerman et al. (2024), "Dynamic neighborhood construction for
    structured large discrete action spaces", with its demand, holding and backlog costs. There a product has
    67 levels, 0 to 66, so that there are 67^d actions, the fixed cost is 75, a unit ordered costs 10 and
    stock starts at 25; here there are ten levels, units cost nothing, stock starts at 0, and the fixed cost
    is 600: at 75, ordering every period is within 0.1 % of the optimum, see below.

    ## Action Space
    ``Discrete(10^d)``: digit i, the least significant first, is the order-up-to level of product i in steps
    of 7 (even i) or 5 (odd i): 0 .. 63 or 0 .. 45.

    ## Observation Space
    ``Box(-1, 1, (d,))``: stock / 63; negative is backlog. The time is not observed.

    ## Starting State
    Nothing in stock, no backlog. Episodes differ in their demand alone.

    ## Transition
    stock <- max(stock, level) - demand. Demand is Poisson with mean 20 (even i) or 10 (odd i), cut off at 63
    (beyond it are 3e-15) and its probabilities rounded to multiples of 2^-32: an integer function of one
    random word, equal on all backends. As the lowest level is 0, backlog is always met a period later, by an
    order that costs ``fixed_cost`` if nothing else is ordered. So stock stays in [-63, 63] without a clip.

    ## Rewards
    -0.03 cost / d, with cost = ``fixed_cost`` [some level is above its stock] + sum of ``holding`` max(stock,
    0) + ``backlog`` max(-stock, 0) after the demand. In [-0.03 (``fixed_cost`` / d + 63 ``backlog``), 0]; if
    a unit costs more to hold than to owe, as far down as full shelves bring it, see ``reward_range``.

    ## Episode End
    Never terminates; truncated after ``horizon`` steps.

    ## Arguments
    - ``products`` (6): d, in [1, 18]. There are 10^d actions.
    - ``fixed_cost`` (600.0): of an order. 0 makes the world separable.
    - ``holding`` (1.0), ``backlog`` (19.0): costs of a unit and a period.
    - ``horizon`` (100): steps in an episode, in [1, 10_000].

    ## Optimum
    Exact with ``fixed_cost=0`` and with one product, by a dynamic programme over the stock of each product:
    ``optimal_value``, ``optimal_action``, ``q_star`` and ``optimal_return``. Without a fixed cost it fills up
    to 28 or 15 each period, and a product costs 9.7655 or 7.0696 a period.

    Otherwise there is a sandwich. ``optimal_value`` is an upper bound of the return: each product pays a
    share of the fixed cost whenever it is ordered, and the shares sum up to ``fixed_cost``. An order then
    costs no more than it does, and the products come apart. The shares, equal for products of a kind, are
    those that make the bound tightest at the start. ``optimal_action`` compares plans to review all products
    every R periods, R = 1 .. 4, the next time in j = 0 .. R - 1: it takes the best plan's first action, and
    compares again in the next period. Returns over 100,000 episodes; random play is exact for all arguments,
    ``random_return``, for then the products do not depend on each other:

    | d | fixed_cost | upper bound    | oracle           | gap    | uniform ids |
    |---|------------|----------------|------------------|--------|-------------|
    | 6 | 0          | -25.25 (exact) | -25.258 +- 0.004 | 0      | -114.80     |
    | 6 | 75         | -62.74         | -62.758 +- 0.004 | 0.03 % | -152.22     |
    | 6 | 600        | -173.66        | -181.78 +- 0.01  | 4.7 %  | -414.17     |
    | 9 | 600        | -140.97        | -150.56 +- 0.01  | 6.8 %  | -319.37     |

    With a fixed cost of 75 the oracle orders every period. With two products and 200, where the joint
    programme can still be solved, the oracle costs 1.0 % more than the optimum, and the bound 2.3 % less.

    ## Version History
    - v0: initial version.
    """

    products: int = 6
    fixed_cost: float = 600.0
    holding: float = 1.0
    backlog: float = 19.0
    horizon: int = 100

    structure = "factored"
    batched = True

    def __post_init__(self) -> None:
        require_integer("products", self.products, 1, 18)
        require_number("fixed_cost", self.fixed_cost, 0, 1e6)
        require_number("holding", self.holding, 0, 1e6)
        require_number("backlog", self.backlog, 0.01, 1e6)
        require_integer("horizon", self.horizon, 1, 10_000)  # the oracles keep tables of all periods

    # The world

    @property
    def n(self) -> int:
        return LEVELS**self.products

    @property
    def sizes(self) -> tuple[int, ...]:
        return (LEVELS,) * self.products

    @property
    def scale(self) -> float:
        """Reward of a unit of cost, negative."""
        return -0.03 / self.products

    @property
    def reward_range(self) -> tuple[float, float]:
        # Each product is full or owes all that it can, whichever costs more; added up as a step does it.
        full = [(LEVELS - 1) * STEPS[i % 2] for i in range(self.products)]
        dear = [units for units in full if self.holding * units > self.backlog * TOP]
        owed = float(TOP * (self.products - len(dear)))
        return (self.fixed_cost + sum(dear) * self.holding + owed * self.backlog) * self.scale, 0.0

    @property
    def low(self) -> np.ndarray:
        return -self.high

    @property
    def high(self) -> np.ndarray:
        return np.ones(self.products, dtype=np.float32)

    def reset(self, key: Any) -> State:
        zero = key * 0
        return {"key": key, "t": zero, "stock": namespace(key).stack([zero] * self.products, axis=-1)}

    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        stock, t = state["stock"], state["t"]
        xp = namespace(t)
        raised = xp.maximum(stock, self.levels(action))  # (B, d)
        after = raised - self.demand(state)
        left = xp.maximum(after, after * 0)
        # Sums of integers, so that no rounding depends on the backend; backlog is what is left less stock.
        surplus = _total(left)
        shortage = surplus - _total(after)
        ordered = _total(raised) > _total(stock)
        cost = (
            xp.astype(ordered, xp.float64) * self.fixed_cost
            + xp.astype(surplus, xp.float64) * self.holding
            + xp.astype(shortage, xp.float64) * self.backlog
        )
        return {**state, "t": t + 1, "stock": after}, cost * self.scale, t < 0

    def observe(self, state: State) -> Any:
        xp = namespace(state["t"])
        return xp.astype(state["stock"], xp.float32) * (1.0 / TOP)

    def levels(self, ids: Any) -> Any:
        """The order-up-to levels that ``ids`` name, ``(*ids.shape, d)`` integers."""
        digits = split(ids, self.sizes)
        return namespace(ids).stack([x * STEPS[i % 2] for i, x in enumerate(digits)], axis=-1)

    def demand(self, state: State) -> Any:
        """What customers will ask for in the period ``state["t"]``, ``(B, d)`` integers in [0, 63]."""
        t = state["t"]
        place = table(_place, self.products, like=t)  # (2, d)
        kept, alias = table(_alias, like=t)  # (128,) each
        words = draw(stream(state["key"])[:, None], (t * self.products)[:, None] + place[0])  # (B, d)
        column = words >> SHIFT
        entry = column + place[1]
        return namespace(t).where((words & (2**SHIFT - 1)) < kept[entry], column, alias[entry])

    # The optimum

    @property
    def exact(self) -> bool:
        return self.fixed_cost == 0 or self.products == 1

    def optimal_value(self, state: State) -> Any:
        """The optimum if `exact`, else an upper bound of it, ``(B,)`` float64."""
        return self.scale * lookup(self._solved().costs, *self._index(state, self.horizon)).sum(-1)

    def optimal_action(self, state: State) -> Any:
        """An optimal action if `exact`, else the first one of the best plan of regular reviews, ``(B,)``
        int64."""
        xp = namespace(state["t"])
        kind, t, stock = self._index(state, self.horizon - 1)  # when nothing is left, any level will do
        if self.exact:
            digits = lookup(self._solved().digits, kind, t, stock)
        else:
            plans = self._plans()
            cost = lookup(plans.costs, kind, t, stock).sum(1) + lookup(plans.fixed, t[:, 0])  # (B, plans)
            owing = _total(xp.minimum(stock, stock * 0 + TOP)) < TOP * self.products
            cost = cost + 1e15 * (owing[:, None] & constant(plans.waits, cost))  # backlog does not wait
            digits = lookup(plans.digits, kind, t, stock, xp.argmin(cost, axis=-1)[:, None])
        return join([digits[:, i] for i in range(self.products)], self.sizes)

    def q_star(self, state: State, action: Any) -> Any:
        """Exact value of ``action`` and optimal ones after it, ``(B,)`` float64, where the world is
        `exact`."""
        if not self.exact:
            return super().q_star(state, action)
        solved = self._solved()
        kind, t, _ = self._index(state, self.horizon - 1)
        raised = namespace(t).maximum(state["stock"], self.levels(action))
        cost = lookup(solved.filled, kind, t, raised) + (raised > state["stock"]) * lookup(
            solved.shares, kind
        )
        return self.if_left(state, self.scale * cost.sum(-1))

    def _index(self, state: State, last: int) -> tuple[Any, Any, Any]:
        """Where tables have the products: kind ``(d,)``, time up to ``last`` ``(B, 1)``, stock ``(B, d)``."""
        kind = table(_place, self.products, like=state["t"])[1] >> 6
        t = namespace(state["t"]).minimum(state["t"], state["t"] * 0 + last)
        return kind, t[:, None], state["stock"] + TOP

    def optimal_return(self) -> float | None:
        """Exact expected return of an optimal policy, where the world is `exact`."""
        return float(self.optimal_value(self.reset(np.zeros(1, dtype=np.int64)))[0]) if self.exact else None

    def random_return(self) -> float:
        """Exact expected return of uniform ids: then the products do not depend on each other."""
        cost, idle = 0.0, np.ones(self.horizon)
        for product, number in self._kinds():
            costs, waits = random_play(product, self.horizon)
            cost, idle = cost + number * costs.sum(), idle * waits**number
        return float(self.scale * (cost + self.fixed_cost * (1 - idle).sum()))

    def good_fraction(self, eps: float) -> float:
        """Fraction of the ids that give away at most ``eps`` at the start of an episode, counted exactly; by
        the programme of the bound where the world is not `exact`."""
        solved = self._solved()
        sums = []
        for i, (product, number) in enumerate(self._kinds()):
            levels = product.step * np.arange(LEVELS)
            q = solved.filled[i, 0, levels] + solved.shares[i] * (levels > 0)
            gaps = -self.scale * (q - q.min())
            rows = list(itertools.combinations_with_replacement(range(LEVELS), number))
            total = gaps[np.array(rows, dtype=np.int64).reshape(len(rows), number)].sum(axis=1)
            ways = [_arrangements(row) for row in rows]
            sums.append((total, np.array(ways, dtype=np.float64)))
        (a, count_a), (b, count_b) = sums
        order = np.argsort(b)
        below = np.concatenate([[0.0], np.cumsum(count_b[order])])
        return float(count_a @ below[np.searchsorted(b[order], eps + 1e-12 - a, side="right")] / self.n)

    def action_features(self, ids: Any) -> Any:
        """The digits, least significant first, as shares of the highest, ``(*ids.shape, d)`` float32."""
        xp = namespace(ids)
        return xp.astype(xp.stack(split(ids, self.sizes), axis=-1), xp.float32) / (LEVELS - 1.0)

    def _kinds(self) -> tuple[tuple[Product, int], ...]:
        """The two kinds of products, and how many there are of each."""
        even = Product(MEANS[0], STEPS[0], self.holding, self.backlog)
        odd = Product(MEANS[1], STEPS[1], self.holding, self.backlog)
        return (even, (self.products + 1) // 2), (odd, self.products // 2)

    def _solved(self) -> Apart:
        return solve_apart(self._kinds(), self.fixed_cost, self.horizon)

    def _plans(self) -> Plans:
        return review_plans(self._kinds(), self.fixed_cost, self.horizon)

    # Pictures

    def describe(self, state: State, last: tuple[State, int, float] | None) -> list[str]:
        lines = [f"JointReplenishment, 10^{self.products} actions, step {state['t'][0]} of {self.horizon}"]
        shown = {"stock": state["stock"]}
        if last is not None:
            before, action, reward = last
            lines += [f"action {action}: reward {reward:.3f}"]
            levels = self.levels(np.array([action]))
            shown |= {"ordered": np.maximum(levels - before["stock"], 0), "up to": levels}
        return lines + [f"{name} " + " ".join(map(str, numbers[0])) for name, numbers in shown.items()]

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        """A column for each product, from a backlog of 63 to a stock of 63: blue is in stock, red is owed.
        The green bar beside it is the last order, from the stock before it to the stock after it."""
        width, zero = 1.0 / self.products, 0.5
        levels = None if last is None else self.levels(np.array([last[1]]))[0]
        for i, stock in enumerate(state["stock"][0].tolist()):
            left, right = (i + 0.1) * width, (i + 0.9) * width
            canvas.box(left, 0.0, right, 1.0, "light")
            if last is not None and levels is not None:  # what was ordered, from the stock before it
                before = last[0]["stock"][0, i].item()
                raised = max(before, levels[i].item())
                canvas.box(
                    left, zero + before * 0.5 / TOP, left + 0.2 * width, zero + raised * 0.5 / TOP, "green"
                )
            low, high = sorted((zero, zero + stock * 0.5 / TOP))
            canvas.box(left + 0.25 * width, low, right, high, "blue" if stock > 0 else "red")
        canvas.line(0.0, zero, 1.0, zero, "black")


def _total(x: Any) -> Any:
    """Sum over the products of ``x``, ``(B, d)`` integers."""
    if not isinstance(x, np.ndarray):
        return x.sum(-1)
    total = x[:, 0]  # column by column: numpy's sum over a short last axis takes four times as long
    for i in range(1, x.shape[1]):
        total = total + x[:, i]
    return total


def _arrangements(row: tuple[int, ...]) -> int:
    """In how many orders the entries of ``row`` can stand."""
    return math.factorial(len(row)) // math.prod(math.factorial(row.count(x)) for x in set(row))


def _place(products: int) -> np.ndarray:
    """Number of each product, and where the alias table of its kind begins, ``(2, d)``."""
    numbers = np.arange(products)
    return np.stack([numbers, numbers % 2 * (TOP + 1)])


def _alias() -> np.ndarray:
    """The alias tables of both kinds one after the other, ``(2, 128)``: words kept of a column, its alias."""
    return np.concatenate([np.array(alias_table(demand_words(mean).tolist())) for mean in MEANS], axis=1)
