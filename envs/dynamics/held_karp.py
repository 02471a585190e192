"""The best order of jobs with set-up times between families: a dynamic programme over sets of jobs."""

from functools import lru_cache

import numpy as np

CHUNK = 2**22  # numbers of one temporary array


def best_orders(
    times: np.ndarray,
    weights: np.ndarray,
    families: np.ndarray,
    setups: np.ndarray,
    first: np.ndarray,
    after: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Orders of least sum of weight x completion time, plus what the family of the last job costs after.

    A set-up or a job delays all jobs that are not finished before it, so the sum is that of (set-up +
    processing time) x (weight of the jobs not yet done) over the places of an order. What is left to pay
    depends on the order so far through the set of jobs done and the last one's family alone (Held and Karp's
    programme): 2^J sets, instead of J! orders.

    Args:
        times, weights: ``(B, J)``. families: of the jobs, integers ``(B, J)``.
        setups: time from one family to another, ``(F, F)``. first: family before the first job, ``(B,)``.
        after: cost of ending with each family, ``(B, F)`` or ``(1, F)``.

    Returns:
        least costs by the family before the first job, ``(B, F)`` float64; and the best order from ``first``,
        the job in each place, ``(B, J)``.
    """
    size = times.shape[1]
    step = max(1, CHUNK // (size * 2**size))
    parts = [
        _best_orders(
            times[i : i + step],
            weights[i : i + step],
            families[i : i + step],
            setups,
            first[i : i + step],
            np.broadcast_to(after, (len(times), len(setups)))[i : i + step],
        )
        for i in range(0, len(times), step)
    ]
    return np.concatenate([cost for cost, _ in parts]), np.concatenate([order for _, order in parts])


def _best_orders(
    times: np.ndarray,
    weights: np.ndarray,
    families: np.ndarray,
    setups: np.ndarray,
    first: np.ndarray,
    after: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    batch, size = times.shape
    rows = np.arange(batch)[:, None, None]
    total = weights.sum(axis=1, keepdims=True)
    delays = setups[:, families].transpose(1, 0, 2) + times[:, None]  # (B, F, J): by family before, and job
    # cost[b, s, f]: least cost to come when the jobs of the set s are done, the last of them of family f
    cost = np.empty((batch, 2**size, len(setups)))
    cost[:, -1] = after
    for done, jobs in _layers(size):  # (S,) sets, (S, r) jobs not done, from large sets to small ones
        waiting = total - weights @ _members(size)[done].T  # (B, S)
        then = cost[rows, done[:, None] | 1 << jobs, families[:, jobs]]  # (B, S, r)
        q = delays[:, :, jobs] * waiting[:, None, :, None] + then[:, None]  # (B, F, S, r)
        cost[:, done] = q.min(axis=-1).transpose(0, 2, 1)
    order = np.empty((batch, size), dtype=np.int64)
    done, family, b = np.zeros(batch, dtype=np.int64), first, np.arange(batch)
    for place in range(size):  # forwards, along the best choices
        members = _members(size)[done]  # (B, J)
        then = cost[b[:, None], done[:, None] | 1 << np.arange(size), families]
        waiting = (weights * (1 - members)).sum(axis=1, keepdims=True)
        q = np.where(members > 0, np.inf, delays[b, family] * waiting + then)
        job = q.argmin(axis=1)
        order[:, place], done, family = job, done | 1 << job, families[b, job]
    return cost[:, 0], order


@lru_cache(maxsize=16)
def _members(size: int) -> np.ndarray:
    """Which jobs each set contains, ``(2^size, size)``: 0 or 1."""
    return np.arange(2**size)[:, None] >> np.arange(size) & 1


@lru_cache(maxsize=16)
def _layers(size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per number of jobs done, from size - 1 to 0: the sets, and the jobs that each leaves."""
    members = _members(size)
    layers = []
    for number in reversed(range(size)):
        done = np.flatnonzero(members.sum(axis=1) == number)
        layers.append((done, np.nonzero(members[done] == 0)[1].reshape(len(done), size - number)))
    return layers
