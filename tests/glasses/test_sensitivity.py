"""Jacobians, token by token."""

import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from extensions.glasses import HFCausalLM, ModuleAdapter, sensitivity_profile
from extensions.glasses import sensitivity as module
from extensions.glasses.sensitivity import u_index
from recipes.bench.glasses_layer import RandomAttention
from recipes.bench.glasses_theory import random_llama, random_tokens


@pytest.fixture
def llama() -> HFCausalLM:
    return random_llama(0.2, 0, width=16, layers=2)


IDS = torch.cat((random_tokens(9, 0), random_tokens(9, 1)))


def blocks_of(llama, ids, position=-1, layer=-1):
    """The Jacobian of one state, (B, d, n, d), by torch's own."""
    emb = llama.embed(ids).detach()

    def state(x):
        return llama.states(x[None], layers=[layer])[0][0, position]

    return torch.stack([jacobian(state, x) for x in emb])


class TestALinearModel:
    """y_n = sum of M_i x_i with known M."""

    matrices = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    @pytest.fixture
    def model(self):
        def forward(x):  # (B, n, 4) -> (B, n, 3)
            return torch.einsum("nij,bnj->bni", self.matrices, x).cumsum(1)

        return ModuleAdapter(forward, module=nn.ParameterList([torch.zeros(1).double()]).eval())

    def profile(self, model, **kind):
        x = torch.randn(2, 6, 4, dtype=torch.float64)
        return sensitivity_profile(model, x, **kind)

    @pytest.mark.parametrize("mode", ["exact", "auto", "spectral"])
    def test_frobenius_norms(self, model, mode):
        profile = self.profile(model, mode=mode)
        expected = self.matrices.flatten(1).norm(dim=1)
        assert torch.allclose(profile.fro, expected.expand(2, 6))
        assert torch.allclose(profile.share, expected / expected.sum())
        assert profile.stderr is None

    def test_spectral_norms(self, model):
        expected = torch.linalg.matrix_norm(self.matrices, 2)
        assert torch.allclose(self.profile(model, mode="spectral").spec, expected.expand(2, 6))

    def test_an_earlier_target(self, model):
        profile = self.profile(model, target=3, mode="exact")
        assert (profile.fro[:, 4:] == 0).all()
        assert torch.allclose(profile.fro[:, :4], self.matrices.flatten(1).norm(dim=1)[:4].expand(2, 4))

    def test_as_many_probes_as_features_are_exact(self, model):
        profile = self.profile(model, mode="hutchinson", probes=64)
        assert torch.allclose(profile.fro, self.matrices.flatten(1).norm(dim=1).expand(2, 6))
        assert (profile.stderr == 0).all()

    def test_an_output_of_ones_own(self, model):
        profile = self.profile(model, mode="exact", output=lambda state: 2 * state[:, :1])
        assert torch.allclose(profile.fro, 2 * self.matrices[:, 0].norm(dim=1).expand(2, 6))


def test_a_llama_against_torchs_jacobian(llama):
    expected = blocks_of(llama, IDS)
    profile = sensitivity_profile(llama, IDS, mode="spectral")
    assert torch.allclose(profile.fro, expected.norm(dim=(1, 3)), rtol=1e-4)
    spectral = torch.linalg.matrix_norm(expected.transpose(1, 2), 2)
    assert torch.allclose(profile.spec, spectral, rtol=1e-3)


def test_nothing_depends_on_what_comes_later(llama):
    profile = sensitivity_profile(llama, IDS, target=4, mode="exact")
    assert (profile.fro[:, 5:] == 0).all()
    assert (profile.fro[:, :5] > 0).all()
    assert torch.allclose(profile.fro, blocks_of(llama, IDS, position=4).norm(dim=(1, 3)), rtol=1e-4)


def test_estimates_are_within_their_error():
    """Of as many tokens as 95% intervals should hold, and no more."""
    model, ids = random_llama(0.1, 0, width=64, layers=2), random_tokens(30, 0)
    exact = sensitivity_profile(model, ids, mode="exact").fro
    inside = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        profile = sensitivity_profile(model, ids, mode="hutchinson", probes=16, generator=generator)
        inside.append((profile.fro - exact).abs() <= 1.96 * profile.stderr)
        assert ((profile.fro - exact).abs() / exact).mean() < 0.1
        assert ((profile.fro - exact).abs() <= 5 * profile.stderr).all()
    assert 0.85 < torch.stack(inside).double().mean() < 0.99


def test_a_model_that_reads_its_padding_is_refused():
    class Padded(ModuleAdapter):
        def mask(self, batch):
            return torch.tensor([[0, 1, 1, 1]]).bool()

    model = Padded(lambda x, mask: x.cumsum(1))
    with pytest.raises(ValueError, match="reads its padding, whatever the mask says"):
        sensitivity_profile(model, torch.randn(1, 4, 3))


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("attention", ["full", "frozen"])
def test_chunks_do_not_matter(llama, chunk, attention):
    expected = sensitivity_profile(llama, IDS, mode="exact", attention=attention, chunk=2)
    found = sensitivity_profile(llama, IDS, mode="exact", attention=attention, chunk=chunk)
    assert torch.allclose(found.fro, expected.fro, rtol=1e-4)


def test_a_jacobian_that_is_too_large_is_estimated(llama, monkeypatch):
    monkeypatch.setattr(module, "EXACT_BYTES", 100)
    assert sensitivity_profile(llama, IDS).mode == "hutchinson"


def test_spectral_norms_in_parts(llama, monkeypatch):
    expected = sensitivity_profile(llama, IDS, mode="spectral").spec
    monkeypatch.setattr(module, "EXACT_BYTES", 4 * 2 * 16**2 * 2)  # two tokens
    assert torch.allclose(sensitivity_profile(llama, IDS, mode="spectral").spec, expected, rtol=1e-4)


def test_probes_come_from_the_generator(llama):
    one, same, other = (
        sensitivity_profile(llama, IDS, mode="hutchinson", generator=torch.Generator().manual_seed(seed)).fro
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_frozen_is_full_where_weights_do_not_depend_on_the_input(llama):
    for block in llama.blocks:
        nn.init.zeros_(block.self_attn.q_proj.weight)
        nn.init.zeros_(block.self_attn.k_proj.weight)
    full, frozen = (
        sensitivity_profile(llama, IDS, mode="exact", attention=kind).fro for kind in ("full", "frozen")
    )
    assert torch.allclose(full, frozen, rtol=1e-5)


def test_frozen_leaves_the_weights_out():
    """One layer, no norm in front of values: the frozen Jacobian of v_i is a_ni I, seen through the norm."""
    layer = RandomAttention("nope", width=4, vocabulary=16).eval()
    model = ModuleAdapter(layer, embed=layer.embed)
    x = model.embed(random_tokens(5, 0, 16))
    weights = model.attentions(x)[0][0, 0, -1]
    values = x[0, :, 8:]
    y = values[-1] + weights @ values
    through_norm = jacobian(lambda z: nn.functional.layer_norm(z, (4,)), y).norm()
    expected = (weights + torch.eye(5)[-1]) * through_norm
    frozen = sensitivity_profile(model, random_tokens(5, 0, 16), mode="exact", attention="frozen")
    assert torch.allclose(frozen.fro[0], expected, rtol=1e-4)
    full = sensitivity_profile(model, random_tokens(5, 0, 16), mode="exact")
    assert (full.fro > frozen.fro + 1e-4).all()


def test_beyond_the_window_there_is_nothing():
    """Two layers with a window of 3 reach 2 (3 - 1) tokens back."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=3,
    )  # fmt: skip
    model = HFCausalLM(MistralForCausalLM(config).eval())
    profile = sensitivity_profile(model, IDS, mode="exact", attention="frozen")
    assert (profile.fro[:, :4] == 0).all()
    assert (profile.fro[:, 4:] > 0).all()


def test_from_a_layer_to_a_layer(llama):
    """To layer 1 from the inputs, and to the end from layer 1: the last token's blocks multiply."""
    one = random_tokens(1, 0)
    first = sensitivity_profile(llama, one, target_layer=1, mode="exact")
    assert torch.allclose(first.fro, blocks_of(llama, one, layer=1).norm(dim=(1, 3)), rtol=1e-4)
    second = sensitivity_profile(llama, one, source_layer=1, mode="spectral")
    whole = sensitivity_profile(llama, one, mode="spectral")
    first = sensitivity_profile(llama, one, target_layer=1, mode="spectral")
    assert (whole.spec <= first.spec * second.spec * (1 + 1e-4)).all()
    assert (second.fro > 0).all()


def test_logits(llama):
    emb = llama.embed(IDS).detach()
    expected = torch.stack(
        [jacobian(lambda x: llama.module(inputs_embeds=x[None]).logits[0, -1], x) for x in emb]
    )
    profile = sensitivity_profile(llama, IDS, output="logits", mode="exact")
    assert torch.allclose(profile.fro, expected.norm(dim=(1, 3)), rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_has_no_share(llama, side):
    pad = torch.zeros(2, 3, dtype=torch.long)
    parts = {"input_ids": (pad, IDS), "attention_mask": (pad, torch.ones_like(IDS))}
    batch = {key: torch.cat(x if side == "left" else x[::-1], 1) for key, x in parts.items()}
    expected = sensitivity_profile(llama, IDS, mode="exact")
    found = sensitivity_profile(llama, batch, mode="exact")
    real = slice(3, None) if side == "left" else slice(None, -3)
    assert torch.allclose(found.fro[:, real], expected.fro, rtol=1e-4)
    assert found.fro.count_nonzero() == expected.fro.count_nonzero()


def test_shape_of_a_u():
    share = torch.full((1, 100), 1.0)
    assert u_index(share) == 1
    share[:, :10] = 5
    share[:, -10:] = 3
    assert u_index(share) == 4


def test_primacy_and_recency(llama):
    profile = sensitivity_profile(llama, random_tokens(40, 0), mode="exact")
    x = torch.linspace(0, 1, 20).double()
    slope = torch.linalg.lstsq(
        torch.stack((x, torch.ones(20).double()), 1), profile.fro[0, :20, None].double().log()
    )
    assert profile.primacy_slope == pytest.approx(slope.solution[0].item(), rel=1e-4)
    ratio = profile.share[0, -1] / profile.share[0, -11:-1].mean()
    assert profile.recency_ratio == pytest.approx(ratio.item(), rel=1e-5)


def test_gradients_of_parameters_are_neither_made_nor_lost(llama):
    llama.module.model.norm.weight.grad = torch.ones(16)
    sensitivity_profile(llama, IDS, mode="exact")
    assert torch.equal(llama.module.model.norm.weight.grad, torch.ones(16))
    assert all(p.grad is None for p in llama.blocks[0].parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "jvp"}, "mode must be one of auto"),
        ({"attention": "none"}, 'attention must be "full" or "frozen"'),
        ({"probes": 1}, "probes must be at least 2"),
        ({"output": "loss"}, 'output must be "state", "logits" or a function'),
        ({"source_layer": 2}, "source_layer must be below target_layer"),
        ({"target": 9}, "position 9 is outside of a sequence of 9 tokens"),
    ],
)
def test_bad_input(llama, change, message):
    with pytest.raises(ValueError, match=message):
        sensitivity_profile(llama, IDS, **change)


def test_hidden_attention_is_not_frozen():
    model = ModuleAdapter(lambda x: x.cumsum(1))
    with pytest.raises(ValueError, match="attention cannot be frozen"):
        sensitivity_profile(model, torch.randn(1, 3, 4), attention="frozen")


def test_train_mode(llama):
    llama.module.train()
    with pytest.raises(ValueError, match="train mode"):
        sensitivity_profile(llama, IDS)


def test_a_jacobian_that_is_not_finite_is_refused(llama):
    nn.init.constant_(llama.module.model.norm.weight, float("nan"))
    with pytest.raises(ValueError, match="the Jacobian in float32 is not finite"):
        sensitivity_profile(llama, IDS)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_shape_of_a_profile_is_that_of_its_real_tokens(llama, side):
    """Of rows of several lengths, and with tokens behind the target."""
    rows = [random_tokens(n, n) for n in (40, 31)]
    alone = [sensitivity_profile(llama, ids, mode="exact") for ids in rows]
    padded, mask = torch.zeros(2, 60, dtype=torch.long), torch.zeros(2, 60, dtype=torch.long)
    for row, ids in enumerate(rows):
        place = slice(60 - ids.shape[1], None) if side == "left" else slice(ids.shape[1])
        padded[row, place], mask[row, place] = ids[0], 1
    together = sensitivity_profile(llama, {"input_ids": padded, "attention_mask": mask}, mode="exact")
    assert torch.equal(together.real, mask.bool())
    more = torch.cat((rows[0], random_tokens(20, 5)), 1)
    earlier = sensitivity_profile(llama, more, target=39, mode="exact")
    for name in ("u_index", "primacy_slope", "recency_ratio"):
        each = [getattr(profile, name) for profile in alone]
        assert getattr(together, name) == pytest.approx(sum(each) / 2, rel=1e-3)
        assert getattr(earlier, name) == pytest.approx(each[0], rel=1e-3)


def test_one_token_has_no_shape(llama, recwarn):
    profile = sensitivity_profile(llama, random_tokens(1, 0))
    for name in ("u_index", "primacy_slope", "recency_ratio"):
        assert math.isnan(getattr(profile, name))
    assert not recwarn.list
