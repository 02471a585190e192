"""Adapters that are folded into a weight before it is rounded: the adapted model is in few bits as well."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor

from .layers import QuantizedLinear

#: initialisations that leave the base weight alone
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")


class LoraQuantizedLinear(Linear):
    """
    LoRA on a quantized layer: Q(W + sum_a s_a B_a A_a), with s_a = alpha / r, or alpha / sqrt(r) of rsLoRA.

    PEFT's own layer computes Q(W) + s B A, a low-bit matrix and one in full precision, which together are no
    low-bit model; merging and rounding it again is another model than was trained. Here the layer reads a
    weight in few bits at every moment, its base layer's ``weight`` included, and merging changes nothing.
    The scales stay those of W: where W + s B A leaves their range it is clipped, and A and B have no gradient
    from there. With adapters disabled it is Q(W).

    It is made from PEFT's layer in place, by :func:`fold_adapters`.
    """

    base_layer: QuantizedLinear

    def folded(self, latent: Tensor) -> Tensor:
        """The latent weight (O, I) and what the active adapters add to it."""
        if self.disable_adapters or self.merged:
            return latent
        for adapter in self.active_adapters:
            if adapter in self.lora_A:
                latent = latent + self.get_delta_weight(adapter)
        return latent

    def get_delta_weight(self, adapter: str) -> Tensor:
        """s B A (O, I), in the adapter's type under autocast too: the same where it is merged or exported."""
        with torch.autocast(self.base_layer.latent.device.type, enabled=False):
            return super().get_delta_weight(adapter)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.pop("adapter_names", None) is not None:
            raise ValueError(
                "A quantized layer has one weight for the whole batch: instead of adapter_names, call the "
                "model once for each adapter, after set_adapter."
            )
        if self.disable_adapters and self.merged:
            self.unmerge()
        return self.base_layer(x, *args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds adapters to the latent weight: PEFT would add them to the rounded one, where they are lost."""
        latent = self.base_layer.latent
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.lora_A:
                continue
            merged = latent.detach() + self.get_delta_weight(adapter).detach()
            if safe_merge and not merged.isfinite().all():
                raise ValueError(f"The weight with the adapter {adapter!r} merged into it is not finite.")
            latent.data = merged
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Takes merged adapters out of the latent weight, to rounding."""
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            if adapter in self.lora_A:
                self.base_layer.latent.data -= self.get_delta_weight(adapter).detach()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> QuantizedLinear:
        """What ``merge_and_unload`` and ``unload`` leave in this layer's place."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        self.base_layer.adapted = None
        return self.base_layer

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any
    ) -> None:
        """Takes one more adapter, if it can be folded."""
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)
        check_foldable(self, adapter_name, config)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        self.base_layer.forget_cached()
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        self.base_layer.forget_cached()
        super().enable_adapters(enabled)


def fold_adapters(model: PeftModel) -> dict[str, LoraQuantizedLinear]:
    """
    Have every LoRA adapter on a quantized layer of ``model`` act before the rounding, in place.

    Adapters on layers in full precision stay PEFT's. Call it after ``get_peft_model`` or
    ``PeftModel.from_pretrained``, and again if an adapter is added that targets other layers than those
    before it; ``merge_and_unload`` then leaves a policy of quantized layers.

    Returns:
        The layers that are adapted so, by name.

    Raises:
        ValueError: An adapter cannot be folded: it is not plain LoRA or rsLoRA, has a dropout (which acts on
            inputs) or a bias, rewrites the weight it starts from, or is on the output head.
    """
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise ValueError(
            "An adapter on the output head is not trained: TRL's loss reads the head's weight without it. "
            "Remove 'lm_head' from target_modules."
        )
    layers = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or not isinstance(layer.get_base_layer(), QuantizedLinear):
            continue
        if type(layer) is Linear:
            for adapter in layer.lora_A:
                check_foldable(layer, adapter, cast(LoraConfig, model.peft_config[adapter]))
            layer.__class__ = LoraQuantizedLinear
            layer.get_base_layer().adapted = layer.folded
        elif type(layer) is not LoraQuantizedLinear:
            raise ValueError(
                f"{name} is a {type(layer).__name__} on a quantized layer: only LoRA can be folded into a "
                "quantized weight. Take a LoraConfig with target_modules, and without target_parameters."
            )
        layers[name] = layer
    return layers


def check_foldable(layer: Linear, adapter: str, config: LoraConfig) -> None:
    """Raises ``ValueError``, with the fix, unless the adapter adds s B A to the weight and no more."""
    if adapter in layer.lora_variant:
        variant = type(layer.lora_variant[adapter]).__name__.removesuffix("LinearVariant")
        raise ValueError(_refusal(adapter, f"is {variant}", "Take plain LoRA or use_rslora=True"))
    check_config(config, adapter)


def check_config(config: Any, adapter: str = "default") -> None:
    """Raises ``ValueError``, with the fix, for a configuration that alone tells that it cannot be folded."""
    if not isinstance(config, LoraConfig):
        problem, fix = f"is of a {type(config).__name__}", "Take a LoraConfig"
    elif config.use_dora:
        problem, fix = "is DoRA", "Take plain LoRA or use_rslora=True"
    elif config.lora_dropout:
        problem, fix = "drops inputs out, which a weight cannot", "Set lora_dropout=0"
    elif config.lora_bias:
        problem, fix = "has a bias", "Set lora_bias=False"
    elif config.init_lora_weights not in INITIALISATIONS:
        problem = f"rewrites the weight it starts from (init_lora_weights={config.init_lora_weights!r})"
        fix = f"Take one of {INITIALISATIONS}"
    else:
        return
    raise ValueError(_refusal(adapter, problem, fix))


def _refusal(adapter: str, problem: str, fix: str) -> str:
    return f"The adapter {adapter!r} cannot be folded into a quantized weight: it {problem}. {fix}."
