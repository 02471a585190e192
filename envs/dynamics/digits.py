"""Action ids as digits, one per factor of the action space: mixed radix, by arithmetic, no table of n."""

import math
from typing import Any

from .arrays import quotient


def split(ids: Any, sizes: tuple[int, ...]) -> list[Any]:
    """Digits of ``ids``, the least significant first: ``digits[i] = ids // prod(sizes[:i]) % sizes[i]``.

    Args:
        ids: integers in [0, prod(sizes)), of any shape: Python, numpy or torch.
        sizes: how many values each digit has. Their product is at most 2^62.

    Returns:
        one array of integers per digit, each of the shape of ``ids``.
    """
    digits, bound = [], math.prod(sizes)
    for size in sizes[:-1]:
        rest = quotient(ids, size, bound)
        digits.append(ids - rest * size)
        ids, bound = rest, bound // size
    return [*digits, ids]


def join(digits: Any, sizes: tuple[int, ...]) -> Any:
    """The ids that have these digits: the inverse of `split`. ``digits`` is a sequence, one entry a digit."""
    ids = digits[-1]
    for digit, size in zip(reversed(digits[:-1]), reversed(sizes[:-1]), strict=True):
        ids = ids * size + digit
    return ids
