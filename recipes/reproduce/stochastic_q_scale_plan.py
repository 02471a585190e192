"""What :mod:`.stochastic_q_scale` runs: worlds of 10^3 to 10^6 actions, and what candidates are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from extensions.stochmax.sources import log_size

from ..baselines import exact_dqn, stoch_dqn
from ..baselines.loop import Record, Task
from ..baselines.references import play_oracle, play_random

RUNS = Path("runs/stochastic_q_scale")
#: those before were looked at when settings were chosen
SEEDS = range(3, 8)

#: In 32,000 steps a million rows are met a few times at most: what is known of one must be learned from a
#: transition or two, hence the small replay, the large batch and the large steps. Exploration ends late: a
#: trap is found first, and who exploits it early camps on it.
_CHAIN: dict[str, Any] = {
    "steps": 32_000,
    "num_envs": 32,
    "gamma": 0.95,
    "batch": 2048,
    "buffer": 20_000,
    "eps_steps": 30_000,
    "eval_every": 4_000,
    "eval_episodes": 4,  # they are all the same
}
_REGULATOR: dict[str, Any] = {
    "steps": 16_000,
    "num_envs": 32,
    "codec": "bins",
    "eps_steps": 8_000,
    "eval_every": 2_000,
}


def _chain(n: int) -> Task:
    return Task("ScatterChain-v0", kwargs={"n": n, "kappa": 20.0}, **_CHAIN)


def _regulator(bins: int) -> Task:
    return Task("DiscreteLQR-v0", kwargs={"bins": bins}, **_REGULATOR)


#: the sizes of each world, from the smallest
FAMILIES: dict[str, dict[str, Task]] = {
    "ScatterChain": {f"ScatterChain-1e{e}": _chain(10**e) for e in (3, 4, 5, 6)},
    "DiscreteLQR": {f"DiscreteLQR-{bins}x{bins}": _regulator(bins) for bins in (99, 315, 1001)},
}
WORLDS = {world: task for sizes in FAMILIES.values() for world, task in sizes.items()}
#: of each family the largest, where the parts of StochDQN are changed one by one
LARGEST = [list(sizes)[-1] for sizes in FAMILIES.values()]


@cache
def actions(world: str) -> int:
    """n."""
    return int(WORLDS[world].make(1, 0).dynamics.n)


def settings_in(world: str) -> dict[str, Any]:
    """What StochDQN is given in a world, beside its candidates."""
    # As many in all sizes. Where fewer are looked at, the same ones each time, there may be none among them
    # that leads on: training, which draws anew, gets past, and the greedy policy never.
    found: dict[str, Any] = {"eval_candidates": 20}
    if WORLDS[world].codec is None:
        return {**found, "head": "row", "lr": 0.03, "row_lr_scale": 4.0, "tau": 0.1}
    return {**found, "lr": 3e-3}


#: who learns, or plays: called with a task, a seed and a device, and with settings
Train = Callable[..., list[Record]]
Method = tuple[Train, dict[str, Any]]

BASE, NO_MEMORY, NEAR = "R + M", "R alone, as many", "R + M + neighbours"
EXACT, DENSE = "exact maximum", "DQN, n outputs"
RANDOM, ORACLE = "random ids", "oracle"

_R, _M, _NEAR = {"uniform": {"k": 20}}, {"replay": {"k": 20}}, {"neighbours": {"k": 20}}
#: What is changed, one thing at a time, from BASE: 20 uniform ids a state, and 20 actions of the replay. By
#: groups, and in them by name.
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "kind of memory": {
        "none": {"candidates": _R},
        "each state's own": {"candidates": {**_R, "recent": {"k": 20}}},
        "elite": {"candidates": {**_R, "elite": {"k": 20}}},
        "replay, each state's own": {"candidates": {**_R, **_M, "recent": {"k": 20}}},
        "replay, elite": {"candidates": {**_R, **_M, "elite": {"k": 20}}},
        NEAR: {"candidates": {**_R, **_M, **_NEAR}},
    },
    "size of R": {f"|R| = {k}": {"candidates": {"uniform": {"k": k}, **_M}} for k in (5, 80)},
    "size of M": {f"|M| = {k}": {"candidates": {**_R, "replay": {"k": k}}} for k in (5, 80)},
    "sets": {
        "R shared by the batch": {"candidates": {"uniform": {"k": 20, "shared": True}, **_M}},
        "M apart for each environment": {"candidates": {**_R, "replay": {"k": 20, "shared": False}}},
        "M drawn anew for an update": {"candidates": {**_R, "replay": {"k": 20, "fresh": True}}},
    },
    "what learns": {
        "learned proposals": {"candidates": {**_R, **_M, "learned": {"k": 20}}},
        "R of adaptive size": {"candidates": {"adaptive": {"k_min": 20}, **_M}},
    },
    "double": {"double": {"double": True}},
}


def methods(world: str) -> dict[str, Method]:
    """All that is run in a world, by name."""
    found: dict[str, Method] = {RANDOM: (play_random, {}), ORACLE: (play_oracle, {})}
    k, base = log_size(actions(world)), settings_in(world)

    def add(name: str, **changed: Any) -> None:
        found[name] = (stoch_dqn.train, {**base, **changed})

    add(BASE, candidates={"uniform": {"k": k}, "replay": {"k": k}})
    add(NO_MEMORY, candidates={"uniform": {"k": 2 * k}})
    if WORLDS[world].codec is not None:
        add(NEAR, candidates={"uniform": {"k": k}, "replay": {"k": k}, "neighbours": {"k": k}})
    if actions(world) <= exact_dqn.MOST:
        if WORLDS[world].codec is None:
            add(EXACT, candidates="all")
        else:
            found[DENSE] = (exact_dqn.train, {"lr": 3e-3})
    if world in LARGEST:
        for changes in CHANGES.values():
            for name, changed in changes.items():
                if name != NEAR:
                    add(name, **{**found[BASE][1], **changed})
    return found


@dataclass(frozen=True)
class Job:
    """One run: who, in which world, by their names."""

    world: str
    method: str
    seed: int

    @property
    def file(self) -> Path:
        """Where its result is."""
        folder = "".join(c if c.isalnum() else "_" for c in self.method)
        return RUNS / self.world / folder / f"seed{self.seed}.json"

    @property
    def names(self) -> dict[str, Any]:
        """What its result is told from others by."""
        return dataclasses.asdict(self)

    @property
    def settings(self) -> dict[str, Any]:
        """All that it depends on."""
        return {"task": dataclasses.asdict(WORLDS[self.world]), "method": methods(self.world)[self.method][1]}

    def train(self, device: str) -> list[Record]:
        """Make it."""
        train, settings = methods(self.world)[self.method]
        return train(WORLDS[self.world], self.seed, device, **settings)

    def facts(self) -> dict[str, Any]:
        """Of random ids what they bring: exact where the world knows it, else over 10,000 episodes."""
        if self.method != RANDOM:
            return {}
        return {"random": float(WORLDS[self.world].make(1, 0).dynamics.random_value())}

    def __str__(self) -> str:
        return f"{self.world}; {self.method}; seed {self.seed}"


def in_size(world: str) -> list[str]:
    """The rows of a world in the part about n."""
    return [name for name in (BASE, NO_MEMORY, NEAR, EXACT, DENSE) if name in methods(world)]


def in_ablation(world: str) -> dict[str, list[str]]:
    """The rows of a world beside BASE in the part about the parts, by groups."""
    return {group: [name for name in rows if name in methods(world)] for group, rows in CHANGES.items()}


def jobs(worlds: list[str]) -> Iterator[Job]:
    """The two ends of each scale, and then all that learn. The seeds go round: cut short, it is still an
    even comparison."""
    for world in worlds:
        yield Job(world, RANDOM, 0)
        yield Job(world, ORACLE, 0)
    for seed in SEEDS:
        for world in worlds:
            for name in methods(world):
                if name not in (RANDOM, ORACLE):
                    yield Job(world, name, seed)
