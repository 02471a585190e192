"""DiagonalGrid: a move along every subset of the axes of a D-dimensional grid, 4^D actions, exact optimum."""

from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import Any

import numpy as np

from .arrays import entry, namespace, table
from .diagonal_search import best_return, random_return
from .hashing import word
from .packed_cells import GOAL_REWARD, LANE, differs, pays, rows, spread, squares
from .world import State, World, require, require_integer, require_number

PIT_FACTOR = 10.0  # times the distance from start to goal, lost in a pit
LOOKAHEAD = 2  # steps that the policy looks for pits


@dataclass(frozen=True)
class DiagonalGrid(World):
    """A walk from one corner of a grid of D dimensions to the opposite one, along all axes at once.

    ## Description
    Each of the D dimensions has ``side`` cells. An action sets two bits for each dimension, one a step
    forward and one a step back, and all dimensions move at once: the action that sets all bits forward and
    none back goes along the diagonal. Both bits of a dimension cancel, and steps out of the grid do nothing.
    From the start exactly one of the 4^D actions is optimal. **Structure of the action space: factored**:
    each digit of an id in base 4 moves a dimension of its own. What couples the digits is the reward, a
    distance, and the pits: whether a cell is one says nothing of the cells beside it, so that with ``pits`` >
    0 the digits must be chosen together. After the CoNE task of Landers et al. (2025), "BraVE: Offline
    reinforcement learning for discrete combinatorial action spaces"; the code and the layout of the pits are
    not theirs.

    ## Action Space
    ``Discrete(4^dims)``: bit 2i, the least significant first, is a step forward in dimension i, and bit 2i +
    1 a step back.

    ## Observation Space
    ``Box(-1, 1, (dims,))``: 2 x / (side - 1) - 1 for the position x in {0 .. side - 1}^dims. Pits are not
    observed, nor is the time.

    ## Starting State
    The corner (0, ..., 0), always; the goal is the corner (side - 1, ..., side - 1). An episode has no
    randomness of its own.

    ## Rewards
    For the cell after the step: +10 at the goal; -10 times the distance from start to goal in a pit; in any
    other cell minus its Euclidean distance to the goal. In [-sqrt(dims) (side - 1), 10], with pits in [-10
    sqrt(dims) (side - 1), 10].

    ## Episode End
    Terminates at the goal and in a pit; truncated after ``horizon`` steps.

    ## Arguments
    - ``dims`` (10): dimensions, in [1, 20]. There are 4^dims actions.
    - ``side`` (5): cells in each dimension, in [2, 8].
    - ``pits`` (0.0): probability that a cell is a pit, in [0, 1). A hash of the cell and of ``layout`` says
      which ones are; there is no table. Never pits are start and goal, and the cells on the way along the
      edges of the grid that finishes one dimension after the other, from the first to the last: so the goal
      can be reached in dims (side - 1) steps.
    - ``horizon`` (100): steps in an episode. ``layout`` (0): which cells are pits, in [0, 2^62).

    ## Optimum
    Exact without pits, from every cell and for every number of steps left: step forward in each dimension
    that is not finished. No policy can be further in any dimension at any time, so none is nearer to the goal
    at any step, and the goal, the only reward above 0, is reached as early as can be, after as many steps as
    the largest number of cells left in a dimension. From the start that brings 10 - sqrt(dims) (1 + ... +
    (side - 2)). ``random_return`` is exact too: the dimensions are independent until the goal is met.

    With pits ``optimal_value`` is that of the grid without them, an upper bound: a pit costs more than the
    whole straight way. ``optimal_action`` is a policy near the best, which looks two steps ahead for a way
    around them. ``optimal_return`` is exact, by a search from the start, up to 12 dimensions (None beyond,
    and where the search would take long). Uniform ids with pits: 100,000 episodes, standard error 0.27.

    | dims, pits, layout | optimum | oracle  | upper bound | uniform ids |
    |--------------------|---------|---------|-------------|-------------|
    | 10, 0, any         | -8.974  | -8.974  | -8.974      | -808.69     |
    | 15, 0, any         | -13.238 | -13.238 | -13.238     | -994.21     |
    | 10, 0.1, 2         | -11.163 | -11.163 | -8.974      | -216.97     |

    Mean over the layouts 0 .. 199 of 4^10 actions, and 0 .. 399 of 4^4 and 4^2:

    | dims, pits | upper bound | optimum | oracle | oracle is optimal in | most it lacks |
    |------------|-------------|---------|--------|----------------------|---------------|
    | 10, 0.1    | -8.97       | -9.49   | -9.50  | 98 % of the layouts  | 0.81          |
    | 10, 0.3    | -8.97       | -10.20  | -10.32 | 78 %                 | 0.81          |
    | 4, 0.1     | -2.00       | -2.63   | -2.65  | 97 %                 | 0.93          |
    | 4, 0.3     | -2.00       | -3.60   | -3.70  | 88 %                 | 3.47          |
    | 2, 0.1     | 1.51        | 0.81    | 0.79   | 99 %                 | 2.83          |
    | 2, 0.3     | 1.51        | -1.11   | -15.49 | 84 %                 | 395.97        |

    With few dimensions and many pits there are dead ends of more than two steps, where it stays until the
    episode is truncated.

    ## Version History
    - v0: initial version.
    """

    dims: int = 10
    side: int = 5
    pits: float = 0.0
    horizon: int = 100
    layout: int = 0

    structure = "factored"

    def __post_init__(self) -> None:
        require_integer("dims", self.dims, 1, 20)  # 3 bits for each in an int64
        require_integer("side", self.side, 2, 2**LANE)
        require_number("pits", self.pits, 0, 1)
        require(self.pits < 1, f"pits must be below 1, got {self.pits!r}")
        require_integer("horizon", self.horizon, 1, 2**20)
        require_integer("layout", self.layout, 0, 2**62 - 1)

    # The world. A cell is packed into one integer, ``away``: LANE bits for each dimension, the cells that are
    # left there to the goal, 0 .. side - 1. All dimensions move by one addition and one subtraction.

    @property
    def n(self) -> int:
        return 4**self.dims

    @property
    def sizes(self) -> tuple[int, ...]:
        return (4,) * self.dims

    @property
    def reward_range(self) -> tuple[float, float]:
        return self.furthest * (PIT_FACTOR if self.pits > 0 else 1.0), GOAL_REWARD

    @property
    def low(self) -> np.ndarray:
        return np.full(self.dims, -1, dtype=np.float32)

    @property
    def high(self) -> np.ndarray:
        return -self.low

    @cached_property
    def furthest(self) -> float:
        """Reward at the start, where the distance is greatest."""
        return float(pays(self.dims, self.side)[-1])

    @cached_property
    def ones(self) -> int:
        """A 1 in every dimension of a packed cell."""
        return (2 ** (LANE * self.dims) - 1) // (2**LANE - 1)

    @cached_property
    def chunk(self) -> int:
        """How many dimensions a table answers at once: five, or fewer if that divides them better."""
        return -(-self.dims // -(-self.dims // 5))

    def reset(self, key: Any) -> State:
        return {"key": key, "t": key * 0, "away": key * 0 + (self.side - 1) * self.ones}

    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        away = state["away"]
        moves = self._moves(action)
        forward = moves & self._differs(away, 0)
        back = (moves >> 1) & self._differs(away, self.side - 1)
        away = away - forward + back
        reward, terminated = self.pay(away), away == 0
        if self.pits > 0:
            xp = namespace(away)
            pit = self.is_pit(away)
            reward = xp.where(pit, reward * 0.0 + self.reward_range[0], reward)
            terminated = terminated | pit
        return {**state, "t": state["t"] + 1, "away": away}, reward, terminated

    def observe(self, state: State) -> Any:
        parts = self._chunks(state["away"])
        seen = table(rows, self.chunk, self.side, like=parts[0])  # (8^chunk, chunk)
        if isinstance(parts[0], int):
            return np.concatenate([seen[part] for part in parts])[: self.dims]
        chunks = namespace(parts[0]).stack(parts, axis=-1)  # (B, chunks)
        found = namespace(chunks).take(seen, chunks.reshape(-1), axis=0)  # several times as fast as seen[...]
        return found.reshape((*chunks.shape[:-1], -1))[..., : self.dims]

    def is_pit(self, away: Any) -> Any:
        """Whether the packed cells are pits, bool of the shape of ``away``."""
        pit = word(away, word(self.layout, 0)) < round(self.pits * 2**32)
        unfinished, begun = self._differs(away, 0), self._differs(away, self.side - 1)
        # along the edges: wherever a dimension has begun, the one before it is finished
        return pit & (((begun >> LANE) & unfinished) != 0)

    def _moves(self, action: Any) -> Any:
        """1 in the dimensions that go forward, 2 in those that go back, packed as cells are."""
        spreads, bits = table(spread, self.chunk, like=action), 2 * self.chunk
        moves = entry(spreads, action & (2**bits - 1))
        for i in range(1, -(-self.dims // self.chunk)):
            moves = moves | entry(spreads, (action >> (bits * i)) & (2**bits - 1)) << (LANE * self.chunk * i)
        return moves

    def _chunks(self, away: Any) -> list[Any]:
        """The packed cells cut into ``chunk`` dimensions each."""
        bits = LANE * self.chunk
        return [(away >> (bits * i)) & (2**bits - 1) for i in range(-(-self.dims // self.chunk))]

    def _differs(self, away: Any, value: int) -> Any:
        """1 in the dimensions of packed cells that have not this value."""
        return differs(away, value, self.ones)

    def pay(self, away: Any) -> Any:
        """Reward in the packed cells if they are no pits, float64."""
        lengths = table(squares, self.chunk, like=away)
        first, *rest = self._chunks(away)
        total = entry(lengths, first)
        for part in rest:
            total = total + entry(lengths, part)
        return entry(table(pays, self.dims, self.side, like=away), total)

    # The optimum

    @property
    def exact(self) -> bool:
        return self.pits == 0

    def optimal_value(self, state: State) -> Any:
        """Exact value of ``state`` for the steps that are left without pits, an upper bound with them,
        ``(B,)`` float64."""
        return self.straight_value(state["away"], self.horizon - state["t"])

    def straight_value(self, away: Any, left: Any) -> Any:
        """Sum of the next ``left`` rewards on the straight way to the goal if there are no pits."""
        xp = namespace(away)
        value = xp.astype(away * 0, xp.float64)
        for i in range(self.side - 1):
            counts = (away != 0) & (left > i)
            away = away - self._differs(away, 0)
            value = value + xp.where(counts, self.pay(away), value * 0.0)
        return value

    def q_star(self, state: State, action: Any) -> Any:
        """Exact value of taking ``action`` in ``state`` and acting optimally after, ``(B,)`` float64; without
        pits."""
        if not self.exact:
            return super().q_star(state, action)
        after, reward, _ = self.step(state, action)
        # at the goal nothing is left to come
        return self.if_left(state, reward + self.optimal_value(after))

    def optimal_action(self, state: State) -> Any:
        """Forward in each dimension that is not finished, ``(B,)`` integers; around pits if there are any.

        Around pits: the best of the moves that differ from it in one dimension at most, which then stays
        behind, or steps back if it was finished. Their values are exact for two such steps, and beyond them
        those of the grid without pits.
        """
        if self.pits > 0:
            return self._look(state["away"], self.horizon - state["t"], LOOKAHEAD)[1]
        return self._straight(state["away"])

    def _straight(self, away: Any) -> Any:
        """The ids that step forward in each dimension that is not finished."""
        unfinished = self._differs(away, 0)
        return sum(((unfinished >> i) & (1 << 2 * i)) for i in range(self.dims))  # from bit 3i to bit 2i

    def _look(self, away: Any, left: Any, depth: int) -> tuple[Any, Any]:
        """Value and id of the best among the straight move and those that differ from it in one dimension."""
        xp = namespace(away)
        unfinished, straight = self._differs(away, 0), self._straight(away)
        value = action = None
        for i in range(-1, self.dims):
            cell, candidate = away - unfinished, straight
            if i >= 0:  # stay behind, 1 less than forward; or step back from the end
                cell = cell + (1 << LANE * i)
                stays = ((unfinished >> (LANE * i)) & 1) != 0
                candidate = candidate + xp.where(stays, away * 0 - (1 << 2 * i), away * 0 + (2 << 2 * i))
            later = (
                self.straight_value(cell, left - 1)
                if depth == 1
                else self._look(cell, left - 1, depth - 1)[0]
            )
            pay = self.pay(cell)
            q = xp.where((cell == 0) | (left <= 1), pay, pay + later)
            q = xp.where(self.is_pit(cell), q * 0.0 + self.reward_range[0], q)
            if value is None:
                value, action = q, candidate
            else:
                value, action = xp.maximum(value, q), xp.where(q > value, candidate, action)
        return value, action

    def optimal_return(self) -> float | None:
        """Exact return of the best policy; with pits by a search, None where that would take long."""
        return float(self.optimal_value(self.reset(0))) if self.exact else best_return(self)

    def random_return(self) -> float | None:
        """Exact expected return of uniform ids without pits, None with them."""
        return random_return(self) if self.exact else None

    def good_fraction(self, eps: float) -> float:
        """Fraction of the ids that go forward in at least (1 - ``eps``) of the dimensions from the start."""
        least = max(0, int(np.ceil((1 - eps) * self.dims - 1e-9)))
        return sum(comb(self.dims, j) * 3 ** (self.dims - j) for j in range(least, self.dims + 1)) / self.n

    def action_features(self, ids: Any) -> Any:
        """The net move in each dimension, -1, 0 or 1, ``(*ids.shape, dims)`` float32."""
        xp = namespace(ids)
        columns = [((ids >> (2 * i)) & 1) - ((ids >> (2 * i + 1)) & 1) for i in range(self.dims)]
        return xp.astype(xp.stack(columns, axis=-1), xp.float32)

    # Pictures

    def describe(self, state: State, last: tuple[State, int, float] | None) -> list[str]:
        lines = [f"DiagonalGrid, 4^{self.dims} actions, step {state['t']} of {self.horizon}"]
        if last is not None:
            net = "".join("0+-"[int(move)] for move in self.action_features(last[1]))
            lines += [f"action {last[1]}: {net}", f"reward {last[2]:.2f}"]
        away = state["away"]
        lines.append("at " + " ".join(str(self.side - 1 - self._lane(away, i)) for i in range(self.dims)))
        if self.pits > 0 and self.is_pit(away):
            lines.append("in a pit")
        elif self.pits > 0 and self.is_pit(away - self._differs(away, 0)):
            lines.append("a pit straight ahead")
        return lines

    def _lane(self, away: int, i: int) -> int:
        """The cells that are left in dimension i."""
        return (away >> LANE * i) & (2**LANE - 1)

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        """A column for each dimension, with its goal on top and a red disc where it is; below, what the last
        action asked of it: + is forward, - back. With pits, a cell is black where this dimension alone would
        have to go to be in one, and a cross is the end in a pit."""
        wide, high = 1.0 / self.dims, 0.84 / self.side
        away, pit = state["away"], self.pits > 0 and self.is_pit(state["away"])
        for i in range(self.dims):
            x = self.side - 1 - self._lane(away, i)
            for j in range(self.side):
                colour = "green" if j == self.side - 1 else "light"
                if self.pits > 0 and j != x and self.is_pit(away + (x - j << LANE * i)):
                    colour = "black"
                left, bottom = (i + 0.06) * wide, 0.14 + (j + 0.06) * high
                canvas.box(left, bottom, left + 0.88 * wide, bottom + 0.88 * high, colour)
            canvas.disc((i + 0.5) * wide, 0.14 + (x + 0.5) * high, 0.25 * min(wide, high), "red")
            if last is not None:  # what the action asks of this dimension
                middle, size, bits = (i + 0.5) * wide, 0.3 * min(wide, 0.1), (last[1] >> 2 * i) & 3
                if bits in (1, 2):
                    colour = "blue" if bits == 1 else "grey"
                    canvas.line(middle - size, 0.06, middle + size, 0.06, colour, width=3)
                if bits == 1:
                    canvas.line(middle, 0.06 - size, middle, 0.06 + size, colour, width=3)
        if pit:
            canvas.line(0.0, 0.14, 1.0, 0.98, "black", width=5)
            canvas.line(0.0, 0.98, 1.0, 0.14, "black", width=5)
