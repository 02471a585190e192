"""Sensitivity to returns, against the Jacobian by autograd, a linear policy, and uniform attention."""

import json

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import DTActor, OnlineDTActor
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from extensions.glasses.adapters import DecisionTransformerAdapter, ModuleAdapter, RADTAdapter
from extensions.glasses.adapters.protocol import ACTION, RETURN, STATE
from extensions.glasses.returns import return_sensitivity
from extensions.torchrl import OnlineRADTActor, RADTActor, RADTConfig

B, K, S, A = 3, 4, 2, 3
LAYERS, WIDTH = 2, 8
CONFIG = {
    "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_inner": 16, "activation": "gelu", "n_positions": 256,
    "resid_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip


def of_transformers():
    return DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=S, act_dim=A, hidden_size=WIDTH, n_layer=LAYERS, n_head=2, max_ep_len=64,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, action_tanh=True,
        )
    )  # fmt: skip


def radt(discrete=False):
    model = RADTActor(S, A, RADTConfig(**CONFIG), discrete=discrete)
    for module in model.modules():  # parts that begin at 0, so that returns do something
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.3)
    return model


MODELS = {
    "transformers": of_transformers,
    "DTActor": lambda: DTActor(S, A, CONFIG),
    "OnlineDTActor": lambda: OnlineDTActor(S, A, CONFIG),
    "RADTActor": radt,
    "OnlineRADTActor": lambda: OnlineRADTActor(S, A, RADTConfig(**CONFIG)),
    "RADTActor, discrete": lambda: radt(discrete=True),
}


def made(name):
    torch.manual_seed(0)
    return MODELS[name]().double().eval()


def adapter_of(model):
    radt_like = isinstance(model, (RADTActor, OnlineRADTActor))
    return RADTAdapter(model) if radt_like else DecisionTransformerAdapter(model)


def windows(name="DTActor", count=B, steps=K):
    """By the host's own names."""
    g = torch.Generator().manual_seed(1)
    action = torch.randn(count, steps, A, generator=g, dtype=torch.float64)
    if "discrete" in name:
        action = torch.randint(A, (count, steps), generator=g)
    parts = {
        "observation": torch.randn(count, steps, S, generator=g, dtype=torch.float64),
        "action": action,
        "return_to_go": torch.randn(count, steps, 1, generator=g, dtype=torch.float64),
        "timestep": torch.arange(5, 5 + steps).expand(count, steps),
    }
    if name == "transformers":
        names = {
            "observation": "states",
            "action": "actions",
            "return_to_go": "returns_to_go",
            "timestep": "timesteps",
        }
        return {names[key]: value for key, value in parts.items()}
    return parts


def newest_action(model, name, batch, returns):
    """By the host's own forward: (B, K, 1) -> (B, A)."""
    if name == "transformers":
        return model(**{**batch, "returns_to_go": returns}).action_preds[:, -1]
    keys = ("observation", "action", "return_to_go", "timestep")[: 4 if "RADT" in name else 3]
    out = model(*({**batch, "return_to_go": returns}[key] for key in keys))
    return (out[0] if isinstance(out, tuple) else out)[:, -1]


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_jacobian_of_the_hosts_own_forward(name):
    model, batch = made(name), windows(name)
    found = return_sensitivity(adapter_of(model), batch)
    returns = batch["returns_to_go" if name == "transformers" else "return_to_go"]

    def act(values):
        return newest_action(model, name, batch, values)

    jacobian = torch.autograd.functional.jacobian(act, returns)  # (B, A, B, K, 1)
    rows = torch.arange(B)
    std = returns[..., 0].std(0)
    expected = jacobian[rows, :, rows, :, 0].norm(dim=1) * std
    assert expected.min() > 1e-6  # every return does something
    torch.testing.assert_close(found.by_return, expected)
    torch.testing.assert_close(found.std, std)
    torch.testing.assert_close(found.newest_of_returns, expected[:, -1] / expected.sum(1))
    newest = torch.zeros(K, 1, dtype=torch.float64)
    newest[-1] = std[-1]
    for by, shift in ((std[:, None], found.shift_all), (newest, found.shift_newest)):
        torch.testing.assert_close(shift, (act(returns + by) - act(returns - by)).norm(dim=1) / 2)
    shares = torch.stack((found.all_return_tokens, found.newest_token, found.state_token))
    assert (shares > 0).all()
    assert (found.newest_token < found.all_return_tokens).all()
    assert (found.all_return_tokens + found.state_token < 1).all()


class Linear(nn.Module):
    """The newest state's token is the weighted sum of all: what each return does is known."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights  # (3 K, 2)

    def embed(self, batch):
        """(B, 3 K, 1)"""
        parts = (batch["return_to_go"], batch["observation"], batch["action"])
        return torch.stack(parts, 2).flatten(1, 2)

    def forward(self, emb):
        """(B, 3 K, 2)"""
        out = (emb * self.weights).sum(1, keepdim=True)
        return out.expand(-1, emb.shape[1], -1)


def test_of_a_linear_policy_it_is_known():
    weights = torch.tensor(
        # returns, states, actions; both features of the action
        [[3.0, 4.0], [0.0, 1.0], [2.0, 0.0], [-6.0, -8.0], [0.0, 5.0], [0.0, 0.0]],
        dtype=torch.float64,
    )
    net = Linear(weights).eval()
    adapter = ModuleAdapter(
        net, embed=net.embed, token_roles=torch.tensor([RETURN, STATE, ACTION]), position=-2, discrete=False
    )
    batch = {
        "return_to_go": torch.tensor([[0.0, 1.0], [2.0, 5.0]], dtype=torch.float64)[..., None],
        "observation": torch.ones(2, 2, 1, dtype=torch.float64),
        "action": torch.ones(2, 2, 1, dtype=torch.float64),
    }
    found = return_sensitivity(as_float64(adapter), batch)
    root2, root8 = 2**0.5, 8**0.5  # standard deviations: of (0, 2) and (1, 5)
    rows = torch.ones(2, dtype=torch.float64)
    expected = {
        "std": torch.tensor([root2, root8], dtype=torch.float64),
        "by_return": torch.tensor([[5 * root2, 10 * root8]] * 2, dtype=torch.float64),
        "newest_of_returns": rows * 4 / 5,
        # norms of the tokens: 5, 1, 2; 10, 5, 0
        "newest_token": rows * 10 / 23,
        "all_return_tokens": rows * 15 / 23,
        "state_token": rows * 5 / 23,
        "shift_newest": rows * 10 * root8,
        # the two returns pull in opposite directions
        "shift_all": rows * (10 * root8 - 5 * root2),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name), value)


class Scaled(Linear):
    """The same policy with the embedding of returns times c, and its readers over c."""

    def __init__(self, weights, c):
        over = torch.tensor([c, 1, 1], dtype=torch.float64).repeat(len(weights) // 3)[:, None]
        super().__init__(weights / over)
        self.c = c

    def embed(self, batch):
        return super().embed({**batch, "return_to_go": self.c * batch["return_to_go"]})


def test_shares_depend_on_the_scale_of_vectors_and_by_return_and_shifts_do_not():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    names = ("return_to_go", "observation", "action")
    batch = {name: torch.randn(4, 3, 1, generator=generator, dtype=torch.float64) for name in names}
    found = []
    for net in (Scaled(weights, 1.0).eval(), Scaled(weights, 10.0).eval()):
        roles = torch.tensor([RETURN, STATE, ACTION])
        adapter = ModuleAdapter(net, embed=net.embed, token_roles=roles, position=-2, discrete=False)
        found.append(return_sensitivity(as_float64(adapter), batch))
    for name in ("by_return", "newest_of_returns", "shift_newest", "shift_all"):
        torch.testing.assert_close(*(getattr(x, name) for x in found))
    one, ten = (x.all_return_tokens for x in found)
    torch.testing.assert_close(ten / (1 - ten), one / (1 - one) / 10)


def as_float64(adapter):
    """An adapter of a module without parameters, to be computed in float64."""
    adapter.module.register_parameter("dtype", nn.Parameter(torch.zeros((), dtype=torch.float64)))
    return adapter


def share_of_newest(context):
    """Of a random DT whose attention is uniform: shares of the newest return's token, and of all returns'."""
    torch.manual_seed(0)
    model = DTActor(S, A, CONFIG).double().eval()
    with torch.no_grad():
        for block in model.transformer.transformer.h:
            block.attn.c_attn.weight[:, : 2 * WIDTH] = 0  # queries and keys
    found = return_sensitivity(DecisionTransformerAdapter(model), windows(count=16, steps=context))
    return found.newest_token.mean().item(), found.all_return_tokens.mean().item()


def test_under_uniform_attention_the_newest_return_loses_its_share_as_one_over_the_context():
    contexts = [4, 8, 16, 32, 64]
    newest, returns = np.array([share_of_newest(k) for k in contexts]).T
    slope = np.polyfit(np.log(contexts), np.log(newest), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)
    # all returns together keep theirs: there are as many more of them
    assert np.polyfit(np.log(contexts), np.log(returns), 1)[0] == pytest.approx(0, abs=0.1)


def cut(batch, steps):
    return {name: x[:, -steps:] for name, x in batch.items()}


@pytest.mark.parametrize("name", ["transformers", "DTActor", "RADTActor"])
def test_a_context_is_the_last_steps_of_the_batch(name):
    adapter, batch = adapter_of(made(name)), windows(name)
    short = return_sensitivity(adapter, batch, context=2)
    assert short.by_return.shape == (B, 2)
    assert_same(short, return_sensitivity(adapter, cut(batch, 2)))
    with pytest.raises(AssertionError):
        assert_same(short, return_sensitivity(adapter, cut(batch, 3), context=3))


def assert_same(a, b):
    assert a.to_json() == b.to_json()


@pytest.mark.parametrize("name", ["transformers", "RADTActor"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_nothing_and_is_not_counted(name, side):
    adapter, batch = adapter_of(made(name)), windows(name)
    plain = return_sensitivity(adapter, batch)
    padded = {}
    for key, x in batch.items():
        blank = torch.full_like(x[:, :2], 7)
        padded[key] = torch.cat((blank, x) if side == "left" else (x, blank), 1)
    real = torch.zeros(B, K + 2, dtype=torch.bool)
    real[:, slice(2, None) if side == "left" else slice(K)] = True
    padded["attention_mask" if name == "transformers" else "mask"] = real
    found = return_sensitivity(adapter, padded)
    torch.testing.assert_close(found.by_return[real].reshape(B, K), plain.by_return)
    assert (found.by_return[~real] == 0).all()
    for field in ("newest_of_returns", "newest_token", "all_return_tokens", "shift_newest", "shift_all"):
        torch.testing.assert_close(getattr(found, field), getattr(plain, field))


def test_a_model_without_an_adapter():
    with pytest.raises(TypeError, match="put an adapter around DTActor first"):
        return_sensitivity(made("DTActor"), windows("DTActor"))


def test_windows_of_unlike_lengths_have_the_standard_deviation_of_what_is_real():
    batch = windows("RADTActor")
    batch["mask"] = torch.ones(B, K, dtype=torch.bool)
    batch["mask"][0, :2] = False
    found = return_sensitivity(adapter_of(made("RADTActor")), batch)
    returns = batch["return_to_go"][..., 0]
    torch.testing.assert_close(found.std, torch.cat((returns[1:, :2].std(0), returns[:, 2:].std(0))))
    assert (found.by_return[0, :2] == 0).all()
    assert (found.by_return[1:, :2] > 0).all()


def test_the_output_is_what_is_made_of_the_action():
    model, batch = made("DTActor"), windows()
    found = return_sensitivity(DecisionTransformerAdapter(model), batch, output=torch.tanh)
    rows = torch.arange(B)
    jacobian = torch.autograd.functional.jacobian(
        lambda values: torch.tanh(newest_action(model, "DTActor", batch, values)), batch["return_to_go"]
    )
    expected = jacobian[rows, :, rows, :, 0].norm(dim=1) * found.std
    torch.testing.assert_close(found.by_return, expected)


def test_a_policy_that_reads_no_returns_is_moved_by_none():
    model = RADTActor(S, A, RADTConfig(**CONFIG, seqra=False, stepra=False)).double().eval()
    found = return_sensitivity(RADTAdapter(model), windows())
    assert (found.by_return == 0).all()
    assert (found.shift_all == 0).all()
    assert found.newest_of_returns.isnan().all()


def test_a_tensordict_will_do_and_a_result_is_written():
    adapter, batch = adapter_of(made("RADTActor")), windows("RADTActor")
    found = return_sensitivity(adapter, batch)
    assert_same(found, return_sensitivity(adapter, TensorDict(batch, batch_size=[B, K])))
    assert np.shape(json.loads(found.to_json())["by_return"]) == (B, K)
    assert found.to_tensordict()["std"].shape == (K,)


def test_the_model_is_left_as_it_was():
    model = made("DTActor")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    return_sensitivity(DecisionTransformerAdapter(model), windows())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_what_it_does_not_take_is_said():
    adapter = adapter_of(made("DTActor"))
    with pytest.raises(ValueError, match="context must be from 1 to 4"):
        return_sensitivity(adapter, windows(), context=5)
    with pytest.raises(ValueError, match="context must be from 1 to 4"):
        return_sensitivity(adapter, windows(), context=0)
    with pytest.raises(ValueError, match="at least 2 windows"):
        return_sensitivity(adapter, windows(count=1))
    with pytest.raises(ValueError, match="a batch needs 'return_to_go' or 'returns_to_go'"):
        return_sensitivity(adapter, {"observation": torch.zeros(B, K, S)})
    with pytest.raises(TypeError, match="ModuleAdapter has no tokens of returns"):
        return_sensitivity(ModuleAdapter(lambda emb: emb), windows())
    with pytest.raises(ValueError, match="train mode"):
        return_sensitivity(adapter_of(made("DTActor").train()), windows())
