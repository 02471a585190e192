"""What a DiagonalGrid is worth as a whole: of random play exactly, and of the best with pits by search."""

import heapq
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from .packed_cells import LANE, pays
from .rollout import rollout

MOST_DIMS = 12  # a cell has up to 3^dims neighbours
MOST_CELLS = 300  # that are looked at from


@lru_cache(maxsize=64)
def best_return(world: Any) -> float | None:
    """Return of the best policy with pits, by A* search; None where that would take long.

    The value without pits bounds what may still come, and the return of the world's own policy what must be
    reached: few cells are left to look at, all neighbours of each at once.
    """
    if world.dims > MOST_DIMS:
        return None
    returns, _ = rollout(world, world.optimal_action, 1)
    least = float(returns[0])
    places = LANE * np.arange(world.dims)
    moves = np.array(list(product([-1, 0, 1], repeat=world.dims)))
    start = world.reset(0)["away"]
    queue = [(-world.optimal_value(world.reset(0)), 0, start, 0.0)]  # minus a bound, steps, cell, rewards
    best = {(0, start): 0.0}
    for _ in range(MOST_CELLS):
        if not queue:
            return least  # nothing is better than the policy
        bound, t, cell, gained = heapq.heappop(queue)
        if cell <= 0 or t == world.horizon:
            return max(-bound, least)
        after = np.clip((cell >> places & (2**LANE - 1)) + moves, 0, world.side - 1)
        cells = np.unique((after << places).sum(-1))
        pit = world.is_pit(cells)
        total = gained + np.where(pit, world.reward_range[0], world.pay(cells))
        left = np.full(len(cells), world.horizon - t - 1)
        bounds = total + np.where(pit | (cells == 0), 0.0, world.straight_value(cells, left))
        cells = np.where(pit, -1, cells)
        for i in np.flatnonzero(bounds > least + 1e-12).tolist():
            place = (t + 1, int(cells[i]))
            if total[i] > best.get(place, -np.inf):
                best[place] = float(total[i])
                heapq.heappush(queue, (-float(bounds[i]), *place, float(total[i])))
    return None


@lru_cache(maxsize=64)
def random_return(world: Any) -> float:
    """Expected return of uniform ids without pits.

    If the goal did not end the episode, each dimension would be a Markov chain of its own. The reward after t
    steps would be a from the start and b from the goal, and the chance to be at the goal p and q. With f, the
    chance to be there for the first time after s steps, what follows the first visit is taken off again.
    """
    dims, side, horizon = world.dims, world.side, world.horizon
    chain = np.diag(np.full(side, 0.5))  # over the cells left: an id steps forward, or back, in 1 of 4
    for i in range(side):
        chain[i, max(i - 1, 0)] += 0.25
        chain[i, min(i + 1, side - 1)] += 0.25
    rewards_at = pays(dims, side)

    def unstopped(where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rewards, at_goal = np.zeros(horizon + 1), np.zeros(horizon + 1)
        for t in range(1, horizon + 1):
            where = where @ chain
            squares, total = np.zeros((side - 1) ** 2 + 1), np.ones(1)
            squares[np.arange(side) ** 2] = where
            for _ in range(dims):
                total = np.convolve(total, squares)
            rewards[t], at_goal[t] = total @ rewards_at, total[0]
        return rewards, at_goal

    a, p = unstopped(np.eye(side)[-1])
    b, q = unstopped(np.eye(side)[0])
    first = np.zeros(horizon + 1)
    for t in range(1, horizon + 1):
        first[t] = p[t] - first[1:t] @ q[1:t][::-1]
    return float(a.sum() - first[1:] @ np.cumsum(b)[::-1][1:])
