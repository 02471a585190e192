"""What can be done about attention, in models as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..adapters import Adapter
from ..attention import Lens


@contextmanager
def through(model: Adapter, lens: Lens) -> Iterator[None]:
    """Within it, attention is computed as the lens says. Several in each other work together (`Lens.behind`),
    and so do looks at attention within it, as by ``sensitivity_profile`` or ``attentions``.

    Raises:
        ValueError: at the end, if layers ran and none of them called an attention that could be changed.
    """
    attended: list[None] = []
    ran: list[None] = []

    def record(weights: Tensor) -> None:
        attended.append(None)
        if lens.record is not None:
            lens.record(weights)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        ran.append(None)

    hooks = [block.register_forward_hook(after) for block in model.blocks[:1]]
    try:
        with model.looking(replace(lens, record=record)):
            yield
    finally:
        for hook in hooks:
            hook.remove()
    if ran and not attended:
        raise ValueError(
            f"{type(model.module).__name__} computes its attention on its own, so this remedy did not reach "
            "it: it must call torch.nn.functional.scaled_dot_product_attention, or take the attention of "
            "transformers"
        )


def adaptive_temperature(model: Adapter) -> Any:
    """A context in which each row of attention is sharpened by its entropy: scores are multiplied by
    `adaptive_beta` of it (Velickovic et al., "Softmax is not enough (for Sharp Size Generalisation)", ICML
    2025).

    The polynomial was fitted to another model than yours; nothing is trained.
    """
    return through(model, Lens(adaptive=True))


def sliding_window(model: Adapter, window: int) -> Any:
    """A context in which each token sees ``window`` tokens, itself included, in each layer, so that a softmax
    is over no more of them however long the sequence is (Barbero et al., appendix C.6).

    What is further back than L (window - 1) tokens is lost altogether.
    """
    return through(model, Lens(window=window))


def log_n_scale(model: Adapter, trained: int) -> Any:
    """A context in which scores are multiplied by log(tokens seen) / log(trained) where more than
    ``trained`` tokens are seen, against the spread of a softmax over more and more of them.

    Args:
        trained: the length, in tokens, that the model was trained at.
    """
    return through(model, Lens(log_n=trained))
