"""Sensitivity to returns, against the Jacobian by autograd, a linear policy, and uniform attention."""

import pytest
import torch
from torch import nn
from torchrl.modules import DTActor, OnlineDTActor
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from extensions.glasses.adapters import DecisionTransformerAdapter, RADTAdapter
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
