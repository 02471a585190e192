"""Schedules of one's own for alpha and beta3, in the manner of ``torch.optim.lr_scheduler.LambdaLR``."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

from .checks import check_slow_settings
from .optimizer import AdEMAMix

Schedule = Callable[[int], float]


class SlowScheduler:
    """Sets alpha and beta3 of each group of an :class:`AdEMAMix` from functions of the step.

    For the paper's own schedules it is not needed: ``alpha_warmup`` and ``beta3_warmup`` are those. Leave
    them None here, since what this sets is what they would warm up to, and construct the optimizer with
    ``alpha=0`` if alpha is to grow from there.

    Call :meth:`step` after each ``optimizer.step()``, as any scheduler. The values it has set are kept in the
    optimizer's ``state_dict``, how far it is in its own; functions are not saved, callable objects by their
    attributes, as in LambdaLR.

    Args:
        optimizer: the AdEMAMix.
        alpha: a function from the number of the coming step (1, 2, ...) to alpha (>= 0), or one for each
            group. None leaves alpha alone.
        beta3: the same for beta3, in [0, 1).

    Raises:
        TypeError: ``optimizer`` is not an AdEMAMix.
        ValueError: neither schedule is given, their number is not that of the groups, a value is out of its
            range, a group has a warm-up for what is scheduled, or a group is ``capturable``: a graph holds
            the values it was captured with.

    Example::

        optimizer = AdEMAMix(model.parameters(), alpha=0.0)
        slow = SlowScheduler(optimizer, alpha=lambda t: 5.0 if t > 1_000 else 5.0 * (t / 1_000) ** 2)
        for batch in data:
            ...
            optimizer.step()
            slow.step()
    """

    def __init__(
        self,
        optimizer: AdEMAMix,
        alpha: Schedule | Sequence[Schedule] | None = None,
        beta3: Schedule | Sequence[Schedule] | None = None,
    ) -> None:
        if not isinstance(optimizer, AdEMAMix):
            wrapped = isinstance(getattr(optimizer, "optimizer", None), AdEMAMix)
            raise TypeError(
                f"SlowScheduler schedules an AdEMAMix, got {type(optimizer).__name__}"
                + (": pass its .optimizer" if wrapped else "")
            )
        if alpha is None and beta3 is None:
            raise ValueError("SlowScheduler has nothing to schedule: give it alpha, beta3 or both")
        self.optimizer = optimizer
        self.alpha, self.beta3 = alpha, beta3
        self.steps_made = 0
        self._set()

    def step(self) -> None:
        """Go on to the values of the next step."""
        self.steps_made += 1
        self._set()

    def _set(self) -> None:
        groups, t = self.optimizer.param_groups, self.steps_made + 1
        alphas, beta3s = (
            _one_each(self.alpha, len(groups), "alpha"),
            _one_each(self.beta3, len(groups), "beta3"),
        )
        values = []
        for group, alpha, beta3 in zip(groups, alphas, beta3s, strict=True):
            if group["capturable"]:
                raise ValueError(
                    "SlowScheduler does not reach a captured graph: use alpha_warmup and beta3_warmup, which "
                    "are worked out on the device, or capturable=False"
                )
            if (alpha and group["alpha_warmup"]) or (beta3 and group["beta3_warmup"]):
                raise ValueError(
                    "SlowScheduler sets what alpha_warmup and beta3_warmup warm up to: leave None the one of "
                    "what is scheduled"
                )
            new = {"alpha": group["alpha"], "betas": group["betas"]}
            if alpha is not None:
                new["alpha"] = float(alpha(t))
            if beta3 is not None:
                new["betas"] = (*group["betas"][:2], float(beta3(t)))
            check_slow_settings(new)
            values.append(new)
        for group, new in zip(groups, values, strict=True):
            group.update(new)

    def state_dict(self) -> dict[str, Any]:
        """How far it is, and the attributes of schedules that are objects."""
        return {
            "steps_made": self.steps_made,
            "alpha": [_attributes(schedule) for schedule in _listed(self.alpha)],
            "beta3": [_attributes(schedule) for schedule in _listed(self.beta3)],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave. Load the optimizer's state as well, before or after."""
        pairs = [(_listed(self.alpha), state_dict["alpha"]), (_listed(self.beta3), state_dict["beta3"])]
        if any(len(mine) != len(saved) for mine, saved in pairs):
            raise ValueError("loaded state dict is of a SlowScheduler with other schedules")
        for mine, saved in pairs:
            for schedule, attributes in zip(mine, saved, strict=True):
                if attributes is not None:
                    schedule.__dict__.update(attributes)
        self.steps_made = state_dict["steps_made"]
        self._set()


def _listed(schedules: Schedule | Sequence[Schedule] | None) -> list[Schedule]:
    if schedules is None:
        return []
    return [schedules] if callable(schedules) else list(schedules)


def _one_each(
    schedules: Schedule | Sequence[Schedule] | None, groups: int, name: str
) -> Sequence[Schedule | None]:
    if schedules is None or callable(schedules):
        return [schedules] * groups
    if not isinstance(schedules, Sequence):
        raise TypeError(f"{name} must be a function of the step, or one for each group, got {schedules!r}")
    if len(schedules) != groups:
        raise ValueError(f"Expected {groups} schedules of {name}, one a group, got {len(schedules)}")
    return schedules


def _attributes(schedule: Schedule) -> dict[str, Any] | None:
    is_object = hasattr(schedule, "__dict__") and not isinstance(schedule, types.FunctionType)
    return dict(schedule.__dict__) if is_object else None
