"""Products in stock under Poisson demand: random numbers, and the dynamic programmes of single products."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

TOP = 63  # the highest level and the largest demand: a stock is in [-TOP, TOP], and filled up in [0, TOP]
LEVELS = 10
WORD = 2**32
LONGEST_CYCLE = 4  # periods between reviews: the highest levels cover little more than three
SHARES = 101  # of a fixed cost that are tried
COLUMN = WORD // (TOP + 1)  # words of a column of the alias table

STOCKS = np.arange(-TOP, TOP + 1)  # (127,)
FILLED = np.arange(TOP + 1)  # (64,)


@dataclass(frozen=True)
class Product:
    """Demand and costs of one product: mean demand, units between two levels, costs of a unit and period."""

    mean: int
    step: int
    holding: float
    backlog: float

    @property
    def raised(self) -> np.ndarray:
        """Stock after ordering, ``(127, LEVELS)``: by the stock before it, and the level."""
        return np.maximum(STOCKS[:, None], self.step * np.arange(LEVELS))

    @property
    def orders(self) -> np.ndarray:
        """Whether the product is ordered, ``(127, LEVELS)`` bool."""
        return self.raised > STOCKS[:, None]


@dataclass(frozen=True, eq=False)
class Solution:
    """Least costs to come of one product, with each of m fixed costs."""

    costs: np.ndarray  # (T + 1, m, 127), by the stock before ordering
    filled: np.ndarray  # (T, m, 64), by the stock after ordering
    digits: np.ndarray  # (T, m, 127): of the best level, the lowest of several


@lru_cache(maxsize=64)
def demand_words(mean: int) -> np.ndarray:
    """How many of 2^32 words mean a demand of 0 .. 63, ``(64,)`` int64: Poisson, in exact arithmetic."""
    weights = [mean**TOP]  # mean^k / k!, times 63! / mean^63, from the last one to the first
    for k in range(TOP, 0, -1):
        weights.append(weights[-1] * k // mean)  # exact: each has mean^(k - 1) as a factor
    weights.reverse()
    total = sum(weights)
    words = [WORD * weight // total for weight in weights]
    remainders = [WORD * weight % total for weight in weights]
    for k in heapq.nlargest(WORD - sum(words), range(TOP + 1), key=remainders.__getitem__):
        words[k] += 1
    return np.array(words)


def alias_table(words: Sequence[int]) -> tuple[list[int], list[int]]:
    """Walker's alias method in integers: per column how many of its words stand for the column itself, and
    what the others stand for."""
    left, alias = list(words), list(range(len(words)))
    kept = [COLUMN] * len(words)
    small = [k for k, size in enumerate(left) if size < COLUMN]
    large = [k for k, size in enumerate(left) if size > COLUMN]
    while small:
        k, donor = small.pop(), large[-1]
        kept[k], alias[k] = left[k], donor
        left[donor] -= COLUMN - left[k]
        if left[donor] <= COLUMN:
            large.pop()
            if left[donor] < COLUMN:
                small.append(donor)
    return kept, alias


@lru_cache(maxsize=64)
def _after_demand(product: Product) -> tuple[np.ndarray, np.ndarray]:
    """For stock filled up to 0 .. 63: probabilities of the next stock ``(64, 127)``, mean cost ``(64,)``."""
    probability = np.zeros((TOP + 1, 2 * TOP + 1))
    for y in FILLED:
        probability[y, y + TOP - FILLED] = demand_words(product.mean) / WORD
    return probability, probability @ np.where(
        STOCKS > 0, product.holding * STOCKS, -product.backlog * STOCKS
    )


@dataclass(frozen=True, eq=False)
class Apart:
    """Least costs to come of products of two kinds that each pay a share of the fixed cost on their own."""

    costs: np.ndarray  # (2, T + 1, 127), by the stock before ordering
    filled: np.ndarray  # (2, T, 64), by the stock after ordering
    digits: np.ndarray  # (2, T, 127): of the best level
    shares: np.ndarray  # (2,): of a product


@dataclass(frozen=True, eq=False)
class Plans:
    """Reviews of all products every R periods, next in j: a plan for each R <= LONGEST_CYCLE and j < R."""

    costs: np.ndarray  # (2, T + 1, 127, plans) of a product, without fixed costs
    fixed: np.ndarray  # (T + 1, plans): fixed costs of the reviews to come
    digits: np.ndarray  # (2, T, 127, plans): what to order now, 0 where the plan waits
    waits: np.ndarray  # (plans,) bool


Kinds = tuple[tuple[Product, int], ...]  # two kinds of products, and how many there are of each


def solve(product: Product, fixed: np.ndarray, horizon: int) -> Solution:
    """Least costs with a fixed cost per order of this product, by backward induction, for several of them.

    Args:
        fixed: the fixed costs, ``(m,)``.
        horizon: periods.
    """
    probability, cost = _after_demand(product)
    raised, orders = product.raised, product.orders
    costs = np.zeros((horizon + 1, len(fixed), 2 * TOP + 1))
    filled = np.zeros((horizon, len(fixed), TOP + 1))
    digits = np.zeros((horizon, len(fixed), 2 * TOP + 1), dtype=np.int64)
    for t in reversed(range(horizon)):
        filled[t] = cost + costs[t + 1] @ probability.T
        q = fixed[:, None, None] * orders + filled[t][:, raised]  # (m, 127, LEVELS)
        digits[t], costs[t] = q.argmin(axis=-1), q.min(axis=-1)
    return Solution(costs, filled, digits)


def review(product: Product, cycle: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Costs of a product that is ordered every ``cycle`` periods and filled up as is best for that, without
    fixed costs.

    Backlog between reviews is met by an order up to 0.

    Returns:
        costs to come if the next review is in 0 .. cycle - 1 periods, ``(horizon + 1, 127, cycle)``, and the
        digits of the levels of a review, ``(horizon, 127)``.
    """
    probability, cost = _after_demand(product)
    raised, waits = product.raised, np.maximum(STOCKS, 0)
    costs = np.zeros((horizon + 1, 2 * TOP + 1, cycle))
    digits = np.zeros((horizon, 2 * TOP + 1), dtype=np.int64)
    for t in reversed(range(horizon)):
        filled = cost[:, None] + probability @ costs[t + 1]  # (64, cycle): by the periods to the review then
        q = filled[raised, -1]
        digits[t], costs[t, :, 0] = q.argmin(axis=-1), q.min(axis=-1)
        costs[t, :, 1:] = filled[waits, :-1]
    return costs, digits


@lru_cache(maxsize=64)
def solve_apart(kinds: Kinds, fixed_cost: float, horizon: int) -> Apart:
    """Each product alone, with a share of the fixed cost for each of its orders.

    An order costs at least the shares of what it orders if all shares sum up to ``fixed_cost``, so that
    together they are a lower bound of what all cost at once. Products of a kind have equal shares; those of
    the two kinds are chosen to give the highest bound from an empty stock.
    """
    part = np.linspace(1.0, 0.0, SHARES) if fixed_cost > 0 and kinds[1][1] > 0 else np.ones(1)
    fixed = [
        fixed_cost * share / max(1, number)
        for share, (_, number) in zip((part, 1.0 - part), kinds, strict=True)
    ]
    bound = np.zeros(len(part))
    for costs, (product, number) in zip(fixed, kinds, strict=True):
        # Any shares give a bound: for long episodes they are chosen on shorter ones.
        bound = bound + number * solve(product, costs, min(horizon, 200)).costs[0, :, TOP]
    shares = np.array([costs[bound.argmax()] for costs in fixed])
    solutions = [solve(product, shares[i : i + 1], horizon) for i, (product, _) in enumerate(kinds)]
    return Apart(
        costs=np.stack([solution.costs[:, 0] for solution in solutions]),
        filled=np.stack([solution.filled[:, 0] for solution in solutions]),
        digits=np.stack([solution.digits[:, 0] for solution in solutions]),
        shares=shares,
    )


@lru_cache(maxsize=64)
def review_plans(kinds: Kinds, fixed_cost: float, horizon: int) -> Plans:
    """What plans of regular reviews cost, and what they order."""
    plans = [(cycle, j) for cycle in range(1, LONGEST_CYCLE + 1) for j in range(cycle)]
    costs = np.zeros((2, horizon + 1, 2 * TOP + 1, len(plans)))
    digits = np.zeros((2, horizon, 2 * TOP + 1, len(plans)), dtype=np.int64)
    for i, (product, _) in enumerate(kinds):
        for cycle in range(1, LONGEST_CYCLE + 1):
            first = plans.index((cycle, 0))
            costs[i, ..., first : first + cycle], digits[i, ..., first] = review(product, cycle, horizon)
    to_go = horizon - np.arange(horizon + 1)[:, None]
    cycles, j = np.array(plans).T
    reviews = np.maximum(0, -((j - to_go) // cycles))  # ceil((to_go - j) / cycle)
    return Plans(costs, fixed_cost * reviews, digits, j > 0)


def random_play(product: Product, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Under uniform levels from an empty stock: mean cost without fixed costs, and the probability that the
    product is not ordered, ``(horizon,)`` each."""
    probability, cost = _after_demand(product)
    fill = (product.raised[:, :, None] == FILLED).mean(axis=1)  # (127, 64)
    waits = (~product.orders).mean(axis=1)
    costs, idle = np.zeros(horizon), np.zeros(horizon)
    stock = (STOCKS == 0).astype(np.float64)
    for t in range(horizon):
        filled = stock @ fill
        costs[t], idle[t] = filled @ cost, stock @ waits
        stock = filled @ probability
    return costs, idle
