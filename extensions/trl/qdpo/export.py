"""
A quantized policy as a packed checkpoint, which plain ``from_pretrained`` reads.

The file holds the integers and the scales that the policy computed with, so that the model read back from it
is the policy to the last bit: ``(c - z) s`` is exact in float32 and is rounded once, to the type that is
computed in, here and there.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.utils import is_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .kv_cache import kv_bits
from .layers import QuantizedLinear, quantized_layers
from .lora import LoraQuantizedLinear
from .quantizers import SCALE_DTYPES, encode

LAYOUT = "pack-quantized"  # compressed-tensors' name for integers without a gap between them


def export_packed(
    model: Any,
    processing_class: Any,
    directory: str | os.PathLike[str],
    format: str = "compressed-tensors",
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str = "50GB",
) -> None:
    """
    Write a quantized policy with its weights packed to their bits.

    ``AutoModelForCausalLM.from_pretrained(directory)`` has the policy's logits bit for bit if the policy
    computes in ``dtype`` too, and by the same attention function. An export that was cut short does not look
    complete: its files are moved in when all are written, config.json last.

    The file holds weights. Where activations or the key-value cache are quantized too, a warning says so: the
    reloaded model reads them in full, until :func:`~.kv_cache.quantize_kv_cache` is called on it.

    Args:
        model: a causal language model with quantized layers, perhaps below PEFT, whose adapters are then
            merged into the latent weights of a copy of it.
        processing_class: its tokenizer.
        directory: where to. A packed model that is there already is replaced.
        format: ``"compressed-tensors"``, which packs 2 to 8 bits densely.
        dtype: the type of all that is not quantized, in which the reloaded model computes. By default, the
            type that the policy computes in.
        max_shard_size: as in ``save_pretrained``.

    Raises:
        ValueError: an unknown format, nothing quantized, a type that does not hold the scales, or a directory
            that holds another model.
        ImportError: compressed-tensors is not installed.
    """
    _check_format(format)
    directory = Path(directory)
    _check_free(directory)
    plain = _merged(model)
    layers = quantized_layers(plain)
    if not layers:
        raise ValueError(
            f"{type(plain).__name__} has no quantized layer to pack: call quantize_model() on it, or train "
            "it with bits between 2 and 8. A model in full precision is saved by save_pretrained()."
        )
    dtype = _first(layers).compute_dtype if dtype is None else _named(dtype)
    _check_scales(layers, dtype)
    _warn_of_what_is_left_out(plain, layers)
    with _moved_in_whole(directory) as folder:
        state = packed_state(plain, layers, dtype)
        plain.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
        _describe(folder / "config.json", dtype, quantization_config(plain, layers))
        processing_class.save_pretrained(folder)


def packed_state(
    model: nn.Module, layers: dict[str, QuantizedLinear], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The state of a policy: packed weights in the place of the latent ones, all else in ``dtype``."""
    state: dict[str, Tensor] = {}
    in_dtype: dict[int, Tensor] = {}  # tied weights stay one tensor
    latent = {f"{name}.{key}" for name in layers for key in ("weight", "weight_scale", "weight_zero_point")}
    for key, value in model.state_dict(keep_vars=True).items():
        if key in latent:
            continue
        if id(value) not in in_dtype:
            in_dtype[id(value)] = value.detach().to(dtype if value.is_floating_point() else value.dtype)
        state[key] = in_dtype[id(value)]
    for name, layer in layers.items():
        state |= {f"{name}.{key}": value for key, value in packed_weight(layer, dtype).items()}
    return state


@torch.no_grad()
def packed_weight(layer: QuantizedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
    """
    What the file holds of a weight (O, I) of a model that computes in ``dtype``.

    Returns:
        ``weight_packed`` (O, I b / 32) int32, codes packed along the inputs; ``weight_scale`` (O, G); unless
        symmetric ``weight_zero_point`` (O b / 32, G) int32, packed along the outputs; ``weight_shape`` (2,).
    """
    from compressed_tensors.compressors import pack_to_int32

    scheme, scale, zero_point = layer.scheme, layer.scale, layer.weight_zero_point
    codes = encode(layer.latent, scale, zero_point, scheme)  # (O, I)
    packed = {
        "weight_packed": pack_to_int32(codes, scheme.bits),
        # Asymmetric weights are unpacked in the type of their scales, see quantization_config().
        "weight_scale": scale.to(SCALE_DTYPES[scheme.scale_dtype] if scheme.symmetric else dtype),
        "weight_shape": torch.tensor(codes.shape),
    }
    if zero_point is not None:
        packed["weight_zero_point"] = pack_to_int32(zero_point, scheme.bits, packed_dim=0)
    return packed


def quantization_config(model: nn.Module, layers: dict[str, QuantizedLinear]) -> dict[str, Any]:
    """
    What config.json says of the packed layers.

    compressed-tensors 0.20 makes room for unpacked zero points before it reads packed ones, and fails.
    Asymmetric weights are therefore unpacked while they are read (``dequantize``), and symmetric ones at the
    first forward.
    """
    from compressed_tensors.quantization import QuantizationConfig

    scheme = _first(layers).scheme
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    weights: dict[str, Any] = {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric}
    grid: dict[str, Any] = {"strategy": "channel"}
    if scheme.group_size is not None:
        grid = {"strategy": "group", "group_size": scheme.group_size}
    config: dict[str, Any] = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights | grid, "format": LAYOUT}},
        "ignore": sorted(linear - layers.keys()),
        "format": LAYOUT,
        "quantization_status": "compressed",
    }
    checked = QuantizationConfig(**config).model_dump(mode="json")
    return {**checked, "dequantize": not scheme.symmetric}


def _describe(file: Path, dtype: torch.dtype, quantization: dict[str, Any]) -> None:
    config = json.loads(file.read_text())
    config |= {"dtype": str(dtype).removeprefix("torch."), "quantization_config": quantization}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _merged(model: Any) -> Any:
    """The model without PEFT around it: a copy, for what is merged cannot be taken apart to the last bit."""
    if not is_peft_model(model):
        return model
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or isinstance(layer, LoraQuantizedLinear):
            continue
        if isinstance(layer.get_base_layer(), QuantizedLinear):
            raise ValueError(
                f"The adapter of {name} is added to a rounded weight: the sum is no low-bit weight. Call "
                "fold_adapters(model) before training."
            )
    return copy.deepcopy(model).merge_and_unload()


def _first(layers: dict[str, QuantizedLinear]) -> QuantizedLinear:
    """Any of them: quantize_model() gives all layers one scheme."""
    return next(iter(layers.values()))


def _named(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f'dtype must be a floating-point type such as "bfloat16", not {dtype!r}.')
    return found


def _check_format(format: str) -> None:
    if format != "compressed-tensors":
        why = (
            " torchao keeps a byte a weight below 8 bits: that is not packed." if format == "torchao" else ""
        )
        raise ValueError(f'format must be "compressed-tensors", not {format!r}.{why}')
    if find_spec("compressed_tensors") is None:
        raise ImportError("Packed export needs compressed-tensors: pip install compressed-tensors")


def _check_scales(layers: dict[str, QuantizedLinear], dtype: torch.dtype) -> None:
    """compressed-tensors casts scales to the type that it computes in: none may move."""
    for name, layer in layers.items():
        kept, scale = layer.scheme.scale_dtype, layer.scale.float()
        if not torch.equal(scale.to(dtype).float(), scale):
            raise ValueError(
                f"The scales of {name} live in {kept}, and {dtype} does not hold them: the reloaded model "
                f'would be another. Export with dtype="{kept}" or "float32".'
            )


def _warn_of_what_is_left_out(model: Any, layers: dict[str, QuantizedLinear]) -> None:
    """compressed-tensors has fields for both, but other scales: amax / 127.5 a token, fixed ones a cache."""
    left_out = []
    if any(layer.activation_bits is not None for layer in layers.values()):
        left_out.append("activations")
    if kv_bits(model) is not None:
        left_out.append("the key-value cache")
    if left_out:
        warnings.warn(
            f"The packed file holds weights only: {' and '.join(left_out)} will be in full precision in the "
            "reloaded model, whose logits are then not those of this one.",
            stacklevel=3,
        )


def _check_free(directory: Path) -> None:
    """Weights that somebody trained are not overwritten; an earlier export is."""
    config = directory / "config.json"
    full_precision = config.exists() and "quantization_config" not in json.loads(config.read_text())
    if full_precision or (directory / "adapter_config.json").exists():
        raise ValueError(
            f"{directory} holds a model in full precision or an adapter, which the packed model would "
            "replace. Export to a directory of its own."
        )


@contextmanager
def _moved_in_whole(directory: Path) -> Iterator[Path]:
    """A folder to write to. Its files are moved into ``directory`` when all are there, config.json last."""
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".incomplete-", dir=directory) as name:
        folder = Path(name)
        yield folder
        for old in [directory / "config.json", *directory.glob("model*.safetensors*")]:
            old.unlink(missing_ok=True)
        files = [path for path in folder.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: path.name == "config.json"):
            target = directory / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
