"""A policy that was packed, and read back by plain ``from_pretrained``, is the policy to the last bit."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from extensions.trl.qdpo import export as module_under_test
from extensions.trl.qdpo.activations import quantize_activations
from extensions.trl.qdpo.export import export_packed
from extensions.trl.qdpo.kv_cache import quantize_kv_cache
from extensions.trl.qdpo.layers import quantize_model, quantized_layers
from extensions.trl.qdpo.learned_scales import train_scales_only
from extensions.trl.qdpo.lora import fold_adapters
from extensions.trl.qdpo.quantizers import WeightScheme

pytest.importorskip("compressed_tensors")

SIZE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 43,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def family(name, **settings):
    """A small model of a family, whose logits are far from uniform."""
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, f"{name}ForCausalLM")
    model = model_class(model_class.config_class(**{**SIZE, **settings})).eval()
    for parameter in model.parameters():  # biases and norms too
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def policy(name="Llama", head=False, settings=None, **scheme):
    model = family(name, **(settings or {}))
    quantize_model(model, WeightScheme(**scheme), quantize_lm_head=head)
    # As after training: latent weights are not where the scales were chosen, some beyond the clip range.
    for layer in quantized_layers(model).values():
        layer.latent.data += 0.1 * torch.randn_like(layer.latent)
    return model


def cast(model, dtype):
    """As ``from_pretrained(dtype=...)``, which leaves buffers that are in no file (rotary) in float32."""
    model = copy.deepcopy(model)
    kept = {name: value for name, value in model.named_buffers() if name not in model.state_dict()}
    model.to(dtype)
    for name, value in kept.items():
        model.get_submodule(name.rpartition(".")[0]).register_buffer(name.rpartition(".")[2], value, False)
    return model


def inputs():
    """Two rows, one of them padded on the left."""
    ids = torch.randint(2, 43, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def assert_same(one, other):
    a, b = one(**inputs()).logits, other(**inputs()).logits
    assert a.dtype == b.dtype
    assert torch.equal(a, b)
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(one.generate(**inputs(), **greedy), other.generate(**inputs(), **greedy))


def assert_reloads(model, tiny, folder, dtype, **settings):
    export_packed(model, tiny.tokenizer(), folder, dtype=dtype, **settings)
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert reloaded.dtype == dtype
    assert_same(cast(model, dtype), reloaded)
    return reloaded


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (3, False), (4, True), (5, False), (8, True)])
def test_it_reloads_to_the_last_bit(tiny, tmp_path, dtype, bits, symmetric, group_size):
    model = policy(bits=bits, symmetric=symmetric, group_size=group_size)
    assert_reloads(model, tiny, tmp_path, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Qwen3", {}),
        ("Qwen2", {"tie_word_embeddings": True}),  # and biases
        ("Gemma2", {"tie_word_embeddings": True}),  # logits bounded by a tanh
        ("Gemma3", {"tie_word_embeddings": True, "sliding_window": 4}),
    ],
)
def test_families(tiny, tmp_path, dtype, name, settings):
    model = policy(name, settings=settings, bits=3)
    reloaded = assert_reloads(model, tiny, tmp_path, dtype)
    tied = settings.get("tie_word_embeddings", False)
    assert (reloaded.get_input_embeddings().weight is reloaded.get_output_embeddings().weight) == tied
    assert ("lm_head.weight" not in load_file(tmp_path / "model.safetensors")) == tied


def test_a_quantized_head_is_packed_too(tiny, tmp_path):
    model = policy(head=True, bits=3)
    assert_reloads(model, tiny, tmp_path, torch.bfloat16)
    assert "lm_head.weight_packed" in load_file(tmp_path / "model.safetensors")


def test_what_stays_in_full_precision_is_stored_as_it_is(tiny, tmp_path):
    model = family("Llama")
    quantize_model(model, WeightScheme(bits=3), skip=["layers.0", "v_proj"])
    assert_reloads(model, tiny, tmp_path, torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    packed = {key.removesuffix(".weight_packed") for key in stored if key.endswith("weight_packed")}
    assert packed == set(quantized_layers(model))
    assert len(packed) == 6
    for key, value in model.state_dict().items():
        if key.rpartition(".")[0] not in packed:
            assert torch.equal(stored[key], value)


def test_by_default_it_computes_in_the_type_the_policy_computes_in(tiny, tmp_path):
    model = cast(policy(bits=4), torch.bfloat16)
    export_packed(model, tiny.tokenizer(), tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert reloaded.dtype == torch.bfloat16
    assert_same(model, reloaded)


@pytest.mark.parametrize("scale_dtype", ["float16", "float32"])
def test_scales_of_other_types(tiny, tmp_path, scale_dtype):
    assert_reloads(policy(bits=4, scale_dtype=scale_dtype), tiny, tmp_path, torch.float32)


def test_float16(tiny, tmp_path):
    assert_reloads(policy(bits=4, group_size=16, scale_dtype="float16"), tiny, tmp_path, torch.float16)


def test_it_reloads_to_the_last_bit_after_training(tiny, tmp_path):
    model = policy(bits=3)
    before = load(model, tiny, tmp_path / "before")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(**inputs(), labels=inputs()["input_ids"]).loss.backward()
    optimizer.step()
    after = load(model, tiny, tmp_path / "after")
    assert before.keys() == after.keys()
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert changed == {key for key in after if not key.endswith(("_scale", "_shape"))}
    assert_same(model, AutoModelForCausalLM.from_pretrained(tmp_path / "after"))


def load(model, tiny, folder):
    export_packed(model, tiny.tokenizer(), folder)
    return load_file(folder / "model.safetensors")


def adapted(dtype=torch.float32, fold=True, skip=()):
    """A policy with trained adapters, in float32, and a norm of its own."""
    from peft import LoraConfig, get_peft_model

    model = family("Llama")
    quantize_model(model, WeightScheme(bits=3, group_size=16), skip=skip)
    targets = {"target_modules": ["q_proj", "v_proj", "down_proj"], "modules_to_save": ["norm"]}
    model = get_peft_model(cast(model, dtype), LoraConfig(r=2, **targets)).eval()
    if fold:
        fold_adapters(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
def test_folded_adapters_reload_to_the_last_bit(tiny, tmp_path, dtype):
    model = adapted(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_packed(model, tiny.tokenizer(), tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert reloaded.dtype == dtype
    assert_same(model, reloaded)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with model.disable_adapter():
        assert not torch.equal(model(**inputs()).logits, reloaded(**inputs()).logits)


@torch.no_grad()
def test_adapters_on_layers_in_full_precision_are_merged(tiny, tmp_path):
    model = adapted(skip=["v_proj"])
    export_packed(model, tiny.tokenizer(), tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    # PEFT adds such an adapter to the output, and the file to the weight: equal to rounding.
    assert (model(**inputs()).logits - reloaded(**inputs()).logits).abs().max() < 1e-4


def test_an_adapter_that_is_not_folded_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"q_proj is added to a rounded weight.* fold_adapters\(model\)"):
        export_packed(adapted(fold=False), tiny.tokenizer(), tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_trained_scales_are_packed_as_they_were_used(tiny, tmp_path, dtype):
    model = policy(bits=3, group_size=16)
    for scale in train_scales_only(model):
        scale.data *= 1 + 0.1 * torch.rand_like(scale)  # off the grid of bfloat16
    assert_reloads(model, tiny, tmp_path, dtype)


def test_a_quantized_cache_is_for_the_reloaded_model_to_quantize(tiny, tmp_path):
    model = policy(bits=4)
    quantize_kv_cache(model, 4)
    with pytest.warns(UserWarning, match="weights only: the key-value cache will be in full precision"):
        export_packed(model, tiny.tokenizer(), tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not torch.equal(model(**inputs()).logits, reloaded(**inputs()).logits)
    quantize_kv_cache(reloaded, 4)
    assert_same(model, reloaded)


def test_quantized_activations_are_not_in_the_file(tiny, tmp_path):
    model, same = policy(bits=4), policy(bits=4)
    quantize_activations(model, 4)
    with pytest.warns(UserWarning, match="weights only: activations will be in full precision"):
        export_packed(model, tiny.tokenizer(), tmp_path)
    assert_same(same, AutoModelForCausalLM.from_pretrained(tmp_path))


@pytest.mark.parametrize(("bits", "group_size"), [(2, None), (3, None), (3, 32), (4, 32), (5, 128)])
def test_the_size_is_bits_times_weights_and_scales(tiny, tmp_path, bits, group_size):
    size = {"hidden_size": 384, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 64}
    model = family("Llama", **size)
    layers = quantize_model(model, WeightScheme(bits=bits, group_size=group_size))
    weights = sum(layer.latent.numel() for layer in layers.values())
    scales = sum(layer.weight_scale.numel() for layer in layers.values())
    stored = load(model, tiny, tmp_path)
    rest = sum(value.nbytes for key, value in stored.items() if key.rpartition(".")[0] not in layers)
    on_disk = (tmp_path / "model.safetensors").stat().st_size - rest
    assert on_disk == pytest.approx(bits * weights / 8 + 2 * scales, rel=0.02)


def test_shards(tiny, tmp_path):
    model = policy(bits=4, group_size=16, symmetric=False)
    assert_reloads(model, tiny, tmp_path, torch.float32, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    # A later export in one file leaves none of them behind.
    other = policy(bits=3)
    assert_reloads(other, tiny, tmp_path, torch.float32)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]


def test_the_folder_is_a_checkpoint_like_any_other(tiny, tmp_path):
    model, tokenizer = policy(bits=4), tiny.tokenizer()
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = True
    export_packed(model, tokenizer, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.chat_template
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.temperature == 0.5
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_policy_stays_as_it_is(tiny, tmp_path):
    model = policy(bits=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_packed(model, tiny.tokenizer(), tmp_path, dtype="bfloat16")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(quantized_layers(model)) == 14
    assert getattr(model.config, "quantization_config", None) is None


def test_half_an_export_does_not_look_complete(tiny, tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            raise OSError("No space left on device")

    model = policy(bits=4)
    with pytest.raises(OSError, match="No space left"):
        export_packed(model, Broken(), tmp_path)
    assert not list(tmp_path.iterdir())
    export_packed(model, tiny.tokenizer(), tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match="No space left"):
        export_packed(policy(bits=3), Broken(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_bad_input(tiny, tmp_path, monkeypatch):
    model, tokenizer = policy(bits=4), tiny.tokenizer()
    with pytest.raises(ValueError, match=r"'torchao'\. torchao keeps a byte a weight"):
        export_packed(model, tokenizer, tmp_path, format="torchao")
    with pytest.raises(ValueError, match=r"must be \"compressed-tensors\", not 'gguf'\.$"):
        export_packed(model, tokenizer, tmp_path, format="gguf")
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no quantized layer .* save_pretrained"):
        export_packed(family("Llama"), tokenizer, tmp_path)
    for dtype in ("int8", "bf16", torch.int8):
        with pytest.raises(ValueError, match="must be a floating-point type"):
            export_packed(model, tokenizer, tmp_path, dtype=dtype)
    with pytest.raises(ValueError, match=r'in float32, and torch.bfloat16 does not .* dtype="float32"'):
        export_packed(policy(bits=4, scale_dtype="float32"), tokenizer, tmp_path, dtype="bfloat16")
    monkeypatch.setattr(module_under_test, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install compressed-tensors"):
        export_packed(model, tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_in_full_precision_are_not_overwritten(tiny, tmp_path):
    family("Llama").save_pretrained(tmp_path / "full")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for folder in ("full", "adapter"):
        before = sorted((tmp_path / folder).iterdir())
        with pytest.raises(ValueError, match="directory of its own"):
            export_packed(policy(bits=4), tiny.tokenizer(), tmp_path / folder)
        assert sorted((tmp_path / folder).iterdir()) == before
