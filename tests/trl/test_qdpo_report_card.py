"""The report card as a whole: a quantized model against itself in full precision, its files, its errors."""

import builtins
import copy
import json
import math

import pytest
import torch

from extensions.trl.evaluation import ScoreJudge, sample_completions, sequence_divergence
from extensions.trl.qdpo.layers import QuantizedLinear, quantize_model, quantized_layers
from extensions.trl.qdpo.quantizers import WeightScheme
from extensions.trl.qdpo.report import label_violations, report_card

JUDGE = ScoreJudge(lambda prompt, answer: len(set(answer.split())))


@pytest.fixture(scope="module")
def models(tiny):
    teacher = tiny.llama(0, layers=2, width=32)
    policy = copy.deepcopy(teacher)
    quantize_model(policy, WeightScheme(bits=3))
    return policy, teacher


@pytest.fixture(scope="module")
def prompts(tiny):
    return tiny.conversations(12)["prompt"]


@pytest.fixture(scope="module")
def card(models, tiny, prompts):
    texts = tiny.texts(6)["text"]
    return report_card(*models, tiny.tokenizer(), prompts, max_new_tokens=8, judge=JUDGE, texts=texts)


def test_the_parts_are_of_the_same_replies(card):
    assert card.replies.pairs == card.attribution.prompts == card.verdict.pairs == 12
    assert card.flips.tokens == card.attribution.tokens == 12 * card.replies.teacher_length.value
    assert card.flips.flips == card.attribution.flips > 0
    # A reply that parts has flipped a token, and one with no flipped token has not parted.
    assert card.replies.diverging > 0
    assert card.flips.flips >= card.replies.diverging
    assert card.identical_text.value >= card.replies.identical.value
    assert card.verdict.judged == round(12 * (1 - card.identical_text.value))


def test_the_parts_are_those_of_the_functions_they_come_from(card, models, tiny, prompts):
    ids = tiny.tokenizer().apply_chat_template(list(prompts), add_generation_prompt=True)["input_ids"]
    chosen, rejected = (
        sample_completions(model, ids, 8, seed=0, temperature=0) for model in (models[1], models[0])
    )
    parted = [one != other for one, other in zip(chosen, rejected, strict=True)]
    assert [at is not None for at in card.replies.first_divergence] == parted
    assert card.label_violation == label_violations(models[1], ids, rejected, chosen)
    assert card.divergence == sequence_divergence(*models, ids, 8)
    texts = [
        tiny.tokenizer().batch_decode(replies, skip_special_tokens=True) for replies in (rejected, chosen)
    ]
    scores = [[JUDGE.score(None, text) for text in side] for side in texts]
    outcomes = [0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(*scores, strict=True)]
    assert card.verdict.outcomes == outcomes
    assert card.replies.policy_length.value == pytest.approx(sum(map(len, rejected)) / 12)
    assert card.replies.teacher_length.value == pytest.approx(sum(map(len, chosen)) / 12)


def test_a_model_against_itself(models, tiny, prompts):
    _, teacher = models
    card = report_card(
        copy.deepcopy(teacher), teacher, tiny.tokenizer(), prompts, max_new_tokens=6, judge=JUDGE
    )
    figures = card.figures()
    ones = ["replies/identical", "identical_text", "verdict/tie", "flips/top_k_agreement/1"]
    assert [figures[name] for name in ones] == [1, 1, 1, 1]
    zeros = ["flips/rate", "attribution/flip_rate", "replies/diverging"]
    assert [figures[name] for name in zeros] == [0, 0, 0]
    assert figures["divergence/forward_kl"] == pytest.approx(0, abs=1e-5)
    assert figures["verdict/win_rate"] == 0.5
    assert all(math.isnan(figures[name]) for name in ("label_violation", "attribution/cache"))


def test_files_are_json_and_a_picture(card, tmp_path):
    card.save(tmp_path / "new" / "folder")

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads((tmp_path / "new/folder/report_card.json").read_text(), parse_constant=refuse)
    assert read["replies"]["identical"]["value"] == card.replies.identical.value
    assert read["replies"]["first_divergence"] == card.replies.first_divergence
    assert [one["tokens"] for one in read["flips"]["by_margin"]] == [t.tokens for t in card.flips.by_margin]
    assert read["flips"]["by_margin"][-1]["high"] is None  # there is no infinity in JSON
    assert read["settings"]["prompts"] == 12
    assert read["settings"]["versions"]["torch"] == torch.__version__
    assert (tmp_path / "new/folder/report_card.png").read_bytes()[:4] == b"\x89PNG"


def test_figures_are_flat_numbers(card):
    figures = card.figures()
    assert all(isinstance(value, int | float) for value in figures.values())
    assert figures["flips/rate_se"] == card.flips.rate.standard_error
    assert figures["replies/prefix_agreement/4"] == card.replies.prefix_agreement[4].value
    assert figures["verdict/low"] <= figures["verdict/win_rate"] <= figures["verdict/high"]


def test_parts_that_are_left_out(models, tiny, tmp_path):
    card = report_card(
        *models,
        tiny.tokenizer(),
        ["w1 w2", "w3"],
        max_new_tokens=40,
        samples_per_prompt=0,
        attribution_prompts=0,
    )
    assert card.attribution is card.divergence is card.verdict is card.perplexity is None
    card.save(tmp_path)
    assert json.loads((tmp_path / "report_card.json").read_text())["verdict"] is None
    assert (tmp_path / "report_card.png").stat().st_size > 0


def test_only_the_first_prompts_are_attributed(models, tiny, prompts):
    card = report_card(*models, tiny.tokenizer(), prompts, max_new_tokens=4, attribution_prompts=3)
    assert card.attribution.prompts == 3
    assert card.replies.pairs == 12


def test_twice_the_same_and_whatever_the_batch_size(models, tiny, prompts):
    def figures(batch_size):
        card = report_card(
            *models, tiny.tokenizer(), prompts, max_new_tokens=4, judge=JUDGE, batch_size=batch_size
        )
        return {k: v for k, v in card.figures().items() if not k.startswith("divergence")}

    assert figures(16) == pytest.approx(figures(16), abs=0, nan_ok=True)
    assert figures(5) == pytest.approx(figures(16), rel=1e-4, nan_ok=True)


def test_padding_of_the_vocabulary_is_no_difference(tiny, prompts):
    teacher = tiny.llama(0, layers=2)
    policy = tiny.llama(0, layers=2, vocabulary=48)
    shapes = policy.state_dict()
    with torch.no_grad():
        for name, value in teacher.state_dict().items():
            shapes[name][: len(value)] = value
        policy.lm_head.weight[43:] *= 100
    card = report_card(policy, teacher, tiny.tokenizer(), prompts, max_new_tokens=4, vocab_size=43)
    figures = card.figures()
    assert (figures["replies/identical"], figures["flips/flips"], figures["attribution/flips"]) == (1, 0, 0)
    assert figures["divergence/reverse_kl"] == pytest.approx(0, abs=1e-5)


def test_each_quantized_weight_is_made_once(models, tiny, prompts, monkeypatch):
    made = []
    quantized = QuantizedLinear.quantized
    monkeypatch.setattr(QuantizedLinear, "quantized", lambda layer, x: made.append(1) or quantized(layer, x))
    report_card(*models, tiny.tokenizer(), prompts, max_new_tokens=4)
    assert len(made) == len(quantized_layers(models[0]))


def test_models_and_random_state_are_left_as_they_were(models, tiny, prompts):
    policy, teacher = copy.deepcopy(models[0]).train(), copy.deepcopy(models[1]).train()
    before, state = tiny.weights(policy), torch.get_rng_state()
    report_card(policy, teacher, tiny.tokenizer(), prompts, max_new_tokens=4)
    assert policy.training
    assert teacher.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not tiny.moved(before, tiny.weights(policy))
    assert all(layer._cached is None for layer in policy.modules() if hasattr(layer, "_cached"))


def test_in_bfloat16(models, tiny, prompts):
    policy, teacher = (copy.deepcopy(model).to(torch.bfloat16) for model in models)
    card = report_card(policy, teacher, tiny.tokenizer(), prompts, max_new_tokens=6)
    assert card.flips.tokens == 12 * card.replies.teacher_length.value
    assert 0 < card.flips.rate.value < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_with_the_teacher_elsewhere(models, tiny, prompts):
    policy = copy.deepcopy(models[0]).cuda()
    for teacher in (models[1], copy.deepcopy(models[1]).cuda()):
        card = report_card(policy, teacher, tiny.tokenizer(), prompts, max_new_tokens=6, judge=JUDGE)
        assert card.flips.flips == card.attribution.flips > 0


def test_without_matplotlib_the_figures_are_written_all_the_same(card, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install matplotlib.*report_card\.json"):
        card.save(tmp_path)
    monkeypatch.undo()
    assert json.loads((tmp_path / "report_card.json").read_text())["settings"]["prompts"] == 12


def test_bad_input_is_refused_before_anything_is_generated(models, tiny, prompts, monkeypatch):
    def generate(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr("extensions.trl.qdpo.report.card.greedy_replies", generate)
    policy, teacher = models
    tokens = tiny.tokenizer()

    def refused(message, policy=policy, tokens=tokens, prompts=prompts, **settings):
        with pytest.raises(ValueError, match=message):
            report_card(policy, teacher, tokens, prompts, **{"max_new_tokens": 4, **settings})

    refused("There are no prompts", prompts=[])
    refused("Prompt 0 has no tokens", prompts=[""])
    refused("more than the 64 positions", max_new_tokens=64)
    refused(r"vocabulary of 50 tokens.*vocab_size=len\(tokenizer\)", policy=tiny.llama(0, vocabulary=50))
    refused("vocab_size is 44, but a model has 43", vocab_size=44)
    refused("attribution_prompts=0", policy=tiny.llama(0, layers=1))
    refused("1 of 2 prompts are strings", prompts=["w1", [{"role": "user", "content": "w1"}]])
    refused("no text of two tokens", texts=["w1"])
    without = tiny.tokenizer()
    without.chat_template = None
    refused("no chat template: set its chat_template", tokens=without)


def test_a_judge_that_does_not_judge_is_refused(models, tiny, prompts):
    with pytest.raises(ValueError, match="returned 1 verdicts"):
        report_card(*models, tiny.tokenizer(), prompts, max_new_tokens=4, judge=lambda p, a, b: [1.0])
