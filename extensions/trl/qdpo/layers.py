"""Linear layers whose weight is low-bit to whoever reads it, and the model that is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kv_cache import full_precision_kv_cache
from .quantizers import WeightScheme, choose_scales, fake_quantize, nearest_on_grid
from .token_quantizer import fake_quantize_tokens


class QuantizedLinear(nn.Linear):
    """
    A linear layer with a low-bit weight over a latent one in full precision.

    ``weight`` is the fake-quantized value: not only this layer's forward reads low bits, but whatever reads a
    layer's weight, such as TRL's fused head. The parameter, by the same name in ``state_dict`` and for the
    optimizer, is the latent weight, :attr:`latent`. It stays in float32 when the model is cast to half
    precision, in which updates of the usual size would be lost; the layer then computes in half precision.

    It is made from an ``nn.Linear`` in place, by :func:`quantize_model`. Its buffers are ``weight_scale``
    (O, G) and, unless symmetric, ``weight_zero_point`` (O, G); they are chosen once, from the weights it is
    made of.
    """

    scheme: WeightScheme
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    #: False inside :func:`full_precision`
    quantizing: bool
    #: the type the layer computes in
    compute_dtype: torch.dtype
    #: what adapters make of the latent weight; set by :func:`~.lora.fold_adapters`
    adapted: Callable[[Tensor], Tensor] | None
    #: bits of what the layer reads; set by :func:`~.activations.quantize_activations`
    activation_bits: int | None
    #: the weight inside :func:`cached_weights`, and whether it was made with the quantizer on
    _cached: Tensor | None
    _cached_quantizing: bool

    @classmethod
    def take(cls, linear: nn.Linear, scheme: WeightScheme) -> QuantizedLinear:
        """Make a quantized layer of ``linear``, which is one afterwards."""
        weight = linear.weight
        compute_dtype = weight.dtype
        weight.data = weight.data.to(torch.promote_types(compute_dtype, torch.float32))
        scale, zero_point = choose_scales(weight.detach(), scheme)
        linear.__class__ = cls
        assert isinstance(linear, cls)
        linear.scheme, linear.quantizing, linear.compute_dtype = scheme, True, compute_dtype
        linear.adapted, linear.activation_bits, linear._cached = None, None, None
        linear.register_buffer("weight_scale", scale)
        linear.register_buffer("weight_zero_point", zero_point)
        if hasattr(linear, "_old_forward"):  # where accelerate's hooks keep the forward they call
            vars(linear)["_old_forward"] = MethodType(cls.forward, linear)
        return linear

    @property
    def latent(self) -> nn.Parameter:
        """The weight in full precision, (O, I), which the optimizer updates."""
        latent = self._parameters["weight"]
        assert latent is not None
        return latent

    @property
    def unrounded(self) -> Tensor:
        """What is rounded, (O, I): the latent weight, and what adapters add to it."""
        return self.latent if self.adapted is None else self.adapted(self.latent)

    @property
    def scale(self) -> Tensor:
        """
        The scales in use, (O, G), float32 values on the grid of the type that a packed file keeps them in.

        They are ``weight_scale``, or, where that is trained (:func:`~.learned_scales.train_scales_only`),
        what is nearest to it on the grid.
        """
        return nearest_on_grid(self.weight_scale, self.scheme) if self.trains_scales else self.weight_scale

    @property
    def trains_scales(self) -> bool:
        """Whether the scales are a parameter."""
        return "weight_scale" in self._parameters

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Q(unrounded) (O, I), or inside :func:`full_precision` the unrounded weight itself."""
        if self._cached is not None and self._cached_quantizing == self.quantizing:
            return self._cached
        return self.quantized(self.unrounded) if self.quantizing else self.unrounded.to(self.compute_dtype)

    def forget_cached(self) -> None:
        """Another weight is to be read from here on, inside :func:`cached_weights` too."""
        self._cached = None

    def quantized(self, latent: Tensor) -> Tensor:
        """Q of another latent weight, on this layer's grid, in the type the layer computes in."""
        return fake_quantize(latent, self.scale, self.weight_zero_point, self.scheme).to(self.compute_dtype)

    def forward(self, input: Tensor) -> Tensor:
        if self.activation_bits is not None and self.quantizing:
            input = fake_quantize_tokens(input, self.activation_bits)
        return F.linear(input, self.weight, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        def keeping_precision(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.element_size() >= tensor.element_size() else tensor.to(result.device)

        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        bias = self._parameters.pop("bias")  # is cast like any other parameter
        super()._apply(keeping_precision, recurse)
        self._parameters["bias"] = bias
        if bias is not None:
            bias.data = fn(bias.data)
        return self

    def extra_repr(self) -> str:
        scheme = self.scheme
        grid = "channel" if scheme.group_size is None else f"group of {scheme.group_size}"
        return f"{super().extra_repr()}, bits={scheme.bits}, a scale per {grid}"


def quantize_model(
    model: nn.Module,
    scheme: WeightScheme,
    skip: Sequence[str] = (),
    quantize_lm_head: bool = False,
) -> dict[str, QuantizedLinear]:
    """
    Replace the linear layers of a model by quantized ones, in place.

    Embeddings and norms stay as they are, and so does the output head unless asked for.

    Args:
        model: a causal language model in full precision.
        scheme: how weights are rounded.
        skip: names of modules that stay in full precision, whole (``"model.layers.0.mlp.down_proj"``) or a
            part of the path (``"down_proj"``).
        quantize_lm_head: whether the output head is quantized too.

    Returns:
        The quantized layers by name.

    Raises:
        ValueError: the model is quantized already, has weights in modules of a kind that cannot be
            quantized, shares a weight that is to be quantized, has inputs that the group size does not
            divide, or has nothing to quantize.
    """
    check_in_full_precision(model)
    left_out = [*skip]
    _check_names(model, left_out)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    found = {}
    for name, module in model.named_modules():
        if _is_in(name, left_out) or (module is head and not quantize_lm_head):
            continue
        if type(module) is nn.Linear:
            found[name] = module
        elif not isinstance(module, nn.Embedding):
            _check_has_no_matrix(name, module)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear layer to quantize"
            + (f" beside those left out: {', '.join(left_out)}." if left_out else ".")
        )
    _check_not_shared(model, found)
    for name, module in found.items():
        if scheme.group_size is not None and module.in_features % scheme.group_size:
            raise ValueError(
                f"{name} has {module.in_features} inputs, which groups of {scheme.group_size} do not "
                "divide. Take another group_size, None (one scale per output channel), or leave the layer "
                "out with modules_to_not_quantize."
            )
    return {name: QuantizedLinear.take(module, scheme) for name, module in found.items()}


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The quantized layers of a model by name, below PEFT's wrappers as well."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """
    Quantizers off, those of activations, keys and values too: the model that the latent weights are.

    Before any update, that is the teacher. Adapters are in it unless they are disabled.
    """
    layers = [layer for layer in quantized_layers(model).values() if layer.quantizing]
    try:
        for layer in layers:
            layer.quantizing = False
        with full_precision_kv_cache(model) if hasattr(model, "config") else nullcontext():
            yield
    finally:
        for layer in layers:
            layer.quantizing = True


@contextmanager
def cached_weights(model: nn.Module) -> Iterator[None]:
    """
    Each weight made once, for as long as no weight changes and no gradient is wanted.

    Quantizers may be on or off: what is read with them the other way is not cached.
    """
    layers = [layer for layer in quantized_layers(model).values() if layer._cached is None]
    try:
        with torch.no_grad():
            for layer in layers:
                layer._cached, layer._cached_quantizing = layer.weight.detach(), layer.quantizing
        yield
    finally:
        for layer in layers:
            layer._cached = None


def check_in_full_precision(model: nn.Module) -> None:
    """
    Refuse a model that is quantized already.

    Raises:
        ValueError: it is, by a library or by :func:`quantize_model`.
    """
    method: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    if method is not None or getattr(model, "is_quantized", False) or quantized_layers(model):
        raise ValueError(
            f"{type(model).__name__} is quantized already. Pass the model in full precision: it is "
            "quantized here, and is its own teacher. GPTQ and AWQ checkpoints are taken as starting points "
            "by load_gptq and load_awq. To train adapters on a model that another library has quantized, "
            "pass bits=None, a peft_config and the full-precision model as teacher_model."
        )


def _is_in(name: str, skip: Sequence[str]) -> bool:
    """Whether a module is one of those in ``skip``, or inside of one."""
    return any(f".{part}." in f".{name}." for part in skip)


def _check_names(model: nn.Module, skip: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    for part in skip:
        if not any(_is_in(name, [part]) for name in names):
            raise ValueError(
                f"modules_to_not_quantize names {part!r}, and {type(model).__name__} has no such module. "
                f"Its linear layers are, for example, {', '.join(_last_parts(model))}."
            )
    for name, module in model.named_modules():
        if any(value.ndim > 2 for value in module.parameters(recurse=False)) and not _is_convolution(module):
            raise ValueError(
                f"{name} keeps the weights of several experts in one: such a model can be neither "
                "quantized here nor read back from a packed file. QDPO takes dense models."
            )


def _last_parts(model: nn.Module) -> list[str]:
    found = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module) is nn.Linear}
    return sorted(found)


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _check_has_no_matrix(name: str, module: nn.Module) -> None:
    matrices = [key for key, value in module.named_parameters(recurse=False) if value.ndim > 1]
    if matrices:
        raise ValueError(
            f"{name or 'The model'} is a {type(module).__name__} with the weight {matrices[0]!r}: only "
            "nn.Linear can be quantized and exported. Leave it in full precision with "
            f"modules_to_not_quantize=[{name.rsplit('.', 1)[-1]!r}]."
        )


def _check_not_shared(model: nn.Module, found: dict[str, nn.Linear]) -> None:
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for value in module._parameters.values():
            if value is not None:
                owners.setdefault(id(value), []).append(name)
    for name, module in found.items():
        others = [other for other in owners[id(module.weight)] if other != name]
        if others:
            raise ValueError(
                f"{name} shares its weight with {others[0]}, which stays in full precision: the two would "
                "no longer be one weight. Set quantize_lm_head=False, leave the layer out with "
                "modules_to_not_quantize, or untie the weights first (config.tie_word_embeddings=False, "
                "and a copy of the weight)."
            )
