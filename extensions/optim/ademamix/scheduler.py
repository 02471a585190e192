"""Schedules of one's own for alpha and beta3, in the manner of ``torch.optim.lr_scheduler.LambdaLR``."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

from .checks import check_group
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
            range, or a group is ``capturable``: a graph holds the values it was captured with.

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
            raise TypeError(f"SlowScheduler schedules an AdEMAMix, got {type(optimizer).__name__}")
        if alpha is None and beta3 is None:
            raise ValueError("SlowScheduler has nothing to schedule: give it alpha, beta3 or both")
        if any(group["capturable"] for group in optimizer.param_groups):
            raise ValueError(
                "SlowScheduler does not reach a captured graph: use alpha_warmup and beta3_warmup, which are "
                "worked out on the device, or capturable=False"
            )
        self.optimizer = optimizer
        self.alphas = _one_each(alpha, len(optimizer.param_groups), "alpha")
        self.beta3s = _one_each(beta3, len(optimizer.param_groups), "beta3")
        self.steps_made = 0
        self._set()

    def step(self) -> None:
        """Go on to the values of the next step."""
        self.steps_made += 1
        self._set()

    def _set(self) -> None:
        t = self.steps_made + 1
        for i, group in enumerate(self.optimizer.param_groups):
            new = dict(group)
            if self.alphas is not None:
                new["alpha"] = float(self.alphas[i](t))
            if self.beta3s is not None:
                new["betas"] = (*group["betas"][:2], float(self.beta3s[i](t)))
            check_group(new)
            group.update(alpha=new["alpha"], betas=new["betas"])

    def state_dict(self) -> dict[str, Any]:
        """How far it is, and the attributes of schedules that are objects."""
        return {
            "steps_made": self.steps_made,
            "alphas": [_attributes(schedule) for schedule in self.alphas or ()],
            "beta3s": [_attributes(schedule) for schedule in self.beta3s or ()],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave. Load the optimizer's state as well, before or after."""
        for mine, saved in ((self.alphas, state_dict["alphas"]), (self.beta3s, state_dict["beta3s"])):
            if len(mine or ()) != len(saved):
                raise ValueError("loaded state dict is of a SlowScheduler with other schedules")
            for schedule, attributes in zip(mine or (), saved, strict=True):
                if attributes is not None:
                    schedule.__dict__.update(attributes)
        self.steps_made = state_dict["steps_made"]
        self._set()


def _one_each(
    schedules: Schedule | Sequence[Schedule] | None, groups: int, name: str
) -> list[Schedule] | None:
    if schedules is None:
        return None
    each = [schedules] * groups if callable(schedules) else list(schedules)
    if len(each) != groups:
        raise ValueError(f"Expected {groups} schedules of {name}, one a group, got {len(each)}")
    return each


def _attributes(schedule: Schedule) -> dict[str, Any] | None:
    return None if isinstance(schedule, types.FunctionType) else dict(schedule.__dict__)
