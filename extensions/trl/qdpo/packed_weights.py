"""
Weights as GPTQ, AWQ and compressed-tensors checkpoints hold them: integers that share words of 32 bits.

All three mean ``(c - z) s`` with a scale ``s`` and a zero point ``z`` for each output and group of inputs.
They differ in which way words run, in the order inside a word, and in whether zero points are stored less
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # outputs of which a word holds the codes, from its lowest bits up


@dataclass(frozen=True)
class PackedWeight:
    """
    A weight of ``bits`` bits on the grid of :mod:`.quantizers`: codes are signed.

    Attributes:
        bits: of a code.
        codes: (O, I) int8.
        scale: (O, G) float32.
        zero_point: (O, G) int8; all 0 if it is symmetric.
    """

    bits: int
    codes: Tensor
    scale: Tensor
    zero_point: Tensor


def gptq_weight(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> PackedWeight:
    """
    GPTQ's: ``qweight`` (I b / 32, O) packed along the inputs, ``qzeros`` (G, O b / 32) along the outputs,
    ``scales`` (G, O), and perhaps ``g_idx`` (I,), the group of each input.

    Checkpoints whose ``checkpoint_format`` is not ``gptq_v2`` store zero points less one.

    Raises:
        ValueError: groups are not runs of consecutive inputs (``desc_act``).
    """
    bits, qzeros, scales = settings["bits"], tensors["qzeros"], tensors["scales"]
    codes = unpack(tensors["qweight"].T, bits)  # (O, I)
    _check_consecutive(tensors.get("g_idx"), codes.shape[1], scales.shape[0])
    if settings.get("checkpoint_format") == "gptq_v2":
        zeros = unpack(qzeros, bits)  # (G, O)
    elif bits == 3:
        zeros = (unpack(qzeros, bits) + 1) % 8
    else:  # it was subtracted from whole words, in which a zero point of 0 borrows from the next
        zeros = unpack(qzeros + sum(1 << bit for bit in range(0, 32, bits)), bits)
    return _signed(bits, codes, scales.T, zeros.T)


def awq_weight(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> PackedWeight:
    """
    AWQ's (``version="gemm"``): ``qweight`` (I, O / 8) and ``qzeros`` (G, O / 8) of 4 bits, packed along the
    outputs in an order of their own; ``scales`` (G, O).
    """
    codes = _awq_order(unpack(tensors["qweight"], 4))  # (I, O)
    zeros = _awq_order(unpack(tensors["qzeros"], 4))  # (G, O)
    return _signed(4, codes.T, tensors["scales"].T, zeros.T)


def compressed_weight(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> PackedWeight:
    """
    compressed-tensors' ``pack-quantized``: ``weight_packed`` (O, I b / 32) along the inputs, ``weight_scale``
    (O, G), ``weight_shape`` (2,), and perhaps ``weight_zero_point`` (O b / 32, G) along the outputs.
    """
    bits = settings["bits"]
    outputs, inputs = tensors["weight_shape"].tolist()
    scale, packed_zeros = tensors["weight_scale"], tensors.get("weight_zero_point")
    codes = unpack(tensors["weight_packed"], bits)[:, :inputs]
    zeros = torch.full(scale.shape, 2 ** (bits - 1))
    if packed_zeros is not None:
        zeros = unpack(packed_zeros.T, bits)[:, :outputs].T
    return _signed(bits, codes, scale, zeros)


def unpack(words: Tensor, bits: int) -> Tensor:
    """
    Integers of ``bits`` bits, without a sign, that run through words (..., W) of 32 from the lowest bit up.

    Returns:
        (..., 32 W / bits) int64.
    """
    first = torch.arange(words.shape[-1] * 32 // bits, device=words.device) * bits  # where each begins
    unsigned = F.pad(words.long() & 0xFFFFFFFF, (0, 1))
    two_words = unsigned[..., first // 32] | unsigned[..., first // 32 + 1] << 32
    return two_words >> first % 32 & 2**bits - 1


def _signed(bits: int, codes: Tensor, scale: Tensor, zeros: Tensor) -> PackedWeight:
    middle = 2 ** (bits - 1)
    codes, zeros = ((value - middle).to(torch.int8).contiguous() for value in (codes, zeros))
    return PackedWeight(bits, codes, scale.float().contiguous(), zeros)


def _awq_order(stored: Tensor) -> Tensor:
    """Outputs (..., O) in their own order."""
    place = torch.tensor(AWQ_ORDER).argsort().to(stored.device)
    return stored.unflatten(-1, (-1, 8))[..., place].flatten(-2)


def _check_consecutive(g_idx: Tensor | None, inputs: int, groups: int) -> None:
    if g_idx is not None and not torch.equal(g_idx.long(), torch.arange(inputs) // (inputs // groups)):
        raise ValueError("its inputs are not in the order of its groups: quantize anew with desc_act=False")
