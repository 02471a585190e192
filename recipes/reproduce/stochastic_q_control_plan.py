"""What :mod:`.stochastic_q_control` runs: controls cut into levels, methods with their settings, budgets."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RUNS = Path("runs/reproduce/stochastic_q")
SEEDS = range(5)


def authors_batch(n: int) -> int:
    """Transitions of an update in the authors' code: 2 log2 n."""
    return 2 * round(math.log2(n))


@dataclass(frozen=True)
class Budget:
    """How long a run is.

    Attributes:
        steps: of the environment. eval_every: steps between evaluations. episodes: in each evaluation.
    """

    steps: int
    eval_every: int
    episodes: int


@dataclass(frozen=True)
class World:
    """A MuJoCo environment whose controls are cut into levels.

    Attributes:
        env_id: the original. levels: of each control. controls: how many there are.
        horizon: steps after which an episode is cut.
        train_freq: steps an update.
        random_episodes: over which the return of random play is taken.
        budgets: by tier.
        released: whether it is in the authors' code.
    """

    env_id: str
    levels: int
    controls: int
    horizon: int
    train_freq: int
    random_episodes: int
    budgets: dict[str, Budget]
    released: bool

    @property
    def n(self) -> int:
        """Number of actions."""
        return self.levels**self.controls

    @property
    def batch(self) -> int:
        """Transitions of an update."""
        return authors_batch(self.n)

    def env(self, continuous: bool) -> tuple[str, dict[str, Any]]:
        """Id and arguments with which gymnasium makes it, uncut if ``continuous``."""
        if continuous:
            return self.env_id, {"max_episode_steps": self.horizon}
        cut = {"env_id": self.env_id, "bins": self.levels, "horizon": self.horizon}
        return "envs:LargeAction/DiscretizedMujoco-v5", cut


_PENDULUM = {"A": Budget(4_000, 500, 5), "B": Budget(50_000, 2_500, 10)}
_CHEETAH = {"A": Budget(8_000, 2_000, 1), "B": Budget(100_000, 10_000, 5)}
#: an episode of InvertedPendulum is cut after 100 steps, as in the authors' code
WORLDS = {
    "InvertedPendulum, 512": World("InvertedPendulum-v5", 512, 1, 100, 1, 200, _PENDULUM, True),
    "InvertedPendulum, 1000": World("InvertedPendulum-v5", 1000, 1, 100, 1, 200, _PENDULUM, True),
    "HalfCheetah, 4096": World("HalfCheetah-v5", 4, 6, 1000, 4, 10, _CHEETAH, False),
}


@dataclass(frozen=True)
class Method:
    """One of those compared.

    Attributes:
        title: its name in tables.
        algorithm: a class of `extensions.sb3` or of SB3; None is random play.
        settings: what it is given beside those common to all.
        authors: whether it has the replay of the authors' code, 4 log2 n transitions; it is then run only
            where that code is.
        continuous: whether it acts on the controls themselves, with SB3's own settings.
        tiers: in which it is run. worlds: where; all if there are none.
    """

    title: str
    algorithm: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    authors: bool = False
    continuous: bool = False
    tiers: str = "AB"
    worlds: tuple[str, ...] = ()

    def meets(self, world: str) -> bool:
        """Whether it is run in a world."""
        if self.authors and not WORLDS[world].released:
            return False
        return not self.worlds or world in self.worlds


#: what the agents on cut controls have in common
COMMON: dict[str, Any] = {
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "n_steps": 3,
    "buffer_size": 50_000,
    "learning_starts": 200,
    "tau": 0.01,
    "target_update_interval": 1,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.01,
    "head": "feature",
    "head_kwargs": {"hidden": 64},
    "policy_kwargs": {"net_arch": [64]},
    "eval_candidates": "all",  # every greedy policy takes the exact maximum
    "diagnostics_interval": 0,
}
_SAMPLED, _EXACT, _ONE_STEP = {"candidates": "paper"}, {"candidates": "all"}, {"n_steps": 1}
_FIRST = tuple(WORLDS)[:1]
METHODS = {
    "stoch_dqn": Method("StochDQN", "StochDQN", _SAMPLED),
    "stoch_ddqn": Method("StochDDQN", "StochDDQN", _SAMPLED),
    "dqn": Method("DQN, exact in batch", "StochDQN", _EXACT),
    "ddqn": Method("DDQN, exact in batch", "StochDDQN", _EXACT),
    "stoch_dqn_one_step": Method(
        "StochDQN, one-step", "StochDQN", {**_SAMPLED, **_ONE_STEP}, tiers="A", worlds=_FIRST
    ),
    "dqn_one_step": Method(
        "DQN, exact in batch, one-step", "StochDQN", {**_EXACT, **_ONE_STEP}, tiers="A", worlds=_FIRST
    ),
    "stoch_dqn_authors": Method(
        "StochDQN, the authors' candidates",
        "StochDQN",
        {"candidates": "authors_code", "tau": 1.0, **_ONE_STEP},
        authors=True,
    ),
    "random": Method("random", None),
    "ppo": Method("PPO, continuous", "PPO", continuous=True, tiers="B"),
    "a2c": Method("A2C, continuous", "A2C", continuous=True, tiers="B"),
    "ddpg": Method("DDPG, continuous", "DDPG", continuous=True, tiers="B"),
}


@dataclass(frozen=True)
class Job:
    """One run: a method in a world, by their names, with the budget of a tier."""

    tier: str
    world: str
    method: str
    seed: int

    @property
    def budget(self) -> Budget:
        return WORLDS[self.world].budgets[self.tier]

    @property
    def arguments(self) -> dict[str, Any]:
        """What the algorithm is given beside its environment, codec and seed."""
        world, method = WORLDS[self.world], METHODS[self.method]
        if method.continuous or method.algorithm is None:
            return method.settings
        replay = {"batch_size": world.batch, "train_freq": world.train_freq}
        if method.authors:
            replay |= {"buffer_size": 2 * world.batch, "learning_starts": world.batch}
        return {**COMMON, **replay, **method.settings}

    @property
    def settings(self) -> dict[str, Any]:
        """All that a run depends on but its seed: a run with other settings is not this one."""
        world, method = WORLDS[self.world], METHODS[self.method]
        whole = {
            "env": world.env(method.continuous),
            "algorithm": method.algorithm,
            "arguments": self.arguments,
        }
        if method.algorithm is None:
            return as_json({**whole, "episodes": world.random_episodes})
        return as_json({**whole, "budget": asdict(self.budget)})

    def file(self, runs: Path) -> Path:
        """Where its result is."""
        folder = self.world.replace(", ", "-")
        return runs / "control" / self.tier / folder / self.method / f"seed{self.seed}.json"


def as_json(x: Any) -> Any:
    """As it will be read again from a file: lists for tuples."""
    return json.loads(json.dumps(x))


def cells(tier: str) -> list[tuple[str, str]]:
    """Who meets whom: (world, method)."""
    return [
        (world, name)
        for world in WORLDS
        for name, method in METHODS.items()
        if tier in method.tiers and method.meets(world)
    ]


def jobs(tier: str) -> Iterator[Job]:
    """The runs of a tier. The seeds go round: cut short, it is still an even comparison."""
    for seed in SEEDS:
        for world, method in cells(tier):
            yield Job(tier, world, method, seed)
