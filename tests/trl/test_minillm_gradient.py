"""MiniLLM's gradient estimators against the enumerated gradient of KL(q || p), float64."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from extensions.trl.minillm.objective import Objective
from recipes.exact_language import (
    ExactLanguage,
    Rollouts,
    TableStudent,
    answer_gradients,
    answer_losses,
    every_answer,
    exact_reverse_kl,
    fit_forward_kl,
    logits_at,
    sample,
    scores_of,
)

# Each of these has the gradient of KL(q || p) for its mean, whatever the mixture.
PLAIN = Objective(length_normalization=False, importance="prefix", epsilon=None)
UNBIASED = {
    "full": replace(PLAIN, single_step=False, returns="inclusive"),
    "decomposed": PLAIN,
}


@cache
def learned():
    """A world and a student that has learned from the teacher's answers."""
    language, student = world()
    return language, fit_forward_kl(language, student)


def world(vocab_size=4, max_tokens=5, prompts=3):
    language = ExactLanguage(prompts, 5, 0.1, 3, vocab_size, max_tokens)
    student, random = TableStudent(language), torch.Generator().manual_seed(7)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, generator=random)
    return language, student


def flat_grad(value, student):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(student.parameters()))])


def true_gradient(language, student):
    return flat_grad(exact_reverse_kl(language, student).sum(), student)


def losses_of(objective, language, student, rollouts, logits, alpha):
    return answer_losses(objective, language, rollouts, logits, scores_of(language, student, rollouts, alpha))


def log_mix(language, student, rollouts, alpha):
    """Log-probability of each answer, (B,), under the mixture, from its definition."""
    q = logits_at(student, rollouts).softmax(-1)
    p = language.log_p[rollouts.prompts[:, None], rollouts.nodes].exp()
    said = (alpha * p + (1 - alpha) * q).gather(-1, rollouts.tokens[..., None])[..., 0]
    return (said.log() * rollouts.mask).sum(1).detach()


def enumerated_mean(objective, language, student, alpha):
    """The estimator's mean over every answer to every prompt, as one flat gradient."""
    total = 0.0
    for prompt in range(language.prompts):
        rollouts = every_answer(language, prompt)
        weights = log_mix(language, student, rollouts, alpha).exp()
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-12)
        losses = losses_of(objective, language, student, rollouts, logits_at(student, rollouts), alpha)
        total = total + (weights * losses).sum()
    return flat_grad(total, student)


def relative_error(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("objective", UNBIASED.values(), ids=UNBIASED)
@pytest.mark.parametrize("size", [(4, 5), pytest.param((6, 6), marks=pytest.mark.slow)])
def test_the_mean_is_the_enumerated_gradient(objective, alpha, size):
    language, student = world(*size)
    wanted = true_gradient(language, student)
    assert relative_error(enumerated_mean(objective, language, student, alpha), wanted) < 1e-10


@pytest.mark.parametrize("importance", ["token", "none"])
def test_without_a_mixture_no_weight_matters(importance):
    language, student = world()
    objective = replace(PLAIN, importance=importance)
    error = relative_error(
        enumerated_mean(objective, language, student, 0.0), true_gradient(language, student)
    )
    assert error < 1e-10


def test_the_token_weight_of_the_paper_is_biased():
    """w_t in place of the product up to the reward: at a student that has learned from its teacher's answers,
    the mean of the estimator is off by 24% of the gradient's length with alpha 0.2, hardly less than with no
    weight at all."""
    language, student = learned()
    wanted = true_gradient(language, student)
    token, none = (
        relative_error(enumerated_mean(replace(PLAIN, importance=kind), language, student, 0.2), wanted)
        for kind in ("token", "none")
    )
    assert token == pytest.approx(0.236, abs=0.002)
    assert none == pytest.approx(0.240, abs=0.002)


@pytest.mark.parametrize("importance", ["token", "prefix"])
def test_the_weight_on_the_single_step_has_no_mean(importance):
    """KL_t does not depend on y_t, and w_t averages to 1 over it: eq. 7's weight there is noise alone."""
    language, student = world()
    if importance == "token":
        one, other = (
            enumerated_mean(replace(PLAIN, importance="token", weight_single_step=on), language, student, 0.2)
            for on in (True, False)
        )
        assert relative_error(one, other) < 1e-10
    else:  # the product is of the prefix, and does matter
        plain = replace(PLAIN, weight_single_step=False)
        off = enumerated_mean(plain, language, student, 0.2)
        assert relative_error(off, true_gradient(language, student)) > 1e-2


@pytest.mark.parametrize(
    "change",
    [
        {"length_normalization": True},
        {"gamma": 0.95},
        {"long_term": False},
        {"returns": "inclusive"},  # with the single step: the reward at t counts twice
        {"importance_cap": 0.5},
        {"epsilon": 0.2, "importance": "token"},
    ],
    ids=lambda change: "-".join(change),
)
def test_what_changes_the_target(change):
    language, student = world()
    error = relative_error(
        enumerated_mean(replace(PLAIN, **change), language, student, 0.2), true_gradient(language, student)
    )
    assert error > 0.05


def pairs(language, student, alpha):
    """Every pair of answers to the one prompt of a small world, as a batch of two, and its probability."""
    rollouts = every_answer(language, 0)
    probability = log_mix(language, student, rollouts, alpha).exp()
    for i in range(len(rollouts)):
        for j in range(i + 1):  # the other order has the same mean
            both = torch.tensor([i, j])
            chosen = Rollouts(*(x[both] for x in vars(rollouts).values()))
            yield chosen, probability[i] * probability[j] * (2 if i != j else 1)


def mean_over_pairs(objective, language, student, alpha):
    total = 0.0
    for rollouts, probability in pairs(language, student, alpha):
        losses = losses_of(objective, language, student, rollouts, logits_at(student, rollouts), alpha)
        total = total + probability * losses.mean()
    return flat_grad(total, student)


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("objective", UNBIASED.values(), ids=UNBIASED)
def test_leave_one_out_is_unbiased_over_every_pair(objective, alpha):
    language, student = world(3, 3, prompts=1)
    objective = replace(objective, baseline="leave_one_out")
    wanted = true_gradient(language, student)
    assert relative_error(mean_over_pairs(objective, language, student, alpha), wanted) < 1e-10


def test_a_mean_that_has_the_answer_in_it_takes_a_part_of_the_gradient_away():
    """Of two answers that both reach t, half of it; of n, 1 / n."""
    language, student = world(3, 3, prompts=1)
    objective = replace(UNBIASED["full"], baseline="position")
    found, wanted = mean_over_pairs(objective, language, student, 0.0), true_gradient(language, student)
    assert 0.2 < relative_error(found, wanted) < 0.6
    first = slice(0, 3)  # scores of the first position, which every answer reaches
    torch.testing.assert_close(found[first], wanted[first] / 2, rtol=1e-10, atol=1e-12)


SAMPLED = {
    "full": (UNBIASED["full"], 0.0),
    "full, mixed": (UNBIASED["full"], 0.2),
    "decomposed": (PLAIN, 0.0),
    "decomposed, mixed": (PLAIN, 0.2),
    "leave one out": (replace(PLAIN, baseline="leave_one_out"), 0.2),
    "position": (replace(PLAIN, baseline="position"), 0.0),
    "first inner step": (replace(PLAIN, epsilon=0.2, clip="policy"), 0.2),
}


@pytest.mark.parametrize(("objective", "alpha"), SAMPLED.values(), ids=SAMPLED)
def test_sampled_answers_average_to_it(objective, alpha):
    """Within 4 standard errors along eight directions, of 6,000 answers."""
    language, student = learned()
    random = torch.Generator().manual_seed(11)
    prompts = torch.arange(language.prompts).repeat(2000)
    rollouts = sample(language, student, prompts, alpha, random)
    logits = logits_at(student, rollouts).detach().requires_grad_()
    losses = losses_of(objective, language, student, rollouts, logits, alpha)
    each = answer_gradients(student, rollouts, torch.autograd.grad(losses.sum(), logits)[0])
    directions = torch.randn(each.shape[1], 8, dtype=torch.float64, generator=random)
    along = (language.prompts * each - true_gradient(language, student)) @ directions  # (B, 8)
    sigmas = along.mean(0) / (along.std(0) / len(along) ** 0.5)
    assert sigmas.abs().max() < 4, sigmas


@pytest.mark.parametrize("clip", ["paper", "reference", "policy"])
def test_the_first_inner_step_of_pure_answers_is_not_clipped(clip):
    language, student = world()
    rollouts = every_answer(language, 0)
    grads = []
    for epsilon in (None, 0.2):
        logits = logits_at(student, rollouts).detach().requires_grad_()
        objective = replace(PLAIN, clip=clip, epsilon=epsilon)
        losses = losses_of(objective, language, student, rollouts, logits, 0.0)
        grads.append(torch.autograd.grad(losses.sum(), logits)[0])
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_the_policy_clip_is_not_set_off_by_the_mixture_and_the_papers_is():
    language, student = world()
    stopped = {}
    for clip in ("paper", "policy"):
        means = [
            enumerated_mean(
                replace(PLAIN, importance="token", clip=clip, epsilon=epsilon), language, student, 0.2
            )
            for epsilon in (None, 0.2)
        ]
        stopped[clip] = relative_error(*means[::-1])
    assert stopped["policy"] < 1e-12
    assert stopped["paper"] > 0.05
