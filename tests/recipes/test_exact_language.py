"""The exact language is exact: its teacher against the definition, its sums against each other."""

import itertools

import pytest
import torch

from recipes.bench import minillm_exact, minillm_variance
from recipes.exact_language import (
    EOS,
    ExactLanguage,
    PrefixTree,
    TableStudent,
    answer_gradients,
    every_answer,
    exact_metrics,
    exact_reverse_kl,
    fit_forward_kl,
    logits_at,
    sample,
)

V, T = 4, 4


@pytest.fixture
def language():
    return ExactLanguage(2, 3, 0.2, 5, V, T)


@pytest.fixture
def student(language):
    made = TableStudent(language)
    random = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, generator=random)
    return made


def test_all_answers_are_there_once():
    tree = PrefixTree(V, T)
    by_hand = {
        (*tokens[: tokens.index(EOS) + 1],) if EOS in tokens else tokens
        for tokens in itertools.product(range(V), repeat=T)
    }
    found = [tuple(row[: int(m.sum())].tolist()) for row, m in zip(tree.tokens, tree.mask, strict=True)]
    assert len(found) == len(by_hand)
    assert set(found) == by_hand
    assert len(PrefixTree(6, 6).tokens) == 19_531


def test_nodes_are_the_prefixes():
    tree = PrefixTree(V, T)
    for tokens, nodes, mask in zip(tree.tokens, tree.nodes, tree.mask, strict=True):
        node = torch.tensor(0)
        for t in range(int(mask.sum())):
            assert nodes[t] == node
            assert tree.depth[node] == t
            assert tree.previous[node] == (tokens[t - 1] if t else EOS)
            node = tree.child[node, tokens[t]]


def test_the_teacher_is_its_definition(language):
    """The probability of an answer is the sum over templates of the product over its tokens."""
    answers = language.tree
    for prompt in range(language.prompts):
        total = torch.zeros(len(answers.tokens), dtype=torch.float64)
        for template, weight in zip(language.templates[prompt], language.weights[prompt], strict=True):
            each = 0.8 * (answers.tokens == template).double() + 0.2 / V
            total += weight * torch.where(answers.mask == 1, each, 1.0).prod(1)
        torch.testing.assert_close(language.answers[prompt].exp(), total, rtol=1e-12, atol=1e-15)
        assert total.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_templates_end_and_are_valid(language):
    for template in language.templates.flatten(0, 1).tolist():
        length = template.index(EOS) + 1 if EOS in template else T
        assert 3 <= length <= T
        assert not any(template[length:])
    distinct = [len({tuple(x) for x in one.tolist()}) for one in language.templates]
    assert language.valid.sum(1).tolist() == distinct


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_samples_have_the_law_of_the_mixture(language, student, alpha):
    rollouts = sample(
        language, student, torch.ones(20_000, dtype=torch.long), alpha, torch.Generator().manual_seed(0)
    )
    every = every_answer(language, 1)
    q, p = logits_at(student, every).softmax(-1), language.log_p[1, every.nodes].exp()
    said = (alpha * p + (1 - alpha) * q).gather(-1, every.tokens[..., None])[..., 0]
    wanted = torch.where(every.mask == 1, said, 1.0).prod(1).detach()
    keys = (V ** torch.arange(T) * rollouts.tokens).sum(1)
    all_keys = (V ** torch.arange(T) * every.tokens).sum(1)  # EOS is 0 and fills the rest: keys are unique
    found = torch.bincount(keys, minlength=V**T)[all_keys] / len(keys)
    assert found.sum().item() == pytest.approx(1.0, abs=1e-6)
    often = wanted * len(keys) > 20  # where a count is about normal
    sigmas = ((found - wanted) / (wanted * (1 - wanted) / len(keys)).sqrt())[often]
    assert often.sum() > 10
    assert sigmas.abs().max() < 4
    assert rollouts.mask.sum() > 0
    assert torch.equal(rollouts.mask[:, 1:], rollouts.mask[:, :-1] * (rollouts.tokens[:, :-1] != EOS))


def test_gradients_of_answers_add_up(language, student):
    rollouts = every_answer(language, 1)
    logits = logits_at(student, rollouts)
    weights = torch.rand(len(rollouts), T, dtype=torch.float64)
    value = (weights * logits.log_softmax(-1)[..., 1] * rollouts.mask).sum()
    by_logits = torch.autograd.grad(value, logits, retain_graph=True)[0]
    whole = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(student.parameters()))])
    torch.testing.assert_close(answer_gradients(student, rollouts, by_logits).sum(0), whole)


def test_metrics_agree_with_each_other(language, student):
    metrics = exact_metrics(language, student)
    assert metrics["reverse_kl"] == pytest.approx(exact_reverse_kl(language, student).mean().item())
    assert 0 < metrics["jsd"] < 0.6931472
    assert 0 < metrics["valid"] < 1
    assert 1 < metrics["length"] < T


def test_the_fit_is_the_least_forward_kl(language, student):
    fitted = exact_metrics(language, fit_forward_kl(language, TableStudent(language)))["forward_kl"]
    assert exact_metrics(language, fit_forward_kl(language, student))["forward_kl"] == pytest.approx(
        fitted, abs=1e-5
    )
    log_q = language.tree.log_prob(student())
    loss = (language.answers.exp() * -log_q).sum()
    assert max(g.abs().max() for g in torch.autograd.grad(loss, list(student.parameters()))) < 1e-3


@pytest.mark.parametrize("name", minillm_exact.METHODS)
def test_every_method_teaches(name):
    """From no knowledge, each gets nearer to its teacher, by the reverse KL."""
    language = ExactLanguage(1, 2, 0.2, 0, V, T)
    student = TableStudent(language)
    before = exact_metrics(language, student)["reverse_kl"]
    minillm_exact.teach(
        minillm_exact.METHODS[name], language, student, 40, torch.Generator().manual_seed(0), 0.1
    )
    assert exact_metrics(language, student)["reverse_kl"] < 0.8 * before


def test_a_student_held_back_has_the_reverse_kl_asked_for(language):
    student = fit_forward_kl(language, TableStudent(language))
    wanted = 1.05 * exact_metrics(language, student)["reverse_kl"]
    held = minillm_variance.held_back(language, student, wanted)
    assert exact_metrics(language, held)["reverse_kl"] == pytest.approx(wanted, rel=1e-4)
    assert minillm_variance.held_back(language, student, 1e3) is None


@pytest.mark.slow
@pytest.mark.parametrize("bench", [minillm_exact, minillm_variance])
def test_a_quick_run_writes_its_page(bench, tmp_path):
    bench.main(["--quick", "--out", str(tmp_path)])
    name = bench.__name__.rsplit(".", 1)[-1]
    page = (tmp_path / f"{name}.md").read_text()
    assert f"`python -m recipes.bench.{name}`" in page
    assert "nan" not in page
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert (tmp_path / f"{name}.csv").read_text().count("\n") > 10
