"""Mastermind: every action is a question, and what it is worth depends on the answers so far."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from .arrays import arange, constant, namespace, one_hot, table
from .digits import join, split
from .hashing import below, draw, stream
from .mastermind_search import History, Rules, count, good_guess, information, openings, shape_size
from .world import State, World, require, require_integer

COUNTED = 2**20  # up to so many codes, those that fit are all counted
FEW = 2**14  # with more codes, those that fit are counted up to this number
PEGS = ("red", "blue", "green", "yellow", "orange", "purple", "teal", "brown", "pink", "black")
ROWS = 16  # that a picture has room for


@dataclass(frozen=True)
class Mastermind(World):
    """The game of Mastermind: find a secret code by guessing codes.

    ## Description
    The code has ``pegs`` pegs, each of one of ``colours`` colours, and colours may repeat. After each guess
    the agent is told how many pegs have the right colour in the right place (*black*), and how many more
    would if the guess were put in another order (*white*): white = sum over the colours of min(times in the
    secret, times in the guess) - black. All first guesses pay the same, and nearly all later ones do: a guess
    is worth what its answer tells, and that depends on all earlier answers. **Structure of the action space:
    information.**

    ## Action Space
    ``Discrete(colours^pegs)``: a guess. Digit i to the base ``colours``, the least significant first, is the
    colour of peg i.

    ## Observation Space
    ``Box(0, 1, (horizon * (pegs + 2),))``: a row for each guess, the latest first. A row has (colour + 1) /
    colours for each peg, with colours counted from 0, then (black + 1) / (pegs + 1) and (white + 1) / (pegs +
    1). The rows of guesses to come are zero, and nothing else is.

    ## Starting State
    A secret code drawn uniformly, peg by peg; no guesses.

    ## Rewards
    -1 for each guess, the right one too: the return is minus the number of guesses.

    ## Episode End
    Terminates when the guess is the secret; truncated after ``horizon`` guesses.

    ## Arguments
    - ``colours`` (10): in [2, 100], ``pegs`` (6): in [1, 62]. There are colours^pegs actions, at most 2^62.
    - ``horizon`` (12): guesses in an episode, in [1, 1000].

    ## Optimum
    Not known exactly in general. For 4 pegs of 6 colours, the game as it is sold, the best strategy needs
    5625 / 1296 = 4.340 guesses on average and never more than 6 (Koyama and Lai, 1993). ``optimal_value`` is
    an upper bound from the number of codes that fit the answers, and ``optimal_action`` a good policy, with a
    search: for evaluation, not for training. Guesses on average:

    | code               | oracle        | games       | a random code that fits | bound | uniform ids |
    |--------------------|---------------|-------------|-------------------------|-------|-------------|
    | 4 pegs, 6 colours  | 4.370         | all secrets | 4.65 +- 0.01            | 3.85  | 11.949      |
    | 6 pegs, 10 colours | 6.69 +- 0.013 | 4,000       | 7.07 +- 0.03            | 5.51  | 12.000      |
    | 9 pegs, 10 colours | 8.34 +- 0.05  | 400         | 8.79 +- 0.07            | 6.57  | 12.000      |

    A code drawn from those that fit all answers so far is a baseline that does not look ahead (4,000, 1,000
    and 300 games). The bound is loose, since it takes all answers to be equally telling. The figure of
    uniform ids is exact; it counts 12 for a game that was not won.

    ## Version History
    - v0: initial version.
    """

    colours: int = 10
    pegs: int = 6
    horizon: int = 12

    structure = "information"
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_integer("colours", self.colours, 2, 100)  # a board of int8 holds them
        require_integer("pegs", self.pegs, 1, 62)
        require_integer("horizon", self.horizon, 1, 1000)
        most = next(pegs for pegs in range(62, 0, -1) if self.colours**pegs <= 2**62)
        require(
            self.pegs <= most,
            f"colours={self.colours} and pegs={self.pegs} make more than 2^62 codes: with so many colours "
            f"take at most {most} pegs",
        )

    # The world

    @property
    def rules(self) -> Rules:
        return Rules(self.colours, self.pegs)

    @property
    def n(self) -> int:
        return self.rules.n

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.rules.sizes

    @property
    def reward_range(self) -> tuple[float, float]:
        return -1.0, 0.0  # a range with a width: it is always -1

    @property
    def low(self) -> np.ndarray:
        return np.zeros(self.horizon * (self.pegs + 2), dtype=np.float32)

    @property
    def high(self) -> np.ndarray:
        return self.low + np.float32(1)

    def reset(self, key: Any) -> State:
        """``secret``: the id of the code, ``(B,)``. ``board``: int8 ``(B, horizon, pegs + 2)``, the guesses
        and answers, the latest first, with 1 added to each number; 0 for guesses to come."""
        xp = namespace(key)
        digits = below(draw(stream(key), arange(self.pegs, key)[:, None]), self.colours)  # (pegs, B)
        secret = (digits * table(_powers, self.colours, self.pegs, like=key)).sum(0)
        blank = table(_blank, self.horizon, self.pegs + 2, like=key)
        board = blank + xp.astype(key * 0, xp.int8)[:, None, None]  # (B, horizon, pegs + 2)
        return {"key": key, "t": key * 0, "secret": secret, "board": board}

    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        xp = namespace(action)
        rules = self.rules
        digits = rules.digits(xp.stack([action, state["secret"]]))  # (pegs, 2, B)
        tallies = rules.tallies(digits)  # of (2, B)
        black = (digits[:, 0] == digits[:, 1]).sum(0)
        white = rules.in_common([x[0] for x in tallies], [x[1] for x in tallies]) - black
        row = xp.concat([digits[:, 0], black[None], white[None]]) + 1  # (pegs + 2, B)
        # The latest guess pushes the others one row down: nothing is written at a place that depends on t.
        board = xp.concat([xp.astype(row, xp.int8).T[:, None], state["board"][:, :-1]], axis=1)
        reward = xp.astype(black, xp.float64) * 0.0 - 1.0
        return {**state, "t": state["t"] + 1, "board": board}, reward, black == self.pegs

    def observe(self, state: State) -> Any:
        rows = namespace(state["board"]).reshape(state["board"], (-1, self.horizon * (self.pegs + 2)))
        return rows / table(_scale, self.colours, self.pegs, self.horizon, like=rows)  # int8 / float32

    # The optimum

    def optimal_value(self, state: State) -> Any:
        """An upper bound of the expected return to come, ``(B,)`` float64.

        Let S be the codes that fit all answers so far: the secret is equally likely to be any of them. There
        are a = (pegs + 1)(pegs + 2) / 2 - 2 answers that are no hit: all with black + white <= pegs, but for
        the hit itself, and for one white besides pegs - 1 blacks, which cannot be. Some best policy has no
        randomness, and chooses its j-th guess from now on by the j - 1 answers before it, none of them a hit.
        So it has at most a^(j - 1) guesses to choose as its j-th, each of them right for one code, and the
        first j guesses find at most c_j = 1 + a + ... + a^(j - 1) codes. The game goes on to a j-th guess
        with a chance of at least 1 - c_(j - 1) / |S|, where c_0 = 0. So the expected number of guesses is at
        least the sum over j = 1 .. horizon - t of max(0, 1 - c_(j - 1) / |S|).

        |S| is counted exactly where there are at most 2^20 codes. With more it is colours^pegs before the
        first guess, and after that it is counted up to 2^14 and no further: a smaller |S| makes the bound
        weaker, never wrong. After a hit the value is 0.
        """
        values = [self._bound(history) for history in self._histories(state)]
        return constant(np.array(values), state["t"])

    def _bound(self, history: History) -> float:
        if history and history[-1][1] == self.pegs:
            return 0.0
        number = _count(self.rules, history) if history else self.n
        answers = (self.pegs + 1) * (self.pegs + 2) // 2 - 2
        total, found = 0.0, 0
        for j in range(self.horizon - len(history)):
            if found >= number:
                break
            total += 1 - found / number
            found += answers**j
        return -total

    def optimal_action(self, state: State) -> Any:
        """A guess that as many different answers as possible may follow, ``(B,)`` int64.

        That is the rule where there are at most 4,096 codes: all of them are considered, with their answers
        to every secret that fits the history. Among equals one that may itself be the secret is taken, then
        one that leaves fewer codes on average. With more codes 256 that fit the history are considered, and
        the one is taken whose answers to 1,024 such tell most, in bits. A search finds them peg by peg, in
        about 3 ms at 10^6 codes and 50 ms at 10^9. The first guess is the best of all shapes, judged in the
        same way. The policy has no randomness, and guesses are kept for histories that come again. With
        torch's tensors it computes on the CPU.
        """
        rules = self.rules
        ids = [good_guess(rules, history) for history in self._histories(state)]
        return constant(np.array(ids, dtype=np.int64), state["t"])

    def _histories(self, state: State) -> list[History]:
        """Guesses and answers of each environment, the first guess first."""
        board, times = (np.asarray(state[name].tolist()) for name in ("board", "t"))
        *digits, black, white = np.moveaxis(board.astype(np.int64), -1, 0) - 1  # (B, horizon) each
        rows = np.stack([join(digits, self.sizes), black, white], axis=-1)  # (B, horizon, 3)
        return [tuple(map(tuple, one[:t][::-1].tolist())) for one, t in zip(rows, times, strict=True)]

    def random_return(self) -> float:
        """Exact expected return of uniform ids, each a hit with chance 1/n: -n (1 - (1 - 1/n)^horizon)."""
        return self.n * math.expm1(self.horizon * math.log1p(-1 / self.n))

    def good_fraction(self, eps: float) -> float:
        """Fraction of the ids whose answer, as a first guess, tells at least (1 - ``eps``) times as much as
        that of the best one, in bits on average; above 16,384 codes the bits are those of as many random
        secrets."""
        kinds, sizes = openings(self.rules)
        bits = information(sizes)
        good = bits >= (1 - eps) * bits.max() - 1e-12
        return (
            sum(shape_size(self.rules, kind) for kind, yes in zip(kinds, good, strict=True) if yes) / self.n
        )

    def action_features(self, ids: Any) -> Any:
        """One-hot colour of each peg, ``(*ids.shape, pegs * colours)`` float32."""
        xp = namespace(ids)
        rows = one_hot(xp.stack(split(ids, self.sizes), axis=-1), self.colours)  # (..., pegs, colours)
        return xp.reshape(rows, (*ids.shape, self.pegs * self.colours))

    # Pictures

    def describe(self, state: State, last: tuple[State, int, float] | None) -> list[str]:
        (secret,), (t,) = state["secret"].tolist(), state["t"].tolist()
        lines = [f"Mastermind, {self.colours}^{self.pegs} actions, step {t} of {self.horizon}"]
        if last is not None:
            *_, (_, black, white) = self._histories(state)[0]
            lines.append(f"action {last[1]}: reward {last[2]:.0f}")
            lines.append(f"black {black}, white {white} for {' '.join(map(str, split(last[1], self.sizes)))}")
        return [*lines, f"secret {' '.join(map(str, split(secret, self.sizes)))}"]

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        """The secret on top, and the guesses from below, up to the last sixteen. Black and white pins beside
        a guess are its answer. There are ten colours for pegs: further ones look like the first."""
        rows = min(self.horizon, ROWS)
        height, width = 1 / (rows + 1), 0.75 / self.pegs
        (secret,) = state["secret"].tolist()

        def pegs(code: int, y: float) -> None:
            for i, colour in enumerate(split(code, self.sizes)):
                canvas.disc((i + 0.5) * width, y, 0.42 * min(height, width), PEGS[colour % len(PEGS)])

        canvas.box(0.0, 1 - height, 0.75, 1.0, "light")  # the secret lies on top
        pegs(secret, 1 - 0.5 * height)
        across = 0.24 / self.pegs
        radius = 0.4 * min(height, across)
        history = self._histories(state)[0][-rows:]
        for row in range(rows):
            y = (row + 0.5) * height
            canvas.line(0.0, row * height, 1.0, row * height, "light", width=1)
            if row >= len(history):
                continue
            guess, black, white = history[row]
            pegs(guess, y)
            for i in range(black + white):
                x = 0.76 + (i + 0.5) * across
                canvas.disc(x, y, radius, "black")
                if i >= black:
                    canvas.disc(x, y, 0.7 * radius, "white")


@lru_cache(maxsize=2**16)
def _count(rules: Rules, history: History) -> int:
    return count(rules, history, rules.n if rules.n <= COUNTED else FEW)


def _powers(colours: int, pegs: int) -> np.ndarray:
    """What a peg's colour counts in an id, ``(pegs, 1)`` int64."""
    return np.array([[colours**i] for i in range(pegs)], dtype=np.int64)


def _blank(horizon: int, columns: int) -> np.ndarray:
    """An empty board, ``(horizon, columns)`` int8."""
    return np.zeros((horizon, columns), dtype=np.int8)


def _scale(colours: int, pegs: int, horizon: int) -> np.ndarray:
    """What the numbers of a board are divided by, ``(horizon * (pegs + 2),)`` float32."""
    return np.array(([colours] * pegs + [pegs + 1] * 2) * horizon, dtype=np.float32)
