"""What we rely on in SB3 and torch: signatures of the private hooks we override, and SB3's constructor."""

import inspect
import subprocess
import sys

import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common import buffers
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from extensions.optim import RowAdam
from extensions.sb3 import StochDDQN, StochDQN
from extensions.sb3.stoch_dqn.policies import StochDQNPolicy, StochQNetwork

OURS = [
    "candidates",
    "eval_candidates",
    "head",
    "head_kwargs",
    "action_codec",
    "legal_actions",
    "epsilon_per_env",
    "diagnostics_interval",
]


@pytest.mark.parametrize("algorithm", [StochDQN, StochDDQN])
def test_the_constructor_is_dqns_and_ours_by_keyword(algorithm):
    theirs = list(inspect.signature(DQN.__init__).parameters.values())
    ours = list(inspect.signature(algorithm.__init__).parameters.values())
    for a, b in zip(ours, theirs, strict=False):
        assert (a.name, a.kind, a.default) == (b.name, b.kind, b.default)
    rest = ours[len(theirs) :]
    assert [p.name for p in rest] == OURS
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in rest)


def names(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("parent", "method"),
    [
        (DQN, "predict"),
        (DQN, "train"),
        (DQN, "learn"),
        (DQN, "_on_step"),
        (DQN, "_setup_model"),
        (DQN, "set_parameters"),
        (DQN, "load_replay_buffer"),
        (OffPolicyAlgorithm, "_sample_action"),
        (OffPolicyAlgorithm, "_store_transition"),
    ],
)
@pytest.mark.parametrize("algorithm", [StochDQN, StochDDQN])
def test_methods_take_what_their_parents_take(algorithm, parent, method):
    theirs = inspect.signature(getattr(parent, method)).parameters
    ours = inspect.signature(getattr(algorithm, method)).parameters
    assert list(ours) == list(theirs)
    for name in ours:
        if name != "tb_log_name":
            assert ours[name].default == theirs[name].default


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (DQNPolicy._build, ["self", "lr_schedule"]),
        (DQNPolicy.make_q_net, ["self"]),
        (DQNPolicy._predict, ["self", "obs", "deterministic"]),
        (DQNPolicy._get_constructor_parameters, ["self"]),
        (QNetwork.forward, ["self", "obs"]),
        (QNetwork._predict, ["self", "observation", "deterministic"]),
        (DQN._create_aliases, ["self"]),
        (OffPolicyAlgorithm._sample_action, ["self", "learning_starts", "action_noise", "n_envs"]),
        (buffers.ReplayBuffer.add, ["self", "obs", "next_obs", "action", "reward", "done", "infos"]),
        (torch.nn.Module._apply, ["self", "fn", "recurse"]),
        (torch.nn.Module._save_to_state_dict, ["self", "destination", "prefix", "keep_vars"]),
        (
            torch.nn.Module._load_from_state_dict,
            [
                *["self", "state_dict", "prefix", "local_metadata", "strict"],
                *["missing_keys", "unexpected_keys", "error_msgs"],
            ],
        ),
    ],
    ids=lambda x: getattr(x, "__qualname__", ""),
)
def test_the_hooks_we_override_are_as_they_were(function, expected):
    assert names(function) == expected


def test_parents_constructors_have_what_ours_hand_on():
    theirs, ours = names(DQNPolicy.__init__), names(StochDQNPolicy.__init__)
    assert ours[: len(theirs)] == theirs
    theirs, ours = names(QNetwork.__init__), names(StochQNetwork.__init__)
    assert ours[: len(theirs)] == theirs


def test_adams_step_can_be_unwrapped():
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    assert torch.optim.Adam.step.hooked
    assert names(torch.optim.Adam.step.__wrapped__) == ["self", "closure"]
    assert issubclass(RowAdam, torch.optim.Adam)


def test_the_import_loads_no_other_host():
    code = (
        "import sys, extensions.sb3;"
        "print([m for m in ('trl', 'torchrl', 'transformers', 'gymnasium.envs.mujoco') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
