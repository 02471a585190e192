"""Token ids of a dataset's prompts, each with the tools and the template's settings of its row."""

from __future__ import annotations

import json
from typing import Any

from datasets import Dataset

from ..evaluation.inputs import encode_prompts


def encode_rows(tokenizer: Any, dataset: Dataset) -> list[list[int]]:
    """
    Token ids of the prompts of a dataset, with its columns ``"tools"`` and ``"chat_template_kwargs"`` as in
    TRL.

    Args:
        tokenizer: with a chat template if the prompts are conversations.
        dataset: with a column ``"prompt"``.

    Returns:
        Unpadded ids of each prompt, with the template's generation prompt.
    """
    own = {"tools", "chat_template_kwargs"} & set(dataset.column_names)
    if not own or isinstance(dataset[0]["prompt"], str):
        return encode_prompts(tokenizer, dataset["prompt"][:])
    return [_encode(tokenizer, row) for row in dataset]


def _encode(tokenizer: Any, row: dict[str, Any]) -> list[int]:
    tools = row.get("tools")
    settings = {"tools": json.loads(tools) if isinstance(tools, str) else tools}
    settings |= row.get("chat_template_kwargs") or {}
    return tokenizer.apply_chat_template(
        row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True, **settings
    )["input_ids"]
