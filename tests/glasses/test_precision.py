"""Models in other dtypes than their own."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from extensions.glasses import HFCausalLM
from extensions.glasses.precision import check_dtype, round_trip, run_in, spacing
from recipes.bench.glasses_theory import random_llama, random_tokens


def gpt2() -> HFCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64)
        return HFCausalLM(GPT2LMHeadModel(config).eval())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("make", [lambda: random_llama(0.1, 0), gpt2], ids=["llama", "gpt2"])
def test_lower_precision_is_that_of_a_model_loaded_in_it_bit_for_bit(make, dtype, tmp_path):
    model, ids = make(), random_tokens(12, 0)
    model.module.save_pretrained(tmp_path)
    cast = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    with torch.no_grad():
        expected = cast(ids).logits
        with model.running_in(dtype):
            found = model.module(ids).logits
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


class Positions(nn.Module):
    """A table of positions that is no parameter, and a norm that keeps its statistics."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randn(16, 8))
        self.norm, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 8)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        assert self.table.dtype == x.dtype
        x = self.linear(x + self.table[: x.shape[1]])
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_buffers_are_cast_as_parameters_are(dtype):
    torch.manual_seed(0)
    module, x = Positions().eval(), torch.randn(2, 5, 8)
    before = module.table.clone()
    cast = copy.deepcopy(module).to(getattr(torch, dtype))
    with torch.no_grad(), run_in(module, dtype):
        found = module(x.to(getattr(torch, dtype)))
    assert torch.equal(found, cast(x.to(getattr(torch, dtype))))
    assert torch.equal(module.table, before)


def test_parameters_are_left_as_they_are():
    model, ids = random_llama(0.1, 0), random_tokens(12, 0)
    before = [(p.data_ptr(), p.dtype, p.requires_grad) for p in model.module.parameters()]
    with torch.no_grad(), model.running_in("bfloat16"):
        model.module(ids)
    assert before == [(p.data_ptr(), p.dtype, p.requires_grad) for p in model.module.parameters()]


def test_no_gradient_reaches_parameters():
    layer = nn.Linear(3, 2)
    x = torch.randn(4, 3, requires_grad=True)
    with run_in(layer, "float32"):
        layer(x).sum().backward()
    assert layer.weight.grad is None
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(4, 3))


def test_float64_is_float64_where_transformers_would_go_back_to_float32():
    model, ids = random_llama(0.1, 0), random_tokens(40, 0)
    double = copy.deepcopy(model.module).double()
    with torch.no_grad():
        through_float32 = double(ids).logits
        with model.running_in("float64"):
            found = model.module(inputs_embeds=model.cast(model.embed(ids), "float64")).logits
    assert found.dtype == torch.float64
    error = (found - through_float32).abs().max().item()
    assert 0 < error < 1e-5  # the double model's own norms are in float32, and that is all that differs


def test_float64_against_a_model_written_in_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3))
    x = torch.randn(4, 5)
    with torch.no_grad(), run_in(net, "float64"):
        found = net(x.double())
    expected = copy.deepcopy(net).double()(x.double())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_spacing_is_the_distance_to_the_next_number(name):
    dtype = getattr(torch, name)
    x = torch.tensor([1.0, 1.5, 2.0, 3.99, 100.0, -0.3, 0.01]).to(dtype)
    after = torch.nextafter(x.abs(), torch.tensor(torch.inf, dtype=dtype))
    assert torch.equal(spacing(x, name), after.double() - x.abs().double())


def test_spacing_of_simulated_types():
    x = torch.tensor([1.0, 3.0, 17.0])
    assert spacing(x, "float8_e4m3fn").tolist() == [2**-3, 2**-2, 2**1]
    assert spacing(x, "float8_e5m2").tolist() == [2**-2, 2**-1, 2**2]


def test_round_trip_saturates():
    x = torch.tensor([1.0, 1.06, 1e6, -1e6])
    assert round_trip(x, "float8_e4m3fn").tolist() == [1.0, 1.0, 448.0, -448.0]


def test_simulated_types_round_weights_and_outputs_of_layers():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8, bias=False)
    x = torch.randn(2, 8)
    with torch.no_grad(), run_in(layer, "float8_e4m3fn", blocks=[layer]):
        found = layer(x)
    weight = layer.weight.detach().to(torch.float8_e4m3fn).float()
    assert torch.equal(found, (x @ weight.T).to(torch.float8_e4m3fn).float())


def test_names_of_dtypes():
    assert check_dtype(torch.bfloat16) == "bfloat16"
    with pytest.raises(ValueError, match="dtype must be one of float64"):
        check_dtype("int8")
