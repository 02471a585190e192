"""The users and items of SlateRec, in integers: every backend has the same ones, to the last bit."""

import math
from typing import Any

import numpy as np

from .arrays import namespace, table
from .hashing import draw, word

TASTES = 16  # coordinates of a user and of an embedding
PRICES = 32  # classes of revenue: (price + 1) / PRICES
UNIT = 512  # of a user's coordinate: a standard deviation
LIMIT = 2047  # of a user's coordinate: just below four standard deviations
LENGTH = 4 * math.sqrt(21)  # of an embedding of 16 odd numbers in -7 .. 7, on average
SPREAD = math.sqrt(4 * (16**2 - 1) / 12)  # standard deviation of the sum of four hexadecimal digits
ONE = 2**16  # of the factors in fixed point
SATED = 1.0  # by how much the utility of an item falls when it is chosen
RECOVERY = 0.1  # share of the satiation that a step forgets


def catalogue(items: Any, layout: int) -> tuple[Any, Any]:
    """What the hash says of ``items``, integers in [0, 2^31).

    Returns:
        the digits d of their embeddings (2 d - 7) / (4 sqrt(21)), int32 in [0, 8), ``(16, *items.shape)``;
        and the classes p of their revenues (p + 1) / 32, int64 in [0, 32), ``items.shape``.
    """
    # Two words an item. Of each 24 bits are eight coordinates; the first five bits are the price. The
    # coordinates are the first axis: numpy adds along it many times as fast as along a last one of 16.
    xp = namespace(items)
    h = word(layout, 0)  # a stream that is not that of the key which equals the layout
    words = draw(h, xp.stack([2 * items, 2 * items + 1]))  # (2, *)
    shifts = xp.reshape(table(_shifts, like=items), (8,) + (1,) * items.ndim)
    digits = (xp.astype(words & 0xFFFFFF, xp.int32)[:, None] >> shifts) & 7  # (2, 8, *)
    return xp.reshape(digits, (TASTES, *items.shape)), words[0] >> 27


def revenues_of(price: Any) -> Any:
    """Revenues of the price classes, float64."""
    xp = namespace(price)
    return (xp.astype(price, xp.float64) + 1.0) * (1 / PRICES)


def product(vector: Any, digits: Any) -> Any:
    """Products of users ``(B, 16)`` with embeddings given as digits ``(16, K, B)``: ``(K, B)`` int32, in
    units of 1 / (UNIT LENGTH)."""
    xp = namespace(vector)
    vector = xp.astype(vector, xp.int32).T  # (16, B)
    doubled = xp.sum(vector[:, None] * digits, axis=0, dtype=xp.int32) * 2
    return doubled - 7 * xp.sum(vector, axis=0, dtype=xp.int32)


def products(vector: Any, digits: Any) -> Any:
    """Products of all users ``(B, 16)`` with all embeddings ``(16, m)``, ``(B, m)`` float32."""
    # Integers of at most 11 bits, and sums below 2^19: exact in float32, and with TF32 as well, but not where
    # torch.set_float32_matmul_precision("medium") lets products be made in bfloat16.
    xp = namespace(vector)
    return xp.astype(vector, xp.float32) @ xp.astype(2 * digits - 7, xp.float32)


def drifted(h: Any, t: Any, user: Any, drift: float) -> Any:
    """The tastes at the time ``t`` given those before, ``(B, 16)`` int64; ``h`` is the stream of the keys."""
    # Half a word for each coordinate: the sum of its four hexadecimal digits, added side by side.
    xp = namespace(t)
    words = draw(h[:, None], 16 * t[:, None] + table(np.arange, TASTES // 2, like=t))  # (B, 8)
    pairs = (words & 0x0F0F0F0F) + ((words >> 4) & 0x0F0F0F0F)
    fours = (pairs & 0x00FF00FF) + ((pairs >> 8) & 0x00FF00FF)
    noise = xp.concat([fours & 0xFFFF, fours >> 16], axis=-1) - 30  # (B, 16)
    keep, spread = 1 - drift, math.sqrt(1 - (1 - drift) ** 2) * UNIT / SPREAD
    return _limited((user * round(ONE * keep) + noise * round(ONE * spread) + ONE // 2) >> 16)


def sated(satiation: Any, eaten: Any) -> Any:
    """The satiation a step later, ``(B, 16)`` int64; ``eaten`` is the embedding of what was chosen, as odd
    integers, or 0."""
    gain = round(ONE * SATED * UNIT / LENGTH)
    return _limited((satiation * round(ONE * (1 - RECOVERY)) + eaten * gain + ONE // 2) >> 16)


def choice_word(h: Any, t: Any) -> Any:
    """The random word of the choice on the way to the time ``t``; `drifted` takes the eight before it."""
    return draw(h, 16 * t + TASTES // 2)


def _limited(x: Any) -> Any:
    """``x`` within the limits of a coordinate."""
    xp, most = namespace(x), table(np.full, (), LIMIT, like=x)
    return xp.maximum(xp.minimum(x, most), -most)


def _shifts() -> np.ndarray:
    """Where the eight digits of a word are, ``(8,)`` int32."""
    return np.arange(0, 24, 3, dtype=np.int32)
