"""What :mod:`.peers` runs: the worlds with their budgets, the methods with their settings, who meets whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from envs.dynamics.world import World

from ..baselines import branching, cem, exact_dqn, stoch_dqn, wolpertinger
from ..baselines.loop import Record, Task
from ..baselines.references import play_oracle, play_random

RUNS = Path("runs/bench/peers")
SEEDS, TRIAL_SEED = range(5), 100
#: All are tried with the learning rate in their settings and with `FACTOR` times it, on the seed for that.
#: While the best of those tried is the lowest or the highest, one beyond it is tried, up to `MOST_RATES`.
FACTOR, MOST_RATES = 3.0, 4

#: of both chains, where each id is learned by itself: a small replay and large batches
_CHAIN: dict[str, Any] = {
    "num_envs": 32,
    "gamma": 0.95,
    "batch": 512,
    "buffer": 20_000,
    "eps_steps": 75_000,
    "eval_every": 10_000,
}
_MAZE: dict[str, Any] = {"num_envs": 32, "eval_every": 8_000}
WORLDS = {
    "ScatterChain-1M": Task("ScatterChain-1M-v0", 150_000, {"kappa": 20.0}, **_CHAIN),
    "ScatterChain-1K": Task("ScatterChain-1K-v0", 150_000, {"kappa": 20.0}, **_CHAIN),
    "ActuatorMaze-2p10": Task("ActuatorMaze-2p10-v0", 64_000, codec="digits", **_MAZE),
    "ActuatorMaze-2p20": Task("ActuatorMaze-2p20-v0", 64_000, codec="digits", **_MAZE),
    "DiscreteLQR-1M": Task("DiscreteLQR-1M-v0", 30_000, num_envs=32, codec="bins"),
    "JointReplenishmentSeparable-1M": Task(
        "JointReplenishmentSeparable-1M-v0", 40_000, num_envs=32, codec="bins"
    ),
}

#: how many actions StochDQN, the cross-entropy method and Wolpertinger's critic look at for a maximum
CANDIDATES = 60


@dataclass(frozen=True)
class Method:
    """One of those compared.

    Attributes:
        title: its name in tables. train: one run of it.
        needs: why it cannot run in a world, or None; given the world and the task.
        settings: by name of the world, ``""`` for all; the rest is as ``train`` has it.
        learns: whether it does.
        rate_of: the method whose learning rate it has, untried; None if its own is searched for.
    """

    title: str
    train: Callable[..., list[Record]]
    needs: Callable[[World, Task], str | None]
    settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    learns: bool = True
    rate_of: str | None = None

    def settings_in(self, world: str) -> dict[str, Any]:
        """What ``train`` is given in a world."""
        base = {"lr": 1e-3} if self.learns else {}
        return {**base, **self.settings.get("", {}), **self.settings.get(world, {})}


def _nothing(world: World, task: Task) -> str | None:
    return None


def _metric(world: World, task: Task) -> str | None:
    return None if task.codec else "no metric: ids are names"


def _digits(world: World, task: Task) -> str | None:
    return None if task.codec else "no digits: ids are names"


def _few(world: World, task: Task) -> str | None:
    return None if world.n <= exact_dqn.MOST else f"{world.n:,} outputs"


_ROWS = {"head": "row", "candidates": (20, 20, 0), "lr": 3e-3, "row_lr_scale": 10.0, "tau": 0.02}
METHODS = {
    "stoch_dqn": Method(
        "StochDQN",
        stoch_dqn.train,
        _nothing,
        {
            "": {"candidates": (20, 20, 20)},
            "ScatterChain-1M": _ROWS,
            "ScatterChain-1K": {**_ROWS, "candidates": (10, 10, 0)},
        },
    ),
    "exact": Method(
        "StochDQN's network, all n",
        stoch_dqn.train,
        _few,
        {"": {"candidates": "all"}, "ScatterChain-1K": {**_ROWS, "candidates": "all"}},
        rate_of="stoch_dqn",
    ),
    "wolpertinger": Method("Wolpertinger", wolpertinger.train, _metric, {"": {"k": CANDIDATES}}),
    "cem": Method("CEM arg max (QT-Opt)", cem.train, _metric, {"": {"samples": 20, "rounds": 3}}),
    "branching": Method("Branching (BDQ)", branching.train, _digits),
    "exact_dqn": Method(
        "DQN, all n outputs",
        exact_dqn.train,
        _few,
        {"ScatterChain-1K": {"linear": True, "lr": 1e-2, "tau": 0.02}},
    ),
    "random": Method("random ids", play_random, _nothing, learns=False),
    "oracle": Method("oracle", play_oracle, _nothing, learns=False),
}


@dataclass(frozen=True)
class Job:
    """One run: a method in a world, by their names, and its learning rate (None if it learns nothing)."""

    world: str
    method: str
    seed: int
    lr: float | None = None

    @property
    def file(self) -> Path:
        """Where its result is."""
        folder = RUNS / self.world / self.method
        return (folder if self.lr is None else folder / f"lr{self.lr:g}") / f"seed{self.seed}.json"

    @property
    def arguments(self) -> dict[str, Any]:
        """What the method is given."""
        given = METHODS[self.method].settings_in(self.world)
        return given if self.lr is None else {**given, "lr": self.lr}

    @property
    def settings(self) -> dict[str, Any]:
        """All that a run depends on: a run with other settings is not this one."""
        return {"task": dataclasses.asdict(WORLDS[self.world]), "method": self.arguments}

    @property
    def names(self) -> dict[str, Any]:
        """What its result is told from others by."""
        return dataclasses.asdict(self)

    def train(self, device: str) -> list[Record]:
        """Make it."""
        return METHODS[self.method].train(WORLDS[self.world], self.seed, device, **self.arguments)

    def facts(self) -> dict[str, Any]:
        """Of random ids what they bring: exact where the world knows it, else over 10,000 episodes."""
        if self.method != "random":
            return {}
        return {"random": float(WORLDS[self.world].make(1, 0).dynamics.random_value())}

    def __str__(self) -> str:
        rate = "" if self.lr is None else f" lr {self.lr:g};"
        return f"{self.world}; {self.method};{rate} seed {self.seed}"


#: (world, method) -> learning rate
Rates = dict[tuple[str, str], float]


@cache
def why_not(world: str, method: str) -> str | None:
    """Why a method does not run in a world; None if it does."""
    task = WORLDS[world]
    return METHODS[method].needs(task.make(1, 0).dynamics, task)


def cells(learns: bool) -> Iterator[tuple[str, str]]:
    """Who meets whom: (world, method)."""
    for world in WORLDS:
        for name, method in METHODS.items():
            if method.learns == learns and why_not(world, name) is None:
                yield world, name


def references() -> Iterator[Job]:
    """The two ends of the scale. The oracle draws nothing: once is enough."""
    for world, method in cells(learns=False):
        for seed in SEEDS if method == "random" else SEEDS[:1]:
            yield Job(world, method, seed)


def comparison(rates: Rates) -> Iterator[Job]:
    """Each with its rate. The seeds go round: cut short, it is still an even comparison."""
    for seed in SEEDS:
        for cell in cells(learns=True):
            if cell in rates:
                yield Job(*cell, seed, rates[cell])
