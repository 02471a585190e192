"""Python's own numbers out of numpy's and others', which a file without pickles does not hold."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

import numpy as np


def real(value: Any) -> float | None:
    """A number as a float; None of what is no number, and of a bool."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def whole(value: Any) -> int | None:
    """A whole number as an int; None of what is none, and of a bool."""
    try:
        return None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return None
