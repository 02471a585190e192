"""The update rules: Q-learning, double Q-learning and Sarsa, exact and over sampled candidates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import TabularAlgorithm
from .checks import plain_arguments
from .draws import Draw
from .environments import Step
from .maximum import Chosen, best


class QLearning(TabularAlgorithm):
    """Q-learning: Q(s, a) += alpha (r + gamma max_b Q(s', b) - Q(s, a)), over all n actions.

    Reads n values at each maximum, so it is refused where the tables would exceed 2^27 numbers.

    See `TabularAlgorithm` for arguments, attributes and methods.
    """

    def _update(self, rows: Tensor, action: Tensor, step: Step, draw: Draw) -> None:
        values, _ = self._values(self._table.rows(step.next_state), draw.other.ids)
        self._move(rows, action, values[0].amax(1), step)


class DoubleQLearning(TabularAlgorithm):
    """Double Q-learning: a coin picks the table that is updated; it selects b*, the other one evaluates it.

    Q_A(s, a) += alpha (r + gamma Q_B(s', b*) - Q_A(s, a)) with b* = arg max_b Q_A(s', b), or A and B the
    other way round. Acts on Q_A + Q_B.

    See `TabularAlgorithm` for arguments, attributes and methods.
    """

    n_tables = 2

    def _update(self, rows: Tensor, action: Tensor, step: Step, draw: Draw) -> None:
        values, ids = self._values(self._table.rows(step.next_state), draw.other.ids)  # (2, R, C)
        which = (draw.side < 0.5).long()
        _, column = best(values[which, self._runs], draw.other.tie, ids)
        self._move(rows, action, values[1 - which, self._runs, column], step, which)


class Sarsa(TabularAlgorithm):
    """Sarsa: Q(s, a) += alpha (r + gamma Q(s', a') - Q(s, a)), where a' is the action executed next.

    See `TabularAlgorithm` for arguments, attributes and methods.
    """

    def _choose(self, state: Tensor, draw: Draw) -> Chosen:
        if self._pending is None:  # the very first action: of a draw of its own
            self._pending = super()._choose(state, self._draws.next())
        return self._pending

    def _update(self, rows: Tensor, action: Tensor, step: Step, draw: Draw) -> None:
        next_rows = self._table.rows(step.next_state)
        following = self._act(next_rows, draw.act)
        next_value = self._table.read(next_rows, following.action[:, None], 1)[0, :, 0]
        self._move(rows, action, next_value, step)
        done = step.terminated | step.truncated
        if bool(done.any()):  # another episode has begun, in another state
            anew = self._act(self._table.rows(step.state), draw.other)
            following = Chosen(*(torch.where(done, x, y) for x, y in zip(anew, following, strict=True)))
        self._pending = following


class _Stochastic(TabularAlgorithm):
    """Maxima over candidates: C = R u M instead of all n actions.

    Args:
        env: see `TabularAlgorithm`, as are all arguments that are not named here.
        candidates: the size of R, uniform ids drawn at each maximum: a number, "log" for ceil(log2 n), or
            "all" for the exact maximum. Distinct up to n = 256, with replacement above.
        memory: the size of M, the distinct actions most recently exploited in the state: a number, "log" for
            ceil(log2 n), or 0 for none. A run begins with empty memories.
        eval_candidates: ids that ``predict(deterministic=True)`` looks at, beside the memory, if the table is
            sparse.
        remember_explored: let explored actions into the memory too. Otherwise one that was explored and found
            good is met again only by chance, which with very many actions is never. Not in the paper.
    """

    def __init__(
        self,
        env: Any,
        *args: Any,
        candidates: int | str = "log",
        memory: int | str = "log",
        eval_candidates: int = 1024,
        remember_explored: bool = False,
        **kwargs: Any,
    ) -> None:
        own = plain_arguments(
            {
                "candidates": candidates,
                "memory": memory,
                "eval_candidates": eval_candidates,
                "remember_explored": remember_explored,
            }
        )
        kwargs.update({f"_{name}": value for name, value in own.items()})
        super().__init__(env, *args, **kwargs)
        self._arguments.update(own)


class StochQ(_Stochastic, QLearning):
    """Stochastic Q-learning: Q(s, a) += alpha (r + gamma max_{b in C} Q(s', b) - Q(s, a)).

    (Fourati, Aggarwal, Alouini, ICML 2024.) C is drawn at each maximum, when acting and when bootstrapping.
    Without a memory the values converge to the fixed point of
    (Phi Q)(s, a) = E[r + gamma E_C max_{b in C} Q(s', b)] (theorem 6.2), which is below Q*.
    """

    __doc__ = (__doc__ or "") + (_Stochastic.__doc__ or "").partition("\n")[2]


class StochDoubleQ(_Stochastic, DoubleQLearning):
    """Stochastic double Q-learning: one set C serves both tables in an update.

    Q_A(s, a) += alpha (r + gamma Q_B(s', b*) - Q_A(s, a)) with b* = arg max_{b in C} Q_A(s', b), or A and B
    the other way round, as a coin says. Acts on Q_A + Q_B. (Fourati, Aggarwal, Alouini, ICML 2024.)
    """

    __doc__ = (__doc__ or "") + (_Stochastic.__doc__ or "").partition("\n")[2]


class StochSarsa(_Stochastic, Sarsa):
    """Stochastic Sarsa: a' is drawn by stochastic epsilon-greedy at s', and is the action executed next.

    Q(s, a) += alpha (r + gamma Q(s', a') - Q(s, a)). (Fourati, Aggarwal, Alouini, ICML 2024.)
    """

    __doc__ = (__doc__ or "") + (_Stochastic.__doc__ or "").partition("\n")[2]
