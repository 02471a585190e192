"""What all results share: frozen, and written as JSON or as a tensordict."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Result:
    """A frozen dataclass of numbers, strings, tensors and dictionaries of these."""

    def as_dict(self) -> dict[str, Any]:
        """Plain Python: tensors are nested lists; numbers not finite are strings, as JSON has none."""
        return {name: plain(value) for name, value in _fields(self).items()}

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(self.as_dict(), indent=1)

    def to_tensordict(self) -> Any:
        """Its tensors as a ``TensorDict`` without a batch size; dictionaries and results in them are nested.

        Raises:
            ImportError: tensordict is not installed.
        """
        try:
            from tensordict import TensorDict
        except ImportError as error:
            raise ImportError("to_tensordict needs tensordict: pip install tensordict") from error
        return TensorDict(_tensors(_fields(self)))


def _fields(result: Result) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}


def plain(value: Any) -> Any:
    """Tensors as nested lists, results as dictionaries, and numbers that are not finite as strings."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Result):
        return value.as_dict()
    if isinstance(value, dict):
        return {str(key): plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _tensors(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        value = _fields(value) if isinstance(value, Result) else value
        if isinstance(value, Tensor):
            found[str(key)] = value
        elif isinstance(value, dict) and (inner := _tensors(value)):
            found[str(key)] = inner
    return found
