"""Remedies of a policy's context."""

import pytest
import torch

from extensions.glasses import DecisionTransformerAdapter, ModuleAdapter
from extensions.glasses.remedies import insert_between_steps, repeat_returns, window_steps


@pytest.fixture(scope="module")
def model():
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    torch.manual_seed(0)
    config = DecisionTransformerConfig(state_dim=3, act_dim=2, hidden_size=32, n_layer=2, n_head=2)
    return DecisionTransformerAdapter(DecisionTransformerModel(config).eval())


def batch_of(steps, real=None):
    generator = torch.Generator().manual_seed(2)
    batch = {
        "states": torch.randn(2, steps, 3, generator=generator),
        "actions": torch.randn(2, steps, 2, generator=generator),
        "returns_to_go": torch.randn(2, steps, 1, generator=generator),
        "timesteps": torch.arange(steps).expand(2, -1),
    }
    if real is not None:
        batch["attention_mask"] = torch.arange(steps).expand(2, -1) >= steps - torch.tensor(real)[:, None]
    return batch


def test_window_keeps_the_last_steps_of_a_mapping_and_of_a_tensordict():
    from tensordict import TensorDict

    batch = batch_of(6)
    for given in (batch | {"reward": torch.zeros(2, 6)}, TensorDict(batch, [2]), TensorDict(batch, [2, 6])):
        kept = window_steps(given, 2)
        assert set(kept) == set(batch)
        assert all(torch.equal(kept[key], batch[key][:, 4:]) for key in batch)
    assert window_steps(batch, 9)["states"].shape == (2, 6, 3)


@torch.no_grad()
def test_returns_repeated_by_hand(model):
    emb = model.embed(batch_of(5))
    new, mask, places = repeat_returns(model, emb, 2)
    r, rows = emb[:, 12], emb.unflatten(1, (5, 3))
    by_hand = [rows[:, 0], r[:, None], rows[:, 1], rows[:, 2], r[:, None], rows[:, 3], rows[:, 4]]
    assert torch.equal(new, torch.cat(by_hand, 1))
    assert torch.equal(new[:, places], emb)
    assert mask is None
    assert torch.equal(new[:, model.position], emb[:, model.position])


@torch.no_grad()
def test_the_newest_return_is_read_from_its_copies(model):
    """Its own token is put back to what it was, so all that can change the acting state are copies."""
    emb = model.embed(batch_of(6))
    other = emb.clone()
    other[:, 15] *= -1
    with_copies, _, places = repeat_returns(model, other, 2)
    with_copies[:, places[15]] = emb[:, 15]
    reference, _, _ = repeat_returns(model, emb, 2)
    changed, unchanged = (model.states(x)[-1][:, model.position] for x in (with_copies, reference))
    assert (changed - unchanged).abs().max() > 1e-3


@torch.no_grad()
def test_what_is_inserted_among_padding_is_padding(model):
    batch = batch_of(6, real=[6, 3])
    emb, mask = model.embed(batch), model.mask(batch)
    new, real, places = insert_between_steps(model, emb, torch.full((32,), 0.5), 1, mask)
    assert torch.equal(real[:, places], mask)
    assert real.sum(1).tolist() == [18 + 5, 9 + 2]
    short = {key: value[1:, 3:] for key, value in batch.items() if key != "attention_mask"}
    alone, _, _ = insert_between_steps(model, model.embed(short), torch.full((32,), 0.5), 1)
    padded = model.states(new, real)[-1][1, model.position]
    torch.testing.assert_close(padded, model.states(alone)[-1][0, model.position], atol=1e-5, rtol=1e-5)


def test_bad_input(model):
    emb = torch.zeros(1, 7, 32)
    with pytest.raises(ValueError, match="3 tokens a step"):
        repeat_returns(model, emb, 2)
    with pytest.raises(ValueError, match="every must be at least 1"):
        repeat_returns(model, emb[:, :6], 0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        window_steps(batch_of(3), 0)
    with pytest.raises(TypeError, match="not for ModuleAdapter"):
        repeat_returns(ModuleAdapter(lambda x: x, token_roles=torch.arange(3)), emb[:, :6], 2)
    batch = batch_of(3) | {"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    with pytest.raises(ValueError, match="pad in front"):
        window_steps(batch, 2)
