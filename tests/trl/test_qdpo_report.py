"""Where replies part, which tokens flip, and perplexity: against loops over single tokens."""

import copy
import math

import pytest
import torch

from extensions.trl.evaluation import Estimate, completion_log_probs, sample_completions, sequence_divergence
from extensions.trl.qdpo.report import (
    compare_replies,
    label_violations,
    perplexity,
    teacher_forced_flips,
)

PROMPTS = [[9, 8, 7], [5], [4, 4, 6, 30, 2], [12, 13]]


def noisy(model, scale=0.1, seed=0):
    """A copy whose weights are off by so much."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def models(request, tiny):
    teacher = getattr(tiny, request.param)(0, layers=2).double().eval()
    return noisy(teacher), teacher


@pytest.fixture(scope="module")
def replies(models):
    return sample_completions(models[1], PROMPTS, 8, seed=0, temperature=0)


def logits_after(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def test_agreement_of_replies_counted_by_hand():
    policy = [[5, 6, 1], [5, 6, 7, 8], [1], [5, 1], [5, 6, 7, 9]]
    teacher = [[5, 6, 1], [5, 6, 8, 1], [5, 1], [5, 6, 1], [5, 6, 7, 8]]
    found = compare_replies(policy, teacher, 4)
    assert found.first_divergence == [None, 2, 0, 1, 3]
    assert found.divergence_histogram == [1, 1, 1, 1]
    assert (found.pairs, found.diverging) == (5, 4)
    assert found.identical == Estimate(0.2, pytest.approx(0.2))
    assert found.agreed_tokens.value == pytest.approx((3 + 2 + 0 + 1 + 3) / 5)
    assert {k: share.value for k, share in found.prefix_agreement.items()} == pytest.approx(
        {1: 4 / 5, 2: 3 / 5, 4: 1 / 5}
    )
    assert found.policy_length.value == pytest.approx(14 / 5)
    assert found.teacher_length.value == pytest.approx(16 / 5)


def test_prefixes_are_as_long_as_replies_may_be():
    found = compare_replies([[5] * 6], [[5] * 6], 6)
    assert list(found.prefix_agreement) == [1, 2, 4, 6]
    assert found.divergence_histogram == [0] * 6
    assert list(compare_replies([[5]], [[5]], 1).prefix_agreement) == [1]


def test_label_violations_are_pairs_whose_chosen_reply_is_less_likely(models):
    teacher = models[1]
    chosen, rejected = [[5, 6], [7, 8, 9], [3], [2, 2]], [[5, 7], [7, 8, 9], [4, 1], [2, 3]]
    better = completion_log_probs(teacher, PROMPTS, chosen) >= completion_log_probs(
        teacher, PROMPTS, rejected
    )
    expected = [not better[i] for i in (0, 2, 3)]  # the second pair is identical
    assert label_violations(teacher, PROMPTS, rejected, chosen).value == pytest.approx(sum(expected) / 3)
    swapped = label_violations(teacher, PROMPTS, chosen, rejected).value
    assert swapped == pytest.approx(1 - sum(expected) / 3)
    assert math.isnan(label_violations(teacher, PROMPTS, chosen, chosen).value)


def test_flips_by_margin_against_single_tokens(models, replies):
    policy, teacher = models
    margins, ranks, kls = [], [], []
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        for t in range(len(reply)):
            p, q = (logits_after(model, prompt + reply[:t]) for model in (teacher, policy))
            first, second = p.sort(descending=True).values[:2]
            margins.append((first - second).item())
            ranks.append(q.argsort(descending=True).tolist().index(p.argmax()))
            kls.append((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum().item())
    found = teacher_forced_flips(policy, teacher, PROMPTS, replies, batch_size=3)
    assert found.tokens == len(ranks)
    assert 0 < found.flips == sum(rank > 0 for rank in ranks) < len(ranks)
    assert found.rate.value == pytest.approx(found.flips / found.tokens)
    assert {k: share.value for k, share in found.top_k_agreement.items()} == pytest.approx(
        {k: sum(rank < k for rank in ranks) / len(ranks) for k in (1, 2, 5, 10)}
    )
    assert found.forward_kl_per_token.value == pytest.approx(sum(kls) / len(kls), rel=1e-6)
    for one in found.by_margin:
        inside = [rank for rank, margin in zip(ranks, margins, strict=True) if one.low <= margin < one.high]
        assert (one.tokens, one.flips) == (len(inside), sum(rank > 0 for rank in inside))
        assert math.isnan(one.rate.value) if not inside else one.rate.value == one.flips / one.tokens
    assert sum(one.tokens for one in found.by_margin) == found.tokens
    assert sum(one.tokens > 0 for one in found.by_margin) >= 3


def test_standard_errors_are_over_prompts(models, replies):
    """Reading each prompt twice halves the error's square, up to its correction for the mean."""
    policy, teacher = models
    once = teacher_forced_flips(policy, teacher, PROMPTS, replies).rate
    twice = teacher_forced_flips(policy, teacher, PROMPTS * 2, replies * 2).rate
    assert twice.value == pytest.approx(once.value)
    assert twice.standard_error == pytest.approx(once.standard_error * math.sqrt(3 / 7))


def test_a_model_flips_no_token_of_its_own(models, replies):
    found = teacher_forced_flips(models[1], models[1], PROMPTS, replies)
    assert (found.flips, found.top_k_agreement[1].value) == (0, 1.0)
    assert found.forward_kl_per_token.value == 0


def test_equal_logits_are_no_flip(tiny):
    """In bf16 logits are often equal; of equals both models take the first."""
    teacher = tiny.llama(0)
    with torch.no_grad():
        teacher.lm_head.weight[20:] = teacher.lm_head.weight[:23].clone()
    found = teacher_forced_flips(copy.deepcopy(teacher), teacher, PROMPTS, [[3, 4, 5]] * 4)
    assert found.flips == 0
    assert found.by_margin[0].tokens > 0  # no margin at all


def test_the_first_ids_only(tiny):
    """What the padding of a vocabulary says does not count."""
    teacher = tiny.llama(0)
    policy = noisy(teacher, 0.02)
    with torch.no_grad():
        policy.lm_head.weight[40:] *= 100
    args = (policy, teacher, PROMPTS, [[3, 4, 5]] * 4)
    assert teacher_forced_flips(*args, vocab_size=40).rate.value < teacher_forced_flips(*args).rate.value
    larger = tiny.llama(0, vocabulary=50)
    with pytest.raises(ValueError, match="vocab_size=len"):
        teacher_forced_flips(larger, *args[1:])


def test_modes_and_random_state_are_kept(models, replies):
    policy, teacher = copy.deepcopy(models[0]), models[1]
    policy.train()
    policy.get_input_embeddings().eval()
    state = torch.get_rng_state()
    teacher_forced_flips(policy, teacher, PROMPTS, replies)
    assert policy.training
    assert not policy.get_input_embeddings().training
    assert torch.equal(torch.get_rng_state(), state)


def test_perplexity_against_single_tokens(models, tiny):
    policy, teacher = models
    texts = ["w1 w2 w3", "w4 w5 w6 w7 w8", "w9"]  # the last has nothing to predict
    found = perplexity(policy, teacher, tiny.tokenizer(), texts, batch_size=2)
    losses = {}
    for name, model in (("policy", policy), ("teacher", teacher)):
        terms = []
        for text in texts:
            ids = tiny.tokenizer()(text)["input_ids"]
            terms += [
                -logits_after(model, ids[:t]).log_softmax(-1)[ids[t]].item() for t in range(1, len(ids))
            ]
        losses[name] = sum(terms) / len(terms)
    assert (found.texts, found.tokens) == (2, 6)
    assert found.policy.value == pytest.approx(math.exp(losses["policy"]))
    assert found.teacher.value == pytest.approx(math.exp(losses["teacher"]))
    assert found.increase.value == pytest.approx(losses["policy"] - losses["teacher"])
    assert found.policy.standard_error > 0


def test_long_texts_are_cut_at_the_last_position(models, tiny):
    assert perplexity(*models, tiny.tokenizer(), ["w1 " * 80]).tokens == 63


@pytest.mark.parametrize("texts", [[], ["w1", ""]])
def test_texts_without_two_tokens_are_refused(models, tiny, texts):
    with pytest.raises(ValueError, match="no text of two tokens"):
        perplexity(*models, tiny.tokenizer(), texts)


def test_the_divergence_of_replies_is_that_of_the_evaluation(models):
    """The policy is the student of sequence_divergence: forward is from the teacher."""
    policy, teacher = models
    one = sequence_divergence(policy, teacher, PROMPTS, 3, samples_per_prompt=2)
    other = sequence_divergence(teacher, policy, PROMPTS, 3, samples_per_prompt=2)
    assert one.forward_kl.value == pytest.approx(other.reverse_kl.value)
