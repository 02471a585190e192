"""What :mod:`.minillm` runs: tuning, methods at equal updates and equal time, long runs, MiniLLM's parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUNS = Path("runs/minillm_bench")
SEEDS, TUNING_SEED = range(5), 100
ABLATION_SEEDS = range(3)
#: all methods are tried with the same rates, and run with their best
RATES = (1e-3, 2e-3, 4e-3, 8e-3)


@dataclass(frozen=True)
class Way:
    """A way to distil: its name in tables, the recipe's method, and what else the recipe is given."""

    title: str
    method: str
    overrides: tuple[str, ...] = ()


METHODS = {
    "sft": Way("SFT, continued", "sft"),
    "kd": Way("word-level KD", "kd"),
    "seqkd": Way("SeqKD", "seqkd"),
    "gkd": Way("GKD (on-policy, JSD)", "gkd"),
    "distillation": Way("TRL Distillation (on-policy, token-level reverse KL)", "distillation"),
    "minillm": Way("MiniLLM, mode paper", "minillm"),
    # All but MiniLLM's L_PT learn from instructions alone: this one does too.
    "minillm-modern": Way(
        "MiniLLM, mode modern, no plain text",
        "minillm",
        ("+method.args.mode=modern", "+method.args.pretraining_coef=0.0"),
    ),
}
#: what is also run for longer: whether what holds early holds late
LONG, LONG_UPDATES = ("kd", "distillation", "minillm-modern"), 2000
#: what is changed about MiniLLM -> settings of its configuration
ABLATIONS = {
    "no length normalisation": ("length_normalization=false",),
    "no teacher in the sampling": ("teacher_mix_alpha=0.0",),
    "no single-step part": ("single_step=false",),
    "no long-term part": ("long_term=false",),
    "no plain text": ("pretraining_coef=0.0",),
    "no importance weights": ("importance_weights=none",),
    "mode: reference": ("mode=reference",),
    "mode: modern": ("mode=modern",),
}


@dataclass(frozen=True)
class Job:
    """One run of the recipe.

    Attributes:
        part: tuning, updates, time, long or ablation.
        name: what it is, within the part.
        way: how to distil, one of `METHODS`.
        overrides: what else the recipe is given.
        seed: of warm start, order and draws; the teacher is the same for all.
    """

    part: str
    name: str
    way: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return RUNS / self.part / self.name.replace(": ", "-").replace(" ", "-") / f"seed{self.seed}"


def teacher_folder() -> Path:
    """Where the teacher of all runs is made."""
    return RUNS / "teacher"


def student_folder(seed: int) -> Path:
    """Where the student is made that all methods begin with under a seed."""
    return RUNS / "start" / f"seed{seed}"


def all_overrides(job: Job) -> list[str]:
    """What the recipe is given in all: models that are made already, and what the job is about."""
    made = [f"{phase}.steps=0" for phase in ("teacher_text", "teacher", "student_text", "sft")]
    return [
        f"method={METHODS[job.way].method}",
        *METHODS[job.way].overrides,
        f"model.teacher={teacher_folder() / 'teacher'}",
        f"model.student={student_folder(job.seed) / 'sft'}",
        *made,
        f"seed={job.seed}",
        "device=cpu",
        *job.overrides,
    ]


def tuning() -> Iterator[Job]:
    """Each method with each rate, looked at on the prompts for validation."""
    for way in METHODS:
        for rate in RATES:
            given = (f"method.lr={rate:g}", "evaluation.split=valid", "evaluation.others=false")
            yield Job("tuning", f"{way}-{rate:g}", way, given, TUNING_SEED)


def equal_updates(rates: dict[str, float]) -> Iterator[Job]:
    """All methods with as many updates. The seeds go round: cut short, it is still an even comparison."""
    for seed in SEEDS:
        for way, rate in rates.items():
            # the first also measures what all begin with, and the teacher
            given = (f"method.lr={rate:g}", f"evaluation.others={way == 'sft'}")
            yield Job("updates", way, way, given, seed)


def equal_time(rates: dict[str, float], updates: dict[str, int]) -> Iterator[Job]:
    """All methods but MiniLLM with the updates that take the CPU time of MiniLLM's."""
    for seed in SEEDS:
        for way, n in updates.items():
            if way != "minillm":
                given = (f"method.lr={rates[way]:g}", f"updates={n}", "evaluation.others=false")
                yield Job("time", way, way, given, seed)


def long(rates: dict[str, float]) -> Iterator[Job]:
    """Some of the methods with four times the updates."""
    for seed in SEEDS:
        for way in LONG if rates else ():
            given = (f"method.lr={rates[way]:g}", f"updates={LONG_UPDATES}", "evaluation.others=false")
            yield Job("long", way, way, given, seed)


def ablations(rates: dict[str, float]) -> Iterator[Job]:
    """MiniLLM with a part taken away or another mode."""
    if "minillm" not in rates:
        return
    for seed in ABLATION_SEEDS:
        for name, settings in ABLATIONS.items():
            given = (f"method.lr={rates['minillm']:g}", *(f"+method.args.{setting}" for setting in settings))
            yield Job("ablation", name, "minillm", (*given, "evaluation.others=false"), seed)
