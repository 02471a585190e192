"""A part of a bfloat16 model in float32, against copies of that part."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from extensions.glasses import DecisionTransformerAdapter, HFCausalLM, ModuleAdapter
from extensions.glasses.remedies import upcast


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=42, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    ).eval()


@pytest.fixture(params=["llama", "gpt2"])
def low(request, make_llama, tmp_path):
    """A model loaded in bfloat16, and the same in float32."""
    module = make_llama(42) if request.param == "llama" else gpt2()
    module.save_pretrained(tmp_path)
    loaded = type(module).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    return HFCausalLM(loaded), HFCausalLM(module)


IDS = torch.randint(42, (2, 12), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, dtype=None):
    emb = model.embed(IDS)
    if dtype is None:
        return model.readout(model.states(emb)[-1])
    with model.running_in(dtype):
        return model.readout(model.states(model.cast(model.embed(IDS), dtype))[-1])


@torch.no_grad()
def last_part_in_float32(model):
    """From the last layer's inputs in bfloat16, by copies of it and of all behind it in float32."""
    seen = {}
    hook = model.blocks[-1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    model.states(model.embed(IDS))
    hook.remove()
    state = deepcopy(model.blocks[-1]).float()(*wide(seen["args"]), **wide(seen["kwargs"]))
    state = state[0] if isinstance(state, tuple) else state
    norm = model.backbone.norm if hasattr(model.backbone, "norm") else model.backbone.ln_f
    return deepcopy(model.module.lm_head).float()(deepcopy(norm).float()(state))


def wide(x):
    if isinstance(x, dict):
        return {key: wide(value) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(wide(value) for value in x)
    return x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def test_last_is_the_last_layer_and_all_behind_it_in_float32(low):
    model, _ = low
    plain = logits(model)
    with upcast(model):
        found = logits(model)
    assert plain.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, last_part_in_float32(model), atol=1e-5, rtol=1e-5)
    assert (found - plain.float()).abs().max() > 1e-3
    assert torch.equal(logits(model), plain)  # and the model is as it was
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}


def test_a_float32_model_run_in_bfloat16_is_upcast_as_one_that_was_loaded_in_it(low):
    model, in_float32 = low
    with upcast(model):
        expected = logits(model)
    with upcast(in_float32):
        found = logits(in_float32, "bfloat16")
        unchanged = logits(in_float32)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(unchanged, logits(in_float32))


class Attention(nn.Module):
    def forward(self, x):
        q, k, v = x[:, None].unflatten(-1, (3, -1)).unbind(-2)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]


def test_attention_rounds_its_result_alone():
    layer = Attention().eval()
    x = (torch.randn(2, 40, 24, generator=torch.Generator().manual_seed(0)) * 2).to(torch.bfloat16)
    with upcast(ModuleAdapter(layer, blocks=[layer]), "attention"):
        found = layer(x)
    q, k, v = x.double().unflatten(-1, (3, -1)).unbind(-2)
    scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
    exact = scores.softmax(-1) @ v
    assert found.dtype == torch.bfloat16
    half_a_spacing = exact.abs() * 2**-8 * 1.001 + 1e-6
    assert ((found.double() - exact).abs() <= half_a_spacing).all()


def test_attention_in_a_language_model(low):
    model, _ = low
    with torch.no_grad(), upcast(model, "attention"):
        weights = model.attentions(model.embed(IDS))
        found = logits(model)
    assert found.dtype == torch.bfloat16
    assert len(weights) == 2
    assert not torch.equal(found, logits(model))


@torch.no_grad()
def test_a_decision_transformer_in_bfloat16():
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    config = DecisionTransformerConfig(
        state_dim=3, act_dim=2, hidden_size=32, n_layer=2, n_head=2, max_ep_len=50
    )
    model = DecisionTransformerAdapter(DecisionTransformerModel(config).eval().to(torch.bfloat16))
    emb = torch.randn(2, 12, 32).to(torch.bfloat16)
    with upcast(model):
        assert model.readout(model.states(emb)[-1]).dtype == torch.float32


def test_bad_input(llama):
    with pytest.raises(ValueError, match='layers must be "last" or "attention"'):
        upcast(llama, "first")
    with pytest.raises(ValueError, match="layers are not known"):
        upcast(ModuleAdapter(nn.Linear(2, 2)))
