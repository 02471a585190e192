"""What is reported of the gradient's noise, against closed forms and enumerated answers."""

import csv
import itertools

import pytest
import torch

from extensions.trl.minillm.gradient_noise import gradient_noise
from extensions.trl.minillm.objective import Objective
from extensions.trl.minillm.variance import ESTIMATORS, gradient_variance
from recipes.exact_language import (
    ExactLanguage,
    TableStudent,
    answer_gradients,
    answer_losses,
    every_answer,
    fit_forward_kl,
    logits_at,
    sample,
    scores_of,
)

transformers = pytest.importorskip("transformers")

EOS, PAD, T = 3, 0, 3
PROMPTS = [[1, 2], [2, 1, 1]]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_gaussian_gradients_have_the_noise_they_were_drawn_with():
    """g = mu + prompt's part + answer's part: all four figures are known, over 400 drawings of them."""
    random = torch.Generator().manual_seed(0)
    p, m, d, of_prompts, of_answers = 5, 4, 6, 0.7, 1.5
    mu = torch.full((d,), 0.5)
    found = torch.tensor(
        [
            [noise.within, noise.between, noise.signal, noise.variance]
            for _ in range(400)
            for noise in [
                gradient_noise(
                    mu
                    + of_prompts * torch.randn(p, 1, d, generator=random)
                    + of_answers * torch.randn(p, m, d, generator=random)
                )
            ]
        ]
    )
    within, between, signal = d * of_answers**2, d * of_prompts**2, d * 0.25
    wanted = torch.tensor([within, between, signal, within + between])
    sigmas = (found.mean(0) - wanted) / (found.std(0) / 400**0.5)
    assert sigmas.abs().max() < 4, sigmas


def test_ratios_of_a_worked_example():
    noise = gradient_noise(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))  # mean (2, 0), variance 2
    assert (noise.variance, noise.within, noise.between) == (2.0, 2.0, 0.0)
    assert noise.signal == 4.0 - 2.0 / 2
    assert noise.snr == 3.0 / (2.0 / 2)
    assert noise.relative == 2.0 / 3.0
    no_signal = gradient_noise(torch.tensor([[1.0], [-1.0]]))
    assert no_signal.signal < 0
    assert no_signal.relative == float("inf")


def test_the_logits_of_all_answers_are_never_held(largest_tensor):
    vocabulary, rows, length = 40_000, 8, 30
    models = [
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=vocabulary, n_embd=4, n_layer=1, n_head=1, n_positions=40)
        )
        for _ in range(2)
    ]
    with largest_tensor as seen:
        gradient_variance(
            *models,
            [[1, 2]],
            {"equation 7": ESTIMATORS["equation 7"]},
            max_new_tokens=length,
            eos_token_ids=[EOS],
            pad_token_id=PAD,
            num_rollouts=rows,
        )
    assert seen.largest == 128 * vocabulary  # a tile; there are 240 tokens


def test_one_answer_has_no_variance():
    with pytest.raises(ValueError, match="at least 2 answers"):
        gradient_noise(torch.zeros(3, 1, 2))


@pytest.mark.parametrize("name", ["policy gradient", "equation 7"])
def test_it_agrees_with_the_variance_over_every_answer(name):
    language = ExactLanguage(1, 5, 0.1, 3, 4, 5)
    student = fit_forward_kl(language, TableStudent(language))

    def gradients(rollouts):
        logits = logits_at(student, rollouts).detach().requires_grad_()
        scores = scores_of(language, student, rollouts, 0.0)
        losses = answer_losses(ESTIMATORS[name], language, rollouts, logits, scores)
        return answer_gradients(student, rollouts, torch.autograd.grad(losses.sum(), logits)[0])

    every = gradients(every_answer(language, 0))  # (N, D)
    probability = language.tree.log_prob(student())[0].exp().detach()
    mean = probability @ every
    variance = (probability @ every.square().sum(1) - mean.square().sum()).item()
    rollouts = sample(
        language, student, torch.zeros(20_000, dtype=torch.long), 0.0, torch.Generator().manual_seed(1)
    )
    found = gradient_noise(gradients(rollouts))
    assert found.variance == pytest.approx(variance, rel=0.05)
    assert found.signal == pytest.approx(mean.square().sum().item(), rel=0.05)


def gpt2(seed, width, vocabulary=4):
    """A small model in float64 whose probabilities are far from uniform."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=1, n_head=2, n_positions=16, initializer_range=0.5
    )
    return transformers.GPT2LMHeadModel(config).double()


@pytest.fixture(scope="module")
def pair():
    return gpt2(0, 8), gpt2(1, 12)


def measured(pair, estimators=ESTIMATORS, seed=0, **settings):
    settings = {"num_rollouts": 8, "alpha": 0.2, "max_new_tokens": T, **settings}
    torch.manual_seed(seed)
    return gradient_variance(*pair, PROMPTS, estimators, eos_token_ids=[EOS], pad_token_id=PAD, **settings)


def test_the_probe_at_the_head_is_the_bias_of_the_last_norm(pair):
    """Two ways to the same gradients: one backward for all at the head, and one each through the model."""
    head, norm = measured(pair), measured(pair, parameters=["transformer.ln_f.bias"])
    for name in ESTIMATORS:
        one, other = head.noise[name], norm.noise[name]
        for number in ("variance", "within", "between", "signal", "snr", "ess"):
            assert getattr(one, number) == pytest.approx(getattr(other, number), rel=1e-9), number
        assert len(one.by_position) == T
        assert other.by_position == ()


def test_chunks_change_nothing(pair):
    whole, parts = measured(pair, chunk_size=8), measured(pair, chunk_size=3)
    for name in ESTIMATORS:
        assert parts.noise[name].variance == pytest.approx(whole.noise[name].variance, rel=1e-9)


def enumerated(pair, prompt):
    """Probabilities of all answers, and the gradient of each by the last norm's bias: eq. 2 by hand."""
    student, teacher = pair
    bias = student.transformer.ln_f.bias
    probabilities, gradients = [], []
    for answer in itertools.product(range(4), repeat=T):
        end = answer.index(EOS) + 1 if EOS in answer else T
        if any(answer[end:]):
            continue
        ids = torch.tensor([[*prompt, *answer[:end]]])
        said = ids[0, len(prompt) :, None]
        log_q, log_p = (
            model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(-1, said)[:, 0]
            for model in (student, teacher)
        )
        to_go = (log_p - log_q).detach().flip(0).cumsum(0).flip(0)
        gradients.append(torch.autograd.grad(-(to_go * log_q).sum(), bias)[0])
        probabilities.append(log_q.sum().exp().item())
    return torch.tensor(probabilities, dtype=torch.float64), torch.stack(gradients)


def test_a_transformers_model_has_the_enumerated_variance(pair):
    for model in pair:
        model.eval()
    found = measured(
        pair, {"full": ESTIMATORS["policy gradient"]}, num_rollouts=6000, alpha=0.0, chunk_size=6000
    ).noise["full"]
    means, within = [], []
    for prompt in PROMPTS:
        probability, each = enumerated(pair, prompt)
        assert probability.sum().item() == pytest.approx(1.0, abs=1e-9)
        means.append(probability @ each)
        within.append((probability @ each.square().sum(1) - means[-1].square().sum()).item())
    means = torch.stack(means)
    between = means.var(0).sum().item()
    assert found.within == pytest.approx(sum(within) / 2, rel=0.06)
    assert found.between == pytest.approx(between, rel=0.15)
    assert found.signal == pytest.approx(means.mean(0).square().sum().item() - between / 2, rel=0.2)
    assert found.ess == pytest.approx(1.0, abs=1e-12)


def test_weights_lower_the_effective_sample_size(pair):
    objectives = {kind: Objective(importance=kind, epsilon=None) for kind in ("none", "token", "prefix")}
    noise = measured(pair, objectives, num_rollouts=64, alpha=0.5).noise
    assert noise["none"].ess == 1.0
    assert 0 < noise["prefix"].ess < noise["token"].ess < 1.0


def test_models_are_left_as_they_were(pair):
    student, teacher = pair
    student.train()
    teacher.eval()
    student.transformer.wte.weight.requires_grad_(False)
    before = {name: p.clone() for name, p in student.named_parameters()}
    measured(pair, parameters=["transformer.ln_f.bias"])
    assert student.training
    assert all(module.training for module in student.modules())
    assert not teacher.training
    assert not student.transformer.wte.weight.requires_grad
    assert all(p.requires_grad for name, p in student.named_parameters() if name != "transformer.wte.weight")
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in student.named_parameters())
    student.transformer.wte.weight.requires_grad_(True)
    assert not student.get_output_embeddings()._forward_pre_hooks


def test_it_is_printed_and_written(pair, tmp_path):
    report = measured(pair)
    lines = str(report).splitlines()
    assert lines[0] == "2 prompts, 8 answers each"
    assert all(line.startswith(name) for line, name in zip(lines[2:], ESTIMATORS, strict=True))
    report.to_csv(tmp_path / "noise.csv")
    with open(tmp_path / "noise.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["estimator"] for row in rows] == list(ESTIMATORS)
    assert float(rows[0]["variance"]) == report.noise["policy gradient"].variance
    assert float(rows[0]["by_position_2"]) == report.noise["policy gradient"].by_position[2]
    assert report.as_dict()[0]["snr"] == report.noise["policy gradient"].snr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_rollouts": 1}, "num_rollouts must be at least 2"),
        ({"parameters": ["nowhere.weight"]}, "nowhere.weight"),
        ({"parameters": []}, "an empty list"),
        ({"alpha": 1.0}, r"alpha must be in \[0, 1\), got 1.0: at 1 the student would write nothing"),
    ],
)
def test_bad_input(pair, settings, message):
    with pytest.raises(ValueError, match=message):
        measured(pair, **settings)


@pytest.mark.parametrize("prompts", ["a b", ["a b"]])
def test_prompts_that_are_text(pair, prompts):
    with pytest.raises(TypeError, match=r"must be token ids, got strings: \[tokenizer\(text\).input_ids"):
        gradient_variance(*pair, prompts, max_new_tokens=T, eos_token_ids=[EOS], pad_token_id=PAD)


def test_a_vocabulary_is_cut_to_what_both_have(pair):
    """Rows of padding in the teacher's head change nothing."""
    student, teacher = pair
    padded = gpt2(1, 12, 6)
    weights = teacher.state_dict()
    for name in ("transformer.wte.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.full((2, 12), 3.0)])
    padded.load_state_dict(weights)
    with pytest.raises(ValueError, match=r"pass vocab_size=len\(tokenizer\)"):
        measured((student, padded))
    cut, plain = measured((student, padded), vocab_size=4), measured(pair)
    for name in ESTIMATORS:
        assert cut.noise[name].variance == pytest.approx(plain.noise[name].variance, rel=1e-9)


def test_no_prompts(pair):
    with pytest.raises(ValueError, match="no prompts"):
        gradient_variance(*pair, [], max_new_tokens=T, eos_token_ids=[EOS], pad_token_id=PAD)
