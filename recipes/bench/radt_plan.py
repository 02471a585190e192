"""What :mod:`.radt` runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNS = Path("runs/bench/radt")
#: the learning rates were compared on this one
TUNING_SEED = 100
RATES = ("3e-3", "1e-2")
EPISODES = 10

#: by size: the paper's is for a GPU
SIZES: dict[str, tuple[str, ...]] = {
    "cpu": ("steps=3000", "eval_every=1000"),
    "paper": (
        "steps=100000",
        "eval_every=5000",
        "eval_episodes=10",
        "context=20",
        "transformer.n_embd=128",
        "transformer.n_layer=3",
    ),
}


@dataclass(frozen=True)
class Row:
    """An actor on an environment.

    Attributes:
        env, actor: as ``recipes.radt`` takes them.
        lr: the highest learning rate.
        size: one of `SIZES`.
        more: further overrides, which the row's name tells.
        long: whether it is run only when it is named.
    """

    env: str
    actor: str
    lr: str
    size: str = "cpu"
    more: tuple[str, ...] = ()
    long: bool = False

    @property
    def name(self) -> str:
        """What the tables call it."""
        return ", ".join([self.env, self.actor, *self.more, *([self.size] if self.size != "cpu" else [])])

    def folder(self, seed: int) -> Path:
        """Where a run is."""
        rate = f"-lr{self.lr}" if seed == TUNING_SEED else ""
        return RUNS / (self.name.replace(", ", "-").replace("=", "-") + rate) / f"seed{seed}"

    def overrides(self, seed: int) -> list[str]:
        """What ``recipes.radt`` is told."""
        episodes = 100 if self.size == "paper" else EPISODES
        return [
            f"env={self.env}",
            f"actor={self.actor}",
            f"lr={self.lr}",
            f"seed={seed}",
            f"test_episodes={episodes}",
            *SIZES[self.size],
            *self.more,
        ]

    def result(self, seed: int) -> dict[str, Any] | None:
        """What a run came to, if it has ended."""
        file = self.folder(seed) / "result.json"
        return json.loads(file.read_text()) if file.exists() else None


#: learning rates as the tuning chose them, see radt.md
LR = {"radt": "1e-2", "dt": "1e-2"}
WIDER = ("transformer.n_embd=96",)  # DT with about as many parameters as RADT

ROWS = (
    *(Row(env, actor, LR[actor]) for env in ("hopper", "half_cheetah") for actor in ("radt", "dt")),
    *(Row("walker2d", actor, LR[actor], long=True) for actor in ("radt", "dt")),
    *(Row(env, "dt", LR["dt"], more=WIDER) for env in ("hopper", "half_cheetah")),
    *(
        Row(env, actor, "1e-4", "paper", long=True)
        for env in ("hopper", "half_cheetah", "walker2d")
        for actor in ("radt", "dt")
    ),
)
TRIALS = tuple(Row("hopper", actor, lr) for actor in ("radt", "dt") for lr in RATES)
