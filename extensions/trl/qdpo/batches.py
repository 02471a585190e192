"""Batches of pairs: TRL's, and with them which tokens the losses on pairs count and what the teacher says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._host import DataCollatorForPreference
from .pairs import first_divergence

#: the replies of a pair, in the order of a batch
HALVES = ("chosen", "rejected")
TEACHER = ("teacher_chosen_logps", "teacher_rejected_logps")
#: what a batch holds beside what TRL's loss reads
OURS = ("reply_mask", "reply_tokens", *TEACHER)


@dataclass
class PairCollator(DataCollatorForPreference):
    """
    TRL's collator, whose batches are the chosen replies and below them the rejected ones.

    ``completion_mask`` marks the tokens that losses on pairs count, and ``reply_mask`` all those of a reply.

    Args:
        divergence_window: tokens that losses on pairs count, from the first difference on; None for all.
        halves: which replies a batch holds, of ``"chosen"`` and ``"rejected"``.
    """

    divergence_window: int | None = None
    halves: Sequence[str] = HALVES

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        batch["reply_mask"] = batch["completion_mask"]  # (2B, L)
        if self.divergence_window is not None:
            window = self._window(examples, batch["reply_mask"], self.divergence_window)
            batch["completion_mask"] = batch["reply_mask"] * window
        for name in TEACHER:
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])  # (B,)
        return batch if len(self.halves) == 2 else self._half(batch)

    def _window(self, examples: list[dict[str, Any]], mask: Tensor, length: int) -> Tensor:
        """1 on so many tokens from the first difference on, (2B, L)."""
        window = torch.zeros_like(mask)
        for row, example in enumerate(examples):
            first = first_divergence(example["chosen_ids"], example["rejected_ids"]) or 0
            for at, reply in ((row, "chosen_ids"), (row + len(examples), "rejected_ids")):
                start = len(example["prompt_ids"]) + first
                if self.max_length is not None and self.truncation_mode == "keep_end":
                    start -= max(0, len(example["prompt_ids"]) + len(example[reply]) - self.max_length)
                window[at, max(0, start) : max(0, start + length)] = 1
        return window

    def _half(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The replies that are read, padded to the longest of them."""
        names = ("input_ids", "attention_mask", "reply_mask")
        half = {name: batch[name].chunk(2)[HALVES.index(self.halves[0])] for name in names}
        if self.pad_to_multiple_of is not None:
            return half
        length = int(half["attention_mask"].sum(1).max())
        return {name: values[:, :length] for name, values in half.items()}
