"""What :mod:`.ademamix_lm` runs: scales, the tuning of either optimizer, the comparison, ablations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Setting = dict[str, Any]

#: Lengths of AdamW's runs as multiples of T: whole runs, each with its own schedule.
LENGTHS = (0.75, 1.0, 1.25, 1.5, 2.0)
TUNING_SEEDS = (100, 101)
SEEDS, ABLATION_SEEDS = 5, 3
#: When the probe is injected, as a share of T, and how often one looks what became of it.
INJECTED, LOOKS = 0.6, 200


@dataclass(frozen=True)
class Scale:
    """A size of the comparison.

    Attributes:
        name: what ``--scale`` takes.
        about: the model and the batches in words.
        steps: T.
        overrides: what the recipe is given for it.
    """

    name: str
    about: str
    steps: int
    overrides: tuple[str, ...] = ()


SCALES = {
    scale.name: scale
    for scale in (
        Scale("tiny", "107k parameters, batches of 8 x 64", 2_000, ("device=cpu",)),
        Scale(
            "small",
            "1.9M parameters, batches of 32 x 128",
            16_000,
            (
                "model.d_model=192",
                "model.n_layers=4",
                "model.n_heads=6",
                "data.vocab_size=512",
                "data.n_classes=64",
                "batch_size=32",
                "context=128",
            ),
        ),
        Scale(
            "medium",
            "5.2M parameters, batches of 32 x 128",
            64_000,
            (
                "model.d_model=256",
                "model.n_layers=6",
                "model.n_heads=8",
                "data.vocab_size=2048",
                "data.n_classes=128",
                "batch_size=32",
                "context=128",
            ),
        ),
    )
}


@dataclass(frozen=True)
class Job:
    """One run of the recipe.

    Attributes:
        scale: its size.
        part: tuning, comparison or ablation.
        name: what it is, within the part.
        overrides: what the recipe is given.
        seed: and its seed.
    """

    scale: Scale
    part: str
    name: str
    overrides: tuple[str, ...]
    seed: int


START: dict[str, Setting] = {
    "adamw": {"lr": 4e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1},
    "ademamix": {
        "lr": 2e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1, "alpha": 5.0, "half_life": 0.1
    },
}  # fmt: skip

#: Settings are tried one after the other, the others being the best so far. "again" multiplies the best.
#: Both have fifteen trials.
ROUNDS: dict[str, tuple[tuple[str, tuple[float, ...]], ...]] = {
    "adamw": (
        ("lr", (1e-3, 2e-3, 4e-3, 8e-3)),
        ("beta2", (0.99, 0.95)),
        ("beta1", (0.8, 0.95, 0.98)),
        ("weight_decay", (0.0, 0.3)),
        ("lr again", (0.5, 0.7, 1.4, 2.0)),
    ),
    "ademamix": (
        ("lr", (1e-3, 2e-3, 4e-3, 8e-3)),
        ("beta2", (0.99, 0.95)),
        ("alpha", (2.0, 8.0)),
        ("half_life", (0.05, 0.25)),
        ("beta1", (0.8,)),
        ("weight_decay", (0.0, 0.3)),
        ("lr again", (0.7, 1.4)),
    ),
}


#: One step beyond the ends of what is tried above. It tells whether they were too near; nothing is chosen.
BEYOND: Setting = {"beta1": 0.6, "beta2": 0.9, "weight_decay": 1.0, "half_life": 0.025}


def overrides(scale: Scale, optimizer: str, setting: Setting, length: float = 1.0) -> tuple[str, ...]:
    """What the recipe is given for a setting, in a run of ``length`` times T."""
    steps = round(scale.steps * length)
    values = {key: value for key, value in setting.items() if key != "half_life"}
    if "half_life" in setting:  # a share of T; h = ln 0.5 / ln beta - 1
        values["beta3"] = 0.5 ** (1 / (setting["half_life"] * scale.steps + 1))
    common = (f"optimizer={optimizer}", f"steps={steps}", f"eval_every={scale.steps // 4}", *scale.overrides)
    return common + tuple(f"optimizer.{key}={_text(value)}" for key, value in sorted(values.items()))


def _text(value: float | None) -> str:
    return "null" if value is None else f"{value:.10g}"


def candidates(round_: tuple[str, tuple[float, ...]], best: Setting) -> list[Setting]:
    """The settings of a round."""
    key, values = round_
    if key == "lr again":
        return [{**best, "lr": best["lr"] * factor} for factor in values]
    return [{**best, key: value} for value in values]


def tune(
    scale: Scale, optimizer: str, loss_of: Callable[[Job], float | None]
) -> tuple[list[tuple[Setting, float]], Setting | None]:
    """Round after round.

    Args:
        scale: where.
        optimizer: adamw or ademamix.
        loss_of: the loss that a job came to, infinite where it diverged; None if it has not ended.

    Returns:
        The settings that were tried and their mean losses, and the best of them; None for the best if not all
        is done.
    """
    tried: list[tuple[Setting, float]] = []
    best = START[optimizer]
    for round_ in ROUNDS[optimizer]:
        for setting in candidates(round_, best):
            losses = [loss_of(job) for job in trials(scale, optimizer, setting)]
            if None in losses:
                return tried, None
            tried.append((setting, sum(losses) / len(losses)))  # type: ignore[arg-type]
        best = min(tried, key=lambda pair: pair[1])[0]
    return tried, best


def trials(scale: Scale, optimizer: str, setting: Setting, part: str = "tuning") -> list[Job]:
    """A setting on the seeds of the tuning, which are not those of the comparison."""
    name = f"{optimizer}-" + "-".join(f"{key}{_text(value)}" for key, value in setting.items())
    return [Job(scale, part, name, overrides(scale, optimizer, setting), seed) for seed in TUNING_SEEDS]


def beyond(best: Setting) -> list[Setting]:
    """The best setting of an optimizer, each time with one of `BEYOND`."""
    return [{**best, key: value} for key, value in BEYOND.items() if key in best]


def beyond_jobs(scale: Scale, best: dict[str, Setting]) -> Iterator[Job]:
    """The same, as runs on the seeds of the tuning."""
    for optimizer, chosen in best.items():
        for setting in beyond(chosen):
            yield from trials(scale, optimizer, setting, "beyond")


def compared(scale: Scale, best: dict[str, Setting]) -> Iterator[Job]:
    """AdamW for each of `LENGTHS`, AdEMAMix for T. The seeds go round: cut short, it is still an even one."""
    for seed in range(SEEDS):
        for optimizer, lengths in (("adamw", LENGTHS), ("ademamix", (1.0,))):
            for length in lengths:
                given = overrides(scale, optimizer, best[optimizer], length)
                if length == 1:  # these are also the twins that never see the probe
                    given += (f"probe_every={scale.steps // LOOKS}",)
                yield Job(scale, "comparison", f"{optimizer}-{length:g}T", given, seed)


@dataclass(frozen=True)
class Ablation:
    """What is changed about one of the two, and what the paper says comes of it.

    Attributes:
        name: its row.
        than: the run of the comparison that it is set beside.
        paper: the paper's finding in words.
        sign: 1 if the paper's is worse than ``than``, -1 if it is better, 0 if it is about equal.
    """

    name: str
    than: str
    paper: str
    sign: int


NO_SCHEDULES = Ablation("no-schedules", "ademamix-1T", "diverges, or is worse", 1)
NO_FAST = Ablation("beta1-0", "ademamix-1T", "about equal at 110M, less stable", 0)
SWITCH = Ablation("switch-without-schedules", "adamw-1T", "better than AdamW", -1)
SWITCH_SCHEDULES = Ablation("switch-with-schedules", "adamw-1T", "better than AdamW", -1)
LONG_STEPS = Ablation("adamw-lr-times-1-plus-alpha", "adamw-1T", "worse: the gain is not longer steps", 1)
ABLATIONS = (NO_SCHEDULES, NO_FAST, SWITCH, SWITCH_SCHEDULES, LONG_STEPS)
SWITCHED_ALPHA = 2.0  # without schedules, of the paper's 110M model


def ablations(scale: Scale, best: dict[str, Setting]) -> Iterator[Job]:
    """The ablations, and the twins that see the probe once."""
    adamw, ademamix, half = best["adamw"], best["ademamix"], scale.steps // 2
    none: Setting = {"alpha_warmup": None, "beta3_warmup": None}
    from_half: Setting = {"alpha_warmup": half, "beta3_warmup": half}
    slow = {key: ademamix[key] for key in ("alpha", "half_life")}
    switch = (f"switch_at={half + 1}",)
    given = {
        NO_SCHEDULES.name: overrides(scale, "ademamix", {**ademamix, **none}),
        NO_FAST.name: overrides(scale, "ademamix", {**ademamix, "beta1": 0.0}),
        SWITCH.name: overrides(scale, "ademamix", {**adamw, **slow, **none, "alpha": SWITCHED_ALPHA})
        + switch,
        SWITCH_SCHEDULES.name: overrides(scale, "ademamix", {**adamw, **slow, **from_half}) + switch,
        LONG_STEPS.name: overrides(scale, "adamw", {**adamw, "lr": adamw["lr"] * (1 + ademamix["alpha"])}),
    }
    probe = (f"inject_at={round(INJECTED * scale.steps)}", f"probe_every={scale.steps // LOOKS}")
    for optimizer in ("adamw", "ademamix"):
        given[f"{optimizer}-injected"] = overrides(scale, optimizer, best[optimizer]) + probe
    for seed in range(ABLATION_SEEDS):
        for name, changed in given.items():
            yield Job(scale, "ablation", name, changed, seed)
