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


def lens_of_all():
    return Lens(frozen=True, adaptive=True, window=4, log_n=3, float32=True)


def test_several_lenses_are_one():
    seen = []
    inner = Lens(window=6, log_n=8, record=lambda w: seen.append("inner"))
    both = inner.behind(Lens(adaptive=True, window=4, log_n=3, record=lambda w: seen.append("outer")))
    assert (both.frozen, both.adaptive, both.float32) == (False, True, False)
    assert (both.window, both.log_n) == (4, 8)
    both.record(torch.zeros(1))
    assert seen == ["inner", "outer"]
    assert Lens().behind(lens_of_all()) == lens_of_all().behind(Lens()) == lens_of_all()


LENSES = {
    "plain": Lens(),
    "adaptive": Lens(adaptive=True),
    "window": Lens(window=4),
    "log_n": Lens(log_n=3),
    "float32": Lens(float32=True),
    "all": lens_of_all(),
}


@pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_in_front_changes_nothing(lens, dtype):
    model, ids = random_llama(0.2, 0, width=32, layers=2), random_tokens(12, 0)
    pad = torch.zeros(1, 5, dtype=torch.long)
    batch = {
        "input_ids": torch.cat((pad, ids), 1),
        "attention_mask": torch.cat((pad, torch.ones_like(ids)), 1),
    }
    weights = []
    with torch.no_grad(), model.running_in(dtype), model.looking(lens):
        expected, found = (
            model.states(model.cast(model.embed(x), dtype), model.mask(x), [-1])[0] for x in (ids, batch)
        )
        with model.looking(Lens(record=weights.append)):
            model.states(model.cast(model.embed(batch), dtype), model.mask(batch), [-1])
    assert torch.allclose(found[:, 5:], expected, atol=1e-5 if dtype == "float32" else 0.1)
    for w in weights:
        assert (w[:, :, :5] == 0).all()  # a query of padding sees no key
        assert torch.allclose(w[:, :, 5:].sum(-1).float(), torch.ones(()), atol=1e-2)


@pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)
def test_a_query_that_sees_no_key_gets_nothing(lens):
    q, k, v = (x.float().requires_grad_() for x in heads())
    seen = torch.ones(6, 6).bool().tril()
    seen[:2] = False
    for mask in (seen, torch.where(seen, 0.0, torch.finfo(torch.float32).min)):
        out, weights = attend(q, k, v, mask, 1.0, lens)
        assert (weights[:, :, :2] == 0).all()
        assert torch.allclose(weights[:, :, 2:].sum(-1), torch.ones(()))
        for gradient in torch.autograd.grad(out.sum(), (q, k, v), allow_unused=True):
            assert gradient is None or gradient.isfinite().all()
    out, _ = attend(q, k, v, seen, 1.0, Lens())
    assert torch.allclose(out, F.scaled_dot_product_attention(q, k, v, seen, scale=1.0), atol=1e-6)


def test_a_bias_of_positions_is_sharpened_with_the_scores():
    q, k, v = heads()
    seen = torch.ones(6, 6).bool().tril()
    bias = -torch.arange(6).double().expand(6, 6)
    _, weights = attend(q, k, v, torch.where(seen, bias, -math.inf), 1.0, Lens(adaptive=True))
    scores = q @ k.mT + bias
    p = scores.masked_fill(~seen, -math.inf).softmax(-1)
    beta = adaptive_beta(torch.special.entr(p).sum(-1, keepdim=True))
    assert torch.allclose(weights, (scores * beta).masked_fill(~seen, -math.inf).softmax(-1))


def hidden_models():
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        FalconConfig,
        FalconForCausalLM,
        GPTJConfig,
        GPTJForCausalLM,
        GPTNeoConfig,
        GPTNeoForCausalLM,
        MptConfig,
        MptForCausalLM,
    )

    return {
        "gptj": lambda: GPTJForCausalLM(
            GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, **IDS)
        ),
        "gpt neo": lambda: GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=64, hidden_size=32, num_layers=2, num_heads=4,
                attention_types=[[["global", "local"], 1]], window_size=8, **IDS,
            )
        ),
        "bloom": lambda: BloomForCausalLM(
            BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, **IDS)
        ),
        "falcon": lambda: FalconForCausalLM(
            FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **IDS)
        ),
        "mpt": lambda: MptForCausalLM(MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, **IDS)),
    }  # fmt: skip


@pytest.mark.parametrize("name", hidden_models())
def test_models_that_take_no_other_attention_are_measured_without_their_weights(name):
    from extensions.glasses import sensitivity_profile

    torch.manual_seed(0)
    model = HFCausalLM(hidden_models()[name]().eval())
    ids = random_tokens(10, 0)
    before = str(model.module.config)
    assert model.attentions(model.embed(ids)) is None
    found = sensitivity_profile(model, ids, mode="exact")
    emb = model.embed(ids).detach()
    jacobian = torch.autograd.functional.jacobian(lambda x: model.states(x, layers=[-1])[0][0, -1], emb)
    assert torch.allclose(found.fro, jacobian.norm(dim=(0, 3)), rtol=1e-4)
    with pytest.raises(ValueError, match="takes no other attention than its own"):
        sensitivity_profile(model, ids, attention="frozen")
    assert str(model.module.config) == before


def test_a_refusal_leaves_no_trace():
    torch.manual_seed(0)
    model = HFCausalLM(hidden_models()["mpt"]().eval())
    configs = (model.module.config, model.module.config.attn_config)
    before = [config._attn_implementation for config in configs]
    with pytest.raises(ValueError, match="takes no other attention"), model.looking(Lens()):
        pass
    assert [config._attn_implementation for config in configs] == before
