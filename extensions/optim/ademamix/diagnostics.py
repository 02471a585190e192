"""What the slow average does to the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .schedules import Schedules


@torch.no_grad()
def of_group(group: dict[str, Any], state: Mapping[Tensor, dict[str, Any]]) -> dict[str, float]:
    r"""Diagnostics of one group over all its parameters, at the last step made.

    With :math:`\hat m_1` the bias-corrected fast average (the gradient, where beta1 is 0) and
    :math:`d = \sqrt{\hat\nu} + \epsilon`:

    - ``alpha``, ``beta3``: the schedules at the last step;
    - ``cos_fast_slow``: the cosine between :math:`\hat m_1` and :math:`m_2`;
    - ``slow_to_fast``: :math:`\lVert\alpha m_2\rVert / \lVert\hat m_1\rVert`;
    - ``step_multiplier``: :math:`\lVert(\hat m_1 + \alpha m_2)/d\rVert / \lVert\hat m_1/d\rVert`, how much
      longer the step is than AdamW's with the same moments; :math:`1+\alpha` where both averages are equal,
      more where gradients have shrunk.

    Where beta1 is 0, :math:`\hat m_1` is the gradient that the parameters have now: ask between ``step`` and
    ``zero_grad``. Values that are not defined (before the first step, or for lack of gradients) are NaN.
    """
    beta1, beta2, beta3 = group["betas"]
    schedules = Schedules(beta1, beta2, beta3, group["alpha"], group["alpha_warmup"], group["beta3_warmup"])
    states = [(p, state[p]) for p in group["params"] if state.get(p)]
    furthest = max((s for _, s in states), key=lambda s: s["slow_step"].item(), default=None)
    dot = fast_square = slow_square = weighted_square = step_square = adamw_square = 0.0
    for p, of_p in states:
        at = schedules.at(of_p["step"].item(), of_p["slow_step"].item())
        if beta1 > 0:
            fast = of_p["exp_avg"] / at.fast_correction
        elif p.grad is not None:
            fast = -p.grad if group["maximize"] else p.grad
        else:
            continue
        slow, square = of_p["exp_avg_slow"], of_p["exp_avg_sq"]
        if torch.is_complex(p):
            fast, slow, square = (torch.view_as_real(t) for t in (fast, slow, square))
        # In float64, or the squares of large gradients would overflow.
        fast, slow, square = (t.to(torch.float64) for t in (fast, slow, square))
        denominator = square.sqrt() / at.root_square_correction + group["eps"]
        dot += _sum(fast * slow)
        fast_square += _sum(fast.square())
        slow_square += _sum(slow.square())
        weighted_square += at.alpha**2 * _sum(slow.square())
        step_square += _sum(((fast + at.alpha * slow) / denominator).square())
        adamw_square += _sum((fast / denominator).square())
    last = None if furthest is None else schedules.at(furthest["step"].item(), furthest["slow_step"].item())
    return {
        "alpha": math.nan if last is None else last.alpha,
        "beta3": math.nan if last is None else 1.0 - last.slow_rate,
        "cos_fast_slow": _ratio(dot, math.sqrt(fast_square) * math.sqrt(slow_square)),
        "slow_to_fast": _ratio(math.sqrt(weighted_square), math.sqrt(fast_square)),
        "step_multiplier": _ratio(math.sqrt(step_square), math.sqrt(adamw_square)),
    }


def _sum(t: Any) -> float:
    total = t.sum()
    # A DTensor is summed over its ranks, each of which must ask.
    return float(total.full_tensor() if hasattr(total, "full_tensor") else total)


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.nan
