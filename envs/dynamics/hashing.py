"""Counter-based random words: integer arithmetic only, so every backend draws the same ones.

The words are made with operators alone. They take Python integers, numpy int64 arrays and torch int64
tensors, and give equal results on all of them: lanes are kept in 32 bits, and the multipliers are below 2^31,
so that no product leaves the range of int64.
"""

from typing import Any

from .arrays import namespace

MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B9


def mix(x: Any) -> Any:
    """Scramble 32-bit lanes: a bijection of [0, 2^32), two multiplications between three xor-shifts.

    Args:
        x: integers in [0, 2^32), of any shape.

    Returns:
        integers in [0, 2^32), of the shape of ``x``.
    """
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & MASK
    return x ^ (x >> 15)


def word(key: Any, counter: Any) -> Any:
    """The ``counter``-th random word of the stream ``key``.

    Args:
        key: integers in [0, 2^62).
        counter: integers in [0, 2^32); broadcast against ``key``.

    Returns:
        integers, uniform in [0, 2^32).
    """
    # The golden ratio moves 0, a fixed point of mix, away from the keys and counters that people choose.
    h = mix(((key & MASK) + GOLDEN) & MASK)
    h = mix(((key >> 32) + h) & MASK)
    return mix(((counter + GOLDEN) & MASK) ^ h)


def below(words: Any, bound: int) -> Any:
    """Map random words to integers in [0, bound) without a division. ``bound`` is at most 2^31."""
    return (words * bound) >> 32


def unit(words: Any) -> Any:
    """Map random words to float64 in [0, 1), exactly: multiples of 2^-32."""
    xp = namespace(words)
    return xp.astype(words, xp.float64) * 2.0**-32
