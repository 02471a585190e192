"""Which episodes to keep."""

from __future__ import annotations

import numpy as np


def spread_evenly(
    returns: np.ndarray, lengths: np.ndarray, bins: int, max_episodes: int, max_transitions: int, seed: int
) -> np.ndarray:
    """Choose episodes whose returns spread as evenly as there are episodes to choose from.

    The range of the returns is cut into equal bins. Each in turn gives one of its episodes, drawn without
    replacement, until one limit is reached or none is left.

    Args:
        returns, lengths: of the episodes: (E,).
        bins: how many.
        max_episodes, max_transitions: at most so many of each are chosen.
        seed: of the draw.

    Returns:
        The indices of the chosen episodes, ascending.
    """
    edges = np.linspace(returns.min(), returns.max(), bins + 1)[1:-1]
    bin_of = np.digitize(returns, edges)
    order = np.random.default_rng(seed).permutation(len(returns))
    # An episode's turn is its place among those of its bin; within a turn the bins are gone through.
    turn = np.empty(len(returns), np.int64)
    for b in range(bins):
        members = order[bin_of[order] == b]
        turn[members] = np.arange(len(members))
    queue = np.lexsort((bin_of, turn))[:max_episodes]
    return np.sort(queue[np.cumsum(lengths[queue]) <= max_transitions])
