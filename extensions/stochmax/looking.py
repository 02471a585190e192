"""Whether to look at the values of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def may_look(x: Tensor) -> bool:
    """Whether to look at the values of ``x`` costs little: not on a GPU, nor where code is compiled."""
    return not x.is_cuda and not torch.compiler.is_compiling()


def capturing(device: torch.device) -> bool:
    """Whether what runs on ``device`` is being recorded into a CUDA graph."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return False
    return torch.cuda.is_current_stream_capturing()
