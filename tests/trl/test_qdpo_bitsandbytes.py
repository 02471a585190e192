"""QLoRA on 4-bit bitsandbytes keeps its gradients after a generation, on the CPUs where it loses them."""

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("trl")
bitsandbytes = pytest.importorskip("bitsandbytes")

from bitsandbytes.functional import dequantize_4bit, has_avx512bf16  # noqa: E402
from torch import nn  # noqa: E402

from extensions.trl.qdpo.bitsandbytes_cpu import keep_trainable  # noqa: E402

IDS = torch.tensor([[3, 8, 30, 41, 6, 11], [5, 9, 7, 20, 2, 1]])

if not has_avx512bf16():
    pytest.skip("this CPU has no AVX512-BF16: bitsandbytes leaves weights alone", allow_module_level=True)


def qlora(tiny):
    model = tiny.llama(layers=2, width=128, num_attention_heads=4, num_key_value_heads=4)
    model.requires_grad_(False)
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(parent, name, four_bit(linear))
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def four_bit(linear):
    settings = {"compute_dtype": torch.bfloat16, "compress_statistics": False, "quant_type": "nf4"}
    made = bitsandbytes.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, **settings)
    made.load_state_dict(linear.state_dict())
    return made.to("cpu")


def four_bit_weight(model):
    layer = next(m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit))
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def gradients(model):
    model.train().zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def speak(model):
    model.eval()
    with torch.no_grad():
        model.generate(IDS, max_new_tokens=2, do_sample=False)


def test_the_trap_is_there(tiny):
    """When this fails bitsandbytes has mended it, and keep_trainable can go."""
    model = qlora(tiny)
    assert len(gradients(model)) == 8
    weight = four_bit_weight(model)
    speak(model)
    assert len(gradients(model)) < 8
    model.state_dict()  # brings gradients back, through other weights
    assert len(gradients(model)) == 8
    assert (four_bit_weight(model) - weight).norm() > 0.1 * weight.norm()


def test_gradients_are_the_same_after_a_generation(tiny):
    model = qlora(tiny)
    assert keep_trainable(model) == 14
    before, weight = gradients(model), four_bit_weight(model)
    assert len(before) == 8
    speak(model)
    after = gradients(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(four_bit_weight(model), weight)


def test_a_model_that_has_spoken_is_refused(tiny):
    model = qlora(tiny)
    speak(model)
    with pytest.raises(ValueError, match="Load it again"):
        keep_trainable(model)


def test_nothing_to_do_elsewhere(tiny):
    assert keep_trainable(tiny.llama()) == 0
