"""Optimizers in the manner of ``torch.optim``."""

from .ademamix import AdEMAMix, AdEMAMix8bit, SlowScheduler
from .row_adam import RowAdam, clip_grad_norm_

__all__ = ["AdEMAMix", "AdEMAMix8bit", "RowAdam", "SlowScheduler", "clip_grad_norm_"]
