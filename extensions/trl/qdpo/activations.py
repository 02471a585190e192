"""Activations in few bits: what quantized layers read, rounded per token."""

from torch import nn

from .layers import QuantizedLinear, quantized_layers
from .token_quantizer import check_token_bits


def quantize_activations(model: nn.Module, bits: int) -> dict[str, QuantizedLinear]:
    """
    From now on the quantized layers of ``model`` read their inputs in ``bits`` bits, 2 to 8, in place.

    Each token's vector is rounded on a symmetric grid of its own, with a straight-through gradient
    (:func:`~.token_quantizer.fake_quantize_tokens`), in training and in generation. Layers in full precision
    read what they read before. So does a quantized output head: TRL's loss multiplies hidden states by its
    weight without calling it, and a generation that did otherwise would be of another model. What is exported
    does not hold it: it is for the runtime to do.

    Returns:
        The layers that do, by name.

    Raises:
        ValueError: The bits are not 2 to 8, or no layer of the model is quantized.
    """
    check_token_bits("activation_bits", bits)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    layers = {name: layer for name, layer in quantized_layers(model).items() if layer is not head}
    if not layers:
        raise ValueError(
            "Activations are quantized where weights are, and no layer below the output head has quantized "
            "weights: set bits as well, or leave activation_bits unset."
        )
    for layer in layers.values():
        layer.activation_bits = bits
    return layers
