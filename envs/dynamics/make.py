"""Worlds by name."""

import dataclasses
import importlib
from typing import Any

import numpy as np

from .world import World


def make_world(world: str | World, kwargs: dict[str, Any]) -> World:
    """Build the world named ``"module:Class"`` inside `envs.dynamics`, or change the fields of a given one.
    numpy's numbers are taken for Python's.

    Raises:
        TypeError: a keyword argument that the world does not have; the message lists those it has.
    """
    if isinstance(world, str):
        module, _, name = world.partition(":")
        cls = getattr(importlib.import_module(f".{module}", __package__), name)
    else:
        cls = type(world)
    kwargs = {name: x.item() if isinstance(x, np.generic) else x for name, x in kwargs.items()}
    fields = [field.name for field in dataclasses.fields(cls)]
    unknown = [name for name in kwargs if name not in fields]
    if unknown:  # in Python's own words: TorchRL's GymEnv reads them
        raise TypeError(
            f"{cls.__name__} got an unexpected keyword argument {unknown[0]!r}; it takes {', '.join(fields)}"
        )
    return cls(**kwargs) if isinstance(world, str) else dataclasses.replace(world, **kwargs)  # type: ignore
