"""A part of a model in float32, where the rest of it is in bfloat16 or float16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..adapters import Adapter
from ..attention import Lens
from .attention import through


def upcast(model: Adapter, layers: str = "last") -> AbstractContextManager[None]:
    """A context in which a part of a model computes in float32; parameters are cast as they are used.

    Weights and inputs of the part are what they were, in the low precision; what is computed from them is not
    rounded any more. In a float32 model nothing changes.

    Args:
        model: an adapter.
        layers: "last", the last layer, the final norm and the readout; "attention", scores, softmax and the
            sum of values in each layer, whose result is rounded again.

    Raises:
        ValueError: another part; a model without layers of its own.
    """
    if layers == "attention":
        return through(model, Lens(float32=True))
    if layers != "last":
        raise ValueError(f'layers must be "last" or "attention", got {layers!r}')
    if not model.blocks:
        raise ValueError("the model's layers are not known: give them, as in ModuleAdapter(..., blocks=...)")
    return _last(model.blocks[-1])


@contextmanager
def _last(block: nn.Module) -> Iterator[None]:
    hook = block.register_forward_pre_hook(_widen_inputs, with_kwargs=True)
    try:
        with _WidestOperand():
            yield
    finally:
        hook.remove()


def _widen_inputs(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return _widen(args), _widen(kwargs)


# What takes operands of one dtype alone; other functions of torch go to the widest by themselves.
ONE_DTYPE = {
    F.linear, F.layer_norm, F.rms_norm, F.group_norm, F.conv1d, F.scaled_dot_product_attention,
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum,
    Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.addmm,
}  # fmt: skip


class _WidestOperand(TorchFunctionMode):
    """Once a state is in float32, so is what is computed from it: weights follow."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in ONE_DTYPE:
            operands = [
                x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()
            ]
            if len({x.dtype for x in operands}) > 1:
                args, kwargs = _widen(args), _widen(kwargs)
        return func(*args, **kwargs)


def _widen(x: Any) -> Any:
    """Tensors of floating point in a nest of tuples, lists and dictionaries, in float32 at least."""
    if isinstance(x, Tensor):
        return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x
    if isinstance(x, (tuple, list)):
        return type(x)(_widen(part) for part in x)
    if isinstance(x, dict):
        return {key: _widen(part) for key, part in x.items()}
    return x
