"""Keyed bijections of {0 .. n-1} in constant memory: a mixed-radix Feistel network with cycle walking."""

import math
from dataclasses import dataclass
from typing import Any

from .arrays import may_look, namespace, quotient
from .hashing import MASK, below, mix

ROUNDS = (0x243F6A88, 0x05A308D3, 0x13198A2E, 0x03707344)  # digits of pi: one constant per round


@dataclass(frozen=True)
class Permutation:
    """A family of bijections of {0 .. n-1}, one for each 32-bit key.

    An id is written as ``left * columns + right`` on the smallest near-square grid that holds n. Each of
    four rounds adds a keyed hash of one half to the other, modulo its size, which can be undone. The grid has
    fewer than sqrt(n) + 1 cells too many: an id that lands on one of them is moved again until it is inside
    ("cycle walking"), a bijection again.

    Args:
        n: the number of ids, in [1, 2^62]. No intermediate leaves the range of int64.
    """

    n: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of the grid, each at most 2^31."""
        right = math.isqrt(self.n - 1) + 1  # ceil(sqrt(n))
        return -(-self.n // right), right

    @property
    def longest_walk(self) -> int:
        """Moves after the first that bring every id inside, where one may not look whether they have.

        No walk can be longer than there are cells too many. Each move fails with a chance of their share, so
        that fewer than one in 10^12 permutations has a longer walk than the second bound.
        """
        rows, columns = self.sizes
        excess = rows * columns - self.n
        if excess == 0:
            return 0
        return min(excess, math.ceil(math.log(1e12 * self.n) / math.log(rows * columns / excess)))

    def forward(self, x: Any, key: Any) -> Any:
        """Where the ids ``x`` go under ``key``; the two broadcast."""
        return self._walk(self._encrypt, x, key)

    def inverse(self, y: Any, key: Any) -> Any:
        """The ids that go to ``y`` under ``key``: ``inverse(forward(x, key), key) == x``."""
        return self._walk(self._decrypt, y, key)

    def _walk(self, move: Any, x: Any, key: Any) -> Any:
        y = move(x, key)
        rows, columns = self.sizes
        if rows * columns == self.n:
            return y
        xp = namespace(y)
        if may_look(y):
            outside = y >= self.n
            while xp.any(outside):
                y = xp.where(outside, move(y, key), y)
                outside = y >= self.n
            return y
        for _ in range(self.longest_walk):
            y = xp.where(y >= self.n, move(y, key), y)
        return y

    def _encrypt(self, x: Any, key: Any) -> Any:
        rows, columns = self.sizes
        left = quotient(x, columns, rows * columns)
        right = x - left * columns
        for i, constant in enumerate(ROUNDS):
            if i % 2 == 0:
                left = left + below(mix(((right ^ key) + constant) & MASK), rows)
                left = left - rows * (left >= rows)
            else:
                right = right + below(mix(((left ^ key) + constant) & MASK), columns)
                right = right - columns * (right >= columns)
        return left * columns + right

    def _decrypt(self, y: Any, key: Any) -> Any:
        rows, columns = self.sizes
        left = quotient(y, columns, rows * columns)
        right = y - left * columns
        for i, constant in reversed(list(enumerate(ROUNDS))):
            if i % 2 == 0:
                left = left - below(mix(((right ^ key) + constant) & MASK), rows)
                left = left + rows * (left < 0)
            else:
                right = right - below(mix(((left ^ key) + constant) & MASK), columns)
                right = right + columns * (right < 0)
        return left * columns + right
