"""Attention written out, and models looked at through it."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from extensions.glasses import HFCausalLM, Lens, ModuleAdapter
from extensions.glasses.attention import adaptive_beta, attend
from recipes.bench.glasses_layer import RandomAttention
from recipes.bench.glasses_theory import random_llama, random_tokens

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **IDS)),
    "mistral, window": lambda: MistralForCausalLM(MistralConfig(**SIZES, **IDS, sliding_window=5)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, **IDS)),
    "gemma2, soft caps and windows": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, **IDS, head_dim=8, sliding_window=5, query_pre_attn_scalar=8)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ),
}


@pytest.fixture(params=MODELS)
def model(request) -> HFCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HFCausalLM(MODELS[request.param]().eval())


def heads(seed=0, n=6, m=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, size, 8, generator=generator, dtype=dtype) for size in (n, m, m)]


def test_attend_is_torchs_attention():
    q, k, v = heads()
    seen = torch.ones(6, 6).bool().tril()
    out, weights = attend(q, k, v, seen, 0.3, Lens())
    assert torch.allclose(out, F.scaled_dot_product_attention(q, k, v, seen, scale=0.3))
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 6, dtype=torch.float64))
    assert (weights[..., ~seen] == 0).all()


def test_attend_with_what_is_added_and_with_fewer_keys():
    q, k, v = heads()
    k, v = k[:, :2], v[:, :2]
    added = torch.where(torch.ones(6, 6).bool().tril(), 0.0, -math.inf).double() - torch.rand(6, 6).double()
    expected = F.scaled_dot_product_attention(q, k, v, added, enable_gqa=True)
    assert torch.allclose(attend(q, k, v, added, 8**-0.5, Lens())[0], expected)


def test_soft_caps_and_sinks():
    q, k, v = heads()
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    out, weights = attend(q, k, v, None, 1.0, Lens(), softcap=2.0, sinks=sinks)
    scores = (2 * torch.tanh(q @ k.mT / 2)).exp()
    expected = scores / (scores.sum(-1, keepdim=True) + sinks.exp()[None, :, None, None])
    assert torch.allclose(weights, expected)
    assert torch.allclose(out, expected @ v)


def test_frozen_weights_pass_gradients_to_values_alone():
    q, k, v = (x.requires_grad_() for x in heads())
    out, weights = attend(q, k, v, None, 1.0, Lens(frozen=True))
    out.sum().backward()
    assert q.grad is None
    assert k.grad is None
    assert torch.allclose(v.grad, weights.sum(-2)[..., None].expand_as(v))


def test_window():
    q, k, v = heads()
    seen = torch.ones(6, 6).bool().tril()
    near = seen & torch.ones(6, 6).bool().triu(-2)
    expected = F.scaled_dot_product_attention(q, k, v, near, scale=1.0)
    assert torch.allclose(attend(q, k, v, seen, 1.0, Lens(window=3))[0], expected)


def test_log_n_scales_scores_of_queries_that_see_more_than_was_trained():
    q, k, v = heads()
    seen = torch.ones(6, 6).bool().tril()
    _, weights = attend(q, k, v, seen, 1.0, Lens(log_n=4))
    scale = torch.tensor([max(1.0, math.log(i) / math.log(4)) for i in range(1, 7)]).double()
    scores = (q @ k.mT * scale[:, None]).masked_fill(~seen, -math.inf)
    assert torch.allclose(weights, scores.softmax(-1))


def test_adaptive_temperature():
    q, k, v = heads()
    _, plain = attend(q, k, v, None, 1.0, Lens())
    _, sharp = attend(q, k, v, None, 1.0, Lens(adaptive=True))
    entropy = -(plain * plain.log()).sum(-1, keepdim=True)
    beta = -0.037 * entropy**4 + 0.481 * entropy**3 - 2.3 * entropy**2 + 4.917 * entropy - 1.791
    beta = torch.where(entropy > 0.5, beta.clamp(min=1), 1.0)
    assert torch.allclose(sharp, (q @ k.mT * beta).softmax(-1))
    assert (beta > 1).any()


def test_adaptive_beta_is_1_for_certain_rows():
    assert adaptive_beta(torch.tensor([0.0, 0.4, 0.5])).tolist() == [1, 1, 1]


def test_looking_alone_changes_nothing(model):
    ids = random_tokens(12, 0)
    with torch.no_grad():
        expected = model.module(ids).logits
        with model.looking(Lens()):
            found = model.module(ids).logits
        assert torch.equal(model.module(ids).logits, expected)
    assert torch.allclose(found, expected, atol=1e-5)


def test_weights_are_those_that_the_model_itself_tells(model):
    ids = random_tokens(12, 0)
    emb = model.embed(ids)
    found = model.attentions(emb)
    model.module.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model.module(ids, output_attentions=True).attentions
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_padding_gets_no_weight(model):
    ids = random_tokens(10, 0)
    mask = torch.ones(1, 10, dtype=torch.bool)
    mask[:, :3] = False
    for weights in model.attentions(model.embed(ids), mask):
        assert (weights[:, :, 3:, :3] == 0).all()


def test_a_plain_module_through_torchs_attention():
    layer = RandomAttention("nope", width=8, vocabulary=16).eval()
    model = ModuleAdapter(layer, embed=layer.embed)
    x = model.embed(random_tokens(6, 0, 16))
    (weights,) = model.attentions(x)
    q, k, _ = x.chunk(3, -1)
    scores = (q @ k.mT / 8**0.5).masked_fill(~torch.ones(6, 6).bool().tril(), -math.inf)
    assert torch.allclose(weights[:, 0], scores.softmax(-1), atol=1e-6)


def test_attention_that_is_hidden_gives_none():
    model = ModuleAdapter(nn.GRU(4, 4, batch_first=True).eval(), module=nn.Module().eval())
    model._forward = lambda x: x.cumsum(1)
    assert model.attentions(torch.randn(1, 3, 4)) is None


def test_the_implementation_is_put_back_after_an_error():
    model = random_llama(0.1, 0)
    before = model.module.config._attn_implementation
    with pytest.raises(KeyError), model.looking(Lens()):
        raise KeyError
    assert model.module.config._attn_implementation == before


def test_dropout_in_attention_is_refused():
    q, k, v = heads()
    module = nn.Module().eval()
    model = ModuleAdapter(lambda x: F.scaled_dot_product_attention(q, k, v, dropout_p=0.1), module=module)
    with pytest.raises(ValueError, match=r"dropout: call \.eval\(\)"), model.looking(Lens()):
        model._forward(q)


@pytest.mark.parametrize("wrong", [{"window": 0}, {"log_n": 1}])
def test_a_lens_refuses(wrong):
    with pytest.raises(ValueError, match=r"must be at least|at least 2"):
        Lens(**wrong)
