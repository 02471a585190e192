"""Inputs of quantized layers in few bits per token."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from extensions.trl.qdpo.activations import quantize_activations  # noqa: E402
from extensions.trl.qdpo.layers import full_precision, quantize_model, quantized_layers  # noqa: E402
from extensions.trl.qdpo.quantizers import WeightScheme  # noqa: E402
from extensions.trl.qdpo.token_quantizer import fake_quantize_tokens  # noqa: E402

IDS = torch.tensor([[3, 8, 30, 41, 6, 11], [5, 9, 7, 20, 2, 1]])


def by_hand(row, bits):
    """Of one token, in Python's own floats."""
    most = 2 ** (bits - 1) - 1
    scale = max(abs(x) for x in row) / most
    return [scale * round(x / scale) if scale else 0.0 for x in row]


@settings(deadline=None, max_examples=100)
@given(
    st.integers(2, 8),
    st.lists(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=5), min_size=1, max_size=4),
)
def test_the_formula(bits, rows):
    values = torch.tensor(rows, dtype=torch.float64)
    expected = torch.tensor([by_hand(row, bits) for row in rows], dtype=torch.float64)
    assert torch.equal(fake_quantize_tokens(values, bits), expected)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_grid_and_the_error(bits):
    values = torch.randn(7, 4, 33, dtype=torch.float64)
    rounded = fake_quantize_tokens(values, bits)
    largest = values.abs().amax(-1, keepdim=True)
    step = largest / (2 ** (bits - 1) - 1)
    assert ((rounded - values).abs() <= step / 2 * (1 + 1e-12)).all()
    torch.testing.assert_close(rounded.abs().amax(-1, keepdim=True), largest)
    assert max(len(row.unique()) for row in rounded.flatten(0, 1)) <= 2**bits - 1
    torch.testing.assert_close(fake_quantize_tokens(rounded, bits), rounded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype):
    values = torch.randn(5, 64).to(dtype)
    got = fake_quantize_tokens(values, 8)
    assert got.dtype == dtype
    assert torch.equal(got, fake_quantize_tokens(values.float(), 8).to(dtype))


def test_zeros_and_the_smallest_numbers_are_safe():
    values = torch.zeros(3, 4)
    values[1] = torch.finfo(torch.float32).smallest_normal / 2**20  # so small that its scale is 0
    values[2, 0] = 1e38
    got = fake_quantize_tokens(values, 8)
    assert got.isfinite().all()
    assert torch.equal(got[0], values[0])
    torch.testing.assert_close(got[2], values[2])
    broken = fake_quantize_tokens(torch.tensor([[1.0, torch.nan]]), 8)
    assert broken.isnan().all()  # and is seen


def test_the_gradient_passes_straight_through():
    values = torch.randn(4, 6, requires_grad=True)
    weights = torch.randn(4, 6)
    (fake_quantize_tokens(values, 2) * weights).sum().backward()
    assert torch.equal(values.grad, weights)


def policy(tiny, dtype=torch.float64, **others):
    model = tiny.llama().to(dtype).eval()
    quantize_model(model, WeightScheme(bits=4), **others)
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def test_quantized_layers_read_rounded_inputs(tiny):
    model = policy(tiny, skip=["down_proj"])
    before = logits(model)
    assert len(quantize_activations(model, 4)) == 6
    assert not torch.equal(logits(model), before)
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    layer = quantized_layers(model)["model.layers.0.self_attn.q_proj"]
    assert torch.equal(layer(x), fake_quantize_tokens(x, 4) @ layer.weight.T)
    down = model.model.layers[0].mlp.down_proj
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    assert torch.equal(down(x), x @ down.weight.T)


def test_a_token_is_rounded_alike_in_any_batch(tiny):
    model = policy(tiny)
    quantize_activations(model, 4)
    together = logits(model)
    torch.testing.assert_close(logits(model, IDS[:1, :3]), together[:1, :3], rtol=1e-12, atol=1e-12)


def test_full_precision_is_the_teacher_again(tiny):
    teacher = tiny.llama().double().eval()
    model = policy(tiny)
    quantize_activations(model, 4)
    low = logits(model)
    with full_precision(model):
        assert torch.equal(logits(model), logits(teacher))
    assert torch.equal(logits(model), low)


def test_the_output_head_reads_what_trls_loss_gives_it(tiny):
    """That loss multiplies hidden states by the head's weight: rounded in forward alone they would differ."""
    from extensions.trl import _host

    model = policy(tiny, quantize_lm_head=True)
    assert "lm_head" not in quantize_activations(model, 4)
    states = _host.last_hidden_state(model, IDS, torch.ones_like(IDS))
    with torch.no_grad():
        assert torch.equal(states @ model.lm_head.weight.T, logits(model))


def test_every_parameter_trains_in_bf16_autocast(tiny):
    model = policy(tiny, torch.float32)
    quantize_activations(model, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
        assert value.grad.any(), name


def test_what_cannot_be(tiny):
    model = policy(tiny)
    for bits in (1, 9, 8.0, True):
        with pytest.raises(ValueError, match="activation_bits must be a whole number of bits from 2 to 8"):
            quantize_activations(model, bits)
    with pytest.raises(ValueError, match="set bits as well, or leave activation_bits unset"):
        quantize_activations(tiny.llama(), 8)
