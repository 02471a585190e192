"""Scales that are learned: the integers' unit is trained, and every weight stays what it was."""

from torch import nn

from .layers import quantized_layers


def train_scales_only(model: nn.Module) -> list[nn.Parameter]:
    """
    Freeze ``model`` but for the scales of its quantized weights, in place.

    ``weight_scale`` (O, G) becomes a parameter in float32, with the gradient of learned step sizes (Esser et
    al. 2020, arXiv 1902.08153, Eq. 3). The forward pass rounds it to the type a packed file keeps scales in
    (``layer.scale``), straight-through, so that what is trained is what is exported. Latent weights, zero
    points, embeddings, norms and biases are frozen: codes change only as weights come to be divided by other
    scales. The paper's factor 1 / sqrt(n q) on the gradient is left out, which an optimizer of Adam's kind
    would divide away. Such an optimizer moves a scale by about the learning rate, and a scale is some
    hundredths: choose the rate by that. The gradient takes no notice of codes that jump, and a step of a
    scale makes many jump: at 8 bits, where RTN has lost next to nothing, it may lose more than it gains.

    Returns:
        The scales, a parameter for each quantized layer.

    Raises:
        ValueError: No layer is quantized.
    """
    layers = quantized_layers(model).values()
    if not layers:
        raise ValueError(
            "train_scales_only trains the scales of quantized weights, and there are none: set bits."
        )
    model.requires_grad_(False)
    for layer in layers:
        if not layer.trains_scales:
            scale = layer.weight_scale
            del layer.weight_scale
            layer.register_parameter("weight_scale", nn.Parameter(scale))
        layer.weight_scale.requires_grad_(True)
    return [layer.get_parameter("weight_scale") for layer in layers]
