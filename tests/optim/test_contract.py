"""What we take from the private side of torch.optim is still what we take it for."""

import inspect

import pytest
import torch
from torch.optim import Adam, Optimizer
from torch.optim.adam import adam

from extensions.optim import AdEMAMix, _torch
from extensions.optim.ademamix import ademamix


def arguments(function):
    return list(inspect.signature(function).parameters)


def test_the_class_has_adamws_order_then_keywords():
    ours, theirs = inspect.signature(AdEMAMix).parameters, inspect.signature(torch.optim.AdamW).parameters
    assert list(ours)[:5] == list(theirs)[:5]
    assert [name for name, p in ours.items() if p.kind is p.KEYWORD_ONLY] == list(ours)[5:]
    shared = {"maximize", "foreach", "capturable", "differentiable", "fused"}
    assert shared <= set(ours)
    assert {name: ours[name].default for name in shared} == {name: theirs[name].default for name in shared}


def test_the_functional_has_adams_flags_in_its_order():
    ours, theirs = arguments(ademamix), arguments(adam)
    flags = theirs[theirs.index("foreach") : theirs.index("has_complex") + 1]
    start = ours.index("foreach")
    assert ours[start : start + len(flags)] == flags


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_default_to_fused_or_foreach", ["params", "differentiable", "use_fused"]),
        ("_device_dtype_check_for_fused", ["p", "cuda_unsupported"]),
        ("_disable_dynamo_if_unsupported", ["single_tensor_fn"]),
        ("_get_capturable_supported_devices", ["supports_xla"]),
        ("_get_scalar_dtype", ["is_fused"]),
        ("_get_value", ["x"]),
        ("_to_scalar", ["x"]),
        ("_use_grad_for_differentiable", ["func"]),
        ("_view_as_real", ["params", "state_and_grads"]),
    ],
)
def test_private_functions_have_the_arguments_we_pass(name, expected):
    assert arguments(getattr(_torch, name)) == expected


def test_methods_that_we_override_or_call_are_there():
    assert arguments(Optimizer.load_state_dict) == ["self", "state_dict"]
    assert arguments(Optimizer.add_param_group) == ["self", "param_group"]
    assert arguments(Optimizer.__setstate__) == ["self", "state"]
    assert arguments(Optimizer.register_load_state_dict_post_hook) == ["self", "hook", "prepend"]
    assert arguments(Optimizer._accelerator_graph_capture_health_check) == ["self"]
    # torch.compile runs this one eagerly, by its name, before it traces a step.
    assert arguments(Adam._init_group)[:4] == arguments(AdEMAMix._init_group)[:4]
