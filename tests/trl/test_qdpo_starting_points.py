"""Checkpoints of other methods are packed here by their formula, digit by digit, and read by ours."""

import json

import pytest
import torch
from safetensors.torch import save_file

from extensions.trl.qdpo.export import export_packed
from extensions.trl.qdpo.layers import full_precision, quantize_model
from extensions.trl.qdpo.packed_weights import unpack
from extensions.trl.qdpo.quantizers import WeightScheme
from extensions.trl.qdpo.starting_points import load_awq, load_gptq, load_packed


def words(numbers, bits):
    """One long number of ``bits`` binary digits each, the first lowest, cut into words of 32."""
    whole = sum(int(number) << bits * i for i, number in enumerate(numbers))
    assert len(numbers) * bits % 32 == 0
    cut = [whole >> 32 * i & 0xFFFFFFFF for i in range(len(numbers) * bits // 32)]
    return torch.tensor([word - (word >> 31 << 32) for word in cut], dtype=torch.int32)


def packed_rows(numbers, bits):
    return torch.stack([words(row, bits) for row in numbers.tolist()])


def draw(layers, bits, group_size, zero_points=True):
    """Codes (O, I) and zero points (O, G) without a sign, and scales (O, G), for each layer."""
    random = torch.Generator().manual_seed(0)
    drawn = {}
    for name, layer in layers.items():
        outputs, inputs = layer.latent.shape
        groups = inputs // (group_size or inputs)
        codes = torch.randint(2**bits, (outputs, inputs), generator=random)
        zeros = torch.randint(2**bits, (outputs, groups), generator=random)
        if not zero_points:
            zeros = torch.full_like(zeros, 2 ** (bits - 1))
        scales = (torch.rand(outputs, groups, generator=random) * 0.1 + 0.01).half()
        drawn[name] = codes, zeros, scales
    return drawn


def value(codes, zeros, scales):
    """What the packed weight stands for, (O, I) float32."""
    size = codes.shape[1] // scales.shape[1]
    spread = [x.double().repeat_interleave(size, 1) for x in (zeros, scales)]
    return ((codes.double() - spread[0]) * spread[1]).float()


def gptq(drawn, bits, v2=False):
    tensors = {}
    for name, (codes, zeros, scales) in drawn.items():
        qzeros = packed_rows(zeros.T, bits)
        if not v2 and bits == 3:
            qzeros = packed_rows((zeros.T - 1) % 8, bits)
        elif not v2:  # as GPTQModel does, from whole words
            qzeros = qzeros - {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}[bits]
        size = codes.shape[1] // scales.shape[1]
        tensors |= {
            f"{name}.qweight": packed_rows(codes, bits).T.contiguous(),
            f"{name}.qzeros": qzeros,
            f"{name}.scales": scales.T.contiguous(),
            f"{name}.g_idx": torch.tensor([i // size for i in range(codes.shape[1])], dtype=torch.int32),
        }
    return tensors


def awq(drawn):
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {}
    for name, (codes, zeros, scales) in drawn.items():
        shuffled = [
            torch.cat([block[:, order] for block in numbers.T.split(8, 1)], 1) for numbers in (codes, zeros)
        ]
        tensors |= {
            f"{name}.qweight": packed_rows(shuffled[0], 4),
            f"{name}.qzeros": packed_rows(shuffled[1], 4),
            f"{name}.scales": scales.T.contiguous(),
        }
    return tensors


def others(model, layers):
    """Norms and embeddings of a checkpoint, in half precision."""
    random = torch.Generator().manual_seed(1)
    skip = {f"{name}.{part}" for name in layers for part in ("weight", "weight_scale", "weight_zero_point")}
    return {
        key: torch.randn(old.shape, generator=random).half()
        for key, old in model.state_dict().items()
        if key not in skip
    }


def write(folder, tensors, settings, file="config.json"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / file).write_text(
        json.dumps({"quantization_config": settings} if file == "config.json" else settings)
    )
    return folder


def policy(tiny, bits=4, group_size=None, symmetric=False, scale_dtype="float16", **settings):
    settings = {"num_key_value_heads": 2, **settings}  # GPTQ packs 32 outputs at a time
    model = tiny.llama(layers=1, width=32, **settings)
    scheme = WeightScheme(bits, group_size, symmetric, scale_dtype=scale_dtype)
    return model, quantize_model(model, scheme)


GPTQ = {"quant_method": "gptq", "group_size": 16, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}


def assert_holds(model, layers, drawn, rest):
    for name, layer in layers.items():
        assert torch.equal(layer.weight, value(*drawn[name]))
    for key, expected in rest.items():
        assert torch.equal(model.state_dict()[key], expected.float())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("v2", [False, True])
def test_gptq(tiny, tmp_path, bits, group_size, v2):
    model, layers = policy(tiny, bits, group_size)
    drawn, rest = draw(layers, bits, group_size), others(model, layers)
    settings = {**GPTQ, "bits": bits, "checkpoint_format": "gptq_v2" if v2 else "gptq"}
    load_gptq(model, write(tmp_path, gptq(drawn, bits, v2) | rest, settings))
    assert_holds(model, layers, drawn, rest)


@pytest.mark.parametrize("group_size", [None, 16])
def test_awq(tiny, tmp_path, group_size):
    model, layers = policy(tiny, 4, group_size)
    drawn, rest = draw(layers, 4, group_size), others(model, layers)
    load_awq(model, write(tmp_path, awq(drawn) | rest, AWQ))
    assert_holds(model, layers, drawn, rest)
    with full_precision(model):  # the inputs of its layers are scaled: nothing of the old weights fits
        assert_holds(model, layers, drawn, rest)


@pytest.mark.parametrize(("symmetric", "group_size"), [(True, None), (False, 16)])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_packed(tiny, tmp_path, bits, group_size, symmetric):
    pytest.importorskip("compressed_tensors")
    policies = [policy(tiny, bits, group_size, symmetric, "bfloat16", seed=seed) for seed in (0, 1)]
    (model, layers), (other, other_layers) = policies
    export_packed(other, tiny.tokenizer(), tmp_path)
    load_packed(model, tmp_path)
    for name, layer in layers.items():
        assert torch.equal(layer.weight, other_layers[name].weight)
    assert torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_symmetric_gptq_fits_a_symmetric_policy(tiny, tmp_path):
    model, layers = policy(tiny, 4, 16, symmetric=True)
    drawn, rest = draw(layers, 4, 16, zero_points=False), others(model, layers)
    load_gptq(model, write(tmp_path, gptq(drawn, 4) | rest, {**GPTQ, "bits": 4}))
    assert_holds(model, layers, drawn, rest)


def test_words_of_three_bits_as_they_are_written():
    # The eleventh code has two bits in the first word and one in the second, the twenty-second one and two.
    codes = torch.zeros(32, dtype=torch.int64)
    codes[10], codes[21] = 0b101, 0b011
    stored = torch.tensor([0b01 << 30, 0b1 | (0b1 << 31), 0b01], dtype=torch.int64)
    stored = torch.where(stored >= 2**31, stored - 2**32, stored).to(torch.int32)
    assert torch.equal(unpack(stored, 3), codes)


def test_full_precision_is_kept_as_far_as_it_rounds_to_the_codes(tiny, tmp_path):
    model, layers = policy(tiny, 3, 16)
    before = {name: layer.latent.detach().clone() for name, layer in layers.items()}
    drawn = draw(layers, 3, 16)
    load_gptq(model, write(tmp_path, gptq(drawn, 3) | others(model, layers), {**GPTQ, "bits": 3}))
    kept = 0
    for name, layer in layers.items():
        codes, _, scales = drawn[name]
        centre, half = value(*drawn[name]), 0.5 * scales.float().repeat_interleave(16, 1)
        low = torch.where(codes == 0, -torch.inf, centre - half)
        high = torch.where(codes == 7, torch.inf, centre + half)
        nearest = before[name].clamp(low, high)
        assert ((layer.latent - nearest).abs() <= 1e-3 * half).all()
        inside = (before[name] - centre).abs() < 0.99 * half
        assert torch.equal(layer.latent[inside], before[name][inside])
        kept += inside.sum()
    assert kept > 100


def test_a_loaded_policy_is_exported_and_reloads(tiny, tmp_path):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    model, layers = policy(tiny, 4, 16)
    drawn = draw(layers, 4, 16)
    load_awq(model, write(tmp_path / "awq", awq(drawn) | others(model, layers), AWQ))
    export_packed(model, tiny.tokenizer(), tmp_path / "packed")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(model.eval()(ids).logits, reloaded.eval()(ids).logits)


def test_a_loaded_policy_is_trained_with_a_teacher_of_its_own(tiny, tmp_path):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    from extensions.trl import QDPOConfig, QDPOTrainer

    model, layers = policy(tiny, 4, 16)
    drawn = draw(layers, 4, 16)
    load_gptq(model, write(tmp_path / "gptq", gptq(drawn, 4) | others(model, layers), {**GPTQ, "bits": 4}))
    settings = tiny.settings(tmp_path / "out", max_new_tokens=6)
    del settings["max_completion_length"]
    scheme = {"bits": 4, "group_size": 16, "symmetric": False, "scale_dtype": "float16"}
    trainer = QDPOTrainer(
        model,
        args=QDPOConfig(**scheme, **settings),
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
        teacher_model=tiny.llama(layers=1, width=32, num_key_value_heads=2),
    )
    trainer.train()
    assert any((layer.weight != value(*drawn[name])).any() for name, layer in layers.items())
    for name, layer in layers.items():
        assert torch.equal(layer.scale, drawn[name][2].float())
    trainer.export_packed(tmp_path / "packed")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(model.eval()(ids).logits, reloaded.eval()(ids).logits)


def test_settings_and_names_of_older_writers(tiny, tmp_path):
    model, layers = policy(tiny, 4, 16, tie_word_embeddings=True)
    drawn, rest = draw(layers, 4, 16), others(model, layers)
    rest.pop("lm_head.weight")  # tied: stored once
    idle = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.o_proj.bias": torch.zeros(32),
    }
    settings = {"bits": 4, "group_size": 16, "desc_act": False}
    load_gptq(model, write(tmp_path / "1", gptq(drawn, 4) | rest | idle, settings, "quantize_config.json"))
    assert_holds(model, layers, drawn, rest)
    settings = {"w_bit": 4, "q_group_size": 16, "zero_point": True, "version": "GEMM"}
    load_awq(model, write(tmp_path / "2", awq(drawn) | rest | idle, settings, "quant_config.json"))
    assert_holds(model, layers, drawn, rest)


def test_a_policy_in_half_precision_keeps_its_latent_weights_in_full(tiny, tmp_path):
    model, layers = policy(tiny, 4, 16)
    model.to(torch.bfloat16)
    drawn, rest = draw(layers, 4, 16), others(model, layers)
    load_gptq(model, write(tmp_path, gptq(drawn, 4) | rest, {**GPTQ, "bits": 4}))
    for name, layer in layers.items():
        assert layer.latent.dtype == torch.float32
        assert torch.equal(layer.weight, value(*drawn[name]).bfloat16())
    assert model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("scheme", "change", "message"),
    [
        ({"bits": 3}, {}, r"q_proj .* has 4 bits, and the model 3: quantize it with bits=4"),
        ({"group_size": None}, {}, "quantize the model with group_size=16"),
        ({"symmetric": True}, {}, "symmetric=False"),
        ({"scale_dtype": "bfloat16"}, {}, r"do not fit into bfloat16: .* scale_dtype='float16'"),
        ({}, {"bits": 5}, "Only 2, 3, 4 and 8 bits"),
        ({}, {"checkpoint_format": "marlin"}, "layout 'marlin'"),
        (
            {},
            {"quant_method": "awq"},
            r"no gptq checkpoint, its quantization is awq. Read it by load_awq\(\)",
        ),
        ({}, {"quant_method": "fp8"}, "its quantization is fp8.$"),
    ],
)
def test_what_does_not_fit(tiny, tmp_path, scheme, change, message):
    model, layers = policy(tiny, **{"group_size": 16, **scheme})
    before = tiny.weights(model)
    drawn = draw(layers, 4, 16)
    folder = write(tmp_path, gptq(drawn, 4) | others(model, layers), {**GPTQ, "bits": 4, **change})
    with pytest.raises(ValueError, match=message):
        load_gptq(model, folder)
    assert not tiny.moved(before, tiny.weights(model))


def test_files_that_do_not_fit(tiny, tmp_path):
    model, layers = policy(tiny, group_size=16)
    before = tiny.weights(model)
    good = gptq(draw(layers, 4, 16), 4) | others(model, layers)
    layer = "model.layers.0.self_attn.o_proj"

    def refused(message, tensors, remove=()):
        tensors = {key: tensor for key, tensor in (good | tensors).items() if key not in remove}
        folder = write(tmp_path / str(len(list(tmp_path.iterdir()))), tensors, {**GPTQ, "bits": 4})
        with pytest.raises(ValueError, match=message):
            load_gptq(model, folder)
        assert not tiny.moved(before, tiny.weights(model))

    by_activation = good[f"{layer}.g_idx"].flip(0).contiguous()
    refused(f"{layer} .* desc_act=False", {f"{layer}.g_idx": by_activation})
    refused("Only in the model: model.layers.0.self_attn.o_proj", {}, [f"{layer}.qweight"])
    refused("only in the checkpoint: lm_head", {"lm_head.qweight": good[f"{layer}.qweight"].clone()})
    refused(f"has no 'scales' of {layer}", {}, [f"{layer}.scales"])
    refused("lacks: model.norm.weight", {}, ["model.norm.weight"])
    refused("it alone has: model.layers.1.bias", {"model.layers.1.bias": torch.ones(2)})
    refused("of other shapes: model.norm.weight", {"model.norm.weight": torch.ones(2)})
    wide = {f"{layer}.qweight": torch.zeros(8, 32, dtype=torch.int32)}
    refused(f"{layer} .* is .32, 64., and the model's .32, 32.", wide, [f"{layer}.g_idx"])


def test_other_folders_and_models(tiny, tmp_path):
    model, layers = policy(tiny)
    with pytest.raises(ValueError, match="no awq checkpoint, its quantization is None"):
        load_awq(model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": AWQ}))
    with pytest.raises(ValueError, match="holds no safetensors"):
        load_awq(model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {**AWQ, "version": "gemv"}}))
    with pytest.raises(ValueError, match=r"in the layout 'gemv'\. Only 4 bits in the layout 'gemm'"):
        load_awq(model, tmp_path)
    folder = write(tmp_path / "whole", gptq(draw(layers, 4, None), 4), {**GPTQ, "bits": 4})
    with pytest.raises(ValueError, match=r"call quantize_model\(\) on it first"):
        load_gptq(tiny.llama(width=32), folder)
