"""
What of TRL and transformers is not public and is used here, in one place.

``tests/trl/test_contract.py`` checks that it is still there and still takes what we give it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from trl.models import prepare_deepspeed
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import (
    add_fused_lm_head,
    create_model_from_path,
    get_config_model_id,
    hash_module,
    maybe_gather_lm_head_ctx,
    pad,
    repeat_iterable_dataset,
    split_pixel_values_by_grid,
    unsplit_pixel_values_by_grid,
    use_adapter,
)

from .divergence import Head

__all__ = [
    "DataCollatorForPreference",
    "add_fused_lm_head",
    "attention_implementation",
    "create_model_from_path",
    "eager_attention_of",
    "gathered_heads",
    "get_config_model_id",
    "hash_module",
    "head_of",
    "is_peft_model",
    "last_hidden_state",
    "pad",
    "prepare_deepspeed",
    "recording_states",
    "repeat_iterable_dataset",
    "split_pixel_values_by_grid",
    "unsplit_pixel_values_by_grid",
    "unwrap_model_for_generation",
    "use_adapter",
    "without_fused_head",
]


logger = get_logger("extensions.trl")


def backbone_of(model: Any) -> nn.Module:
    """The model below its head, below a PEFT wrapper if there is one."""
    if is_peft_model(model):
        model = model.base_model.model
    return model.base_model


def decoder_of(model: Any) -> nn.Module:
    """What makes the last hidden states, and is called whether the model reads to speak or to be scored."""
    backbone: Any = backbone_of(model)
    return backbone.get_decoder()


def last_hidden_state(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """
    What the head is applied to, (B, L, H), for text that may be padded on the left.

    Positions are counted over what is not padding, and passed: a model with learned positions (GPT-2) would
    otherwise read a padded prompt at other positions than the ones it generated from. A model that is split
    over devices may end on another than it began on: its states are brought back.
    """
    backbone = backbone_of(model)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        inputs["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    return backbone(**inputs).last_hidden_state.to(input_ids.device)


def without_fused_head(model: Any) -> None:
    """
    Give a copy of a model its own forward back.

    The one that :func:`add_fused_lm_head` puts on a model calls the original's, in a copy too. In half
    precision accelerate has wrapped it.
    """
    bare = model.get_base_model() if is_peft_model(model) else model
    forward = vars(bare).get("forward")
    while forward is not None:
        function = getattr(forward, "__func__", forward)
        if getattr(getattr(function, "__code__", None), "co_name", None) == "_fused_forward":
            del bare.forward
            vars(bare).pop("_original_forward", None)  # accelerate's
            return
        forward = getattr(function, "__wrapped__", None)


@contextmanager
def recording_states(model: Any, wanted: bool = True) -> Iterator[list[Tensor]]:
    """A list that gets, if wanted, the last hidden states, (B, L, H), of every forward pass meanwhile."""
    states: list[Tensor] = []
    if not wanted:
        yield states
        return
    hook = decoder_of(model).register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    try:
        yield states
    finally:
        hook.remove()


def head_of(model: Any, dtype: torch.dtype, vocabulary: int | None = None) -> Head:
    """The model's output head, whole even where FSDP shards it, over its first ``vocabulary`` tokens."""
    lm_head = model.get_output_embeddings()
    weight, bias = whole(lm_head.weight, dtype), whole(lm_head.bias, dtype)
    config = model.config.get_text_config()
    head = Head(weight, bias, logit_scale(config), getattr(config, "final_logit_softcapping", None))
    return head if vocabulary is None else head.first(vocabulary)


def whole(parameter: Any, dtype: torch.dtype) -> Any:
    """FSDP2 keeps a shard of each parameter: gather it once, not in every tile."""
    if isinstance(parameter, torch.distributed.tensor.DTensor):
        return parameter.full_tensor().to(dtype)
    return parameter


def logit_scale(config: Any) -> float:
    """What a family multiplies its logits by before the softmax, under the name it gives that number."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale = getattr(config, name, None)
        if scale is not None:
            return scale
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return scaling if config.model_type == "hyperclovax" else 1.0 / scaling


def gathered_heads(*models: Any) -> Callable[[], AbstractContextManager[Any]]:
    """Opens a context in which the heads' weights are whole where DeepSpeed ZeRO-3 partitions them."""
    heads = [model.get_output_embeddings() for model in models if model is not None]
    parameters = [p for head in heads for p in (head.weight, head.bias) if p is not None]
    return partial(maybe_gather_lm_head_ctx, *parameters)


def attention_implementation(model: Any) -> str:
    """The name of the attention function in use, as ``set_attn_implementation`` takes it."""
    return model.config._attn_implementation


def eager_attention_of(module: nn.Module) -> Callable[..., Any]:
    """The eager attention function of an attention layer: each family has its own, beside its layers."""
    for family in type(module).__mro__:
        found = getattr(inspect.getmodule(family), "eager_attention_forward", None)
        if found is not None:
            return found
    raise ValueError(
        f"{type(module).__name__} has no eager attention function: use attn_implementation='sdpa'."
    )
