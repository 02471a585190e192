"""What :mod:`.glasses_returns` runs: who learns, from which data, and how much past is in sight."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNS = Path("runs/glasses_returns")
SEEDS = range(5)
HORIZON, NOISE = 60, 0.25  # T, and of the actions in the data
EPISODES, HELD_OUT = 1_000, 256
ASKED = tuple(range(3, HORIZON, 3))  # the returns that policies are asked for
CONTEXTS = (1, 2, 5, 10, 20, 50)  # K
#: the step whose action is measured: the first that has the longest context behind it
MEASURED = max(CONTEXTS) - 1
#: of both transformers
TRANSFORMER: dict[str, Any] = {
    "n_embd": 32, "n_layer": 2, "n_head": 1, "n_inner": 128, "activation": "gelu", "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
}  # fmt: skip
TRAINING: dict[str, Any] = {
    "updates": 400, "batch_size": 32, "lr": 1e-2, "warmup": 0.1, "lr_end": 0.01, "weight_decay": 1e-4,
    "clip_norm": 0.25,
}  # fmt: skip

COLLECTED, INDEPENDENT, SHUFFLED = "as collected", "independent steps", "shuffled returns"
DATA = (COLLECTED, INDEPENDENT, SHUFFLED)
SHUFFLED_CONTEXTS = (1, 5, 20)  # the others come last


@dataclass(frozen=True)
class Arm:
    """Who learns.

    Attributes:
        title: its name in tables.
        actor: "dt", TorchRL's DTActor, or "radt".
        radt: settings of `RADTConfig` beyond the common ones.
        newest_loss: it learns the newest action of a window alone, of 1 to K steps, not those of all K.
        newest_return: all returns of a window but the newest are 0; with ``newest_loss``.
    """

    title: str
    actor: str
    radt: tuple[tuple[str, Any], ...] = ()
    newest_loss: bool = False
    newest_return: bool = False


DT, RADT = Arm("DT", "dt"), Arm("RADT", "radt")
#: other ways to show the return, at one context
REMEDIES = (
    Arm("DT, newest return alone", "dt", newest_loss=True, newest_return=True),
    Arm("DT, loss at the newest action alone", "dt", newest_loss=True),
    Arm("RADT, norms alone (StepRA)", "radt", (("seqra", False),)),
    Arm("RADT, cross-attention alone (SeqRA)", "radt", (("stepra", False),)),
)
REMEDIES_CONTEXT = 20


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        arm: who learns.
        data: one of `DATA`.
        context: K.
        seed: of the data, the first weights and the windows.
    """

    arm: Arm
    data: str
    context: int
    seed: int

    def __str__(self) -> str:
        return f"{self.data}; {self.arm.title}; K = {self.context}; seed {self.seed}"

    @property
    def file(self) -> Path:
        """Where its result is."""
        data, arm = (
            "".join(c for c in name if c not in ",()").replace(" ", "-")
            for name in (self.data, self.arm.title)
        )
        return RUNS / data / arm / f"K{self.context}" / f"seed{self.seed}.json"

    @property
    def settings(self) -> dict[str, Any]:
        """All that a run depends on: a run with other settings is not this one."""
        about = {
            "horizon": HORIZON,
            "noise": NOISE,
            "episodes": EPISODES,
            "held_out": HELD_OUT,
            "measured": MEASURED,
            "asked": ASKED,
        }
        return {**about, **TRANSFORMER, **TRAINING, **dataclasses.asdict(self)}


def sweep() -> Iterator[Job]:
    """DT and RADT over contexts, on episodes as collected and on independent steps.

    The seeds go round: cut short, it is still an even comparison."""
    yield from compared(CONTEXTS[:-1])


def longest() -> Iterator[Job]:
    """The same with the longest context, which takes about as much time as all others."""
    yield from compared(CONTEXTS[-1:])


def compared(contexts: tuple[int, ...]) -> Iterator[Job]:
    """DT beside RADT on both data."""
    for seed in SEEDS:
        for data in (COLLECTED, INDEPENDENT):
            yield from both(data, contexts, seed)


def ablation() -> Iterator[Job]:
    """Returns of other episodes, which say nothing."""
    for seed in SEEDS:
        yield from both(SHUFFLED, SHUFFLED_CONTEXTS, seed)


def rest() -> Iterator[Job]:
    """The same with the other contexts."""
    for seed in SEEDS:
        yield from both(SHUFFLED, tuple(k for k in CONTEXTS if k not in SHUFFLED_CONTEXTS), seed)


def both(data: str, contexts: tuple[int, ...], seed: int) -> Iterator[Job]:
    """DT beside RADT."""
    for context in contexts:
        for arm in (DT, RADT):
            yield Job(arm, data, context, seed)


def remedies() -> Iterator[Job]:
    """Other ways to show the return, where the past tells of it and where it does not."""
    for data in (COLLECTED, INDEPENDENT):
        for seed in SEEDS:
            for arm in REMEDIES:
                yield Job(arm, data, REMEDIES_CONTEXT, seed)


PARTS = {"sweep": sweep, "ablation": ablation, "longest": longest, "remedies": remedies, "rest": rest}
