"""A model run in another precision than its own, without a copy of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# What runs as a round trip through the type and computes in float32, since torch multiplies no such matrices.
SIMULATED = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
COMPUTED = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DTYPES = (*COMPUTED, *SIMULATED)


def check_dtype(name: str | torch.dtype) -> str:
    """The name of a dtype that a model can be run in, from it or from torch's own.

    Raises:
        ValueError: it is another one.
    """
    name = str(name).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {name!r}")
    return name


def check_reference(reference: str, others: Sequence[str]) -> None:
    """Refuse a reference that rounds more than what is set against it.

    Raises:
        ValueError: it does.
    """
    eps = {name: torch.finfo(stored_as(name)).eps for name in (reference, *others)}
    finest = min(eps, key=lambda name: eps[name])
    if eps[finest] < eps[reference]:
        raise ValueError(
            f"{reference} is the reference of {finest}, and rounds more: the reference, the first of dtypes "
            f"in a report, must be the finest, {finest} here"
        )


def stored_as(name: str) -> torch.dtype:
    """The dtype that numbers are rounded to."""
    return SIMULATED.get(name) or COMPUTED[name]


def spacing(x: Tensor, name: str) -> Tensor:
    """Distance from each ``|x|`` to the next larger number of a dtype: eps * 2^e where 2^e <= |x| < 2^(e+1).

    Args:
        x: any shape.
        name: one of `DTYPES`.

    Returns:
        Shape of ``x``, float64. Below the smallest normal number it is the constant spacing there.
    """
    info = torch.finfo(stored_as(name))
    size = x.double().abs().clamp(min=info.smallest_normal)
    return info.eps * torch.exp2(torch.log2(size).floor())


def has_overflowed(logits: Tensor) -> Tensor:
    """Whether logits or actions hold NaN or plus infinity, (*, V) -> (*). Minus infinity is what some models
    give to tokens that they never say."""
    return (logits.isnan() | (logits == torch.inf)).any(-1)


def round_trip(x: Tensor, name: str) -> Tensor:
    """``x`` with its values rounded to a simulated dtype; too large ones become the largest there is."""
    largest = torch.finfo(SIMULATED[name]).max
    return x.clamp(-largest, largest).to(SIMULATED[name]).to(x.dtype)


class Precision(TorchFunctionMode):
    """Within it, every parameter is cast where it is used, and no gradient reaches it; buffers too.

    What a model itself does in float32 (norms, softmax, tables of angles) it still does there, as if it had
    been loaded in this dtype. In ``"float64"`` such steps stay in float64, which makes a reference of it: the
    models of transformers go back to float32 in their norms otherwise, and bring noise of 1e-7.

    Args:
        name: one of `DTYPES`.
        buffers: what is cast besides parameters; a simulated dtype leaves them in float32.
    """

    def __init__(self, name: str, buffers: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.buffers = {id(buffer) for buffer in buffers}
        self.simulated = name if name in SIMULATED else None
        self.dtype = COMPUTED.get(name, torch.float32)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:  # cast the rows that are read, not the table
            return self._cast(func(*args, **kwargs).detach())
        if func == _DTYPE_OF and (isinstance(args[0], nn.Parameter) or id(args[0]) in self.buffers):
            return self.dtype if args[0].is_floating_point() else args[0].dtype
        args = tuple(self._of_parameter(x) for x in args)
        if kwargs:
            kwargs = {key: self._of_parameter(x) for key, x in kwargs.items()}
        if self.dtype == torch.float64 and func in _TO_FLOAT32:
            return _stay_in_float64(func, args, kwargs)
        return func(*args, **kwargs)

    def _of_parameter(self, x: Any) -> Any:
        if isinstance(x, nn.Parameter):
            return self._cast(x.detach()) if x.is_floating_point() else x
        if id(x) in self.buffers:
            return x.to(self.dtype)
        if isinstance(x, (list, tuple)) and any(isinstance(part, nn.Parameter) for part in x):
            return type(x)(self._of_parameter(part) for part in x)  # of torch.cat and torch.stack
        return x

    def _cast(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return x if self.simulated is None else round_trip(x, self.simulated)


_DTYPE_OF = Tensor.dtype.__get__  # type: ignore[attr-defined]
_TO_FLOAT32 = {Tensor.float, Tensor.to, F.softmax, torch.softmax, Tensor.softmax}


def _stay_in_float64(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
        if func is Tensor.float:
            return args[0]
        args = (args[0], *(torch.float64 if x is torch.float32 else x for x in args[1:]))
        kwargs = {key: torch.float64 if x is torch.float32 else x for key, x in kwargs.items()}
    return func(*args, **kwargs)


@contextmanager
def run_in(module: nn.Module, name: str, blocks: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Run a module in another precision, without gradients of its parameters.

    Args:
        module: whose parameters are used.
        name: one of `DTYPES`.
        blocks: layers whose outputs are rounded as well, when the dtype is simulated.
    """
    hooks = []
    if name in SIMULATED:
        hooks = [block.register_forward_hook(partial(_rounded, name)) for block in blocks]
    try:
        with Precision(name, _buffers(module)):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _buffers(module: nn.Module) -> Iterator[Tensor]:
    """Of floating point, but for angles of rotary embeddings, which are float32 in models of any dtype."""
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and not name.endswith(("inv_freq", "embed_positions")):
            yield buffer


def _rounded(name: str, module: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (round_trip(output[0], name), *output[1:])
    return round_trip(output, name)
