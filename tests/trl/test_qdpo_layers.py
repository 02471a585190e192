"""Layers whose weight is low-bit to whoever reads it: casts, copies, files, contexts, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from extensions.trl.qdpo.layers import (
    QuantizedLinear,
    cached_weights,
    full_precision,
    quantize_model,
    quantized_layers,
)
from extensions.trl.qdpo.quantizers import WeightScheme, choose_scales, fake_quantize

IDS = torch.tensor([[3, 8, 30, 41, 6, 11], [5, 9, 7, 20, 2, 1]])


def layer(bias=True, **scheme):
    torch.manual_seed(0)
    return QuantizedLinear.take(nn.Linear(8, 6, bias=bias), WeightScheme(**{"bits": 3, **scheme}))


def policy(tiny, **scheme):
    model = tiny.llama(layers=2).eval()
    quantize_model(model, WeightScheme(**{"bits": 3, **scheme}))
    return model


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def test_whoever_reads_the_weight_reads_low_bits():
    torch.manual_seed(0)
    plain = nn.Linear(8, 6)
    scheme = WeightScheme(bits=3)
    expected = fake_quantize(plain.weight.detach(), *choose_scales(plain.weight.detach(), scheme), scheme)
    made = layer()
    assert torch.equal(made.latent, plain.weight)
    assert torch.equal(made.weight, expected)
    x = torch.randn(4, 8)
    assert torch.equal(made(x), F.linear(x, expected, plain.bias))
    assert [name for name, _ in made.named_parameters()] == ["weight", "bias"]
    assert list(made.state_dict()) == ["weight", "bias", "weight_scale"]
    assert "bits=3, a scale per channel" in repr(made)


def test_the_model_is_the_one_of_rounded_weights(tiny):
    model = policy(tiny)
    plain = tiny.llama(layers=2).eval()
    assert not torch.equal(logits(model), logits(plain))
    for name, module in quantized_layers(model).items():
        plain.get_submodule(name).weight.data = module.weight.detach()
    assert torch.equal(logits(model), logits(plain))
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    assert kinds == {QuantizedLinear, nn.Linear, nn.Embedding}
    assert type(model.lm_head) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_leaves_the_latent_weight_in_full(dtype):
    made = layer(symmetric=False)
    latent, scale, zero = (
        made.latent.detach().clone(),
        made.weight_scale.clone(),
        made.weight_zero_point.clone(),
    )
    weight = made.weight.detach()
    optimizer = torch.optim.SGD(made.parameters(), lr=1.0)
    made.to(dtype)
    assert made.latent.dtype == made.weight_scale.dtype == torch.float32
    assert torch.equal(made.latent, latent)
    assert torch.equal(made.weight_scale, scale)
    assert torch.equal(made.weight_zero_point, zero)
    assert made.weight.dtype == made.bias.dtype == made(torch.ones(1, 8, dtype=dtype)).dtype == dtype
    assert torch.equal(made.weight, weight.to(dtype))
    made(torch.ones(1, 8, dtype=dtype)).sum().backward()
    assert made.latent.grad.dtype == torch.float32
    optimizer.step()
    assert not torch.equal(made.latent, latent)
    made.float()
    assert made.bias.dtype == made.weight.dtype == torch.float32


def test_a_model_made_in_half_precision(tiny):
    model = tiny.llama(layers=2).to(torch.bfloat16)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    quantize_model(model, WeightScheme(bits=3))
    for name, module in quantized_layers(model).items():
        assert module.latent.dtype == torch.float32
        assert torch.equal(module.latent.to(torch.bfloat16), plain[f"{name}.weight"])
        assert module.weight.dtype == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", [{}, {"symmetric": False, "group_size": 4}], ids=str)
def test_a_copy_is_another_model(tiny, scheme):
    model = policy(tiny, **scheme)
    before = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), before)
    for module in quantized_layers(twin).values():
        module.latent.data += 0.1
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(twin), before)
    with full_precision(twin):
        assert all(module.quantizing for module in quantized_layers(model).values())


@pytest.mark.parametrize("scheme", [{}, {"symmetric": False, "group_size": 4}], ids=str)
def test_a_state_dict_round_trip(tiny, scheme):
    model = policy(tiny, **scheme)
    for module in quantized_layers(model).values():
        module.latent.data += 0.05 * torch.randn_like(module.latent)
    other = tiny.llama(layers=2, seed=7).eval()
    quantize_model(other, WeightScheme(**{"bits": 3, **scheme}))
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))
    plain = tiny.llama(layers=2, seed=8).eval()
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    assert {name.rsplit(".", 1)[-1] for name in unexpected} <= {"weight_scale", "weight_zero_point"}
    with full_precision(model):
        assert torch.equal(logits(plain), logits(model))


def test_full_precision_is_the_model_it_was_made_of(tiny):
    model, plain = policy(tiny), tiny.llama(layers=2).eval()
    low = logits(model)
    with full_precision(model):
        assert torch.equal(logits(model), logits(plain))
        with full_precision(model):  # one in another
            pass
        assert torch.equal(logits(model), logits(plain))
    assert torch.equal(logits(model), low)


def test_weights_are_made_once_where_they_are_cached(tiny, monkeypatch):
    model = policy(tiny)
    low, made = logits(model), []
    original = QuantizedLinear.quantized
    monkeypatch.setattr(QuantizedLinear, "quantized", lambda self, x: made.append(self) or original(self, x))
    with cached_weights(model):
        assert len(made) == 14
        assert torch.equal(logits(model), low)
        with full_precision(model):  # the teacher speaks in between
            assert not torch.equal(logits(model), low)
        with cached_weights(model):
            pass
        assert torch.equal(logits(model), low)
        assert len(made) == 14
    logits(model)
    assert len(made) == 28


@pytest.mark.parametrize("context", [full_precision, cached_weights])
def test_contexts_end_with_an_exception(tiny, context):
    model = policy(tiny)
    low = logits(model)
    with pytest.raises(KeyboardInterrupt), context(model):
        raise KeyboardInterrupt
    assert all(module.quantizing and module._cached is None for module in quantized_layers(model).values())
    for module in quantized_layers(model).values():
        module.latent.data += 1.0
    assert not torch.equal(logits(model), low)


def test_a_cast_inside_a_failing_function_keeps_the_bias():
    made = layer()

    def broken(tensor):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        made._apply(broken)
    assert made.bias is not None


def test_the_head_and_what_is_left_out(tiny):
    model = tiny.llama(layers=2)
    found = quantize_model(model, WeightScheme(), skip=["down_proj", "model.layers.0.self_attn"])
    assert not any("down_proj" in name or "layers.0.self_attn" in name for name in found)
    assert len(found) == 14 - 2 - 4
    head = quantize_model(tiny.llama(layers=2), WeightScheme(), quantize_lm_head=True)
    assert "lm_head" in head
    assert len(head) == 15
    assert set(found) == set(quantized_layers(model))


def test_a_part_of_a_name_is_a_whole_word(tiny):
    found = quantize_model(tiny.llama(layers=2), WeightScheme(), skip=["self_attn.q_proj", "layers.1"])
    assert {name.removeprefix("model.layers.0.") for name in found} == {
        *("self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    }
    for part in ("proj", "layer", "q_pro"):
        with pytest.raises(ValueError, match=r"has no such module.*down_proj, gate_proj"):
            quantize_model(tiny.llama(), WeightScheme(), skip=[part])


class Experts(nn.Module):
    """Weights of three dimensions, as mixtures of experts have them."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.gate_up_proj = nn.Parameter(torch.zeros(2, 4, 4))


def test_what_is_refused(tiny):
    scheme = WeightScheme()
    for skip in ([], ["moe"]):
        with pytest.raises(ValueError, match=r"moe keeps the weights of several experts in one.* dense"):
            quantize_model(nn.ModuleDict({"moe": Experts(), "out": nn.Linear(4, 4)}), scheme, skip=skip)
    with pytest.raises(ValueError, match=r"Conv1D.*modules_to_not_quantize=\['c_attn'\]"):
        quantize_model(tiny.gpt2(), scheme)
    with pytest.raises(ValueError, match="LlamaForCausalLM is quantized already"):
        quantize_model(policy(tiny), scheme)
    with pytest.raises(ValueError, match=r"q_proj has 16 inputs, which groups of 5 do not divide"):
        quantize_model(tiny.llama(), WeightScheme(group_size=5))
    with pytest.raises(ValueError, match=r"no linear layer to quantize beside those left out: layers"):
        quantize_model(tiny.llama(), scheme, skip=["layers"])
    with pytest.raises(ValueError, match=r"no linear layer to quantize\.$"):
        quantize_model(nn.ModuleList([nn.LayerNorm(4)]), scheme)
    with pytest.raises(ValueError, match=r"lm_head shares its weight with model.embed_tokens"):
        quantize_model(tiny.llama(tie_word_embeddings=True), scheme, quantize_lm_head=True)
    model = tiny.llama(layers=2)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match="shares its weight with"):
        quantize_model(model, scheme)


def test_what_is_refused_is_left_as_it_was(tiny):
    model = tiny.llama(layers=2)
    before = logits(model.eval())
    with pytest.raises(ValueError, match="do not divide"):
        quantize_model(model, WeightScheme(group_size=5))
    assert not quantized_layers(model)
    assert torch.equal(logits(model), before)


def test_tied_embeddings_stay_in_full(tiny):
    """And the output head with them."""
    model = tiny.llama(layers=2, tie_word_embeddings=True).eval()
    assert len(quantize_model(model, WeightScheme(bits=3))) == 14
    assert model.lm_head.weight is model.model.embed_tokens.weight
    logits(model)
