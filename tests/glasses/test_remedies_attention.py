"""Remedies of attention, against numpy and against models that have them built in."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from extensions.glasses import DecisionTransformerAdapter, HFCausalLM, ModuleAdapter, sensitivity_profile
from extensions.glasses.attention import adaptive_beta
from extensions.glasses.remedies import adaptive_temperature, log_n_scale, sliding_window, upcast


class Layer(nn.Module):
    """One causal head of attention and nothing else."""

    def __init__(self, d=8, sharp=2.0):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(d, d) * sharp / d**0.5) for _ in range(3))

    def forward(self, x):
        q, k, v = ((x @ w)[:, None] for w in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]


class OwnSoftmax(Layer):
    def forward(self, x):
        scores = (x @ self.q) @ (x @ self.k).mT
        return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1) @ (
            x @ self.v
        )


def adapter(layer):
    return ModuleAdapter(layer.eval(), blocks=[layer])


def by_rows(layer, x, factor=lambda p, seen: 1.0):
    """The same attention row by row in numpy; scores of a row are multiplied by the factor of its weights."""
    q, k, v = (x.double().numpy() @ w.detach().double().numpy() for w in (layer.q, layer.k, layer.v))
    rows = []
    for i in range(len(x)):
        scores = k[: i + 1] @ q[i] / np.sqrt(q.shape[1])
        p = softmax(scores)
        rows.append(softmax(scores * factor(p, i + 1)) @ v[: i + 1])
    return torch.from_numpy(np.stack(rows)).float()


def softmax(x):
    p = np.exp(x - x.max())
    return p / p.sum()


def polynomial_of_entropy(p, seen):
    entropy = -(p * np.log(p)).sum()
    return max(1.0, np.polyval([-0.037, 0.481, -2.3, 4.917, -1.791], entropy)) if entropy > 0.5 else 1.0


@torch.no_grad()
def test_adaptive_temperature_by_hand():
    layer = Layer()
    x = torch.randn(24, 8)
    with adaptive_temperature(adapter(layer)):
        out = layer(x[None])[0]
    torch.testing.assert_close(out, by_rows(layer, x, polynomial_of_entropy), atol=1e-5, rtol=1e-4)
    assert (out - by_rows(layer, x)).abs().max() > 0.1


@torch.no_grad()
def test_log_n_by_hand():
    layer = Layer()
    x = torch.randn(24, 8)
    with log_n_scale(adapter(layer), trained=6):
        out = layer(x[None])[0]
    expected = by_rows(layer, x, lambda p, seen: max(1.0, np.log(seen) / np.log(6)))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out[:6], by_rows(layer, x)[:6], atol=1e-5, rtol=1e-4)
    assert (out[6:] - by_rows(layer, x)[6:]).abs().amax(-1).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 4])
def test_window_is_that_of_mistral(window):
    from transformers import MistralConfig, MistralForCausalLM

    def mistral(window):
        torch.manual_seed(0)
        return MistralForCausalLM(
            MistralConfig(
                vocab_size=20,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                sliding_window=window,
                initializer_range=0.3,
            )
        ).eval()

    ids = torch.randint(20, (2, 15))
    plain, windowed = mistral(None), mistral(window)
    model = HFCausalLM(plain)
    before = plain(ids).logits
    with sliding_window(model, window):
        found = model.readout(model.states(model.embed(ids))[-1])
    torch.testing.assert_close(found, windowed(ids).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2)
    assert torch.equal(plain(ids).logits, before)  # and the model is as it was


@torch.no_grad()
def test_window_of_a_decision_transformer_hides_old_steps():
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=3, act_dim=2, hidden_size=32, n_layer=2, n_head=2, max_ep_len=50
    )
    model = DecisionTransformerAdapter(DecisionTransformerModel(config).eval())
    batch = {
        "states": torch.randn(1, 10, 3),
        "actions": torch.randn(1, 10, 2),
        "returns_to_go": torch.randn(1, 10, 1),
        "timesteps": torch.arange(10)[None],
    }
    emb = model.embed(batch)
    changed = emb.clone()
    changed[:, :20] += 1  # of 30 tokens; the state at 28 sees back to 28 - 2 (5 - 1) = 20
    with sliding_window(model, 5):
        kept = [model.states(x)[-1][:, model.position] for x in (emb, changed)]
    assert torch.equal(*kept)
    free = [model.states(x)[-1][:, model.position] for x in (emb, changed)]
    assert not torch.equal(*free)


@pytest.mark.parametrize(
    "remedy", [adaptive_temperature, lambda m: sliding_window(m, 2), lambda m: upcast(m, "attention")]
)
def test_attention_that_cannot_be_reached_is_refused(remedy):
    layer = OwnSoftmax()
    with (
        pytest.raises(ValueError, match="OwnSoftmax computes its attention on its own"),
        remedy(adapter(layer)),
    ):
        layer(torch.randn(1, 5, 8))


def test_bad_input(llama):
    with pytest.raises(ValueError, match="window must be at least 1"), sliding_window(llama, 0):
        pass
    with pytest.raises(ValueError, match="log_n is a length"), log_n_scale(llama, 1):
        pass


IDS = torch.arange(12)[None]


@pytest.mark.parametrize("kind", [{"chunk": 1}, {"chunk": 8}, {"attention": "frozen"}])
def test_a_profile_within_a_window_is_of_the_window(make_llama, kind):
    model = HFCausalLM(make_llama(20))
    with sliding_window(model, 3):
        found = sensitivity_profile(model, IDS, mode="exact", **kind).fro[0]
    assert (found[: 11 - 2 * (3 - 1)] == 0).all()
    assert (found[11 - 2 * (3 - 1) :] > 0).all()


@torch.no_grad()
def test_attentions_within_a_remedy_are_those_of_the_remedy(make_llama):
    model = HFCausalLM(make_llama(20))
    emb = model.embed(IDS)
    plain = model.attentions(emb)
    with adaptive_temperature(model):
        sharp = model.attentions(emb)
        with sliding_window(model, 4):
            both = model.attentions(emb)
    p = plain[0].double()
    beta = adaptive_beta(torch.special.entr(p).sum(-1, keepdim=True))
    assert (beta > 1).any()
    expected = (p.log() * beta).softmax(-1)
    torch.testing.assert_close(sharp[0].double(), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain[0], sharp[0], atol=1e-3)
    far = torch.ones(12, 12).bool().tril(-4)
    assert all((w[..., far] == 0).all() for w in both)
    near = p.masked_fill(far, 0) / p.masked_fill(far, 0).sum(-1, keepdim=True)
    beta = adaptive_beta(torch.special.entr(near).sum(-1, keepdim=True))
    torch.testing.assert_close(both[0].double(), (near.log() * beta).softmax(-1), atol=1e-5, rtol=1e-4)
