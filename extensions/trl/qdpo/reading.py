"""One forward pass over the replies of a batch, for TRL's losses and for ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .batches import HALVES
from .qdpo_config import PAIR_LOSSES


def halves_read(losses: Sequence[str]) -> tuple[str, ...]:
    """Which replies of a pair these losses read."""
    if any(name in PAIR_LOSSES for name in losses):
        return HALVES
    wanted = {"rejected" if name == "kd_on_policy" else "chosen" for name in losses}
    return tuple(half for half in HALVES if half in wanted)


class Reading:
    """
    The model as TRL's loss calls it, which remembers what it said.

    It scores every token of the replies; the loss on pairs is told of those that it counts.

    Args:
        model: the policy in its wrapper.
        inputs: a batch of :class:`~.batches.PairCollator`, (N, L).
        halves: the replies it holds, one below the other.
    """

    outputs: Any
    #: of the tokens of the replies, else 0, (N, L - 1)
    log_probs: Tensor
    #: of those that losses on pairs count, else 0, (N, L - 1)
    pair_log_probs: Tensor
    #: whether a token is the model's first choice, (N, L - 1)
    is_top1: Tensor

    def __init__(self, model: nn.Module, inputs: dict[str, Any], halves: Sequence[str]) -> None:
        self.model = model
        replies = inputs.get("reply_mask", inputs.get("completion_mask"))
        assert replies is not None
        self.labels = inputs["input_ids"].masked_fill(replies == 0, -100)
        #: 1 where a token of a reply is predicted, (N, L - 1)
        self.mask = replies[:, 1:]
        self.counted = inputs.get("completion_mask", replies)[:, 1:]
        size = len(replies) // len(halves)
        self.rows = {half: slice(i * size, (i + 1) * size) for i, half in enumerate(halves)}

    def __call__(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if not kwargs.get("fused_lm_head"):
            return self.model(*args, **kwargs)
        self.outputs = self.model(*args, labels=self.labels, **kwargs)
        length = self.counted.size(1)  # an adapter of virtual tokens has put these before the text
        self.log_probs = self.outputs.log_probs[:, -length:]
        self.is_top1 = self.outputs.is_top1[:, -length:]
        self.pair_log_probs = self.log_probs * self.counted
        return replace(self.outputs, log_probs=self.pair_log_probs)
