"""What flips a token: against whole prefixes read anew, and models that differ in one place."""

import copy

import pytest
import torch

from extensions.trl.evaluation import sample_completions
from extensions.trl.qdpo.kv_cache import kv_bits, quantize_kv_cache
from extensions.trl.qdpo.report import flip_attribution, teacher_forced_flips

PROMPTS = [[9, 8, 7], [5], [4, 4, 6, 30, 2], [12, 13]]


def noisy(model, scale=0.1, only=""):
    generator = torch.Generator().manual_seed(0)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if only in name:
                parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


def sliding(tiny):
    layers = ["sliding_attention", "full_attention"]
    return tiny.qwen3(0, layers=2, use_sliding_window=True, sliding_window=4, layer_types=layers)


def greedy_replies(model, prompts, length):
    return sample_completions(model, prompts, length, seed=0, temperature=0)


MODELS = {
    "gpt2": lambda tiny: tiny.gpt2(0, layers=2),
    "llama": lambda tiny: tiny.llama(0, layers=2),
    "sliding": sliding,
}


@pytest.mark.parametrize("kind", MODELS)
def test_against_whole_prefixes_read_anew(tiny, kind):
    """No padding, no batches, no walk: the cache is made in one forward of all before the token."""
    teacher = MODELS[kind](tiny).double().eval()
    policy = noisy(teacher)
    replies = greedy_replies(teacher, PROMPTS, 8)

    @torch.no_grad()
    def said(reader, maker, ids):
        if len(ids) == 1:
            return reader(torch.tensor([ids])).logits[0, -1].argmax().item()
        cache = maker(torch.tensor([ids[:-1]]), use_cache=True).past_key_values
        return reader(torch.tensor([ids[-1:]]), past_key_values=cache).logits[0, -1].argmax().item()

    seen = []
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        for t in range(len(reply)):
            ids = prompt + reply[:t]
            truth = said(teacher, teacher, ids)
            makers = ((policy, teacher), (teacher, policy), (policy, policy))
            seen.append(tuple(said(reader, maker, ids) != truth for reader, maker in makers))
    found = flip_attribution(policy, teacher, PROMPTS, replies, batch_size=3)
    flips = sum(both for _, _, both in seen)
    assert (found.prompts, found.tokens, found.flips) == (4, len(seen), flips)
    shares = [found.own_token, found.cache, found.either, found.together]
    kinds = [(True, False, True), (False, True, True), (True, True, True), (False, False, True)]
    assert [share.value for share in shares] == pytest.approx([seen.count(one) / flips for one in kinds])
    assert found.own_token_rate.value == pytest.approx(sum(own for own, _, _ in seen) / len(seen))
    assert found.cache_rate.value == pytest.approx(sum(cache for _, cache, _ in seen) / len(seen))
    undone = sum((own or cache) and not both for own, cache, both in seen)
    assert found.undone_rate.value == pytest.approx(undone / len(seen))
    assert len(set(seen)) >= 4  # that more than one kind of flip is there to be told apart


def test_its_flips_are_those_of_a_forward_over_the_whole_reply(tiny):
    teacher = tiny.llama(0, layers=2).double()
    policy, replies = noisy(teacher), greedy_replies(teacher, PROMPTS, 8)
    whole = teacher_forced_flips(policy, teacher, PROMPTS, replies)
    for batch_size in (1, 4):
        walked = flip_attribution(policy, teacher, PROMPTS, replies, batch_size=batch_size)
        assert walked.flips == whole.flips
        assert walked.flip_rate.value == pytest.approx(whole.rate.value)


def test_an_error_after_the_last_keys_and_values_is_the_tokens_own(tiny):
    teacher = tiny.llama(0, layers=2).double()
    policy = noisy(teacher, 0.3, only="layers.1.mlp")
    found = flip_attribution(policy, teacher, PROMPTS, greedy_replies(teacher, PROMPTS, 8))
    assert found.flips > 0
    assert found.own_token.value == 1
    assert (found.cache_rate.value, found.undone_rate.value) == (0, 0)


def test_an_error_of_a_token_long_read_is_the_caches(tiny):
    """The models differ in the embedding of a word that comes in the prompts, and not last."""
    word = 42
    teacher = tiny.llama(0, layers=2).double()
    policy = copy.deepcopy(teacher)
    with torch.no_grad():
        policy.get_input_embeddings().weight[word] *= -3
    prompts = [[word, 7], [word, word, 9], [word, 4, 4, 6]]
    found = flip_attribution(policy, teacher, prompts, [[3, 5, 8, 2, 11, 17]] * 3)
    assert found.flips > 0
    assert found.cache.value == 1
    assert (found.own_token_rate.value, found.undone_rate.value) == (0, 0)


def test_rounded_keys_and_values_are_the_caches_error(tiny):
    teacher = tiny.llama(0, layers=1).double()  # whose caches are equal but for the rounding
    policy = copy.deepcopy(teacher)
    quantize_kv_cache(policy, 2)
    replies = greedy_replies(teacher, PROMPTS, 12)
    found = flip_attribution(policy, teacher, PROMPTS, replies)
    assert found.flips == teacher_forced_flips(policy, teacher, PROMPTS, replies).flips > 0
    assert found.cache_rate.value > 0
    assert found.own_token_rate.value == 0
    assert kv_bits(policy) == 2  # as it was


def test_an_error_in_keys_and_values_is_of_both_kinds(tiny):
    """A token looks at itself as well."""
    teacher = tiny.llama(0, layers=2).double()
    policy = noisy(teacher, 0.3, only="v_proj")
    found = flip_attribution(policy, teacher, PROMPTS, greedy_replies(teacher, PROMPTS, 12))
    assert found.cache_rate.value > 0
    assert found.own_token_rate.value > 0


def test_equal_models_flip_nothing(tiny):
    teacher = tiny.gpt2(0, layers=2)
    replies = greedy_replies(teacher, PROMPTS, 6)
    for policy in (teacher, copy.deepcopy(teacher)):
        found = flip_attribution(policy, teacher, PROMPTS, replies)
        assert found.flips == 0
        assert [found.own_token_rate.value, found.cache_rate.value, found.undone_rate.value] == [0, 0, 0]


@pytest.mark.parametrize(
    ("policy_dtype", "teacher_dtype"), [("bfloat16", "bfloat16"), ("float32", "bfloat16")]
)
def test_models_in_half_precision_read_each_others_cache(tiny, policy_dtype, teacher_dtype):
    teacher = tiny.llama(0, layers=2)
    policy = noisy(teacher).to(getattr(torch, policy_dtype))
    teacher = teacher.to(getattr(torch, teacher_dtype))
    replies = greedy_replies(teacher, PROMPTS, 6)
    found = flip_attribution(policy, teacher, PROMPTS, replies)
    assert found.tokens == sum(map(len, replies))
    assert 0 < found.flips < found.tokens


def test_what_a_longer_reply_in_the_batch_does_not_do(tiny):
    """A prompt that fills the model next to a reply that is longer than its own."""
    teacher = tiny.gpt2(0, layers=2)
    policy = noisy(teacher)
    long, short = [3 + i % 30 for i in range(56)], [9, 8]
    alone = [flip_attribution(policy, teacher, [p], [r]) for p, r in ((long, [4, 5]), (short, [6] * 8))]
    together = flip_attribution(policy, teacher, [long, short], [[4, 5], [6] * 8])
    assert together.flips == sum(found.flips for found in alone)
    assert together.tokens == 10


def test_models_that_cannot_read_each_others_cache_are_refused(tiny):
    with pytest.raises(ValueError, match=r"different shapes .*attribution_prompts=0"):
        flip_attribution(tiny.llama(0, layers=1), tiny.llama(0, layers=2), PROMPTS, [[3]] * 4)


def test_prompts_without_room_are_refused(tiny):
    model = tiny.gpt2(0)
    with pytest.raises(ValueError, match="more than the 64 positions"):
        flip_attribution(model, model, [[3] * 62], [[4] * 8])
