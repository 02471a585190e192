"""Where a recipe computes."""

from __future__ import annotations

import torch


def torch_device(name: str) -> torch.device:
    """Of a recipe's ``device``: "cpu", "cuda", or "auto", the GPU if there is one."""
    cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")
