"""The private parts of TorchRL that this stands on are what it takes them for."""

import inspect

import pytest
from torchrl.data import PrioritizedSampler
from torchrl.envs import TargetReturn
from torchrl.modules import DecisionTransformerInferenceWrapper, DTActor, EGreedyModule, OnlineDTActor
from torchrl.objectives import DQNLoss, DTLoss, LossModule, OnlineDTLoss
from torchrl.objectives import HardUpdate as HostHardUpdate
from torchrl.objectives import SoftUpdate as HostSoftUpdate
from torchrl.objectives.utils import TargetNetUpdater

from extensions.torchrl import (
    HardUpdate,
    MultiTargetReturn,
    OnlineRADTActor,
    OnlineRADTLoss,
    RADTActor,
    RADTInferenceWrapper,
    RADTLoss,
    SoftUpdate,
    StochDQNLoss,
    StochEGreedyModule,
    TorchPrioritizedSampler,
)

CONVERT = [
    "self",
    "module",
    "module_name",
    "expand_dim",
    "create_target_params",
    "compare_against",
    "kwargs",
]


def names(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (LossModule._reduce_loss, ["self", "loss", "tensordict", "mask", "reduction", "weights"]),
        (LossModule._loss_mask_keys, ["self"]),
        (LossModule._expand_loss_mask, ["mask", "loss"]),
        (LossModule._clear_weakrefs, ["self", "tds"]),
        (DTLoss._set_in_keys, ["self"]),
        (DecisionTransformerInferenceWrapper.mask_context, ["self", "tensordict"]),
        (DecisionTransformerInferenceWrapper._check_tensor_dims, ["reward", "obs", "action"]),
        (LossModule.convert_to_functional, CONVERT),
        (DQNLoss._set_in_keys, ["self"]),
        (TargetNetUpdater.init_, ["self"]),
        (TargetNetUpdater.step, ["self"]),
        (PrioritizedSampler._init, ["self"]),
        (TargetReturn._reset, ["self", "tensordict", "tensordict_reset"]),
        (TargetReturn._step, ["self", "tensordict", "next_tensordict"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_what_is_called_or_overridden(function, parameters):
    assert names(function) == parameters


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (RADTActor, DTActor),
        (OnlineRADTActor, OnlineDTActor),
        (RADTLoss, DTLoss),
        (OnlineRADTLoss, OnlineDTLoss),
        (RADTInferenceWrapper, DecisionTransformerInferenceWrapper),
        (MultiTargetReturn, TargetReturn),
        (StochDQNLoss, DQNLoss),
        (HardUpdate, HostHardUpdate),
        (SoftUpdate, HostSoftUpdate),
        (StochEGreedyModule, EGreedyModule),
        (TorchPrioritizedSampler, PrioritizedSampler),
    ],
    ids=lambda cls: cls.__name__,
)
def test_constructors_begin_with_the_hosts_arguments_in_its_order(ours, theirs):
    given = names(theirs.__init__)
    assert names(ours.__init__)[: len(given)] == given
