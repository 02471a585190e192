"""What codes of pegs have in common, and the search for codes and good guesses behind Mastermind's oracle."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .arrays import namespace, quotient
from .digits import join, split

History = tuple[tuple[int, int, int], ...]
"""The guesses so far and their answers: (id, black, white) each."""

EXHAUSTIVE = 4096  # up to so many codes, every one of them is considered as a guess
CANDIDATES = 256  # consistent codes that are considered as a guess where there are more codes
SAMPLE = 1024  # consistent codes that candidates are judged by there
OPENING = 2**14  # codes that first guesses are judged by
BLOCK = 1024  # prefixes that the search extends at once


@dataclass(frozen=True)
class Rules:
    """Codes of ``pegs`` digits, each one of ``colours``, and what one has in common with another.

    How often each colour is in a code is packed into words, ``width`` bits for every colour: enough for the
    number of pegs and a free bit on top, by which all the colours of a word are compared at once.
    """

    colours: int
    pegs: int

    @property
    def n(self) -> int:
        return int(self.colours**self.pegs)

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.colours,) * self.pegs

    @property
    def width(self) -> int:
        return self.pegs.bit_length() + 1

    @property
    def per_word(self) -> int:
        """Colours in a word of at most 62 bits."""
        return min(self.colours, 62 // self.width)

    def digits(self, ids: Any) -> Any:
        """The colours of the codes ``ids``, ``(pegs, *ids.shape)``."""
        return namespace(ids).stack(split(ids, self.sizes))

    def tallies(self, digits: Any) -> list[Any]:
        """How often each colour is in a code, packed: a few words of the shape of the codes."""
        one = digits * 0 + 1
        if self.per_word == self.colours:
            return [(one << digits * self.width).sum(0)]
        words = []
        for first in range(0, self.colours, self.per_word):
            inside = (digits >= first) & (digits < first + self.per_word)
            words.append(((one * inside) << (digits - first) * inside * self.width).sum(0))
        return words

    def in_common(self, a: list[Any], b: list[Any]) -> Any:
        """Pegs that the codes of two `tallies` have in common, wherever they are: the sum over the colours of
        the smaller number. The two broadcast."""
        free = sum(1 << (self.width * i + self.width - 1) for i in range(self.per_word))
        total: Any = 0
        for x, y in zip(a, b, strict=True):
            more = ((x | free) - y) & free  # the free bits of the colours with x >= y
            smaller = x ^ ((x ^ y) & (more - (more >> self.width - 1)))
            # 2^width is 1 modulo 2^width - 1: the remainder is the sum of all fields, at most ``pegs``
            ones = 2**self.width - 1
            total = total + smaller - quotient(smaller, ones, 2 ** (self.width * self.per_word)) * ones
        return total

    def answers(self, secrets: np.ndarray, guesses: np.ndarray) -> np.ndarray:
        """The answer of each guess to each secret as one number, black * (pegs + 1) + white,
        ``(secrets, guesses)``. With numpy."""
        a, b = self.digits(secrets), self.digits(guesses)
        black: Any = sum(x[:, None] == y for x, y in zip(a.astype(np.int8), b.astype(np.int8), strict=True))
        both = self.in_common([x[:, None] for x in self.tallies(a)], self.tallies(b))
        return black * np.int64(self.pegs) + both  # = black * (pegs + 1) + (both - black)


def consistent(rules: Rules, history: History) -> Iterator[np.ndarray]:
    """The codes that would have got all answers of ``history``: ids, int64, in blocks, each code once.

    Depth first, a block of prefixes at a time, one more peg at each level. A prefix is dropped when the pegs
    that are left can no longer bring the blacks or the common pegs of an answer. The prefixes of a level are
    shuffled, by a generator that the history seeds, so that the first blocks have codes from everywhere.
    """
    rng = np.random.default_rng([number for row in history for number in row])
    guesses = np.array([guess for guess, _, _ in history], dtype=np.int64)  # (t,)
    black = np.array([black for _, black, _ in history], dtype=np.int64)
    both = black + np.array([white for _, _, white in history], dtype=np.int64)
    guess_digits = rules.digits(guesses)  # (pegs, t)
    guess_tallies = rules.tallies(guess_digits)  # of (t,)
    palette = np.arange(rules.colours)
    palette_tallies = rules.tallies(palette[None])  # of (colours,)
    none = np.zeros(1, dtype=np.int64)
    stack = [(0, none, [none] * len(palette_tallies), np.zeros((1, len(history)), dtype=np.int64))]
    while stack:
        peg, codes, tallies, blacks = stack.pop()
        codes = (codes[:, None] + palette * rules.colours**peg).reshape(-1)  # (m,)
        tallies = [(x[:, None] + y).reshape(-1) for x, y in zip(tallies, palette_tallies, strict=True)]
        blacks = (blacks[:, None] + (palette[:, None] == guess_digits[peg])).reshape(len(codes), -1)  # (m, t)
        left = rules.pegs - peg - 1
        commons = rules.in_common([x[:, None] for x in tallies], guess_tallies)
        fits = (blacks <= black) & (black <= blacks + left) & (commons <= both) & (both <= commons + left)
        keep = rng.permutation(np.flatnonzero(fits.all(axis=1)))
        if left == 0:
            yield codes[keep]
        elif len(keep) > 0:
            for part in np.array_split(keep, -(-len(keep) // BLOCK)):  # even: no few are a block alone
                stack.append((peg + 1, codes[part], [x[part] for x in tallies], blacks[part]))


def sample(rules: Rules, history: History, limit: int) -> np.ndarray:
    """All consistent codes, or ``limit`` of them if there are more."""
    blocks, found = [], 0
    for block in consistent(rules, history):
        blocks.append(block)
        found += len(block)
        if found >= limit:
            break
    return np.concatenate(blocks)[:limit]


def count(rules: Rules, history: History, limit: int) -> int:
    """How many codes are consistent with ``history``; ``limit`` if there are more."""
    if not history:
        return min(rules.n, limit)
    found = 0
    for block in consistent(rules, history):
        found += len(block)
        if found >= limit:
            return limit
    return found


def shapes(rules: Rules) -> list[tuple[int, ...]]:
    """How the pegs of a code can be shared out to colours, without their names: the partitions of ``pegs``
    into at most ``colours`` parts, the largest first. All codes of a shape are equally good first guesses."""

    def parts(total: int, largest: int, number: int) -> Iterator[tuple[int, ...]]:
        if total == 0:
            yield ()
        elif number > 0:
            for first in range(min(total, largest), 0, -1):
                for rest in parts(total - first, first, number - 1):
                    yield (first, *rest)

    return list(parts(rules.pegs, rules.pegs, rules.colours))


def shape_size(rules: Rules, shape: tuple[int, ...]) -> int:
    """Number of codes of a shape."""
    arrangements = math.factorial(rules.pegs)
    for part in shape:
        arrangements //= math.factorial(part)
    naming = math.perm(rules.colours, len(shape))
    for part in set(shape):
        naming //= math.factorial(shape.count(part))
    return arrangements * naming


def example(rules: Rules, shape: tuple[int, ...]) -> int:
    """The code of a shape that uses the first colours in order."""
    digits = [colour for colour, part in enumerate(shape) for _ in range(part)]
    return int(join(digits, rules.sizes))


def split_sizes(rules: Rules, secrets: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """How many of the secrets give each answer to each guess, ``(guesses, answers)``."""
    kinds = (rules.pegs + 1) ** 2
    rows = []
    step = max(1, 2**20 // len(secrets))  # so that the products stay small
    for start in range(0, len(guesses), step):
        part = guesses[start : start + step]
        codes = rules.answers(secrets, part) + kinds * np.arange(len(part))
        rows.append(np.bincount(codes.reshape(-1), minlength=kinds * len(part)).reshape(-1, kinds))
    return np.concatenate(rows)


def information(sizes: np.ndarray) -> np.ndarray:
    """Mean information of an answer in bits, for `split_sizes`, ``(guesses,)``."""
    share = sizes / sizes.sum(axis=1, keepdims=True)
    return -(share * np.log2(np.where(share > 0, share, 1.0))).sum(axis=1)


@lru_cache(maxsize=16)
def openings(rules: Rules) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """The shapes of first guesses, and how the secrets split on them, ``(shapes, answers)``: all secrets, or
    a sample of 16,384 if there are more."""
    secrets = np.arange(min(rules.n, OPENING))
    if rules.n > OPENING:
        secrets = np.random.default_rng(0).integers(rules.n, size=OPENING)
    kinds = shapes(rules)
    guesses = np.array([example(rules, shape) for shape in kinds])
    return kinds, split_sizes(rules, secrets, guesses)


@lru_cache(maxsize=2**16)
def good_guess(rules: Rules, history: History) -> int:
    """A good guess after ``history``: see `Mastermind.optimal_action`."""
    if history and history[-1][1] == rules.pegs:
        return history[-1][0]  # it was a hit: the game is over
    if not history:
        kinds, sizes = openings(rules)
        guesses = np.array([example(rules, shape) for shape in kinds])
        possible = np.ones(len(kinds), dtype=bool)
    elif rules.n <= EXHAUSTIVE:
        secrets = np.sort(sample(rules, history, rules.n))
        guesses = np.arange(rules.n)
        possible = np.isin(guesses, secrets)
        sizes = split_sizes(rules, secrets, guesses)
    else:
        secrets = sample(rules, history, SAMPLE)
        guesses = secrets[:CANDIDATES]
        possible = np.ones(len(guesses), dtype=bool)
        sizes = split_sizes(rules, secrets, guesses)
    if rules.n <= EXHAUSTIVE:
        # Among those with as many answers the possible ones, then those that leave a smaller share of codes.
        left = (sizes**2).sum(axis=1) / sizes.sum(axis=1) ** 2
        worth = (sizes > 0).sum(axis=1) + 0.5 * possible - 0.25 * left
    else:
        worth = information(sizes)
    return int(guesses[worth.argmax()])
