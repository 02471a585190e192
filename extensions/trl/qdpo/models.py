"""The quantized policy, and who speaks for the model it was made of: teacher and reference."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AutoProcessor, PreTrainedModel

from .. import _host
from .activations import quantize_activations
from .kv_cache import quantize_kv_cache
from .layers import full_precision, quantize_model, quantized_layers
from .qdpo_config import QDPOConfig


def load(
    model: str | PreTrainedModel,
    args: QDPOConfig,
    leave_out: Sequence[str] = (),
    quantization_config: Any = None,
) -> Any:
    """A model as it was given; if that was a name or a path, loaded with ``args.model_init_kwargs``."""
    if not isinstance(model, str):
        return model
    given: Any = args.model_init_kwargs
    arguments: dict[str, Any] = {k: v for k, v in (given or {}).items() if k not in leave_out}
    if quantization_config is not None:
        arguments["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        arguments["device_map"] = None  # every process holds the whole model
    arguments.setdefault("trust_remote_code", args.trust_remote_code)
    return _host.create_model_from_path(model, **arguments)


def load_processing_class(model: Any, args: QDPOConfig) -> Any:
    """The tokenizer (or processor) that lies beside a model's weights."""
    arguments: Any = args.model_init_kwargs or {}
    return AutoProcessor.from_pretrained(
        _host.get_config_model_id(model.config),
        revision=arguments.get("revision"),
        trust_remote_code=args.trust_remote_code,
    )


def make_policy(model: Any, args: QDPOConfig) -> None:
    """Quantize a model in place as the configuration says, unless it is made of our layers already."""
    scheme = args.scheme()
    if scheme is None:
        return
    if not quantized_layers(model):
        quantize_model(model, scheme, args.modules_to_not_quantize or (), args.quantize_lm_head)
    if args.activation_bits is not None:
        quantize_activations(model, args.activation_bits)
    if args.kv_bits is not None:
        quantize_kv_cache(model, args.kv_bits)


def frozen_copy(model: nn.Module) -> Any:
    """The policy as it is now, to be kept: reference as it is, teacher with its quantizers off."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    _host.without_fused_head(twin)
    return twin


def place(model: Any, device: torch.device) -> None:
    """Move a model, unless a device map spread it over several devices."""
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) <= 1:
        model.to(device)


class Teacher:
    """
    The full-precision model, whichever way it can still be had.

    Args:
        policy: the quantized model that is trained.
        other: another model that was given as the teacher; or None.
        initial: a frozen copy of the initial policy; or None.
    """

    def __init__(self, policy: Any, other: Any, initial: Any) -> None:
        self.policy, self.other, self.initial = policy, other, initial
        self.untrained = True  # until the first update, the policy's latent weights are the teacher's

    @property
    def same(self) -> bool:
        """Whether the teacher is nothing but the policy, which is then as good as its reference."""
        loaded = isinstance(self.policy, nn.Module)  # else it is a name, for the host to load
        return self.other is None and not (loaded and quantized_layers(self.policy))

    @contextmanager
    def speaking(self, beside_policy: bool = False) -> Iterator[Any]:
        """
        A model that is the teacher for as long as the context lasts.

        Args:
            beside_policy: whether the policy is to speak meanwhile as well, so that the two must not be one.

        Raises:
            RuntimeError: the policy has been trained, and no copy of what it was is there.
        """
        speaker = next(model for model in (self.other, self.initial, self.policy) if model is not None)
        if speaker is self.policy:
            if not self.untrained and not _host.is_peft_model(speaker):
                raise RuntimeError(
                    "The full-precision weights were not kept: the policy was made of them and has been "
                    "trained. Pass the full-precision model as teacher_model, or set "
                    "precompute_ref_log_probs=False, which keeps a copy."
                )
            if beside_policy:
                speaker = frozen_copy(speaker)
        adapted = speaker is not self.other and _host.is_peft_model(speaker)
        with _host.use_adapter(speaker, None) if adapted else nullcontext(), full_precision(speaker):
            yield speaker
