"""Without its aligners RADT is torch's own transformer encoder, and knows nothing of returns."""

import pytest
import torch
from torch import nn

from extensions.torchrl import OnlineRADTActor, RADTActor, RADTransformer

B, T, S, A, D, HEADS, LAYERS, INNER = 3, 6, 4, 2, 16, 2, 3, 24


def make_model(**config):
    """All weights random, in float64."""
    torch.manual_seed(0)
    settings = {"n_embd": D, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER} | config
    model = RADTransformer(S, A, settings).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def make_inputs():
    torch.manual_seed(1)
    observation, action, return_to_go = (torch.randn(B, T, n).double() for n in (S, A, 1))
    timestep = torch.randint(500, (B, 1)) + torch.arange(T)
    mask = torch.arange(T) >= torch.tensor([0, 4, 1])[:, None]
    return observation, action, return_to_go, timestep, mask


def torchs_encoder(model, norm_first, activation):
    """``nn.TransformerEncoder`` with the weights of a model without aligners."""
    layer = nn.TransformerEncoderLayer(
        D, HEADS, INNER, 0.0, activation, 1e-6, batch_first=True, norm_first=norm_first
    )
    last = nn.LayerNorm(D, eps=1e-6) if norm_first else None
    encoder = nn.TransformerEncoder(layer, LAYERS, norm=last, enable_nested_tensor=False).double().eval()
    ours = {name: x for name, x in model.state_dict().items() if name.startswith(("blocks", "final_norm"))}
    names = {
        "blocks": "layers",
        "attention.qkv.weight": "self_attn.in_proj_weight",
        "attention.out": "self_attn.out_proj",
        "mlp.0": "linear1",
        "mlp.2": "linear2",
        "norms.0": "norm1",
        "norms.1": "norm2",
        "final_norm": "norm",
    }
    theirs = {}
    for name, x in ours.items():
        for our_name, their_name in names.items():
            name = name.replace(our_name, their_name)
        theirs[name] = x
    for i in range(LAYERS):  # projections have no bias here
        theirs[f"layers.{i}.self_attn.in_proj_bias"] = torch.zeros(3 * D)
    encoder.load_state_dict(theirs)
    return encoder


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("placement", ["post", "pre"])
@pytest.mark.parametrize("masked", [False, True])
def test_without_aligners_it_is_torchs_transformer(masked, placement, activation):
    model = make_model(seqra=False, stepra=False, placement=placement, activation=activation)
    observation, action, return_to_go, timestep, mask = make_inputs()
    time = model.embed_time(timestep)
    tokens = torch.stack((model.embed_state(observation) + time, model.embed_action(action) + time), 2)
    hidden = torch.ones(2 * T, 2 * T, dtype=torch.bool).triu(1)[None]  # True where torch must not look
    if masked:
        padded = (~mask).repeat_interleave(2, 1)
        hidden = (hidden | padded[:, None]) & ~torch.eye(2 * T, dtype=torch.bool)
    encoder = torchs_encoder(model, placement == "pre", activation)
    hidden = hidden.expand(B, -1, -1).repeat_interleave(HEADS, 0)
    expected = encoder(tokens.flatten(1, 2), mask=hidden)[:, ::2]
    got = model(observation, action, return_to_go, timestep, mask if masked else None)
    real = mask if masked else torch.ones_like(mask)
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-12)


def test_without_aligners_nothing_is_left_of_the_returns():
    model = make_model(seqra=False, stepra=False)
    assert model.embed_return is None
    assert model.conditions is None
    observation, action, return_to_go, timestep, mask = make_inputs()
    others = (return_to_go + 1e3, torch.full_like(return_to_go, torch.nan))
    outputs = [model(observation, action, r, timestep, mask) for r in (return_to_go, *others)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("placement", ["post", "pre"])
def test_stepra_begins_as_norms_without_parameters_of_their_own(placement):
    """Placement is the same with and without: the published ablation changes it on the way."""
    settings = {"n_embd": D, "n_layer": LAYERS, "n_head": HEADS, "placement": placement}
    torch.manual_seed(0)
    plain = RADTransformer(S, A, settings | {"stepra": False}).eval()
    adaptive = RADTransformer(S, A, settings).eval()
    loaded = adaptive.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[1] for name in loaded.missing_keys} == {"modulation"}
    assert all(".norms." in name for name in loaded.unexpected_keys)
    inputs = [x.float() if x.is_floating_point() else x for x in make_inputs()]
    torch.testing.assert_close(adaptive(*inputs), plain(*inputs))


def test_the_gate_begins_as_a_plain_residual():
    settings = {"n_embd": D, "n_layer": LAYERS, "n_head": HEADS}
    torch.manual_seed(0)
    gated = RADTransformer(S, A, settings).eval()
    plain = RADTransformer(S, A, settings | {"alpha_gate": False}).eval()
    loaded = plain.load_state_dict(gated.state_dict(), strict=False)
    assert not loaded.missing_keys
    assert all(".gate." in name for name in loaded.unexpected_keys)
    inputs = [x.float() if x.is_floating_point() else x for x in make_inputs()]
    torch.testing.assert_close(gated(*inputs), plain(*inputs))


@pytest.mark.parametrize("make", [RADTActor, OnlineRADTActor])
def test_weights_begin_as_documented(make):
    torch.manual_seed(0)
    actor = make(S, A, {"n_embd": 64, "norm": "layernorm", "stepra": True})
    for name, x in actor.transformer.named_parameters():
        if ".gate." in name or "modulation" in name or name.endswith(("bias", "value_shift")):
            assert not x.any(), name
        elif name.endswith("_scale"):
            assert bool((x == 1).all()), name
        else:
            assert abs(x.mean()) < 0.005, name
            assert 0.015 < x.std() < 0.025, name
    for name, x in actor.named_parameters():
        if name.startswith("action_layer"):
            expected = torch.zeros(A) if name.endswith("bias") else torch.eye(A)
            torch.testing.assert_close(x if name.endswith("bias") else x @ x.T, expected, rtol=0, atol=1e-5)
