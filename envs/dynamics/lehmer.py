"""Ids as orders of J things: Lehmer's code, by arithmetic on whole batches, no table of J!."""

import math
from typing import Any

import numpy as np

from .arrays import arange, namespace, table
from .digits import split


def sizes(number: int) -> tuple[int, ...]:
    """Values of each digit of an id: J, J - 1, .., 2. The last thing is what is left."""
    return tuple(range(number, 1, -1))


def decode(ids: Any, number: int) -> Any:
    """What is in each place, ``(J, *ids.shape)`` int8.

    Digit k chooses among the things that are left, in the order of their numbers. Read from the last place to
    the first: a digit d is a number among those left, and lifts the later ones' numbers from d on by one.
    """
    xp = namespace(ids)
    digits = [xp.astype(digit, xp.int8)[None] for digit in split(ids, sizes(number))]
    order = digits[-1] * 0
    for digit in reversed(digits):
        order = xp.concat([digit, order + xp.astype(order >= digit, xp.int8)], axis=0)
    return order


def encode(places: Any) -> Any:
    """The ids of the orders that have each thing in these places, ``(J, B)`` integers: the inverse of
    `decode`."""
    xp = namespace(places)
    number = places.shape[0]
    counts = arange(number, places)
    # the digit of a thing counts those of lower numbers that come after it
    passed = (places[:, None] < places[None]) & (counts[:, None] > counts)[:, :, None]  # (J, J, B)
    digits = xp.sum(xp.astype(passed, xp.int64), axis=1)
    return xp.sum(digits * table(_worth, number, like=places)[places], axis=0)


def _worth(number: int) -> np.ndarray:
    """What one of a digit is worth in an id, by the place that it chooses for, ``(J,)``: 1, J, J (J - 1).."""
    return np.array([math.factorial(number) // math.factorial(number - place) for place in range(number)])
