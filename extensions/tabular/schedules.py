"""Learning rates and exploration, by progress or by visits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .plain import real

#: of the progress remaining, from 1 to 0, as in Stable-Baselines3
Schedule = Callable[[float], float]


@dataclass(frozen=True)
class VisitCount:
    """The learning rate N(s, a)^-power, where N counts the updates of an entry, the present one included.

    With a power in (0.5, 1] these are Robbins-Monro steps: their sum is infinite, that of their squares is
    not, as the convergence theorem asks (theorem 6.2).

    Args:
        power: in (0, 1].

    Raises:
        ValueError: power outside (0, 1].
    """

    power: float = 0.8

    def __post_init__(self) -> None:
        power = real(self.power)
        if power is None or not 0 < power <= 1:
            raise ValueError(
                f"VisitCount(power={self.power}): must lie in (0, 1], and above 0.5 for Robbins-Monro"
            )
        object.__setattr__(self, "power", power)


def as_learning_rate(rate: Any) -> float | Schedule | VisitCount:
    """A learning rate, as a float if it is a number. Refuses what is none."""
    if isinstance(rate, VisitCount) or callable(rate):
        return rate
    number = real(rate)
    if number is None:
        raise TypeError(
            "learning_rate must be a number, a function of the progress remaining or VisitCount(power); got "
            f"{rate!r}"
        )
    if not 0 < number <= 1:
        raise ValueError(f"learning_rate must lie in (0, 1]; got {rate}")
    return number


def rate_at(rate: float | Schedule, progress_remaining: float) -> float:
    """The value of a learning rate that is a number or a schedule."""
    if not callable(rate):
        return rate
    value = float(rate(progress_remaining))
    if not 0 <= value <= 1:
        raise ValueError(
            f"learning_rate({progress_remaining:g}) returned {value}, outside [0, 1]: correct the schedule"
        )
    return value


def linear(initial: float, final: float, fraction: float, progress_remaining: float) -> float:
    """From ``initial`` to ``final`` over the first ``fraction`` of all steps, then ``final``."""
    progress = 1 - progress_remaining
    return final if progress >= fraction else initial + progress * (final - initial) / fraction
