"""Counter-based random words: integer arithmetic only, so every backend draws the same ones.

The words are made with operators alone. They take Python integers, numpy int64 arrays and torch int64
tensors, and give equal results on all of them: lanes are kept in 32 bits, and the multipliers are below 2^31,
so that no product leaves the range of int64.
"""

from typing import Any

import numpy as np

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
    if isinstance(x, np.ndarray):  # the same, in half the time: numpy's uint32 wraps by itself
        x = x.astype(np.uint32)
        x ^= x >> 16
        x *= np.uint32(0x21F0AAAD)
        x ^= x >> 15
        x *= np.uint32(0x735A2D97)
        x ^= x >> 15
        return x.astype(np.int64)
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & MASK
    return x ^ (x >> 15)


def word(key: Any, counter: Any) -> Any:
    """The ``counter``-th random word of the stream ``key``: ``draw(stream(key), counter)``.

    Args:
        key: integers in [0, 2^62).
        counter: integers in [0, 2^32); broadcast against ``key``.

    Returns:
        integers, uniform in [0, 2^32).
    """
    return draw(stream(key), counter)


def stream(key: Any) -> Any:
    """The part of `word` that depends on the key alone, integers in [0, 2^32): compute it once, then `draw`
    many words.

    So there are 2^32 streams, not as many as keys: among 77,000 random keys two are expected to share theirs.
    """
    # The golden ratio moves 0, a fixed point of mix, away from the keys and counters that people choose.
    h = mix(((key & MASK) + GOLDEN) & MASK)
    return mix(((key >> 32) + h) & MASK)


def draw(h: Any, counter: Any) -> Any:
    """The ``counter``-th word of a `stream`, integers uniform in [0, 2^32)."""
    return mix(((counter + GOLDEN) & MASK) ^ h)


def subkey(key: Any, index: Any) -> Any:
    """The ``index``-th key derived from ``key``, integers in [0, 2^62); ``index`` in [0, 2^31)."""
    h = stream(key)
    return draw(h, 2 * index) | ((draw(h, 2 * index + 1) & 0x3FFFFFFF) << 32)


def below(words: Any, bound: int) -> Any:
    """Map random words to integers in [0, bound) without a division. ``bound`` is at most 2^31."""
    return (words * bound) >> 32


def unit(words: Any) -> Any:
    """Map random words to float64 in [0, 1), exactly: multiples of 2^-32."""
    xp = namespace(words)
    return xp.astype(words, xp.float64) * 2.0**-32


def bell(words: Any) -> Any:
    """Map random words to float64 that are nearly normal: the sum of their four bytes, centred, variance 1.

    Bounded, |z| < 2 sqrt(3) = 3.47, so that worlds with such a noise have true bounds; exact up to one
    multiplication, so that all backends agree.
    """
    xp = namespace(words)
    total = (words & 0xFF) + ((words >> 8) & 0xFF) + ((words >> 16) & 0xFF) + (words >> 24)
    return xp.astype(total - 510, xp.float64) * (3 / (256**2 - 1)) ** 0.5


def random_ids(n: int, count: int) -> np.ndarray:
    """``count`` ids in [0, n), always the same ones, nearly uniform: int64."""
    numbers = np.arange(count)
    return (word(0, numbers) | (word(1, numbers) & 0x3FFFFFFF) << 32) % n
