"""What tabular methods should come to, computed rather than learned: Q*, and the fixed point of Phi."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from extensions.tabular import TabularMDP

#: (S, n) values to what a state is worth, (S,)
Worth = Callable[[np.ndarray], np.ndarray]


def chances(n: int, k: int) -> np.ndarray:
    """That the best of k distinct uniform ids of n is the one of rank j = 0, 1, ...: (n,).

    C(n - 1 - j, k - 1) / C(n, k), by its ratio from one rank to the next.
    """
    p = np.zeros(n)
    p[0] = k / n
    for j in range(1, n - k + 1):
        p[j] = p[j - 1] * (n - k - j + 1) / (n - j)
    return p


def best_of_all(q: np.ndarray) -> np.ndarray:
    """max_a Q(s, a)."""
    return q.max(-1)


def best_of(k: int) -> Worth:
    """E[max_{b in C} Q(s, b)] over the sets C of k distinct ids, each equally likely."""

    def worth(q: np.ndarray) -> np.ndarray:
        return -np.sort(-q, -1) @ chances(q.shape[-1], k)

    return worth


def fixed_point(mdp: TabularMDP, gamma: float, worth: Worth, tolerance: float = 1e-12) -> np.ndarray:
    """The Q (S, n) with Q(s, a) = E[r + gamma worth(Q)(s')], by value iteration.

    Terminal states are worth 0. A contraction by ``gamma`` for the two kinds of worth above.
    """
    p, live = mdp.transitions.cpu().numpy(), ~mdp.terminal.cpu().numpy()
    rewards = (p * mdp.rewards.cpu().numpy()).sum(-1)
    q = np.zeros_like(rewards)
    while True:
        after = rewards + gamma * p @ (live * worth(q))
        if np.abs(after - q).max() < tolerance:
            return after
        q = after


def value_of(mdp: TabularMDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """The discounted values (...) of policies (..., S, n) from the first state; episodes have no limit."""
    p, live = mdp.transitions.cpu().numpy(), ~mdp.terminal.cpu().numpy()
    rewards = (p * mdp.rewards.cpu().numpy()).sum(-1)
    reward = (policy * rewards).sum(-1)
    onward = np.einsum("...sa,sat->...st", policy, p) * live
    v = np.linalg.solve(np.eye(len(live)) - gamma * onward, reward[..., None])[..., 0]
    return v @ mdp.initial.cpu().numpy()


def greedy(q: np.ndarray) -> np.ndarray:
    """The policy (..., S, n) that takes a maximum of Q, each of equal ones with the same chance."""
    top = q == q.max(-1, keepdims=True)
    return top / top.sum(-1, keepdims=True)


def stochastic_greedy(q: np.ndarray, k: int, memory: np.ndarray | None = None) -> np.ndarray:
    """The policy that takes the best of C = R u M, each of equal ones with the same chance.

    Args:
        q: (..., S, n), values.
        k: the size of R, distinct ids of which each set is equally likely.
        memory: (..., S, m), the ids of M, fixed, -1 where there is none; no memory by default.

    Returns:
        Probabilities of actions, (..., S, n).
    """
    values = q.reshape(-1, q.shape[-1])
    known = np.full((len(values), 1), -1) if memory is None else memory.reshape(len(values), -1)
    return np.array([_of_state(*row, k) for row in zip(values, known, strict=True)]).reshape(q.shape)


def _of_state(values: np.ndarray, known: np.ndarray, k: int) -> np.ndarray:
    """The same of one state: values (n,) and known ids (m,) to probabilities (n,)."""
    chance = chances(len(values), k)
    higher = np.append(0.0, chance.cumsum())  # [j]: that R holds one of the j best
    remembered = np.isin(np.arange(len(values)), known)
    policy, first = np.zeros(len(values)), 0
    for level in np.unique(values)[::-1]:
        equal = values == level
        ranks = slice(first, first + equal.sum())
        of_memory, others = equal & remembered, equal & ~remembered
        if not of_memory.any():
            policy[equal] = chance[ranks].mean()
            first = ranks.stop
            continue
        # Order equal ones at random. The first that M holds is taken if R holds none of those before it.
        where_first = chances(equal.sum(), of_memory.sum())
        taken = where_first @ (1 - higher[ranks])
        policy[of_memory] = taken / of_memory.sum()
        policy[others] = (1 - higher[first] - taken) / max(others.sum(), 1)
        break  # nothing below the best of M is ever taken
    return policy
