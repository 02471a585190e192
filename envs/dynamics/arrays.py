"""One source for three kinds of numbers: Python scalars (fast for one environment), numpy, and torch."""

import math
import sys
from collections.abc import Callable
from typing import Any

import array_api_compat
import array_api_compat.numpy as array_numpy
import numpy as np


class Scalars:
    """The few functions of the array API that the worlds use, on Python numbers: a batch without an axis."""

    bool, int64, float64, float32 = bool, int, float, np.float32
    any = staticmethod(bool)
    pow = staticmethod(math.pow)
    maximum = staticmethod(max)
    minimum = staticmethod(min)
    ceil = staticmethod(math.ceil)
    floor = staticmethod(math.floor)
    round = staticmethod(round)  # a half goes to the even integer, as in numpy and torch
    sin = staticmethod(math.sin)
    cos = staticmethod(math.cos)

    @staticmethod
    def where(condition: Any, x: Any, y: Any) -> Any:
        return x if condition else y

    @staticmethod
    def astype(x: Any, dtype: Any) -> Any:
        return x.astype(dtype) if isinstance(x, np.ndarray) else dtype(x)

    @staticmethod
    def stack(xs: Any, axis: int = -1) -> np.ndarray:
        return np.array(xs)


def namespace(x: Any) -> Any:
    """The functions that go with ``x``: `Scalars`, array-api-compat's numpy, or its torch."""
    if isinstance(x, (int, float)):
        return Scalars
    if isinstance(x, np.ndarray):
        return array_numpy
    if type(x).__module__ == "torch":  # spares torch.compile from tracing array_namespace
        import array_api_compat.torch as array_torch

        return array_torch
    return array_api_compat.array_namespace(x)


def may_look(x: Any) -> bool:
    """Whether what is computed next may depend on the values in ``x``.

    Not on a GPU, where looking waits for the device and cannot be captured in a CUDA graph; nor while
    torch.compile traces. There the worlds compute what is enough for every value.
    """
    if isinstance(x, (int, float, np.ndarray)):
        return True
    torch = sys.modules["torch"]
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


_TABLES: dict[Any, Any] = {}


def table(make: Callable[..., np.ndarray], *args: Any, like: Any) -> Any:
    """``make(*args)`` as an array of the backend and on the device of ``like``: made and moved once, then
    kept.

    Args:
        make: a function at module level that returns a numpy array; its arguments are hashable.
        like: numbers of the backend; for Python scalars the table is numpy's.
    """
    here = None if isinstance(like, (int, float, np.ndarray)) else like.device
    place = (make.__module__, make.__name__, args, here)
    if place not in _TABLES:  # torch.compile reads this dictionary and cannot fill it: step once before
        _TABLES[place] = constant(make(*args), like)
    return _TABLES[place]


def constant(values: np.ndarray, like: Any) -> Any:
    """``values`` as an array of the backend and on the device of ``like``; numpy for Python scalars.

    It is moved at every call: on the way of a step take `table`.
    """
    if isinstance(like, (int, float, np.ndarray)):
        return values
    return namespace(like).asarray(values, device=array_api_compat.device(like))


def entry(values: Any, *index: Any) -> Any:
    """``values[index]``; a Python number where the indices are Python integers."""
    return values.item(*index) if isinstance(index[0], int) else values[index]


def lookup(values: np.ndarray, *index: Any) -> Any:
    """``values[index]`` in the backend of the indices; a Python number where they are Python integers."""
    return entry(constant(values, index[0]), *index)


def arange(size: int, like: Any) -> Any:
    """0 .. size-1 as int64, of the backend and on the device of ``like``; numpy for Python scalars."""
    if isinstance(like, (int, float, np.ndarray)):
        return np.arange(size)
    xp = namespace(like)
    return xp.arange(size, dtype=xp.int64, device=like.device)


def one_hot(index: Any, size: int) -> Any:
    """One-hot rows in float32, shape ``(*index.shape, size)``."""
    if isinstance(index, int):
        row = np.zeros(size, dtype=np.float32)
        row[index] = 1.0
        return row
    xp = namespace(index)
    return xp.astype(index[..., None] == arange(size, index), xp.float32)


def quotient(x: Any, divisor: int, bound: int) -> Any:
    """``x // divisor`` for integers ``x`` in [0, bound), in a way that is quick on every backend.

    torch divides 64-bit integers one by one. Below 2^50 the product with a float64 is exact instead: x +
    1/2 is at least 1 / (2 divisor) away from the next multiple, and rounding moves it by less.
    """
    if isinstance(x, (int, np.ndarray)) or bound > 2**50:
        return x // divisor
    xp = namespace(x)
    return xp.astype((xp.astype(x, xp.float64) + 0.5) * (1.0 / divisor), xp.int64)
