"""What :mod:`.glasses_grpo` runs: GRPO on counting, in two settings, four arms and two precisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNS = Path("runs/bench/glasses_grpo")
SEEDS = range(5)

ARMS = {
    "plain": "plain",
    "sep_left": "separators, left",
    "sep_right": "separators, right",
    "filler": "separators, anywhere",
}
DTYPES = ("float32", "bfloat16")
EVERY = 3  # ones to a separator
BINS = 4  # of lengths, equally wide
#: of what TRL logs, what is kept
LOGGED = ("reward", "reward_std", "frac_reward_zero_std", "entropy", "round_number_rate")
#: where ceilings of longer questions are looked at: so many ones, and the lengths that follow
FAR, NEIGHBOURS = (64, 128, 256, 512, 1024), 16


@dataclass(frozen=True)
class Setting:
    """What is asked of which model.

    Attributes:
        title: its name on the page.
        longest: questions are of 1 to so many ones.
        positions: whether the model has rotary positions.
        framed: whether a beginning of sequence comes before the ones and a mark after them; else the prompt
            is the ones and nothing else.
        uneven: of n ones there are `longest` // n questions, so that the answer 1 is the commonest; else one.
        warm_up: updates of supervised training before GRPO.
    """

    title: str
    longest: int
    positions: bool
    framed: bool
    uneven: bool
    warm_up: int

    @property
    def watched(self) -> tuple[int, int, int]:
        """Lengths whose gaps are logged while GRPO goes on."""
        return self.longest // 4, self.longest // 2, self.longest - EVERY


SETTINGS = {
    "framed": Setting("rotary, framed", 48, positions=True, framed=True, uneven=False, warm_up=120),
    "bare": Setting("rotary, bare", 16, positions=True, framed=False, uneven=True, warm_up=100),
    "no_positions": Setting(
        "no positions, framed", 32, positions=False, framed=True, uneven=False, warm_up=250
    ),
}
#: what GRPO is run on; without positions only ceilings are looked at
TRAINED = ("framed", "bare")


@dataclass(frozen=True)
class Training:
    """What all runs have in common.

    Attributes:
        hidden, layers, heads: of the Llama; its MLPs are twice as wide.
        warm_up_lr, warm_up_batch: of supervised training.
        updates: of GRPO.
        lr, prompts, generations: of GRPO; an update reads ``prompts`` times ``generations`` answers.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    warm_up_lr: float = 3e-3
    warm_up_batch: int = 32
    updates: int = 60
    lr: float = 6e-4
    prompts: int = 8
    generations: int = 8


TRAINING = Training()


@dataclass(frozen=True)
class Job:
    """One run of GRPO.

    Attributes:
        setting: of `SETTINGS`.
        arm: of `ARMS`.
        dtype: of `DTYPES`; bfloat16 is autocast, as TRL and accelerate train with ``bf16=True``.
        seed: of weights, questions and samples. Both precisions begin with the same warmed-up model.
    """

    setting: str
    arm: str
    dtype: str
    seed: int

    @property
    def folder(self) -> Path:
        """What the runs of one model share."""
        return RUNS / self.setting / self.arm / f"seed{self.seed}"

    @property
    def file(self) -> Path:
        """Where its result is."""
        return self.folder / f"{self.dtype}.json"

    @property
    def names(self) -> dict[str, Any]:
        """What its result is told from others by."""
        return dataclasses.asdict(self)

    @property
    def settings(self) -> dict[str, Any]:
        """All that it depends on."""
        setting = dataclasses.asdict(SETTINGS[self.setting])
        return {"setting": setting, "training": dataclasses.asdict(TRAINING), "every": EVERY}

    def __str__(self) -> str:
        return f"{self.setting}, {self.arm}, {self.dtype}, seed {self.seed}"


@dataclass(frozen=True)
class Far:
    """The ceilings of longer questions than those trained on, of the plain arm's warmed-up model."""

    setting: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where the model is."""
        return Job(self.setting, "plain", "float32", self.seed).folder

    @property
    def file(self) -> Path:
        """Where its result is."""
        return self.folder / "far.json"

    @property
    def names(self) -> dict[str, Any]:
        """What its result is told from others by."""
        return dataclasses.asdict(self)

    @property
    def settings(self) -> dict[str, Any]:
        """All that it depends on."""
        return Job(self.setting, "plain", "float32", self.seed).settings | {"far": [FAR, NEIGHBOURS]}

    def __str__(self) -> str:
        return f"{self.setting}, far, seed {self.seed}"


def far_jobs() -> Iterator[Far]:
    """Of the settings whose prompts are not one state by construction."""
    for seed in SEEDS:
        for name, setting in SETTINGS.items():
            if setting.framed:
                yield Far(name, seed)


def jobs() -> Iterator[Job]:
    """The runs of GRPO. The seeds go round: cut short, it is still an even comparison."""
    for seed in SEEDS:
        for setting in TRAINED:
            for arm in ARMS:
                for dtype in DTYPES:
                    yield Job(setting, arm, dtype, seed)
