"""What :mod:`.radt_dial` runs: RADT beside TorchRL's Decision Transformer on the return dial, and RADT
without its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUNS = Path("runs/radt_dial_bench")
SEEDS, TUNING_SEED = range(5), 100
ASKED = 0.12  # the error after the turn that no seed of RADT is to exceed
HORIZON, EPISODES = 20, 2_000  # T, and episodes of data
#: all that are compared are tried with the same rates
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
#: of everything
COMMON = (
    "env=return_dial",
    "device=cpu",
    "steps=400",
    "eval_every=100",
    "eval_targets=2",
    "eval_episodes=1",
    "context=8",
    "transformer.n_embd=32",
    "transformer.n_layer=2",
    "transformer.resid_pdrop=0",
    "transformer.attn_pdrop=0",
)
LONG = ("steps=1600", "eval_every=400")


@dataclass(frozen=True)
class Data:
    """Episodes to learn from: the noise of their actions, and the observations that mean nothing."""

    noise: float
    distractors: int


NOISY, DISTRACTED = "noise 0.25", "noise 0.05, 16 distractors"
DATA = {NOISY: Data(0.25, 0), DISTRACTED: Data(0.05, 16)}


@dataclass(frozen=True)
class Arm:
    """What is trained.

    Attributes:
        title: its name in tables.
        settings: what the recipe is given beyond `COMMON`.
        tuned: whose learning rate it takes, one of `TUNED`.
        factor: the learning rate, as a multiple of that.
    """

    title: str
    settings: tuple[str, ...] = ()
    tuned: str = "RADT"
    factor: float = 1.0


SCALE = f"return_scale={HORIZON}"  # returns in [0, 1]
RADT = Arm("RADT", (SCALE,))
DT = Arm("DT", (SCALE, "actor=dt"), tuned="DT")
DT_WIDE = Arm("DT, wider", (*DT.settings, "transformer.n_embd=46"), tuned="DT")
THREE_STREAMS = Arm(
    "three streams",
    (SCALE, "transformer.architecture=three_streams", "cache=none"),
    tuned="three streams",
)
TUNED = {arm.title: arm for arm in (RADT, DT, THREE_STREAMS)}
COMPARED = {RADT: "RADT", DT: "DT (TorchRL)", DT_WIDE: "DT, with as many parameters"}

NO_SEQRA, NO_STEPRA = "transformer.seqra=false", "transformer.stepra=false"
PARTS = (
    Arm("no SeqRA", (SCALE, NO_SEQRA)),
    Arm("no StepRA", (SCALE, NO_STEPRA)),
    Arm("neither: no returns", (SCALE, NO_SEQRA, NO_STEPRA)),
    Arm("no gate", (SCALE, "transformer.alpha_gate=false")),
    THREE_STREAMS,
)
NORMS = {"layernorm": "LayerNorm", "layernorm_nobias": "LayerNorm, no bias", "rmsnorm": "RMSNorm"}
PLACEMENTS = ("post", "pre")
#: the first is RADT itself
NORM_ARMS = tuple(
    Arm(f"{title}, {placement}", (SCALE, f"transformer.norm={norm}", f"transformer.placement={placement}"))
    for placement in PLACEMENTS
    for norm, title in NORMS.items()
)
#: what returns are to the model
UNITS = {
    "[0, 1]": SCALE,
    "[0, 10]": f"return_scale={HORIZON / 10:g}",
    "[0, 0.02]": "return_scale=1000",
    "standardised": "return_scale=null",
}
#: how the return is shown, beyond RADT's own way
WAYS = (
    *(("linear", units) for units in UNITS if units != "[0, 1]"),
    ("mlp", "[0, 1]"),
    ("fourier", "[0, 1]"),
    ("mlp", "[0, 10]"),
)
#: to RADT, and to SeqRA alone, which must see it through a norm
SHOWN = tuple(
    Arm(
        f"{whom}{embedding}, {units}",
        (UNITS[units], f"transformer.return_embedding={embedding}", *without),
    )
    for whom, without in (("", ()), ("SeqRA alone, ", (NO_STEPRA,)))
    for embedding, units in WAYS
)
#: and to DT
DT_SHOWN = tuple(
    Arm(f"DT, {units}", (scale, "actor=dt"), tuned="DT") for units, scale in UNITS.items() if scale != SCALE
)
#: RADT and all that is changed about it, with the names of their rows
ALL_ARMS = {RADT: "RADT", **{arm: arm.title for arm in (*PARTS, *NORM_ARMS[1:], *SHOWN, *DT_SHOWN)}}
#: of the learning rate, for each norm
FACTORS = (1 / 3, 3.0, 10.0)


@dataclass(frozen=True)
class Job:
    """One run: an arm with a learning rate on some data (a key of `DATA`)."""

    arm: Arm
    data: str
    lr: float
    seed: int

    @property
    def overrides(self) -> tuple[str, ...]:
        """What the recipe is given."""
        distractors = f"+env.kwargs.distractors={DATA[self.data].distractors}"
        return (*COMMON, distractors, *self.arm.settings, f"lr={self.lr:g}", f"seed={self.seed}")

    @property
    def file(self) -> Path:
        """Where its result is."""
        names = (self.data, self.arm.title, f"lr{self.lr:g}")
        data, arm, lr = ("".join(c for c in name if c not in ",:[]").replace(" ", "-") for name in names)
        return RUNS / data / arm / lr / f"seed{self.seed}.json"


#: (arm, data) -> learning rate
Rates = dict[tuple[str, str], float]


def tuning() -> Iterator[Job]:
    """Each with each rate; three streams on the harder data alone."""
    for data in DATA:
        for arm in TUNED.values():
            if arm is not THREE_STREAMS or data == DISTRACTED:
                for lr in RATES:
                    yield Job(arm, data, lr, TUNING_SEED)


def arms_on(data: str, arms: tuple[Arm, ...], rates: Rates) -> Iterator[Job]:
    """Some arms on some data. The seeds go round: cut short, it is still an even comparison."""
    for seed in SEEDS:
        for arm in arms:
            if (arm.tuned, data) in rates:
                yield Job(arm, data, arm.factor * rates[arm.tuned, data], seed)


def comparison(rates: Rates) -> Iterator[Job]:
    """RADT and DT, on both."""
    for arms in ((RADT, DT), (DT_WIDE,)):
        for data in DATA:
            yield from arms_on(data, arms, rates)


def ablation(rates: Rates) -> Iterator[Job]:
    """RADT without its parts, with other norms, and shown the return in other ways."""
    yield from arms_on(DISTRACTED, tuple(ALL_ARMS)[1:], rates)


def stability(rates: Rates) -> Iterator[Job]:
    """Each norm and placement with lower and higher rates."""
    for factor in FACTORS:
        arms = tuple(dataclasses.replace(arm, factor=factor) for arm in NORM_ARMS)
        yield from arms_on(DISTRACTED, arms, rates)


def longer(arm: Arm) -> Arm:
    """The same with four times the updates."""
    return dataclasses.replace(arm, title=f"{arm.title}, 4 x", settings=(*arm.settings, *LONG))


def long(rates: Rates) -> Iterator[Job]:
    """Whether what holds early holds late."""
    yield from arms_on(DISTRACTED, (longer(DT), longer(RADT)), rates)
