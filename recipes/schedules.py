"""How a learning rate goes up and down."""

from __future__ import annotations

import math


def lr_share(step: int, steps: int, warmup: float, end: float) -> float:
    """The learning rate at ``step`` (1 ... ``steps``) as a share of the highest: it grows, then a cosine."""
    n_warmup = round(warmup * steps)
    if step <= n_warmup:
        return step / n_warmup
    done = (step - n_warmup) / max(steps - n_warmup, 1)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))
