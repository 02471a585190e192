"""What :mod:`.qdpo` runs: rates tried for each method, all methods on each format, and other settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUNS = Path("runs/bench/qdpo")
SEEDS, TUNING_SEED = range(5), 100


@dataclass(frozen=True)
class Way:
    """A way to a low-bit model: its name in tables, and the learning rates that are tried."""

    title: str
    rates: tuple[float, ...] = ()


#: of `recipes/conf/qdpo/method`; all that train are tried with as many rates
METHODS = {
    "rtn": Way("RTN"),
    "mse_clip": Way("RTN, MSE clip"),
    "sft": Way("SFT", (3e-5, 1e-4, 3e-4, 1e-3)),
    "kd": Way("KD", (1e-4, 3e-4, 1e-3, 3e-3)),
    "kd_on_policy": Way("KD on the policy's replies", (1e-4, 3e-4, 1e-3, 3e-3)),
    "qdpo": Way("QDPO", (1e-6, 3e-6, 1e-5, 3e-5)),
    "qdpo_target": Way("QDPO, target", (1e-5, 3e-5, 1e-4, 3e-4)),
    "qdpo_target_kd": Way("QDPO, target + KD", (1e-4, 3e-4, 1e-3, 3e-3)),
    "qdpo_kd": Way("QDPO + KD", (1e-5, 3e-5, 1e-4, 3e-4)),
    "qdpo_shuffled": Way("QDPO, shuffled labels"),
}
#: a method that has no rates of its own takes those of another
RATE_OF = {"qdpo_shuffled": "qdpo"}
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
#: other settings of two methods at 3 bits, on the seed that rates are chosen on: name -> (method, overrides)
TRIALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "target, BCE": ("qdpo_target", ("+method.args.target_loss=bce",)),
    "target, 4 tokens from the first difference": ("qdpo_target", ("+method.args.divergence_window=4",)),
    "target, half of the equal pairs as anchors": ("qdpo_target", ("+method.args.anchor_fraction=0.5",)),
    "QDPO, 1 token from the first difference": ("qdpo", ("+method.args.divergence_window=1",)),
    "QDPO, half of the equal pairs as anchors": ("qdpo", ("+method.args.anchor_fraction=0.5",)),
}
#: what all runs have in common
SETTINGS = (
    "device=cpu",
    "data.train=512",
    "data.valid=64",
    "data.test=256",
    "updates=80",
    "evaluate_every=40",
    "batch_size=16",
    "before=false",
    "export=false",
    "report_card=false",
)


@dataclass(frozen=True)
class Job:
    """One run of the recipe.

    Attributes:
        part: tuning, trials, or one of `FORMATS`.
        name: what it is, within the part.
        method: of `METHODS`.
        format: of `FORMATS`.
        overrides: what else the recipe is given.
        seed: of the model in full precision, and of the order of prompts.
    """

    part: str
    name: str
    method: str
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
        f"method={job.method}",
        f"bits={bits}",
        f"group_size={group_size or 'null'}",
        f"pairs_dir={RUNS / 'pairs' / f'seed{job.seed}'}",
        f"seed={job.seed}",
        *SETTINGS,
        *job.overrides,
    ]


def tuning() -> Iterator[Job]:
    """Each method with each rate, at 3 bits a weight, looked at on prompts for validation."""
    for method, way in METHODS.items():
        for rate in way.rates:
            given = (f"method.lr={rate:g}", "report_on=valid")
            yield Job("tuning", f"{method}-{rate:g}", method, "3", given, TUNING_SEED)


def methods_of(format: str) -> tuple[str, ...]:
    """What is run on a format."""
    return IN_GROUPS if FORMATS[format][1] else tuple(METHODS)


def comparison(format: str, rates: dict[str, float]) -> Iterator[Job]:
    """All methods on a format. The seeds go round: cut short, it is still an even comparison."""
    for seed in SEEDS:
        for method in methods_of(format):
            given = _rate(method, rates)
            if given is not None:
                yield Job(format, method, method, format, given, seed)


def trials(rates: dict[str, float]) -> Iterator[Job]:
    """Other settings, at the rate of their method, looked at on prompts for validation."""
    for name, (method, settings) in TRIALS.items():
        given = _rate(method, rates)
        if given is not None:
            yield Job("trials", name, method, "3", (*given, *settings, "report_on=valid"), TUNING_SEED)


def _rate(method: str, rates: dict[str, float]) -> tuple[str, ...] | None:
    """The override that sets a method's rate; none for what is not trained, None as long as it is unknown."""
    owner = RATE_OF.get(method, method)
    if not METHODS[owner].rates:
        return ()
    return (f"method.lr={rates[owner]:g}",) if owner in rates else None
