"""The types of a recipe's settings: a misspelt key or a value of a wrong type ends it before it begins."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, make_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

# What a run brings itself.
SET_BY_THE_RECIPE = {"self", "env", "action_codec", "tensorboard_log", "verbose", "_init_setup_model"}


@dataclass
class EnvConfig:
    """An environment, and how long to learn in it."""

    id: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    #: what the ids stand for: a codec of extensions.stochmax, or null for plain ids
    codec: Any = None
    total_timesteps: int = MISSING
    #: steps between two evaluations; each also logs and saves a checkpoint
    eval_every: int = MISSING
    #: episodes of a greedy evaluation
    eval_episodes: int = MISSING


@dataclass
class StochDQNConfig:
    """What ``python -m recipes.stoch_dqn`` takes."""

    env: EnvConfig = field(default_factory=EnvConfig)
    algo: Any = MISSING
    total_timesteps: int = MISSING
    eval_every: int = MISSING
    eval_episodes: int = MISSING
    n_envs: int = 1
    seed: int = 0
    device: str = "auto"
    #: threads of torch; with one, a run repeats bit for bit on like machines
    threads: int = 1
    #: the whole path in seconds
    smoke: bool = False
    #: the folder of a run to go on with
    resume: str | None = None


def register() -> None:
    """Tell Hydra of the schemas."""
    from stable_baselines3 import DQN, PPO, SAC

    from extensions.sb3 import StochDDQN, StochDQN

    store = ConfigStore.instance()
    store.store(name="schema_stoch_dqn", node=StochDQNConfig)
    for algorithm in (StochDQN, StochDDQN, DQN, PPO, SAC):
        store.store(group="algo", name=f"schema_{algorithm.__name__}", node=schema_of(algorithm))


def schema_of(algorithm: type) -> Any:
    """A dataclass of the arguments of an SB3 algorithm's constructor, with their types and defaults."""
    fields: list[Any] = [("_target_", str, f"{algorithm.__module__}.{algorithm.__name__}")]
    for name, parameter in inspect.signature(algorithm).parameters.items():
        if name in SET_BY_THE_RECIPE:
            continue
        default = None if parameter.default is parameter.empty else parameter.default
        value = default if isinstance(default, (int, float, str, bool, type(None))) else None
        fields.append((name, _plain_type(parameter.annotation), value))
    return make_dataclass(algorithm.__name__ + "Schema", fields)


def _plain_type(annotation: Any) -> Any:
    """The type to check of an argument: that of plain numbers and flags; anything else is SB3's to check."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    plain = {"int": int, "float": float, "bool": bool}.get(text)
    return Any if plain is None else plain | None
