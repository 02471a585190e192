"""
Policies that start from weights which another method has rounded: GPTQ, AWQ, or an earlier export.

Checkpoints are read as they are, without the libraries that wrote them. A policy's codes, scales and zero
points are then the checkpoint's, and so are its embeddings, norms and biases. Its latent weights have moved:
the teacher has to be another copy of the model in full precision.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .layers import QuantizedLinear, quantized_layers
from .packed_weights import PackedWeight, awq_weight, compressed_weight, gptq_weight
from .quantizers import SCALE_DTYPES, decode

MARGIN = 2.0**-11  # of a step, that a latent weight keeps from where another code begins


def load_gptq(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """
    Start a policy from a GPTQ checkpoint of 2, 3, 4 or 8 bits.

    Each latent weight becomes the one nearest to what it was that rounds to the checkpoint's code: what of
    the full-precision weights fits is kept.

    Args:
        model: of :func:`~extensions.trl.qdpo.layers.quantize_model`, with the checkpoint's bits and group
            size, ``symmetric=False`` if it has zero points, and ``scale_dtype="float16"``.
        directory: with safetensors, and the settings in config.json or quantize_config.json.

    Raises:
        ValueError: another method or layout, ``desc_act``, or layers that are not those of the model. The
            model is then as it was.
    """
    settings = _settings(directory, "gptq")
    layout = settings.setdefault("checkpoint_format", "gptq")
    if settings["bits"] not in (2, 3, 4, 8) or layout not in ("gptq", "gptq_v2"):
        raise ValueError(
            f"{directory} has {settings['bits']} bits in the layout {layout!r}. Only 2, 3, 4 and 8 bits in "
            "the layouts 'gptq' and 'gptq_v2' are read."
        )
    _start(model, directory, settings, gptq_weight, ("qweight", "qzeros", "scales", "g_idx"), keep=True)


def load_awq(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """
    Start a policy from an AWQ checkpoint (4 bits, ``version="gemm"``).

    AWQ scales the inputs of a layer, and what makes them by the inverse, before it rounds: the latent weights
    of the model are no neighbours of the checkpoint's. They become the rounded weights themselves.

    Args:
        model: of :func:`~extensions.trl.qdpo.layers.quantize_model`, with 4 bits, the checkpoint's group
            size, ``symmetric=False`` if it has zero points, and ``scale_dtype="float16"``.
        directory: with safetensors, and the settings in config.json or quant_config.json.

    Raises:
        ValueError: another method or layout, or layers that are not those of the model. The model is then as
            it was.
    """
    settings = _settings(directory, "awq")
    settings.setdefault("bits", settings.get("w_bit", 4))
    layout = str(settings.get("version") or settings.get("format") or "gemm").lower()
    if settings["bits"] != 4 or layout != "gemm":
        raise ValueError(
            f"{directory} has {settings['bits']} bits in the layout {layout!r}. Only 4 bits in the layout "
            "'gemm' are read."
        )
    _start(model, directory, settings, awq_weight, ("qweight", "qzeros", "scales"), keep=False)


def load_packed(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """
    Start a policy from what :func:`~extensions.trl.qdpo.export.export_packed` wrote.

    Each latent weight becomes the one nearest to what it was that rounds to the code in the file.

    Args:
        model: of :func:`~extensions.trl.qdpo.layers.quantize_model`, with the scheme of the exported policy.
        directory: of the packed model.

    Raises:
        ValueError: another method or layout, or layers that are not those of the model. The model is then as
            it was.
    """
    settings = _settings(directory, "compressed-tensors")
    groups = list(settings["config_groups"].values())
    if settings["format"] != "pack-quantized" or len(groups) != 1:
        raise ValueError(
            f"{directory} has {len(groups)} schemes in the layout {settings['format']!r}. Only one scheme in "
            "the layout 'pack-quantized' is read."
        )
    settings["bits"] = groups[0]["weights"]["num_bits"]
    parts = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
    _start(model, directory, settings, compressed_weight, parts, keep=True)


def _start(
    model: nn.Module,
    directory: str | os.PathLike[str],
    settings: Mapping[str, Any],
    read: Callable[[Mapping[str, Tensor], Mapping[str, Any]], PackedWeight],
    parts: tuple[str, ...],
    keep: bool,
) -> None:
    """Read and check everything, then change the model. ``parts[0]`` marks a packed layer."""
    tensors = _tensors(directory)
    layers = quantized_layers(model)
    packed = {key.removesuffix(f".{parts[0]}") for key in tensors if key.endswith(f".{parts[0]}")}
    _check_same_layers(layers, packed)
    weights = {}
    for name, layer in layers.items():
        own = {part: tensors.pop(f"{name}.{part}") for part in parts if f"{name}.{part}" in tensors}
        try:
            weights[name] = read(own, settings)
            check_fits(layer, weights[name])
        except KeyError as error:
            raise ValueError(f"{directory} has no {error} of {name}.") from error
        except ValueError as error:
            raise ValueError(f"{name} cannot be taken from {directory}: {error}.") from error
    rest = _rest(model, layers, tensors)
    model.load_state_dict(rest, strict=False)
    for name, layer in layers.items():
        put(layer, weights[name], keep)


@torch.no_grad()
def put(layer: QuantizedLinear, weight: PackedWeight, keep: bool) -> None:
    """
    Give a layer a weight's codes, scales and zero points.

    Args:
        layer: with a latent weight (O, I).
        weight: that fits it.
        keep: whether the latent weight stays as near to what it was as the codes allow; else it is the
            rounded weight.
    """
    scheme, latent = layer.scheme, layer.latent
    device = latent.device
    codes, scale = weight.codes.to(device), weight.scale.to(device)  # (O, I), (O, G)
    zero_point = None if layer.weight_zero_point is None else weight.zero_point.to(device)
    layer.weight_scale.copy_(scale)
    if layer.weight_zero_point is not None and zero_point is not None:
        layer.weight_zero_point.copy_(zero_point)
    rounded = decode(codes, scale, zero_point, scheme)  # (O, I)
    if keep:
        half = (0.5 - MARGIN) * scale.repeat_interleave(rounded.shape[1] // scale.shape[1], 1)  # (O, I)
        # The outermost codes are what all beyond them is clipped to.
        low = torch.where(codes == scheme.lowest, -torch.inf, rounded - half)
        high = torch.where(codes == scheme.highest, torch.inf, rounded + half)
        rounded = latent.float().clamp(low, high)
    latent.copy_(rounded)


def check_fits(layer: QuantizedLinear, weight: PackedWeight) -> None:
    """Raise a ValueError that says what of the model's scheme has to change, if something has."""
    scheme, kept = layer.scheme, SCALE_DTYPES[layer.scheme.scale_dtype]
    if weight.bits != scheme.bits:
        raise ValueError(
            f"it has {weight.bits} bits, and the model {scheme.bits}: quantize it with bits={weight.bits}"
        )
    if weight.codes.shape != layer.latent.shape:
        raise ValueError(f"it is {tuple(weight.codes.shape)}, and the model's {tuple(layer.latent.shape)}")
    if weight.scale.shape != layer.weight_scale.shape:
        groups = weight.scale.shape[1]
        size = layer.in_features // groups if groups > 1 else None
        raise ValueError(f"it has groups of another size: quantize the model with group_size={size}")
    if scheme.symmetric and weight.zero_point.any():
        raise ValueError("it has zero points: quantize the model with symmetric=False")
    if not torch.equal(weight.scale.to(kept).float(), weight.scale):
        raise ValueError(
            f"its scales do not fit into {scheme.scale_dtype}: quantize the model with "
            "scale_dtype='float16', or 'float32' if they are wider still"
        )


def _settings(directory: str | os.PathLike[str], method: str) -> dict[str, Any]:
    """What the checkpoint says of itself; which method it is of is checked."""
    folder = Path(directory)
    config = folder / "config.json"
    settings = json.loads(config.read_text()).get("quantization_config") if config.exists() else None
    for name in (
        "quantize_config.json",
        "quant_config.json",
    ):  # of AutoGPTQ and AutoAWQ, before transformers knew them
        if settings is None and (folder / name).exists():
            settings = {"quant_method": method, **json.loads((folder / name).read_text())}
    found = None if settings is None else settings.get("quant_method")
    if settings is None or found != method:
        readers = {"gptq": "load_gptq", "awq": "load_awq", "compressed-tensors": "load_packed"}
        instead = f" Read it by {readers[found]}()." if found in readers else ""
        raise ValueError(f"{directory} is no {method} checkpoint, its quantization is {found}.{instead}")
    return dict(settings)


def _tensors(directory: str | os.PathLike[str]) -> dict[str, Tensor]:
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{directory} holds no safetensors.")
    return {key: value for file in files for key, value in load_file(file).items()}


def _check_same_layers(layers: Mapping[str, Any], packed: set[str]) -> None:
    if not layers:
        raise ValueError("The model has no quantized layer: call quantize_model() on it first.")
    only_model, only_file = sorted(layers.keys() - packed), sorted(packed - layers.keys())
    if only_model or only_file:
        raise ValueError(
            "The model and the checkpoint have not the same layers quantized. Only in the model: "
            f"{', '.join(only_model) or 'none'}; only in the checkpoint: {', '.join(only_file) or 'none'}. "
            "Leave layers out with modules_to_not_quantize, or set quantize_lm_head; add adapters afterwards."
        )


def _rest(
    model: nn.Module, layers: Mapping[str, QuantizedLinear], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What is not packed: each tensor of the model must be there, and no other."""
    state = model.state_dict(keep_vars=True)
    own = {f"{name}.{part}" for name in layers for part in ("weight", "weight_scale", "weight_zero_point")}
    rest = {key: value for key, value in tensors.items() if key in state}
    loaded = {id(state[key]) for key in rest}  # tied weights are stored once
    missing = [key for key, value in state.items() if key not in own and id(value) not in loaded]
    extra = [key for key, value in tensors.items() if key not in state and not _is_idle(key, value)]
    other = [key for key, value in rest.items() if value.shape != state[key].shape]
    if missing or extra or other:
        raise ValueError(
            f"The checkpoint is of another model. It lacks: {', '.join(missing) or 'nothing'}; it alone has: "
            f"{', '.join(extra) or 'nothing'}; of other shapes: {', '.join(other) or 'none'}."
        )
    return rest


def _is_idle(key: str, value: Tensor) -> bool:
    """Some writers give each layer a bias of zeros, and store rotary frequencies."""
    return key.endswith("rotary_emb.inv_freq") or (key.endswith(".bias") and not value.any())
