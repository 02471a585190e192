"""How alpha and beta3 grow, and the numbers that one step needs of them.

Everything here takes a step count as a number (the eager paths) or as a tensor (capturable, differentiable,
under torch.compile), so that each formula is written once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


def alpha_at(t: Any, alpha: float, warmup: float | None) -> Any:
    r"""The weight of the slow average at step ``t`` (1, 2, ...): :math:`\min(\alpha t / T, \alpha)`.

    Paper: section 3.1. ``warmup`` is :math:`T` in steps; None or 0 means ``alpha`` from the first step on.
    """
    return alpha * _progress(t, warmup) if warmup else alpha


def slow_rate_at(t: Any, beta1: float, beta3: float, warmup: float | None) -> Any:
    r""":math:`1-\beta_3(t)`, the rate of the slow average at step ``t`` (1, 2, ...).

    The half-life of the average, not its decay, grows linearly from that of ``beta1`` to that of ``beta3``
    (paper: section 3.1 and appendix A.1). A decay :math:`\beta` has a half-life of
    :math:`\ln\frac12/\ln\beta - 1`, so :math:`1/\ln\beta_3(t)` is linear in t:

    .. math::
        \ln\beta_3(t) = \Big(\frac{1-\mu}{\ln\beta_1} + \frac{\mu}{\ln\beta_3}\Big)^{-1},
        \quad \mu = \min(t/T, 1)

    which holds for :math:`\beta_1 = 0` too (there :math:`1/\ln\beta_1 = 0`). The rate comes by expm1: in
    float32 :math:`1 - 0.9999` is off by 1.7e-4 of itself.

    Args:
        t: a number or a tensor of any shape.
        beta1: where the decay begins.
        beta3: where it ends. If it is not above ``beta1`` it is held from the start, as the minimum in the
            paper's formula has it.
        warmup: :math:`T` in steps; None or 0 means ``beta3`` from the first step on.
    """
    if not warmup or beta3 <= beta1:
        return 1.0 - beta3
    mu = _progress(t, warmup)
    log_beta3 = 1.0 / ((1.0 - mu) * _inverse_log(beta1) + mu * _inverse_log(beta3))
    return -torch.expm1(log_beta3) if isinstance(log_beta3, Tensor) else -math.expm1(log_beta3)


def bias_correction(t: Any, beta: float) -> Any:
    r""":math:`1-\beta^t`."""
    if isinstance(t, Tensor):
        return -torch.expm1(t * math.log(beta)) if beta > 0 else torch.ones_like(t)
    return 1.0 - beta**t  # as torch's Adam has it, to the last bit


class StepCoefficients(NamedTuple):
    """The numbers of one step: floats, or tensors of the shape of the step count."""

    fast_correction: Any  # 1 - beta1**t
    root_square_correction: Any  # sqrt(1 - beta2**t)
    slow_rate: Any  # 1 - beta3(t)
    alpha: Any  # alpha(t)


class Schedules(NamedTuple):
    """The hyper-parameters of a group that change from step to step or correct for the step."""

    beta1: float
    beta2: float
    beta3: float
    alpha: float
    alpha_warmup: float | None
    beta3_warmup: float | None

    def at(self, step: Any, slow_step: Any) -> StepCoefficients:
        """The coefficients of step number ``step`` (1, 2, ...), the ``slow_step``-th of the slow average.

        The averages that are corrected for their bias go by ``step``; the slow one and alpha go by
        ``slow_step``, which is how they warm up anew after a switch in mid-run.
        """
        return StepCoefficients(
            bias_correction(step, self.beta1),
            bias_correction(step, self.beta2) ** 0.5,
            slow_rate_at(slow_step, self.beta1, self.beta3, self.beta3_warmup),
            alpha_at(slow_step, self.alpha, self.alpha_warmup),
        )


def _progress(t: Any, warmup: float) -> Any:
    return (t / warmup).clamp(max=1.0) if isinstance(t, Tensor) else min(t / warmup, 1.0)


def _inverse_log(beta: float) -> float:
    return 1.0 / math.log(beta) if beta > 0 else 0.0
