"""What :mod:`.qdpo` runs: rates for each way to a low-bit model, all ways on each format, trials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUNS = Path("runs/bench/qdpo")
SEEDS, TUNING_SEED = range(5), 100


@dataclass(frozen=True)
class Way:
    """
    A way to a low-bit model.

    Attributes:
        title: its name in tables.
        method: of `recipes/conf/qdpo/method`.
        rates: of learning that are tried; none for what is not trained, or has those of another way.
        rate_of: that other way.
        overrides: what else the recipe is given.
    """

    title: str
    method: str
    rates: tuple[float, ...] = ()
    rate_of: str | None = None
    overrides: tuple[str, ...] = ()


LOW, MIDDLE, HIGH = (1e-6, 3e-6, 1e-5), (3e-6, 1e-5, 3e-5), (3e-5, 1e-4, 3e-4)
MIXED = (1e-5, 3e-5, 1e-4)
FROM_MSE = ("+method.args.clip=mse",)
METHODS = {
    "rtn": Way("RTN", "rtn"),
    "mse_clip": Way("RTN, MSE clip", "mse_clip"),
    "sft": Way("SFT", "sft", MIDDLE),
    "kd": Way("KD", "kd", HIGH),
    "kd_on_policy": Way("KD on the policy's replies", "kd_on_policy", HIGH),
    "qdpo": Way("QDPO", "qdpo", LOW),
    "qdpo_target": Way("QDPO, target", "qdpo_target", MIDDLE),
    "qdpo_target_kd": Way("QDPO, target + KD", "qdpo_target_kd", MIXED),
    "qdpo_kd": Way("QDPO + KD", "qdpo_kd", MIXED),
    "qdpo_shuffled": Way("QDPO, shuffled labels", "qdpo_shuffled", rate_of="qdpo"),
    "kd_mse": Way("KD, from the MSE clip", "kd", rate_of="kd", overrides=FROM_MSE),
    "qdpo_target_kd_mse": Way(
        "QDPO, target + KD, from the MSE clip",
        "qdpo_target_kd",
        rate_of="qdpo_target_kd",
        overrides=FROM_MSE,
    ),
}
#: a grid of weights: its bits, and the inputs that share a scale
FORMATS: dict[str, tuple[int, int | None]] = {
    "3": (3, None),
    "2": (2, None),
    "4": (4, None),
    "3-g32": (3, 32),
    "2-g32": (2, 32),
    "4-g32": (4, 32),
}
#: what is run where groups of 32 inputs share a scale
IN_GROUPS = ("rtn", "mse_clip", "kd", "qdpo", "qdpo_target_kd")
#: what is also run at 3 bits with four times the updates, on twice the prompts
LONG = ("kd", "qdpo_target_kd", "kd_mse", "qdpo_target_kd_mse")
LONGER = ("updates=480", "evaluate_every=240", "data.train=1024")
#: other settings of a way at 3 bits, on the seed that rates are chosen on: name -> (way, overrides)
TRIALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "QDPO, the token by which replies part": ("qdpo", ("+method.args.divergence_window=1",)),
    "QDPO, anchors": ("qdpo", ("+method.args.anchor_fraction=1.0",)),
    "target, BCE": ("qdpo_target", ("+method.args.target_loss=bce",)),
    "target, the token by which replies part": ("qdpo_target", ("+method.args.divergence_window=1",)),
    "target, anchors": ("qdpo_target", ("+method.args.anchor_fraction=1.0",)),
    "target, that token and anchors": (
        "qdpo_target",
        ("+method.args.divergence_window=1", "+method.args.anchor_fraction=1.0"),
    ),
    "target + KD, ten times the target": ("qdpo_target_kd", ("method.losses.qdpo_target=0.03",)),
    "target + KD, no target": ("qdpo_target_kd", ("method.losses.qdpo_target=0.0",)),
    "target + KD, whole replies": ("qdpo_target_kd", ("method.args.divergence_window=null",)),
    "target + KD, 160 prompts": ("qdpo_target_kd", ("data.train=160",)),
    "target + KD, 160 prompts, replies made anew for the second epoch": (
        "qdpo_target_kd",
        ("data.train=160", "+method.args.num_rounds=2"),
    ),
}
#: what all runs have in common
SETTINGS = (
    "device=cpu",
    "data.train=512",
    "data.valid=48",
    "data.test=192",
    "updates=120",
    "evaluate_every=60",
    "batch_size=8",
    "before=false",
    "export=false",
    "report_card=false",
)


@dataclass(frozen=True)
class Job:
    """One run of the recipe.

    Attributes:
        part: tuning, trials, long, or one of `FORMATS`.
        name: what it is, within the part.
        way: of `METHODS`.
        format: of `FORMATS`.
        overrides: what else the recipe is given.
        seed: of the model in full precision, and of the order of prompts.
    """

    part: str
    name: str
    way: str
    format: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return RUNS / self.part / self.name.replace(", ", "-").replace(" ", "-") / f"seed{self.seed}"


def all_overrides(job: Job) -> list[str]:
    """What the recipe is given in all."""
    bits, group_size = FORMATS[job.format]
    return [
        f"method={METHODS[job.way].method}",
        f"bits={bits}",
        f"group_size={group_size or 'null'}",
        f"pairs_dir={RUNS / 'pairs' / f'seed{job.seed}'}",
        f"seed={job.seed}",
        *SETTINGS,
        *METHODS[job.way].overrides,
        *job.overrides,  # last: what comes later counts
    ]


def tuning() -> Iterator[Job]:
    """Each way with each rate and fewer updates, at 3 bits, looked at on prompts for validation."""
    for name, way in METHODS.items():
        for rate in way.rates:
            given = (f"method.lr={rate:g}", "updates=60", "report_on=valid")
            yield Job("tuning", f"{name}-{rate:g}", name, "3", given, TUNING_SEED)


def ways_of(format: str) -> tuple[str, ...]:
    """What is run on a format: those from the MSE clip at 3 bits and a scale per channel only, and last."""
    if FORMATS[format][1]:
        return IN_GROUPS
    return tuple(name for name, way in METHODS.items() if format == "3" or not way.overrides)


def comparison(format: str, rates: dict[str, float]) -> Iterator[Job]:
    """All ways on a format. The seeds go round: cut short, it is still an even comparison."""
    for last in (False, True):
        for seed in SEEDS:
            for name in ways_of(format):
                given = _rate(name, rates)
                if given is not None and bool(METHODS[name].overrides) == last:
                    yield Job(format, name, name, format, given, seed)


def long(rates: dict[str, float]) -> Iterator[Job]:
    """Some of the ways for longer."""
    for seed in SEEDS:
        for name in LONG:
            given = _rate(name, rates)
            if given is not None:
                yield Job("long", name, name, "3", (*given, *LONGER), seed)


def trials(rates: dict[str, float]) -> Iterator[Job]:
    """Other settings, at the rate of their way, as long as tuning and on the same prompts."""
    for name, (way, settings) in TRIALS.items():
        given = _rate(way, rates)
        if given is not None:
            more = (*settings, "updates=60", "report_on=valid")
            yield Job("trials", name, way, "3", (*given, *more), TUNING_SEED)


def _rate(name: str, rates: dict[str, float]) -> tuple[str, ...] | None:
    """The override that sets a way's rate; none for what is not trained, None as long as it is unknown."""
    owner = METHODS[name].rate_of or name
    if not METHODS[owner].rates:
        return ()
    return (f"method.lr={rates[owner]:g}",) if owner in rates else None
