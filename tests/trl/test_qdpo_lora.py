"""Adapters on quantized layers act before the rounding, and stay trainable, mergeable and removable."""

import copy

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("trl")

import torch.nn.functional as F  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402

from extensions.trl.qdpo.layers import (  # noqa: E402
    cached_weights,
    full_precision,
    quantize_model,
    quantized_layers,
)
from extensions.trl.qdpo.lora import LoraQuantizedLinear, fold_adapters  # noqa: E402
from extensions.trl.qdpo.quantizers import WeightScheme, fake_quantize  # noqa: E402

IDS = torch.tensor([[3, 8, 30, 41, 6, 11], [5, 9, 7, 20, 2, 1]])
TARGETS = ["q_proj", "down_proj"]


def adapted(tiny, scheme=None, seed=0, dtype=torch.float64, fold=True, **settings):
    """A quantized model under an adapter that is not zero."""
    model = tiny.llama(layers=2).to(dtype).eval()
    quantize_model(model, scheme or WeightScheme(bits=3))
    config = LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": TARGETS, **settings})
    model = get_peft_model(model, config)
    if fold:
        assert len(fold_adapters(model)) == 4
    fill(model, seed)
    return model


def fill(model, seed, adapter="default"):
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if "lora_" in name and f".{adapter}." in name:
            value.data = torch.randn(value.shape, generator=generator).to(value.dtype) * 0.2


def layer_of(model) -> LoraQuantizedLinear:
    return next(m for m in model.modules() if isinstance(m, LoraQuantizedLinear))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def by_hand(layer, *adapters):
    """Q(W + sum s B A), with s = alpha / r = 3."""
    base = layer.get_base_layer()
    latent = base.latent.detach()
    for name in adapters:
        latent = latent + 3 * layer.lora_B[name].weight.detach() @ layer.lora_A[name].weight.detach()
    return fake_quantize(latent, base.weight_scale, base.weight_zero_point, base.scheme)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 4])
def test_the_adapter_is_in_the_weight_that_is_rounded(tiny, symmetric, group_size):
    model = adapted(tiny, WeightScheme(bits=3, symmetric=symmetric, group_size=group_size))
    layer = layer_of(model)
    expected = by_hand(layer, "default")
    assert torch.equal(layer.weight, expected)  # what TRL and exporters read
    x = torch.randn(3, 16, dtype=torch.float64)
    assert torch.equal(layer(x), F.linear(x, expected))
    assert not torch.equal(expected, by_hand(layer))
    on_grid = (
        expected.unflatten(1, (-1, group_size or 16)) / layer.base_layer.weight_scale[..., None]
    ).round(decimals=9)
    assert torch.equal(on_grid, on_grid.round())


def test_peft_alone_is_not_a_low_bit_model(tiny):
    """What folding is for: without it there are more values in a row than 3 bits have."""
    folded, unfolded = adapted(tiny), adapted(tiny, fold=False)
    assert (logits(folded) - logits(unfolded)).abs().max() > 1e-3
    probe = torch.eye(16, dtype=torch.float64)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    rows = [model.get_submodule(name)(probe).T for model in (folded, unfolded)]
    assert [max(len(row.unique()) for row in matrix) for matrix in rows] == [8, 16]


def test_gradients_are_those_of_the_straight_through_estimator(tiny):
    """dA = s B^T G, dB = s G A^T, with G = g^T x where W + s B A is inside the clip range and 0 elsewhere."""
    model = adapted(tiny, WeightScheme(bits=2, clip="mse"))
    layer = layer_of(model)
    base = layer.base_layer
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x, g = torch.randn(5, 16, dtype=torch.float64), torch.randn(5, 16, dtype=torch.float64)
    (layer(x) * g).sum().backward()
    position = (base.latent + 3 * b @ a) / base.weight_scale
    inside = (position > -2.5) & (position < 1.5)
    assert 0.05 < (~inside).double().mean() < 0.6  # the adapter has moved weights beyond the clip
    upstream = torch.where(inside, g.T @ x, 0)
    torch.testing.assert_close(a.grad, 3 * b.T @ upstream)
    torch.testing.assert_close(b.grad, 3 * upstream @ a.T)
    assert base.latent.grad is None
    assert not base.latent.requires_grad


def test_without_adapters_it_is_the_quantized_base(tiny):
    plain = tiny.llama(layers=2).double().eval()
    quantize_model(plain, WeightScheme(bits=3))
    model = adapted(tiny)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(plain))
    assert not torch.equal(logits(model), logits(plain))
    assert torch.equal(logits(model.unload()), logits(plain))


def test_several_adapters(tiny):
    model = adapted(tiny)
    model.add_adapter("other", LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS))
    fill(model, 1, "other")
    layer = layer_of(model)
    assert torch.equal(layer.weight, by_hand(layer, "default"))
    model.set_adapter("other")
    assert torch.equal(layer.weight, by_hand(layer, "other"))
    model.base_model.set_adapter(["default", "other"])
    assert torch.equal(layer.weight, by_hand(layer, "default", "other"))


def test_an_adapter_on_more_layers_is_folded_by_another_call(tiny):
    model = adapted(tiny)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"]))
    assert len(fold_adapters(model)) == 6
    assert len(fold_adapters(model)) == 6


def test_rslora(tiny):
    model = adapted(tiny, use_rslora=True, r=4, lora_alpha=6)  # alpha / sqrt(r) = 3
    layer = layer_of(model)
    assert torch.equal(layer.weight, by_hand(layer, "default"))


@pytest.mark.parametrize("safe", [False, True])
def test_merging_changes_no_bit(tiny, safe):
    model = adapted(tiny, dtype=torch.float32)
    before = logits(model)
    latent = layer_of(model).base_layer.latent.detach().clone()
    merged = model.merge_and_unload(safe_merge=safe)
    layers = quantized_layers(merged)
    assert len(layers) == 14  # every linear layer of two blocks
    assert not any(isinstance(m, LoraQuantizedLinear) for m in merged.modules())
    assert torch.equal(logits(merged), before)
    now = next(iter(layers.values())).latent
    assert not torch.equal(now, latent)
    assert now.dtype == torch.float32
    again = tiny.llama(layers=2).eval()
    quantize_model(again, WeightScheme(bits=3))
    again.load_state_dict(merged.state_dict())
    assert torch.equal(logits(again), before)


def test_merged_for_a_while(tiny):
    model = adapted(tiny)
    before, latent = logits(model), layer_of(model).base_layer.latent.detach().clone()
    model.merge_adapter()
    assert torch.equal(logits(model), before)
    model.unmerge_adapter()
    torch.testing.assert_close(layer_of(model).base_layer.latent.detach(), latent, rtol=0, atol=1e-15)
    assert torch.equal(logits(model), before)
    model.merge_adapter()
    with model.disable_adapter():  # PEFT's way: it unmerges
        assert torch.equal(layer_of(model).weight, by_hand(layer_of(model)))


def test_a_broken_adapter_is_not_merged_safely(tiny):
    model = adapted(tiny)
    layer_of(model).lora_A["default"].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'default' merged into it is not finite"):
        model.merge_and_unload(safe_merge=True)


def test_gradients_reach_adapters_after_generation(tiny):
    """After eval mode, no_grad, cached weights and full precision: the gradient is what it was before."""
    model = adapted(tiny, dtype=torch.float32)

    def gradients():
        model.train().zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    assert len(before) == 8
    assert all("lora_" in name and grad.abs().max() > 0 for name, grad in before.items())
    model.eval()
    with torch.no_grad(), cached_weights(model):
        assert layer_of(model).weight is layer_of(model).weight
        model.generate(IDS, max_new_tokens=3, do_sample=False)
    with full_precision(model):
        logits(model)
    after = gradients()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_cached_weights_follow_the_adapters(tiny):
    model = adapted(tiny)
    low = logits(model)
    with model.disable_adapter():
        base = logits(model)
    with cached_weights(model):
        assert torch.equal(logits(model), low)
        with model.disable_adapter():
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), low)
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS))
    fill(model, 1, "other")
    with cached_weights(model):
        model.set_adapter("other")
        assert torch.equal(layer_of(model).weight, by_hand(layer_of(model), "other"))
    model.set_adapter("default")
    with full_precision(model):
        weight = layer_of(model).weight
        a, b = (getattr(layer_of(model), f"lora_{m}")["default"].weight for m in "AB")
        assert torch.equal(weight, layer_of(model).base_layer.latent + b @ a * 3)


def test_a_copy_has_adapters_of_its_own(tiny):
    model = adapted(tiny)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied), logits(model))
    before = logits(model)
    fill(copied, 5)
    assert not torch.equal(logits(copied), before)
    assert torch.equal(logits(model), before)


def test_autocast_does_not_round_what_is_added(tiny):
    """In training under bf16 autocast the weight is that of the merged and exported model."""
    model = adapted(tiny, dtype=torch.float32)
    weight = layer_of(model).weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer_of(model).weight, weight)


def test_a_saved_adapter_comes_back(tiny, tmp_path):
    model = adapted(tiny, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    base = tiny.llama(layers=2).eval()
    quantize_model(base, WeightScheme(bits=3))
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    fold_adapters(loaded)
    assert torch.equal(logits(loaded), logits(model))


def test_layers_in_full_precision_keep_pefts_adapter(tiny):
    model = tiny.llama().eval()
    quantize_model(model, WeightScheme(bits=3), skip=["q_proj"])
    model = get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS))
    assert [name.rsplit(".", 1)[-1] for name in fold_adapters(model)] == ["down_proj"]
    q_proj = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert type(q_proj) is peft.tuners.lora.Linear


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_dropout": 0.1}, "drops inputs out.*Set lora_dropout=0"),
        ({"use_dora": True}, "it is Dora. Take plain LoRA or use_rslora=True"),
        ({"init_lora_weights": "pissa"}, "rewrites the weight it starts from"),
        ({"init_lora_weights": "olora"}, "rewrites the weight it starts from"),
        ({"target_modules": ["q_proj", "lm_head"]}, "Remove 'lm_head' from target_modules"),
        ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, "without target_parameters"),
    ],
)
def test_what_cannot_be_folded(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        adapted(tiny, dtype=torch.float32, **settings)


def test_other_tuners_are_refused(tiny):
    model = tiny.llama()
    quantize_model(model, WeightScheme(bits=3))
    model = get_peft_model(model, peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    with pytest.raises(ValueError, match="only LoRA can be folded"):
        fold_adapters(model)


def test_a_bias_is_refused(tiny):
    model = tiny.qwen3(attention_bias=True)
    quantize_model(model, WeightScheme(bits=3))
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], lora_bias=True))
    with pytest.raises(ValueError, match=r"has a bias\. Set lora_bias=False"):
        fold_adapters(model)


def test_a_second_adapter_is_checked_as_well(tiny):
    model = adapted(tiny)
    with pytest.raises(ValueError, match=r"'other' cannot be folded.*Set lora_dropout=0"):
        model.add_adapter("other", LoraConfig(target_modules=TARGETS, lora_dropout=0.5))


def test_a_batch_of_mixed_adapters_is_refused(tiny):
    model = adapted(tiny).eval()
    with pytest.raises(ValueError, match="one weight for the whole batch"):
        model(IDS, adapter_names=["default", "__base__"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dpo_starts_at_ln_2_from_the_quantized_base(tiny, tmp_path, checkpointing):
    """TRL's reference is the model with adapters disabled, Q(W): the policy before its first update."""
    from trl import DPOConfig, DPOTrainer

    model = tiny.llama()
    quantize_model(model, WeightScheme(bits=3))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS))
    fold_adapters(model)
    settings = tiny.settings(tmp_path, max_steps=3, gradient_checkpointing=checkpointing)
    del settings["max_completion_length"]  # which DPOConfig does not have
    rows = tiny.prompts(8, ("prompt", "chosen", "rejected"))
    trainer = DPOTrainer(
        model=model, args=DPOConfig(**settings), train_dataset=rows, processing_class=tiny.tokenizer()
    )
    base = trainer.model.get_base_model()
    with trainer.model.disable_adapter():
        reference = logits(base)
    latents = {name: layer.latent.detach().clone() for name, layer in quantized_layers(base).items()}
    before = tiny.weights(model)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(0.693147, abs=2e-6)
    assert losses[-1] < losses[0]
    moved = tiny.moved(before, tiny.weights(model))
    assert len(moved) == 4
    assert all(".default." in name for name in moved)
    with trainer.model.disable_adapter():
        assert torch.equal(logits(base), reference)
    assert all(torch.equal(layer.latent, latents[name]) for name, layer in quantized_layers(base).items())


def test_what_is_exported_is_the_adapted_model(tiny, tmp_path):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    from extensions.trl.qdpo.export import export_packed

    model = adapted(tiny, dtype=torch.float32).eval()
    export_packed(model, tiny.tokenizer(), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
