"""A batch of answers as a dictionary of tensors: taking rows of it, and dropping padding nobody needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MULTIMODAL_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "pixel_attention_mask",
    "spatial_shapes",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
PROMPT_KEYS = ("prompt_ids", "prompt_mask")
ANSWER_KEYS = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "old_log_q",
    "log_p",
    "log_mix",
    "advantages",
    "teacher_hidden",
)


def loss_mask(batch: dict[str, Any]) -> Tensor:
    """1 on tokens the student wrote, (B, T): not on padding, nor on what tools returned."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def on_grid(values: Any, mask: Tensor) -> Tensor:
    """(N,) values of the positions on the mask, put back into (B, T) with zeros elsewhere."""
    return torch.zeros(mask.shape, device=values.device, dtype=values.dtype).masked_scatter(mask, values)


def take(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """These rows of every entry; scalars and ``None`` stay as they are."""
    taken: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.ndim > 0:
            taken[key] = value[rows.to(value.device)]
        elif isinstance(value, list):
            taken[key] = [value[i] for i in rows.tolist()]
        else:
            taken[key] = value
    return taken


def trimmed(batch: dict[str, Any], multiple: int | None = None) -> dict[str, Any]:
    """
    Without the columns that are padding in all rows: left of the prompts, right of the answers.

    Batches with images are left as they are: their token types are aligned with prompt and answer together.

    Args:
        batch: rows of a generation.
        multiple: of which both lengths remain, if the generation's are multiples of it.
    """
    if any(key in batch for key in MULTIMODAL_KEYS):
        return batch
    prompt = _longest(batch["prompt_mask"], multiple or 1)
    answer = _longest(batch["completion_mask"], multiple or 1)
    batch = dict(batch)
    for key in PROMPT_KEYS:
        batch[key] = batch[key][:, batch[key].size(1) - prompt :]
    for key in ANSWER_KEYS:
        if key in batch:
            batch[key] = batch[key][:, :answer]
    return batch


def _longest(mask: Tensor, multiple: int) -> int:
    longest = int(mask.sum(1).max().clamp(min=1))
    return -(-longest // multiple) * multiple
