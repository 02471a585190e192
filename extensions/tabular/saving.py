"""Files of agents: tensors, numbers and text, read without running anything in them."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .environments import Step, TensorEnv
from .maximum import Chosen
from .schedules import VisitCount

if TYPE_CHECKING:
    from .base import TabularAlgorithm

_FORMAT = "extensions.tabular 2"
#: arguments that may differ from those an agent was saved with
_MAY_CHANGE = (
    "learning_rate",
    "gamma",
    "exploration_fraction",
    "exploration_initial_eps",
    "exploration_final_eps",
    "schedule_timesteps",
    "record_interval",
)


class File(NamedTuple):
    """What a file holds, by name."""

    format: str
    name: str  # of the class
    sizes: list[int]  # R, S, n
    arguments: dict[str, Any]
    table: dict[str, Tensor]
    memory: dict[str, Tensor] | None
    records: dict[str, Any] | None
    num_timesteps: int
    exploration_rate: float
    clock: int
    predictions: int
    last_state: Tensor | None  # (R,)
    ended: Tensor | None  # (R,) bool
    pending: list[Tensor] | None  # a `Chosen`


class Absent(TensorEnv):
    """In the place of an environment, with its sizes and on the agent's device, until there is one."""

    def __init__(self, device: torch.device, n_runs: int, n_states: int, n_actions: int) -> None:
        self.n_runs, self.n_states, self.n_actions = n_runs, n_states, n_actions
        self.device = device

    def reset(self, seed: int | None = None) -> Tensor:
        raise ValueError("The agent was loaded without an environment: call set_env(env) before learn")

    def step(self, actions: Tensor) -> Step:
        return self.reset()  # type: ignore[return-value]


def with_suffix(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix else path.with_suffix(".pt")


def write(path: str | Path, agent: TabularAlgorithm) -> None:
    """Write an agent's file, whole or not at all."""
    arguments = dict(agent._arguments)
    rate = arguments["learning_rate"]
    if isinstance(rate, VisitCount):
        arguments["learning_rate"] = {"power": rate.power}
    elif callable(rate):
        arguments["learning_rate"] = None
    file = File(
        format=_FORMAT,
        name=type(agent).__name__,
        sizes=[agent.n_runs, agent.n_states, agent.n_actions],
        arguments=arguments,
        table=agent._table.state_dict(),
        memory=None if agent._memory is None else agent._memory.state_dict(),
        records=None if agent.records is None else agent.records.state_dict(),
        num_timesteps=agent.num_timesteps,
        exploration_rate=agent.exploration_rate,
        clock=agent._draws.clock,
        predictions=agent._draws.predictions,
        last_state=None if agent._last_state is None else agent._last_state.cpu(),
        ended=None if agent._ended is None else agent._ended.cpu(),
        pending=None if agent._pending is None else [x.cpu() for x in agent._pending],
    )
    path = with_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    torch.save(file._asdict(), partial)
    os.replace(partial, path)


def read(path: str | Path, name: str, changed: dict[str, Any]) -> File:
    """Read an agent's file.

    Args:
        path: the file.
        name: the class that it must be of.
        changed: arguments in the place of those saved.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was cut short or is none, is of another class, or an argument is missing or cannot
            change.
    """
    path = Path(path) if Path(path).exists() else with_suffix(path)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is not a whole file of a tabular agent: it was cut short or is none at all"
        ) from error
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT or saved.keys() != set(File._fields):
        raise ValueError(f"{path} is not a file of a tabular agent, or is of another version")
    file = File(**saved)
    if file.name != name:
        raise ValueError(f"{path} holds a {file.name}: load it with {file.name}.load, not {name}.load")
    arguments = file.arguments
    fixed = sorted(changed.keys() - set(_MAY_CHANGE))
    if fixed:
        raise ValueError(
            f"{fixed[0]} cannot be changed when an agent is loaded; what can: {', '.join(_MAY_CHANGE)}"
        )
    rate = arguments["learning_rate"]
    by_visits = isinstance(rate, dict)
    if by_visits:
        arguments["learning_rate"] = VisitCount(**rate)
    elif rate is None and "learning_rate" not in changed:
        raise ValueError(
            f"{path} was saved with a function as learning_rate, which a file without pickles cannot hold: "
            "give it again, load(path, learning_rate=...)"
        )
    new = changed.get("learning_rate")
    if new is not None and isinstance(new, VisitCount) != by_visits:
        raise ValueError(
            f"{path} was saved {'with' if by_visits else 'without'} visit counts: learning_rate must "
            f"{'' if by_visits else 'not '}be VisitCount"
        )
    arguments.update(changed)
    return file


def restore(agent: TabularAlgorithm, file: File, goes_on: bool) -> None:
    """Make an agent the one that was saved; where it was in its environment, too, if it ``goes_on`` there."""
    agent._table.load_state_dict(file.table)
    if agent._memory is not None and file.memory is not None:
        agent._memory.load_state_dict(file.memory)
    if agent.records is not None and file.records is not None:
        agent.records.load_state_dict(file.records)
    agent.num_timesteps, agent.exploration_rate = file.num_timesteps, file.exploration_rate
    agent._draws.clock, agent._draws.predictions = file.clock, file.predictions
    if not goes_on or file.last_state is None or file.ended is None:
        return
    agent._last_state, agent._ended = file.last_state.to(agent.device), file.ended.to(agent.device)
    agent._pending = None if file.pending is None else Chosen(*(x.to(agent.device) for x in file.pending))
    agent._env_is_seeded = True
    agent.env.resume(agent._ended)
    if agent.records is not None and file.records is None:
        agent.records.join(agent._ended)
