"""
Training on a 4-bit bitsandbytes model that also speaks, on CPUs with AVX512-BF16.

There bitsandbytes (0.50.2) rearranges a layer's weight for a faster kernel at the first forward in eval mode:
a generation, an evaluation. The kernel has no backward pass and the arrangement stays, so that from then on
no gradient comes through the layer: adapters below it stop training, and only a warning says so. Nor is there
a way back: ``state_dict`` rearranges the weight again, but its scales were rounded to bfloat16, and without
double quantization they come back in another order, under which the weights are other weights.
"""

from typing import Any

from torch import nn


def keep_trainable(model: nn.Module) -> int:
    """
    Have the 4-bit layers of ``model`` keep their weights as they are, in generations too, which are slower.

    Nothing happens to layers of other kinds.

    Returns:
        The number of 4-bit layers.

    Raises:
        ValueError: A layer's weight has been rearranged already.
    """
    layers: list[Any] = [
        module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")
    ]
    for layer in layers:
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise ValueError(
                "This 4-bit model has spoken in eval mode on this CPU, and bitsandbytes has rearranged its "
                "weights so that no gradient comes through them. Load it again, and pass it before it speaks."
            )
        layer.support_avx512bf16_for_cpu = False
    return len(layers)
