"""The losses that QDPO adds to those of TRL's DPOTrainer: pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def target_loss(log_ratio: Tensor, teacher_log_ratio: Tensor, kind: str) -> Tensor:
    """
    How far the policy's log-ratio of two replies is from the teacher's.

    QDPO labels a pair by the teacher's own choice, which is a Bradley-Terry preference with the reward
    log p_teacher. The preference it implies is sigmoid(t), with t = log p_teacher(y_w) - log p_teacher(y_l),
    and not 1: where the teacher hardly prefers one reply, neither should the policy. With the same reward r
    = log p, the policy's is sigmoid(g), g = log pi(y_w) - log pi(y_l).

    Args:
        log_ratio: g (B,).
        teacher_log_ratio: t (B,), which may be negative: the label is then wrong, and the target right.
        kind: ``"mse"``, (g - t)^2, or ``"bce"``, the cross-entropy of sigmoid(g) to sigmoid(t), less the
            entropy of the latter, so that it is 0 where g = t.

    Returns:
        Loss of each pair (B,), at least 0.
    """
    if kind == "mse":
        return (log_ratio - teacher_log_ratio).square()
    wanted = torch.sigmoid(teacher_log_ratio)
    entropy = F.binary_cross_entropy_with_logits(teacher_log_ratio, wanted, reduction="none")
    return F.binary_cross_entropy_with_logits(log_ratio, wanted, reduction="none") - entropy


def mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (B, L) where the mask is 1; 0, with a gradient of 0, if it is nowhere."""
    return values[mask.bool()].sum() / mask.sum().clamp(min=1)
