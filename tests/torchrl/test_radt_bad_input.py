"""What makes no sense ends in one message that names what is wanted."""

import pytest
import torch
from torchrl.modules.models.decision_transformer import DecisionTransformer

from extensions.torchrl import OnlineRADTActor, RADTActor, RADTConfig, RADTransformer

B, T, S, A = 2, 5, 3, 4
BAD_FIELDS = {
    "n_embd": (0, -8, 8.0, "8", None, True),
    "n_layer": (0, 1.5),
    "n_head": (0, None),
    "n_inner": (0, 16.0),
    "activation": ("gelo", None),
    "n_positions": (0, 5.0),
    "resid_pdrop": (-0.1, 1, "0.1", float("nan")),
    "attn_pdrop": (-0.1, 1.0, None),
    "max_ep_len": (0, 1000.0),
    "seqra": ("yes", 2, None),
    "stepra": (1,),
    "alpha_gate": ("true",),
    "norm": ("batchnorm", ""),
    "placement": ("sandwich",),
    "return_embedding": ("table",),
    "return_shift": (float("nan"), float("inf"), "0"),
    "return_scale": (0, -1.0, float("nan"), float("inf"), None),
    "attention_window": (0, -1, 2.5),
    "architecture": ("dt",),
}


def test_every_field_has_bad_values_here():
    assert set(BAD_FIELDS) == set(RADTConfig.__dataclass_fields__)


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, values in BAD_FIELDS.items() for v in values])
def test_a_bad_field_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*got {value!r}"):
        RADTConfig(**{name: value})


@pytest.mark.parametrize(("width", "heads"), [(7, 1), (8, 3), (6, 4)])
def test_heads_must_divide_the_width(width, heads):
    with pytest.raises(ValueError, match=f"multiple of n_head, got n_embd={width}, n_head={heads}"):
        RADTConfig(n_embd=width, n_head=heads)


def test_an_unknown_field_is_named_with_the_known_ones():
    with pytest.raises(TypeError, match=r"no field n_embed; there are n_embd, n_layer, .*architecture"):
        RADTActor(S, A, {"n_embed": 8})


@pytest.mark.parametrize("config", ["some_str", 3, RADTConfig, [1, 2]])
@pytest.mark.parametrize("make", [RADTransformer, RADTActor, OnlineRADTActor])
def test_a_config_of_another_type(make, config):
    with pytest.raises(TypeError, match=r"Config of type <class '.*'> is not supported"):
        make(S, A, config)


def test_a_config_of_torchrl_or_a_dict_is_as_good():
    theirs = DecisionTransformer.DTConfig(n_embd=8, n_layer=2, n_head=2, n_inner=12, activation="relu")
    ours = RADTActor(S, A, theirs).transformer.config
    assert ours == RADTConfig(n_embd=8, n_layer=2, n_head=2, n_inner=12, activation="relu")
    assert RADTActor(S, A, {"n_embd": 8}).transformer.config == RADTConfig(n_embd=8)
    config = RADTConfig(n_embd=8)
    actor = RADTActor(S, A, config)
    config.n_embd = 16  # the actor has its own
    assert actor.transformer.config.n_embd == 8
    assert RADTActor(S, A).transformer.config == RADTActor.default_config() == RADTConfig()


@pytest.mark.parametrize("dims", [(0, A), (S, 0)])
def test_nothing_to_see_or_to_do(dims):
    with pytest.raises(ValueError, match="state_dim and action_dim must be at least 1"):
        RADTActor(*dims, {"n_embd": 8})


def window(**changes):
    return {
        "observation": torch.zeros(B, T, S),
        "action": torch.zeros(B, T, A),
        "return_to_go": torch.zeros(B, T, 1),
        "timestep": torch.zeros(B, T, dtype=torch.int64),
        "mask": torch.ones(B, T, dtype=torch.bool),
    } | changes


BAD_WINDOWS = {
    "another observation": ({"observation": torch.zeros(B, T, S + 1)}, r"observation must be \(\*, T, 3\)"),
    "a single observation": (
        {"observation": torch.zeros(S)},
        r"observation must be \(\*, T, 3\), got \(3,\)",
    ),
    "another action": (
        {"action": torch.zeros(B, T, A - 1)},
        r"action must be \(2, 5, 4\) beside an observation \(2, 5, 3\), got \(2, 5, 3\)$",
    ),
    "fewer actions": ({"action": torch.zeros(B, T - 1, A)}, r"action must be \(2, 5, 4\)"),
    "indices": ({"action": torch.zeros(B, T, dtype=torch.int64)}, "discrete=True"),
    "fewer returns": ({"return_to_go": torch.zeros(B, T - 1, 1)}, r"return_to_go must be \(2, 5, 1\)"),
    "flat returns": ({"return_to_go": torch.zeros(B, T)}, r"return_to_go.unsqueeze\(-1\)"),
    "one return": ({"return_to_go": torch.zeros(B, 1)}, r"return_to_go must be \(2, 5, 1\)"),
    "fewer timesteps": (
        {"timestep": torch.zeros(B, T - 1, dtype=torch.int64)},
        r"timestep must be \(2, 5\) or \(2, 5, 1\)",
    ),
    "timesteps the other way round": (
        {"timestep": torch.zeros(T, B, dtype=torch.int64)},
        r"timestep must be \(2, 5\)",
    ),
    "fractions of an episode": ({"timestep": torch.zeros(B, T)}, "timestep must be of integers"),
    "flags for timesteps": (
        {"timestep": torch.zeros(B, T, dtype=torch.bool)},
        "timestep must be of integers",
    ),
    "mask the other way round": (
        {"mask": torch.ones(T, B, dtype=torch.bool)},
        r"mask must be \(2, 5\) or \(2, 5, 1\)",
    ),
    "a mask of numbers": ({"mask": torch.ones(B, T)}, "mask must be of bool, True where a step is real"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_WINDOWS.values(), ids=BAD_WINDOWS)
def test_a_window_that_does_not_fit(changes, message):
    actor = RADTActor(S, A, {"n_embd": 8, "n_layer": 1})
    actor(**window())
    with pytest.raises(ValueError, match=message):
        actor(**window(**changes))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (torch.zeros(B, T), "indices of actions must be integers, got torch.float32; use action.long"),
        (torch.zeros(B, T, dtype=torch.bool), "indices of actions must be integers"),
        (torch.zeros(B, T, A + 1), r"\(2, 5\) of integers, or one-hot \(2, 5, 4\)"),
        (torch.zeros(B, T, 1, dtype=torch.int64), r"\(2, 5\) of integers, or one-hot \(2, 5, 4\)"),
    ],
    ids=["floats", "flags", "another number of actions", "a dimension too many"],
)
def test_discrete_actions_that_do_not_fit(action, message):
    actor = RADTActor(S, A, {"n_embd": 8, "n_layer": 1}, discrete=True)
    with pytest.raises(ValueError, match=message):
        actor(**window(action=action))


@pytest.mark.parametrize("index", [-2, A])
def test_an_action_that_there_is_not(index):
    actor = RADTActor(S, A, {"n_embd": 8, "n_layer": 1}, discrete=True)
    with pytest.raises(IndexError):
        actor(**window(action=torch.full((B, T), index)))


def test_a_window_longer_than_n_positions():
    actor = RADTActor(S, A, {"n_embd": 8, "n_layer": 1, "n_positions": 14})
    with pytest.raises(ValueError, match="5 steps are 15 tokens, more than n_positions=14"):
        actor(**window())
    RADTActor(S, A, {"n_embd": 8, "n_layer": 1, "n_positions": 15})(**window())
