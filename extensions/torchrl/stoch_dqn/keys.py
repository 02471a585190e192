"""What is read from a tensordict, and an error that says what it has where something is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict import NestedKey, TensorDictBase
from torch import Tensor


def read(tensordict: TensorDictBase, key: NestedKey, advice: str = "") -> Tensor:
    """The entry at ``key``.

    Raises:
        KeyError: there is none; names those there are, and adds ``advice``.
    """
    x = tensordict.get(key, None)
    if x is None:
        there = sorted(_name(k) for k in tensordict.keys(True, True))
        raise KeyError(f"no {_name(key)} in the tensordict; it has {', '.join(there)}{advice}")
    return x


def _name(key: NestedKey) -> str:
    return key if isinstance(key, str) else ".".join(key)


def flat_observation(keys: Sequence[NestedKey], inputs: Sequence[Tensor], batch_dims: int) -> Any:
    """What a callable from observations is given: (N, ...), or a dict of such if there are several keys.

    Args:
        keys: their names; those of nested ones are joined by dots.
        inputs: the entries, (\\*B, ...) each.
        batch_dims: dimensions of B, of which N is the product.
    """
    flat = [x.reshape(-1, *x.shape[batch_dims:]) for x in inputs]
    return flat[0] if len(flat) == 1 else dict(zip(map(_name, keys), flat, strict=True))
