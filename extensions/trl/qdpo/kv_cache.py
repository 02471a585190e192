"""
A key-value cache in few bits, simulated where training sees it too: inside the attention function.

A quantizing cache would act in generation alone, as a loss is computed without one. Keys (after the rotary
embedding) and values are here rounded where attention reads them, in a pass over a whole text and in a step
of a generation alike; each token and head has a scale of its own, so both round a token in the same way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from .._host import attention_implementation, eager_attention_of
from .token_quantizer import check_token_bits, fake_quantize_tokens

QUANTIZABLE = ("eager", "sdpa")
SUFFIX = "_kv"


def quantize_kv_cache(model: PreTrainedModel, bits: int) -> None:
    """
    From now on ``model`` attends to keys and values of ``bits`` bits, 2 to 8, in place.

    The model's attention implementation becomes one of the name ``"sdpa_kv8"`` (``"eager_kv4"``, ...), which
    rounds keys and values (B, heads, T, D) per token and head and then is the implementation that was in use,
    with its masks. What is exported does not hold it: it is set again on the model that is loaded.

    Raises:
        ValueError: The bits are not 2 to 8, the model attends by something other than ``eager`` or ``sdpa``,
            its attention does not go through transformers' ``AttentionInterface``, or its keys and values are
            quantized already.
    """
    check_token_bits("kv_bits", bits)
    host = attention_implementation(model)
    if SUFFIX in host:
        raise ValueError(
            f"The keys and values of this model are quantized already: {host!r}. Take another model."
        )
    if host not in QUANTIZABLE:
        raise ValueError(
            f"Keys and values can be quantized under attention of {QUANTIZABLE}, and this is {host!r}: load "
            "the model with attn_implementation='sdpa'."
        )
    name = f"{host}{SUFFIX}{bits}"
    AttentionInterface.register(name, _quantizing(host, bits))
    AttentionMaskInterface.register(name, AttentionMaskInterface()[host])
    model.set_attn_implementation(name)
    if attention_implementation(model) != name:
        raise ValueError(
            f"The attention of {type(model).__name__} does not go through transformers' AttentionInterface, "
            "so its keys and values cannot be quantized: leave kv_bits unset."
        )


def kv_bits(model: Any) -> int | None:
    """The bits of the keys and values that ``model`` attends to; None where they are not quantized."""
    _, quantized, bits = attention_implementation(model).partition(SUFFIX)
    return int(bits) if quantized else None


@contextmanager
def full_precision_kv_cache(model: Any) -> Iterator[None]:
    """Keys and values as they are, quantized again after; nothing where they are not quantized."""
    name = attention_implementation(model)
    host = name.split(SUFFIX)[0]
    model.set_attn_implementation(host)
    try:
        yield
    finally:
        model.set_attn_implementation(name)


def _quantizing(host: str, bits: int) -> Callable[..., Any]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        attention = eager_attention_of(module) if host == "eager" else AttentionInterface()[host]
        key = fake_quantize_tokens(key, bits)  # (B, heads, T, D)
        value = fake_quantize_tokens(value, bits)  # (B, heads, T, D)
        return attention(module, query, key, value, *args, **kwargs)

    return attend
