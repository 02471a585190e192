"""What :mod:`.minillm` runs: tuning, methods at equal updates, methods at equal time, MiniLLM's parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUNS = Path("runs/minillm_bench")
SEEDS, TUNING_SEED = range(5), 100
#: all methods are tried with the same rates; the one of the lowest reverse KL is in recipes/conf/method
RATES = (3e-4, 1e-3, 3e-3)
METHODS = {
    "sft": "SFT, continued",
    "kd": "word-level KD",
    "seqkd": "SeqKD",
    "gkd": "GKD (on-policy, JSD)",
    "distillation": "TRL Distillation (on-policy reverse KL a token)",
    "minillm": "MiniLLM",
}
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
        part: tuning, updates, time or ablation.
        name: what it is, within the part.
        method: of the recipe.
        overrides: what else the recipe is given.
        seed: of warm start, order and draws; the teacher is the same for all.
    """

    part: str
    name: str
    method: str
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
        f"method={job.method}",
        f"model.teacher={teacher_folder() / 'teacher'}",
        f"model.student={student_folder(job.seed) / 'sft'}",
        *made,
        f"seed={job.seed}",
        "device=cpu",
        *job.overrides,
    ]


def tuning() -> Iterator[Job]:
    """Each method with each rate, looked at on the prompts for validation."""
    for method in METHODS:
        for rate in RATES:
            given = (f"method.lr={rate:g}", "evaluation.split=valid", "evaluation.others=false")
            yield Job("tuning", f"{method}-{rate:g}", method, given, TUNING_SEED)


def equal_updates() -> Iterator[Job]:
    """All methods with as many updates. The seeds go round: cut short, it is still an even comparison."""
    for seed in SEEDS:
        for method in METHODS:
            # the first also measures what all begin with, and the teacher
            yield Job("updates", method, method, (f"evaluation.others={method == 'sft'}",), seed)


def equal_time(updates: dict[str, int]) -> Iterator[Job]:
    """All methods but MiniLLM with the updates that take the CPU time of MiniLLM's."""
    for seed in SEEDS:
        for method, n in updates.items():
            if method != "minillm":
                yield Job("time", method, method, (f"updates={n}", "evaluation.others=false"), seed)


def ablations() -> Iterator[Job]:
    """MiniLLM with a part taken away or another mode."""
    for seed in SEEDS:
        for name, settings in ABLATIONS.items():
            given = tuple(f"+method.args.{setting}" for setting in settings)
            yield Job("ablation", name, "minillm", (*given, "evaluation.others=false"), seed)
