"""Keys and values in few bits: the same with a cache and without one, and nothing else of attention moves."""

import copy
import math

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")

from extensions.trl.qdpo.kv_cache import full_precision_kv_cache, quantize_kv_cache  # noqa: E402

PROMPTS = torch.tensor([[0, 0, 5, 9, 7, 20], [3, 8, 30, 41, 6, 11]])  # the first is padded on its left
DTYPES = {"sdpa": torch.float64, "eager": torch.float32}
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def model_of(tiny, attention, **settings):
    """In float64, but for eager attention: its softmax is in float32, where float64's mask is -infinity."""
    size = {"layers": 2, "width": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = tiny.llama(**{**size, **settings}).to(DTYPES[attention]).eval()
    model.set_attn_implementation(attention)
    return model


def assert_close(one, other):
    tolerance = 1e-10 if one.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def positions(mask):
    return (mask.cumsum(1) - 1).clamp(min=0)


def all_at_once(model, ids=PROMPTS, mask=MASK):
    """Logits (B, T, V) of one pass without a cache."""
    with torch.no_grad():
        return model(ids, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits


def step_by_step(model, ids=PROMPTS, mask=MASK):
    """Logits (B, T, V) of a generation that is told its tokens: each step adds one to the cache."""
    cache = transformers.DynamicCache(config=model.config)
    steps = []
    with torch.no_grad():
        for t in range(ids.shape[1]):
            told = {"attention_mask": mask[:, : t + 1], "position_ids": positions(mask)[:, t : t + 1]}
            steps.append(model(ids[:, t : t + 1], past_key_values=cache, use_cache=True, **told).logits)
    return torch.cat(steps, 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_cache_or_none_the_logits_are_the_same(tiny, attention, bits):
    model = model_of(tiny, attention)
    exact = all_at_once(model)
    quantize_kv_cache(model, bits)
    real = MASK.bool()
    at_once, by_step = all_at_once(model)[real], step_by_step(model)[real]
    assert_close(at_once, by_step)
    assert (at_once - exact[real]).abs().max() > 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_function_is_attention_over_rounded_keys_and_values(tiny, attention):
    """Against the formula by hand, for one layer: softmax(q k' / sqrt(D)) v', causal, grouped queries."""
    model = model_of(tiny, attention, layers=1)
    quantize_kv_cache(model, 3)
    layer = model.model.layers[0].self_attn
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).to(DTYPES[attention])
    cos, sin = model.model.rotary_emb(states, torch.arange(5)[None])
    mask = transformers.masking_utils.create_causal_mask(
        config=model.config, inputs_embeds=states, attention_mask=None, past_key_values=None
    )
    got = layer(states, position_embeddings=(cos, sin), attention_mask=mask)[0]

    def split(projection, heads):
        return projection(states).view(2, 5, heads, 8).transpose(1, 2)  # (B, heads, T, D)

    def turn(x):  # the rotary embedding: the halves of a head are the two coordinates of D / 2 planes
        left, right = x[..., :4], x[..., 4:]
        return x * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]

    def rounded(x):
        scale = x.abs().max(-1, keepdim=True).values / 3
        return scale * (x / scale).round()

    query = turn(split(layer.q_proj, 4))
    key = rounded(turn(split(layer.k_proj, 2))).repeat_interleave(2, 1)
    value = rounded(split(layer.v_proj, 2)).repeat_interleave(2, 1)
    scores = query @ key.transpose(2, 3) / math.sqrt(8)
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    expected = layer.o_proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(2, 5, 32))
    assert_close(got, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_is_masked_as_before(tiny, attention):
    model = model_of(tiny, attention)
    quantize_kv_cache(model, 4)
    padded = all_at_once(model)[0, 2:]
    alone = all_at_once(model, PROMPTS[:1, 2:], MASK[:1, 2:])[0]
    assert_close(padded, alone)


def test_generation_says_what_scoring_says(tiny):
    """Greedy tokens of a batch that is padded on its left are the argmax of one pass over what was said."""
    model = model_of(tiny, "sdpa").float()
    quantize_kv_cache(model, 3)
    said = model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=8, do_sample=False, eos_token_id=None)
    mask = torch.cat([MASK, torch.ones(2, 8, dtype=torch.long)], 1)
    predicted = all_at_once(model, said, mask)[:, 5:-1].argmax(-1)
    assert torch.equal(predicted, said[:, 6:])


def test_gradients_pass_straight_through(tiny):
    """That of 8 bits is near the exact one, and every parameter has one."""
    exact, rounded = model_of(tiny, "sdpa"), model_of(tiny, "sdpa")
    quantize_kv_cache(rounded, 8)
    for model in (exact, rounded):
        model(PROMPTS, attention_mask=MASK, labels=PROMPTS).loss.backward()
    for (name, one), (_, other) in zip(exact.named_parameters(), rounded.named_parameters(), strict=True):
        assert other.grad is not None, name
        assert (one.grad - other.grad).norm() < 0.1 * one.grad.norm(), name


def test_one_model_does_not_change_another(tiny):
    model, other = model_of(tiny, "sdpa"), model_of(tiny, "sdpa")
    before = all_at_once(other)
    quantize_kv_cache(model, 2)
    copied = copy.deepcopy(model)
    assert torch.equal(all_at_once(other), before)
    assert torch.equal(all_at_once(copied), all_at_once(model))
    assert "_kv" not in str(model.config.to_dict())


def test_full_precision_for_a_while(tiny):
    model = model_of(tiny, "sdpa")
    exact = all_at_once(model)
    with full_precision_kv_cache(model):
        assert torch.equal(all_at_once(model), exact)
    quantize_kv_cache(model, 2)
    low = all_at_once(model)
    with full_precision_kv_cache(model):
        assert torch.equal(all_at_once(model), exact)
    assert torch.equal(all_at_once(model), low)


def test_gpt2_and_qwen3(tiny):
    """One has no rotary embedding, the other norms its keys: both go through the interface."""
    for model in (tiny.gpt2(layers=2).double().eval(), tiny.qwen3(layers=2).double().eval()):
        quantize_kv_cache(model, 3)
        assert_close(all_at_once(model)[1], step_by_step(model)[1])


def test_what_cannot_be(tiny):
    model = model_of(tiny, "sdpa")
    for bits in (1, 9, 4.0, True):
        with pytest.raises(ValueError, match="kv_bits must be a whole number of bits from 2 to 8"):
            quantize_kv_cache(model, bits)
    quantize_kv_cache(model, 4)
    with pytest.raises(ValueError, match="quantized already"):
        quantize_kv_cache(model, 4)
    flex = model_of(tiny, "sdpa")
    flex.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="load the model with attn_implementation='sdpa'"):
        quantize_kv_cache(flex, 4)
    bloom = transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=43, hidden_size=16, n_layer=1, n_head=2)
    )
    with pytest.raises(ValueError, match="does not go through transformers' AttentionInterface"):
        quantize_kv_cache(bloom, 4)
