"""Does MiniLLM's gradient get noisier as the teacher gets sharper? The figures of minillm_variance.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.minillm_variance [--quick | --report] [--out DIR]

In the exact language a student is fitted to its teacher's answers as well as it can be. Then gradients of
single answers are drawn for each estimator, against teachers of less noise and of more templates; again
with students that are held back until all have the same reverse KL; and against the teacher's share alpha in
the mixture, where the bias of the weights is enumerated as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extensions.trl.minillm.gradient_noise import gradient_noise
from extensions.trl.minillm.modes import MODES
from extensions.trl.minillm.objective import (
    Objective,
    Scores,
    effective_sample_size,
    prefix_weights,
    token_weights,
)

from ..exact_language import (
    ExactLanguage,
    Rollouts,
    TableStudent,
    answer_gradients,
    answer_losses,
    every_answer,
    exact_metrics,
    exact_reverse_kl,
    fit_forward_kl,
    logits_at,
    sample,
    scores_of,
)
from .minillm_page import EXACT, commit_and_machine, read_about, read_rows, write_about, write_rows
from .minillm_variance_page import BENCH, EQUAL, draw, write_page

NOISES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.005)
TEMPLATES = (2, 5, 10)
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.5)
SEEDS = 5
ANSWERS = 2000  # to each prompt


def mode(name: str) -> tuple[Objective, float]:
    """The objective of a mode of the trainer, and its teacher's share."""
    values = MODES[name]
    chosen = {key: values[key] for key in Objective.names() if key in values}
    for key in ("epsilon", "reward_clip"):
        chosen[key] = values[key] or None
    return Objective(importance=values["importance_weights"], **chosen), values["teacher_mix_alpha"]


_EXACT = Objective(length_normalization=False, importance="none", epsilon=None)
_FULL = replace(_EXACT, single_step=False, returns="inclusive")

#: name: the objective, and the teacher's share in the answers
ESTIMATORS: dict[str, tuple[Objective, float]] = {
    "policy gradient": (_FULL, 0.0),
    "policy gradient, position baseline": (replace(_FULL, baseline="position"), 0.0),
    "policy gradient, leave-one-out": (replace(_FULL, baseline="leave_one_out"), 0.0),
    "single step + long term": (_EXACT, 0.0),
    "single step + long term, leave-one-out": (replace(_EXACT, baseline="leave_one_out"), 0.0),
    # returns of next to no reward but the one at t
    "single step alone, sampled": (replace(_FULL, gamma=1e-12), 0.0),
    "single step alone, exact": (replace(_EXACT, long_term=False), 0.0),
    "equation 7, alpha 0": (Objective(epsilon=None), 0.0),
    "equation 7, alpha 0.2": (Objective(epsilon=None), 0.2),
    "mode paper": mode("paper"),
    "mode reference": mode("reference"),
    "mode modern": mode("modern"),
    "products of weights, alpha 0.2": (replace(_EXACT, importance="prefix"), 0.2),
    "products of weights, alpha 0.2, leave-one-out": (
        replace(_EXACT, importance="prefix", baseline="leave_one_out"),
        0.2,
    ),
}

Row = dict[str, Any]


def answers_to(
    language: ExactLanguage, student: TableStudent, alpha: float, answers: int, seed: int
) -> list[Rollouts]:
    """Answers to each prompt, apart."""
    random = torch.Generator().manual_seed(seed)
    return [
        sample(language, student, torch.full((answers,), prompt), alpha, random)
        for prompt in range(language.prompts)
    ]


def gradients(
    objective: Objective, language: ExactLanguage, student: TableStudent, rollouts: Rollouts, alpha: float
) -> Tensor:
    """The gradient of each answer, (B, D)."""
    logits = logits_at(student, rollouts).detach().requires_grad_()
    scores = scores_of(language, student, rollouts, alpha)
    losses = answer_losses(objective, language, rollouts, logits, scores)
    return answer_gradients(student, rollouts, torch.autograd.grad(losses.sum(), logits)[0])


def noise_of(
    objective: Objective, alpha: float, language: ExactLanguage, student: TableStudent, drawn: list[Rollouts]
) -> Row:
    """Variance and signal of the gradient of an answer to a given prompt, each a mean over the prompts."""
    each = [gradient_noise(gradients(objective, language, student, one, alpha)) for one in drawn]
    return {
        "variance": sum(x.variance for x in each) / len(each),
        "signal": sum(x.signal for x in each) / len(each),
    }


def held_back(language: ExactLanguage, student: TableStudent, reverse_kl: float) -> TableStudent | None:
    """A student whose scores are the largest share of these with this reverse KL; ``None`` if there is none.

    Its answers lie between the student's and uniform ones.
    """

    def shrunk(share: float) -> TableStudent:
        other = TableStudent(language)
        other.load_state_dict({name: share * x for name, x in student.state_dict().items()})
        return other

    low, high = 0.0, 1.0
    if exact_metrics(language, shrunk(low))["reverse_kl"] < reverse_kl:
        return None
    for _ in range(20):
        middle = (low + high) / 2
        enough = exact_metrics(language, shrunk(middle))["reverse_kl"] >= reverse_kl
        low, high = (middle, high) if enough else (low, middle)
    return shrunk(low)


def teachers(templates: int, seed: int, noises: tuple[float, ...], answers: int) -> Iterator[Row]:
    """Noise of each estimator against the sharpness of the teacher, of the same templates."""
    pairs = []
    for noise in noises:
        language = ExactLanguage(templates=templates, noise=noise, seed=seed)
        pairs.append((language, fit_forward_kl(language, TableStudent(language))))
    furthest = max(exact_metrics(*pair)["reverse_kl"] for pair in pairs)
    for language, fitted in pairs:
        for students in ("fitted", EQUAL):
            student = fitted if students == "fitted" else held_back(language, fitted, furthest)
            if student is None:
                continue
            drawn = {a: answers_to(language, student, a, answers, seed) for a in (0.0, 0.2)}
            here = {"students": students, "templates": templates, "noise": language.noise, "seed": seed}
            here["reverse_kl"] = exact_metrics(language, student)["reverse_kl"]
            for name, (objective, alpha) in ESTIMATORS.items():
                yield {
                    **here,
                    "estimator": name,
                    "alpha": alpha,
                    **noise_of(objective, alpha, language, student, drawn[alpha]),
                }


def mixtures(noise: float, seed: int, answers: int) -> Iterator[Row]:
    """Variance, bias and effective sample size of each weight against alpha, with eq. 3 as the target."""
    language = ExactLanguage(noise=noise, seed=seed)
    student = fit_forward_kl(language, TableStudent(language))
    wanted = flat(torch.autograd.grad(exact_reverse_kl(language, student).sum(), list(student.parameters())))
    for alpha in ALPHAS:
        drawn = answers_to(language, student, alpha, answers, seed)
        scores = [scores_of(language, student, one, alpha) for one in drawn]
        for weights in ("token", "prefix", "none"):
            objective = replace(_EXACT, importance=weights)
            mean = enumerated_mean(objective, language, student, alpha)
            yield {
                "noise": noise,
                "seed": seed,
                "alpha": alpha,
                "weights": weights,
                **noise_of(objective, alpha, language, student, drawn),
                "bias": float((mean - wanted).norm() / wanted.norm()),
                "ess": sum(ess(weights, one) for one in scores) / len(scores),
            }


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


def enumerated_mean(
    objective: Objective, language: ExactLanguage, student: TableStudent, alpha: float
) -> Tensor:
    """The mean gradient over every answer from the mixture, (D,), summed over prompts."""
    total = torch.zeros(())
    for prompt in range(language.prompts):
        rollouts = every_answer(language, prompt)
        scores = scores_of(language, student, rollouts, alpha)
        losses = answer_losses(objective, language, rollouts, logits_at(student, rollouts), scores)
        total = total + (scores.log_mix.sum(1).exp() * losses).sum()
    return flat(torch.autograd.grad(total, list(student.parameters())))


def ess(weights: str, scores: Scores) -> float:
    """Effective sample size over the number of weights: of tokens, or of whole answers for products."""
    if weights == "none":
        return 1.0
    if weights == "token":
        found = token_weights(scores.old_log_q, scores)[scores.mask != 0]
    else:
        found = prefix_weights(scores.old_log_q, scores)[:, -1]
    return float(effective_sample_size(found.log())) / len(found)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few worlds and answers: the path, no figures")
    parser.add_argument("--report", action="store_true", help="run nothing, make the page of what there is")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    seeds, answers = (2, 200) if options.quick else (SEEDS, ANSWERS)
    noises, templates = ((0.1, 0.02), (5,)) if options.quick else (NOISES, TEMPLATES)

    of_teachers, of_alphas = (options.out / f"minillm_variance{x}.csv" for x in ("", "_alpha"))
    if not options.report:
        by_teacher: list[Row] = []
        by_alpha: list[Row] = []
        for seed in range(seeds):
            for k in templates:
                by_teacher += teachers(k, seed, noises, answers)
            for noise in (0.05,) if options.quick else (0.2, 0.05, 0.005):
                by_alpha += mixtures(noise, seed, answers)
            print(f"seed {seed}", flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        write_rows(of_teachers, by_teacher)
        write_rows(of_alphas, by_alpha)
        write_about(options.out / "minillm_variance.json", commit_and_machine(*EXACT, BENCH))
    rows = read_rows(of_teachers), read_rows(of_alphas)
    write_page(options.out / "minillm_variance.md", *rows, read_about(options.out / "minillm_variance.json"))
    draw(options.out / "minillm_variance.png", *rows)


if __name__ == "__main__":
    main()
