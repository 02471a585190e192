"""One source for three kinds of numbers: Python scalars (fast for one environment), numpy, and torch."""

import math
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np


class Scalars:
    """The few functions of the array API that the worlds use, on Python numbers: a batch without an axis."""

    bool, int64, float64, float32 = bool, int, float, np.float32
    any = staticmethod(bool)
    pow = staticmethod(math.pow)
    maximum = staticmethod(max)
    minimum = staticmethod(min)
    ceil = staticmethod(math.ceil)

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
        return array_api_compat.numpy
    return array_api_compat.array_namespace(x)


def constant(table: np.ndarray, like: Any) -> Any:
    """``table`` as an array of the backend and on the device of ``like``; numpy for Python scalars."""
    if isinstance(like, (int, float, np.ndarray)):
        return table
    xp = array_api_compat.array_namespace(like)
    return xp.asarray(table, device=array_api_compat.device(like))


def lookup(table: np.ndarray, *index: Any) -> Any:
    """``table[index]`` in the backend of the indices; a Python number where they are Python integers."""
    entry = constant(table, index[0])[index]
    return entry.item() if isinstance(index[0], int) else entry


def one_hot(index: Any, size: int) -> Any:
    """One-hot rows in float32, shape ``(*index.shape, size)``."""
    if isinstance(index, int):
        row = np.zeros(size, dtype=np.float32)
        row[index] = 1.0
        return row
    xp = namespace(index)
    return xp.astype(index[..., None] == constant(np.arange(size), index), xp.float32)
