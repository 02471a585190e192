"""What `glasses_trained` runs: tiny decoders with three kinds of positions, trained on short questions with
and without each remedy, and asked longer ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extensions.glasses import Lens

from .glasses_decoder import POSITIONS
from .glasses_questions import TASKS

RUNS = Path("runs/bench/glasses_trained")
SEEDS = tuple(range(5))
SHORTEST, LONGEST = 2, 32  # digits, in training
WINDOW = 32  # tokens
#: digits, in tests
LENGTHS = {
    "copy_first": (8, 16, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024, 1448, 2048),
    "copy_last": (8, 16, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024, 1448, 2048),
    "count": (8, 16, 24, 32, 40, 48, 64, 91, 128, 256, 512),
}
PHASES = 3  # separators every three make phases: with them, this length, and one and two digits more
#: sequences of each length to count in, of at most `LONGEST` ones: the answer is always a known one
COUNTED = 24
GAP_LENGTHS = (32, 64, 128, 256, 512, 1024)
SENSITIVITY_LENGTHS, PROBES = (32, 128, 512), 16
#: of positions, in tables
NAMES = {"rope": "RoPE", "nope": "no positions", "learned": "learned"}
DTYPES = ("float32", "bfloat16")
#: rows of the table of learned positions; training sequences begin anywhere in it, so that all are trained
PLACES = 2800


@dataclass(frozen=True)
class Training:
    """The same for every arm of a task. The rate is warmed up over a twentieth of the steps, then falls."""

    steps: int
    batch: int
    rate: float


TRAINING = {
    "copy_first": Training(500, 16, 2e-3),
    "copy_last": Training(500, 16, 2e-3),
    "count": Training(1500, 24, 3e-3),
}


@dataclass(frozen=True)
class Arm:
    """A remedy.

    Attributes:
        layout: where separators are, in training and tests.
        lens: what attention is in tests, and in training too unless ``test_only``.
        test_only: the models are those of the arm "plain".
    """

    title: str
    layout: str = "plain"
    lens: Lens | None = None
    test_only: bool = False


ARMS = {
    "plain": Arm("plain"),
    "adaptive": Arm("adaptive temperature, in tests only", lens=Lens(adaptive=True), test_only=True),
    "left": Arm("separators from the left", "left"),
    "right": Arm("separators from the right", "right"),
    "filler": Arm("as many separators anywhere", "filler"),
    "window": Arm(f"window of {WINDOW} tokens", lens=Lens(window=WINDOW)),
}
TRAINED = tuple(name for name, arm in ARMS.items() if not arm.test_only)


@dataclass(frozen=True)
class Job:
    """Five seeds of one arm, trained side by side."""

    task: str
    positions: str
    arm: str

    @property
    def tested(self) -> tuple[str, ...]:
        """The arms that its models are tested in."""
        return (
            ("plain", *(name for name in ARMS if ARMS[name].test_only))
            if self.arm == "plain"
            else (self.arm,)
        )

    @property
    def file(self) -> Path:
        """Where its result is; the weights are beside it."""
        return RUNS / self.task / self.positions / f"{self.arm}.json"

    @property
    def training(self) -> dict[str, Any]:
        """All that its weights depend on."""
        return {
            **dataclasses.asdict(self),
            **dataclasses.asdict(TRAINING[self.task]),
            "seeds": SEEDS,
            "lengths": (SHORTEST, LONGEST),
            "window": WINDOW if self.arm == "window" else None,
            "places": PLACES if self.positions == "learned" else None,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """All that its result depends on: a run with other settings is not this one."""
        return {
            "training": self.training,
            "tested": self.tested,
            "lengths": LENGTHS[self.task],
            "phases": PHASES,
            "counted": COUNTED,
            "gap_lengths": GAP_LENGTHS,
            "sensitivity": (SENSITIVITY_LENGTHS, PROBES),
        }

    def __str__(self) -> str:
        return f"{self.task}, {self.positions}, {self.arm}"


def phases(layout: str, length: int) -> range:
    """The lengths that are asked about in the place of one."""
    return range(length, length + (1 if layout == "plain" else PHASES))


def jobs(tier: str, tasks: tuple[str, ...] = TASKS) -> Iterator[Job]:
    """Tier "a": every remedy with RoPE, and no remedy and separators from the left with the other positions.
    Tier "b": the other remedies with those."""
    for positions in POSITIONS:
        for arm in TRAINED:
            for task in tasks:
                if (tier == "a") == (positions == "rope" or arm in ("plain", "left")):
                    yield Job(task, positions, arm)
