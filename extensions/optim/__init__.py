"""Optimizers in the manner of ``torch.optim``."""

from .row_adam import RowAdam, clip_grad_norm_

__all__ = ["RowAdam", "clip_grad_norm_"]
