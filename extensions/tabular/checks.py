"""What is refused before it does harm, with the fix named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import Any

import torch

from ..stochmax.sources import log_size
from .environments import TensorEnv, with_index
from .plain import real, whole
from .randomness import DRAWN_UP_TO
from .schedules import as_learning_rate
from .tables import DENSE_UP_TO, EXACT_UP_TO

_DEVICES = "The environment is on {} and the agent on {}: give both one device"
_SAMPLED = {"QLearning": "StochQ", "DoubleQLearning": "StochDoubleQ", "Sarsa": "StochSarsa"}


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, with numbers as Python's own. Refuses what is out of range."""
    return {name: _PLAIN[name](name, value) if name in _PLAIN else value for name, value in arguments.items()}


def _share(name: str, value: Any) -> float:
    number = real(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"{name} must be a number in [0, 1]; got {value!r}")
    return number


def _finite(name: str, value: Any) -> float:
    number = real(value)
    if number is None or not isfinite(number):
        raise ValueError(f"{name} must be a finite number; got {value!r}")
    return number


def _count(name: str, value: Any, least: int) -> int:
    number = whole(value)
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r}")
    return number


def _seed(name: str, value: Any) -> int:
    number = whole(value)
    if number is None:
        raise TypeError(f"{name} must be a whole number, or None; got {value!r}")
    return number


def _table(name: str, value: Any) -> str:
    if value not in ("auto", "dense", "sparse"):
        raise ValueError(f'{name} must be "auto", "dense" or "sparse"; got {value!r}')
    return str(value)


def _size(name: str, value: Any, words: tuple[str, ...], least: int) -> int | str:
    if isinstance(value, str) and value in words:
        return str(value)
    number = whole(value)
    if number is None or number < least:
        named = ", ".join(f'"{word}"' for word in words)
        raise ValueError(f"{name} must be {named} or a whole number, at least {least}; got {value!r}")
    return number


_PLAIN: dict[str, Callable[[str, Any], Any]] = {
    "learning_rate": lambda _, value: as_learning_rate(value),
    "gamma": _share,
    "exploration_fraction": _share,
    "exploration_initial_eps": _share,
    "exploration_final_eps": _share,
    "seed": _seed,
    "schedule_timesteps": lambda name, value: None if value is None else _count(name, value, 1),
    "initial_value": _finite,
    "table": _table,
    "record_interval": partial(_count, least=0),
    "candidates": partial(_size, words=("log", "all"), least=1),
    "memory": partial(_size, words=("log",), least=0),
    "eval_candidates": partial(_count, least=1),
    "remember_explored": lambda _, value: bool(value),
}


def check_n_actions(n: int) -> None:
    """Refuse more actions than the random numbers can tell apart."""
    if n > DRAWN_UP_TO:
        raise ValueError(
            f"{n:,} actions are more than the 2^53 that can be drawn: number fewer of them, as by a coarser "
            "grid, or split an action over several steps"
        )


def check_callback(callback: Any) -> None:
    """Refuse what cannot be called."""
    if callback is not None and not callable(callback):
        raise TypeError(
            "callback must be a function (locals, globals) -> bool, as Stable-Baselines3 takes them; its "
            f"callback classes need its own algorithms. Got {type(callback).__name__}"
        )


def resolve_size(size: int | str, n: int) -> int:
    """The number of ids that "log", ceil(log2 n), "all" or a number stands for, at most n."""
    if isinstance(size, str):
        return log_size(n) if size == "log" else n
    return min(size, n)


def choose_device(env: Any, device: torch.device | str) -> torch.device:
    """Where the tables are: "auto" is where the environment is, and the CPU for gymnasium's."""
    there = env.device if isinstance(env, TensorEnv) else None
    if device == "auto":
        return there or torch.device("cpu")
    chosen = with_index(device)
    if there is not None and there != chosen:
        raise ValueError(_DEVICES.format(there, chosen))
    return chosen


def choose_table(kind: str, numbers: int, looks_at_all: bool, name: str, n: int) -> str:
    """ "dense" or "sparse", for a table of so many numbers.

    Raises:
        ValueError: a maximum over all actions is asked of a table that is sparse, or would have to be.
    """
    if looks_at_all:
        exact = f"{name} takes its maximum over all {n:,} actions"
        instead = _SAMPLED.get(name)
        fix = f"use {instead}" if instead else f'use {name} with candidates="log"'
        if kind == "sparse":
            raise ValueError(f"{exact}, which a sparse table cannot read at once: {fix}")
        if numbers > EXACT_UP_TO:
            raise ValueError(f"{exact}, and its table would hold {numbers:,} numbers: {fix}")
        return "dense"
    if kind == "auto":
        return "dense" if numbers <= DENSE_UP_TO else "sparse"
    return kind


def check_env(env: TensorEnv, device: torch.device, sizes: tuple[int, ...]) -> None:
    """Refuse an environment of another size or on another device than the agent's."""
    found = (env.n_runs, env.n_states, env.n_actions)
    if found != sizes:
        raise ValueError(
            "The environment has {} runs, {} states and {} actions".format(*found)
            + ", and the agent was made for {}, {} and {}: make a new agent for it".format(*sizes)
        )
    if env.device != device:
        raise ValueError(_DEVICES.format(env.device, device))
