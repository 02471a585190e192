"""The best slate of a large catalogue under a logit choice, exactly and in bounded memory."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from .arrays import arange, namespace

USERS = 4096  # looked after at a time
PAIRS = 2**23  # of users and items that are scored at a time: 32 MiB
CHUNK = 2**15  # items at a time, at most


def top(x: Any, size: int) -> tuple[Any, Any]:
    """The ``size`` largest entries of each row, the largest first, and of equal ones the first.

    Args:
        x: floats, ``(..., m)`` with m >= 1.
        size: how many; where there are fewer, the rest is minus infinity, at any place.

    Returns:
        values and places, ``(..., size)`` each.
    """
    xp = namespace(x)
    places, columns = [], arange(x.shape[-1], x)
    values = []
    for i in range(size):
        place = xp.argmax(x, axis=-1, keepdims=True)  # (..., 1)
        values.append(xp.take_along_axis(x, place, axis=-1))
        places.append(place)
        if i + 1 < size:
            x = xp.where(columns == place, -xp.inf, x)
    return xp.concat(values, axis=-1), xp.concat(places, axis=-1)


def best_slates(weights: Any, revenues: Any, size: int) -> tuple[Any, Any, Any]:
    """The sets of at most ``size`` items with the largest expected revenue sum(w r) / (1 + sum(w)).

    Dinkelbach's method: a set earns more than ``a`` if and only if sum(w (r - a)) > a, and the set for which
    that sum is largest is found item by item. Begin with a = 0, take what that set earns as the next a, and
    end when it earns no more: the set is then the best one. Every round but the last raises a; four to ten
    are usual.

    Args:
        weights: of the items, ``(B, m)`` float64, not negative and some positive. Leaving without a choice
            weighs 1.
        revenues: of the items, ``(m,)`` or ``(B, m)`` float64, positive.
        size: at most m.

    Returns:
        the expected revenue ``(B,)``; the columns of the items ``(B, size)``, the first always a true one;
        and which of the columns are in the set ``(B, size)`` bool, for the best set may be a smaller one.
    """
    xp = namespace(weights)
    revenues = xp.broadcast_to(revenues, weights.shape)
    value = weights[:, 0] * 0.0
    best = xp.argmax(weights * revenues, axis=-1, keepdims=True) + arange(size, weights) * 0  # (B, size)
    member = best < 0
    while True:
        gain, place = top(weights * (revenues - value[:, None]), size)
        inside = gain > 0.0
        w = xp.where(inside, xp.take_along_axis(weights, place, axis=-1), 0.0)
        earned = xp.sum(w * xp.take_along_axis(revenues, place, axis=-1), axis=-1)
        earned = earned / (1.0 + xp.sum(w, axis=-1))
        better = earned > value
        if not xp.any(better):
            return value, best, member
        value = xp.where(better, earned, value)
        best, member = xp.where(better[:, None], place, best), xp.where(better[:, None], inside, member)


def shortlist(
    score: Callable[[Any], Any],
    describe: Callable[[Any], tuple[Any, Any]],
    like: Any,
    items: int,
    classes: int,
    size: int,
) -> tuple[Any, Any, Any]:
    """The ``size`` items of each class that have the highest score, by a scan of the catalogue in chunks.

    Within a class all items have one revenue, and the weight grows with the score: no best set needs others.

    Args:
        score: scores of items for every user, ``(B, m)`` float32, given the first that ``describe`` returns.
        describe: what is to be known of items ``(m,)``, their last axis, and their classes, ``(m,)`` in [0,
            classes).
        like: an array with one row for each of the B users.
        items: size of the catalogue, at least ``size``. If it is small, all items are on the list.

    Returns:
        scores, minus infinity where a class has fewer than ``size`` items, and items, ``(B, M)`` each, with M
        at most ``classes * size``; and the classes, ``(M,)``.
    """
    xp = namespace(like)
    users = like.shape[0]
    if items <= classes * size:
        known, kinds = describe(arange(items, like))
        return score(known), xp.broadcast_to(arange(items, like), (users, items)), kinds
    chunk = max(2**11, min(CHUNK, PAIRS // users))
    found = ids = None
    for first in range(0, items, chunk):
        some = first + arange(min(chunk, items - first), like)
        known, kinds = describe(some)
        order = xp.argsort(kinds, stable=True)
        kinds = kinds[order]
        scores = score(known[..., order])  # (B, m)
        ends = [0, *xp.searchsorted(kinds, arange(classes, like), side="right").tolist()]
        values, places = [], []
        for a, b in pairwise(ends):
            part = scores[:, a:b] if a < b else scores[:, :1] * 0.0 - xp.inf
            value, place = top(part, size)
            values.append(value)
            places.append(some[order][min(a, some.shape[0] - 1) + place])
        new, new_ids = xp.stack(values, axis=1), xp.stack(places, axis=1)  # (B, classes, size)
        if found is not None:
            both = xp.concat([found, new], axis=-1)
            both_ids = xp.concat([ids, new_ids], axis=-1)
            new, place = top(both, size)
            new_ids = xp.take_along_axis(both_ids, place, axis=-1)
        found, ids = new, new_ids
    kinds = arange(classes * size, like) // size
    return xp.reshape(found, (users, -1)), xp.reshape(ids, (users, -1)), kinds
