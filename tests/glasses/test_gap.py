"""Gaps against direct computation."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from extensions.glasses import HFCausalLM, ModuleAdapter, representation_gap, sensitivity_profile
from extensions.glasses.gap import final_states, js_divergence
from recipes.bench.glasses_theory import random_llama, random_tokens


@pytest.fixture
def llama() -> HFCausalLM:
    return random_llama(0.1, 0, width=32, layers=2)


def pairs(n=10, more=1):
    return (torch.cat([random_tokens(k, seed) for seed in range(3)]) for k in (n, n + more))


def test_norms_of_the_differences_of_all_layers(llama):
    a, b = pairs()
    report = representation_gap(llama, a, b, dtypes=(), reference="float64")
    with torch.no_grad(), llama.running_in("float64"):
        states = [
            llama.module.model(
                inputs_embeds=llama.cast(llama.embed(x), "float64"), output_hidden_states=True
            ).hidden_states
            for x in (a, b)
        ]
    for layer in range(3):
        x, y = (s[layer][:, -1].numpy() for s in states)
        d = np.abs(x - y)
        expected = np.stack((d.sum(-1), np.sqrt((d**2).sum(-1)), d.max(-1)), -1)
        assert np.allclose(report.gap["float64"][:, layer], expected)
        size = np.stack((np.abs(x).sum(-1), np.sqrt((x**2).sum(-1)), np.abs(x).max(-1)), -1)
        assert np.allclose(report.relative["float64"][:, layer], expected / size)
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        assert np.allclose(report.cosine["float64"][:, layer], cosine)
    assert report.layers == (0, 1, 2)


def test_rounding_and_snr(llama):
    a, b = pairs()
    report = representation_gap(llama, a, b, dtypes=("bfloat16",), layers=[-1], norms=("l1",))

    def state(ids, dtype):
        with torch.no_grad(), llama.running_in(dtype):
            return llama.module.model(ids).last_hidden_state[:, -1].double()

    rounding = sum((state(x, "bfloat16") - state(x, "float32")).abs().sum(-1) for x in (a, b)) / 2
    gap = (state(a, "float32") - state(b, "float32")).abs().sum(-1)
    distance = [state(a, dtype) - state(b, dtype) for dtype in ("bfloat16", "float32")]
    distortion = (distance[0] - distance[1]).abs().sum(-1)
    assert torch.allclose(report.rounding["bfloat16"][:, 0, 0], rounding, rtol=1e-4)
    assert torch.allclose(report.snr["bfloat16"][:, 0, 0], gap / rounding, rtol=1e-4)
    assert torch.allclose(report.distortion["bfloat16"][:, 0, 0], distortion, rtol=1e-4)
    assert torch.allclose(report.paired_snr["bfloat16"][:, 0, 0], gap / distortion, rtol=1e-4)
    assert "float32" not in report.rounding


def test_answers(llama):
    a, b = pairs()
    report = representation_gap(llama, a, b, dtypes=())
    with torch.no_grad():
        x, y = (llama.module(ids).logits[:, -1].double() for ids in (a, b))
    assert torch.allclose(report.logit_l1["float32"], (x - y).abs().sum(-1), rtol=1e-4)
    assert torch.equal(report.argmax_equal["float32"], x.argmax(-1) == y.argmax(-1))
    assert torch.allclose(report.js_divergence["float32"], js_divergence(x, y), rtol=1e-4)


def test_a_pair_of_one_sequence(llama):
    a, _ = pairs()
    report = representation_gap(llama, a, a)
    for dtype in ("float32", "bfloat16"):
        assert (report.gap[dtype] == 0).all()
        assert report.bitwise_equal[dtype].all()
        assert report.argmax_equal[dtype].all()
        assert (report.ulp_collapsed[dtype] == 1).all()
        assert report.js_divergence[dtype].abs().max() < 1e-12


def test_features_nearer_than_half_a_spacing():
    """States are the inputs; the spacing of bfloat16 in [1, 2) is 2^-7."""
    model = ModuleAdapter(lambda x: x)
    a = torch.tensor([[[1.0, 1.0, 1.0, 1.0]]])
    b = a + torch.tensor([0.0, 2**-9, 2**-8 + 2**-12, 0.5])
    report = representation_gap(model, a, b, layers=[-1])
    assert report.ulp_collapsed["bfloat16"].item() == 0.5
    assert report.ulp_collapsed["float32"].item() == 0.25


def test_jensen_shannon():
    sure = torch.tensor([[50.0, 0.0]]).double()
    assert js_divergence(sure, sure.flip(-1)).item() == pytest.approx(math.log(2))
    p, q = torch.tensor([0.2, 0.8]).double(), torch.tensor([0.6, 0.4]).double()
    m = (p + q) / 2
    expected = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    assert js_divergence(p.log() + 3, q.log()).item() == pytest.approx(expected.item())


def test_chunks_do_not_matter(llama):
    a, b = pairs()
    one, all_ = (
        representation_gap(llama, a, b, dtypes=(), reference="float64", chunk=k).gap["float64"]
        for k in (1, 8)
    )
    assert torch.allclose(one, all_, rtol=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(llama, side):
    a, b = pairs()
    expected = representation_gap(llama, a, b, dtypes=(), reference="float64").gap["float64"]

    def padded(ids):
        pad = torch.zeros(len(ids), 4, dtype=torch.long)
        parts = {"input_ids": (pad, ids), "attention_mask": (pad, torch.ones_like(ids))}
        return {k: torch.cat(v if side == "left" else v[::-1], 1) for k, v in parts.items()}

    found = representation_gap(llama, padded(a), padded(b), dtypes=(), reference="float64").gap["float64"]
    assert torch.allclose(found, expected, rtol=1e-9)


def test_final_states_alone(llama):
    a, _ = pairs()
    with torch.no_grad():
        expected = llama.module.model(a).last_hidden_state[:, -1].double()
    assert torch.allclose(final_states(llama, a, chunk=2), expected, atol=1e-6)
    with torch.no_grad():
        llama.module.model.norm.weight.fill_(math.inf)
    with pytest.raises(ValueError, match="states in float32 are not all finite"):
        final_states(llama, a)


def test_lists_of_sequences_of_several_lengths(llama):
    a = [random_tokens(n, 0)[0] for n in (5, 5, 9)]
    b = [random_tokens(n, 1)[0] for n in (6, 6, 10)]
    found = representation_gap(llama, a, b, dtypes=(), reference="float64").gap["float64"]
    alone = [
        representation_gap(llama, x[None], y[None], dtypes=(), reference="float64").gap["float64"]
        for x, y in zip(a, b, strict=True)
    ]
    assert torch.allclose(found, torch.cat(alone), rtol=1e-9)


def test_a_position(llama):
    """Before the first difference, a causal model holds the same state."""
    a = random_tokens(10, 0)
    b = a.clone()
    b[:, 6] = (b[:, 6] + 1) % 64
    before, at = (representation_gap(llama, a, b, position=p, dtypes=()).gap["float32"] for p in (5, 6))
    assert (before == 0).all()
    assert (at > 0).all()


def test_before_the_final_norm(llama):
    a, b = pairs()
    raw = representation_gap(llama, a, b, dtypes=(), layers=[-1], raw_last=True)
    block = []
    hook = llama.blocks[-1].register_forward_hook(lambda m, args, out: block.append(out[:, -1].double()))
    with torch.no_grad():
        llama.module(a), llama.module(b)
    hook.remove()
    assert torch.allclose(raw.gap["float32"][:, 0, 0], (block[0] - block[1]).abs().sum(-1), rtol=1e-5)


def test_results_as_json_and_tensordict(llama):
    a, b = pairs()
    report = representation_gap(llama, a, b)
    found = report.as_dict()
    assert found["gap"]["bfloat16"] == report.gap["bfloat16"].tolist()
    assert '"bitwise_equal"' in report.to_json()
    assert torch.equal(report.to_tensordict()["snr", "bfloat16"], report.snr["bfloat16"])


def test_the_model_is_not_copied(llama):
    assert representation_gap(llama, *pairs()) is not None
    assert {p.dtype for p in llama.module.parameters()} == {torch.float32}
    assert llama.module.model.layers[0] is llama.blocks[0]


def test_a_model_of_bfloat16_has_its_own_reference():
    """Weights are what is stored; what is computed with them differs."""
    model = random_llama(0.1, 0, width=32, layers=2)
    model.module.to(torch.bfloat16)
    report = representation_gap(model, *pairs(), dtypes=("bfloat16",), reference="float32")
    assert (report.rounding["bfloat16"][:, 1:] > 0).all()
    assert (report.gap["float32"] > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtypes": ("int8",)}, "dtype must be one of"),
        ({"norms": ("l3",)}, "norms must be of l1, l2, linf; got l3"),
        ({"layers": [3]}, "layers must be from 0 to 2"),
        (
            {"reference": "bfloat16", "dtypes": ("float32",)},
            "bfloat16 is the reference of float32, and rounds",
        ),
        ({"position": 10}, "position 10 is outside of a sequence of 10 tokens"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"seq_b": torch.zeros(1, 4, dtype=torch.long)}, "as many sequences on both sides, got 3 and 1"),
        ({"seq_b": torch.full((3, 4), 64)}, "from 0 to 63, the model's vocabulary; got 64 to 64"),
        ({"seq_b": torch.zeros(3, 4)}, "token ids must be integers"),
    ],
)
def test_bad_input(llama, change, message):
    a, b = pairs()
    with pytest.raises(ValueError, match=message):
        representation_gap(llama, **({"seq_a": a, "seq_b": b} | change))


def test_states_of_several_widths():
    model = ModuleAdapter(lambda x: x[..., :2])
    with pytest.raises(ValueError, match=r"states are \[2, 4\] wide.*layers=\[-1\]"):
        representation_gap(model, torch.randn(1, 2, 4), torch.randn(1, 2, 4))


def test_train_mode_and_dropout(llama):
    llama.module.train()
    with pytest.raises(ValueError, match=r"train mode.*call \.eval\(\) first"):
        representation_gap(llama, *pairs())
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)).eval()
    net[1].train()
    with pytest.raises(ValueError, match=r"'1' of Sequential is in train mode"):
        representation_gap(ModuleAdapter(net), torch.randn(1, 2, 4), torch.randn(1, 2, 4))


def test_a_part_in_train_mode(llama):
    """Dropout of attention is in no module of its own."""
    llama.blocks[0].self_attn.train()
    with pytest.raises(ValueError, match=r"'model.layers.0.self_attn' of LlamaForCausalLM is in train mode"):
        representation_gap(llama, *pairs())


def test_states_that_are_not_finite(llama):
    with torch.no_grad():
        llama.module.model.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="not all finite"):
        representation_gap(llama, *pairs())


def test_padding_alone(llama):
    a = {"input_ids": random_tokens(4, 0), "attention_mask": torch.zeros(1, 4, dtype=torch.long)}
    with pytest.raises(ValueError, match="outside of a sequence of 0 real tokens"):
        representation_gap(llama, a, a)


def test_a_model_that_was_loaded_in_float64():
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    model = HFCausalLM(LlamaForCausalLM(config).double().eval())
    report = representation_gap(model, *pairs(), dtypes=("float32",), reference="float64")
    assert 0 < report.rounding["float32"][:, 1].max() < 1e-3


def overflowing(llama):
    """Finite in float32 and bfloat16, beyond the range of float16 behind the first layer."""
    with torch.no_grad():
        llama.blocks[0].mlp.down_proj.weight.mul_(3e7)
    return llama


def test_a_dtype_that_overflows_is_all_noise(llama):
    a, b = pairs()
    report = representation_gap(overflowing(llama), a, b, dtypes=("bfloat16", "float16"))
    assert (report.snr["bfloat16"][:, -1] > 0).all()
    for name in ("gap", "relative", "rounding", "distortion"):
        assert (getattr(report, name)["float16"][:, 1:] == math.inf).all(), name
    for name in ("snr", "paired_snr"):
        assert (getattr(report, name)["float16"][:, 1:] == 0).all(), name
        assert (getattr(report, name)["float16"][:, 0] > 1).all(), name  # what goes in is still told apart
    assert (report.ulp_collapsed["float16"][:, 1:] == 1).all()
    assert (report.logit_l1["float16"] == math.inf).all()
    assert not report.argmax_equal["float16"].any()
    same = representation_gap(llama, a, a, dtypes=("float16",))
    assert not same.argmax_equal["float16"].any()
    assert same.argmax_equal["float32"].all()


def test_no_signal_is_none_even_without_noise():
    """Numbers that bfloat16 holds exactly."""
    x = torch.ones(1, 2, 4)
    report = representation_gap(ModuleAdapter(lambda x: x), torch.cat((x, x)), torch.cat((x, 2 * x)))
    assert (report.snr["bfloat16"][0] == 0).all()
    assert (report.paired_snr["bfloat16"][0] == 0).all()
    assert (report.snr["bfloat16"][1] == math.inf).all()


def test_answers_that_are_not_finite_in_the_reference():
    model = ModuleAdapter(lambda x: x, readout=lambda x: x / 0)
    with pytest.raises(ValueError, match="answers in float32 are not all finite"):
        representation_gap(model, torch.ones(1, 2, 4), torch.ones(1, 2, 4))


def test_what_a_tokenizer_returns_without_tensors(llama):
    a, b = pairs()
    whole = torch.ones_like(a).tolist()
    listed = ({"input_ids": side.tolist(), "attention_mask": whole} for side in (a, b))
    found, expected = representation_gap(llama, *listed), representation_gap(llama, a, b)
    assert torch.equal(found.gap["bfloat16"], expected.gap["bfloat16"])


def test_tokens_that_are_never_said():
    """Some models give minus infinity to them."""
    never = torch.tensor([0.0, 0.0, -math.inf, -math.inf])
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    report, some = (
        representation_gap(ModuleAdapter(lambda x: x, readout=readout), a, b, dtypes=())
        for readout in (lambda x: x + never, lambda x: x[..., :2])
    )
    assert torch.isfinite(report.js_divergence["float32"]).all()
    torch.testing.assert_close(report.js_divergence, some.js_divergence)
    torch.testing.assert_close(report.logit_l1, some.logit_l1)


@pytest.mark.parametrize("none", [[], torch.zeros(0, 4, dtype=torch.long)])
def test_no_sequences(llama, none):
    with pytest.raises(ValueError, match="the batch is empty"):
        representation_gap(llama, none, none)


def test_a_model_without_an_adapter(llama):
    with pytest.raises(TypeError, match=r"put an adapter around LlamaForCausalLM first: HFCausalLM\(model"):
        representation_gap(llama.module, *pairs())
    with pytest.raises(TypeError, match="put an adapter around"):
        sensitivity_profile(llama.module, random_tokens(4, 0))
