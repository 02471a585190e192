"""Optimizers in the manner of ``torch.optim``."""

from .ademamix import AdEMAMix, SlowScheduler
from .row_adam import RowAdam, clip_grad_norm_

__all__ = ["AdEMAMix", "RowAdam", "SlowScheduler", "clip_grad_norm_"]
