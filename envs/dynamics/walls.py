"""Thin walls in the unit square: where a move stops at one, and the shortest way around them."""

import itertools
import math
from typing import Any, NamedTuple

from .arrays import namespace

GAP = 1e-9  # how far in front of a wall a move from its left stops; from its right it stops on it
MARGIN = 0.015  # how far beside and beyond the end of a wall the way around it is aimed
BLOCKED = 9.0  # longer than any way in the square


class Wall(NamedTuple):
    """An upright segment: from the floor up to ``tip``, or from the ceiling down to it.

    A point at exactly ``x`` is on the right of the wall. So each point is on one side, and a move has to do
    with the wall if and only if its ends are on different sides.
    """

    x: float
    tip: float
    stands: bool


LAYOUTS: tuple[tuple[Wall, ...], ...] = (
    (),
    (Wall(1 / 2, 2 / 3, True),),
    (Wall(1 / 3, 2 / 3, True), Wall(2 / 3, 1 / 3, False)),
)


def longest_way(walls: tuple[Wall, ...]) -> float:
    """No shortest way between two points of the square is longer: that by all tips, from corner to corner."""
    if not walls:
        return math.sqrt(2)
    ends = [
        max(math.dist((side, y), (wall.x, wall.tip)) for y in (0, 1))
        for side, wall in enumerate((walls[0], walls[-1]))
    ]
    between = [math.dist((a.x, a.tip), (b.x, b.tip)) for a, b in itertools.pairwise(walls)]
    return sum(ends) + sum(between)


def meets(wall: Wall, x: Any, y: Any, to_x: Any, to_y: Any) -> tuple[Any, Any]:
    """Whether the segment from (x, y) to (to_x, to_y) meets the wall, and the height where it meets its line.

    At least one of ``x`` and ``to_x`` is an array, or all are Python numbers.
    """
    across = to_x - x
    xp = namespace(across)
    changes = (x < wall.x) != (to_x < wall.x)
    height = y + (wall.x - x) * (to_y - y) / xp.where(changes, across, across * 0.0 + 1.0)
    return changes & ((height <= wall.tip) if wall.stands else (height >= wall.tip)), height


def stop(walls: tuple[Wall, ...], x: Any, y: Any, to_x: Any, to_y: Any) -> tuple[Any, Any]:
    """Where a straight move from (x, y) to (to_x, to_y) ends: there, or where it first meets a wall.

    The point of intersection is exact up to rounding, and the side of the wall is exact: no move, however
    long, ends on the other side. One wall after the other cuts the move, so the nearest one cuts it last.
    """
    xp = namespace(x)
    for wall in walls:
        met, height = meets(wall, x, y, to_x, to_y)
        before = xp.where(x < wall.x, xp.maximum(x, x * 0.0 + (wall.x - GAP)), x * 0.0 + wall.x)
        to_x, to_y = xp.where(met, before, to_x), xp.where(met, height, to_y)
    return to_x, to_y


def way(walls: tuple[Wall, ...], x: Any, y: Any, goal_x: Any, goal_y: Any) -> tuple[Any, Any, Any]:
    """Length of the shortest way from (x, y) to the goal, and where to aim at first: length, x, y.

    A shortest way is straight between the tips of the walls. So it is the shortest among the direct one and
    those by one or two tips, of those whose parts meet no wall. (A part that ends at the tip of a wall does
    not meet that wall, whatever the rounding.) The aim is the goal, or a point a little beyond the tip and on
    this side of the wall. Takes one or two walls.
    """
    xp = namespace(goal_x - x)
    blocked, come, go = False, [], []
    for wall in walls:
        others = [other for other in walls if other is not wall]
        blocked = blocked | meets(wall, x, y, goal_x, goal_y)[0]
        come.append(_length(x, y, wall.x, wall.tip, others))
        go.append(_length(wall.x, wall.tip, goal_x, goal_y, others))
    length = _length(x, y, goal_x, goal_y) + blocked * BLOCKED
    aim_x, aim_y = length * 0.0 + goal_x, length * 0.0 + goal_y
    for first, coming in zip(walls, come, strict=True):
        beside = xp.where(x < first.x, length * 0.0 - MARGIN, length * 0.0 + MARGIN)
        beyond = MARGIN if first.stands else -MARGIN
        for last, going in zip(walls, go, strict=True):
            candidate = coming + _length(first.x, first.tip, last.x, last.tip) + going
            shorter = candidate < length
            length = xp.where(shorter, candidate, length)
            aim_x = xp.where(shorter, beside + first.x, aim_x)
            aim_y = xp.where(shorter, length * 0.0 + (first.tip + beyond), aim_y)
    return length, aim_x, aim_y


def _length(x: Any, y: Any, to_x: Any, to_y: Any, walls: Any = ()) -> Any:
    """Length of a segment, and `BLOCKED` more if it meets one of the walls."""
    length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
    for wall in walls:
        length = length + meets(wall, x, y, to_x, to_y)[0] * BLOCKED
    return length
