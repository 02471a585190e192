"""What is refused before it does harm, with the fix named."""

from __future__ import annotations

from typing import Any

import torch

from ..stochmax.sources import log_size
from .environments import TensorEnv, with_index
from .randomness import DRAWN_UP_TO
from .schedules import check_learning_rate
from .tables import DENSE_UP_TO, EXACT_UP_TO

_DEVICES = "The environment is on {} and the agent on {}: give both one device"
_SAMPLED = {"QLearning": "StochQ", "DoubleQLearning": "StochDoubleQ", "Sarsa": "StochSarsa"}


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse numbers outside their ranges."""
    check_learning_rate(arguments["learning_rate"])
    for name in ("gamma", "exploration_fraction", "exploration_initial_eps", "exploration_final_eps"):
        value = arguments[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError(f"{name} must be a number in [0, 1]; got {value!r}")
    for name, least in (("schedule_timesteps", 1), ("record_interval", 0), ("_eval_candidates", 1)):
        value = arguments[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(
                f"{name.removeprefix('_')} must be a whole number, at least {least}; got {value!r}"
            )
    if arguments["table"] not in ("auto", "dense", "sparse"):
        raise ValueError(f'table must be "auto", "dense" or "sparse"; got {arguments["table"]!r}')
    if isinstance(arguments["seed"], bool) or not isinstance(arguments["seed"], int):
        raise TypeError(f"seed must be a whole number, or None; got {arguments['seed']!r}")


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


def resolve_size(size: int | str, n: int, name: str) -> int:
    """The number of ids that a name or a number stands for.

    Args:
        size: "log" for ceil(log2 n), "all" for n (candidates only), or a number.
        n: number of actions.
        name: "candidates" or "memory".
    """
    if size == "log":
        return log_size(n)
    if size == "all" and name == "candidates":
        return n
    least = 1 if name == "candidates" else 0
    if isinstance(size, bool) or not isinstance(size, int) or size < least:
        names = '"log", "all"' if name == "candidates" else '"log"'
        raise ValueError(f"{name} must be {names} or a whole number, at least {least}; got {size!r}")
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
