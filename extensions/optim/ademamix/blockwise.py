r"""Moments of AdEMAMix as 8-bit codes in blocks, and its update on them.

A tensor is read as rows of ``BLOCK`` elements (the last one may be shorter). Of each block are kept

- the root of the squared moment, :math:`\sqrt\nu`, as an exponent: 255 levels from the block's least to its
  greatest, evenly spaced in their logarithm, and a code of its own for zero;
- the two averages in units of that root, :math:`m/\sqrt\nu`, as 255 levels evenly spaced from -1 to 1 times
  the greatest in the block. In these units the elements of a block are alike, as their updates are, whatever
  their gradients: one huge gradient costs its neighbours nothing.

A step changes the slow average, and the squared one, by far less than a level, and rounding to the nearest
would undo every change. They are rounded up or down by chance, with what it takes for the mean to be right.
The chances need no generator: see :func:`phases` and :func:`chances`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .schedules import StepCoefficients

BLOCK = 256
LEVELS = 127  # on either side of zero
ROOT_LEVELS = 254  # above the least that is not zero
# The greatest ratio of two roots in a block, as a power of two. Below it they are raised to it, which makes
# steps shorter; without a bound, weights that get no more gradients would widen the levels of all the others.
MOST_OCTAVES = 24.0
HUGE = 1e30  # above all exponents
TINY = 2.0**-100  # in the place of a zero that is divided by; also in float32, and so is its reciprocal

# The averages that are rounded by chance, and by how much of a turn their chances go on with each step: two
# numbers that no fraction comes near, the golden ratio's part and sqrt(2)'s, so that gradients of no period
# meet the same chances again and again. With one number for both averages their errors are correlated, which
# tripled the error of the weights.
SLOW, ROOT = 0, 1
TURNS = (0.6180339887498949, 0.41421356237309503)
SEED = 0x5EED
PERIOD = 65_536  # elements after which the table of phases is used again, turned

# Elements taken at a time. On a CPU what one operation leaves is then in the cache for the next.
CPU_CHUNK = 65_536
DEVICE_CHUNK = 64 * PERIOD


class Codes(NamedTuple):
    """What is kept of one parameter of n elements in b blocks."""

    fast: Tensor | None  # (n,) int8, None where beta1 is 0
    fast_scale: Tensor | None  # (b,) float32, the greatest |m1 / root|
    slow: Tensor  # (n,) int8, of m2 less a share of m1: see Settings
    slow_scale: Tensor  # (b,) float32
    root: Tensor  # (n,) uint8
    root_range: Tensor  # (b, 2) float32, the logarithms to base 2 of the least and the greatest root


def blocks_of(numel: int) -> int:
    """How many blocks a tensor has."""
    return -(-numel // BLOCK)


@functools.lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    return _hash(torch.arange(PERIOD, device=device), SEED).to(torch.int32)  # (PERIOD,)


def _hash(x: Any, seed: int) -> Any:
    """Random numbers in the range of int32 for the integers ``x`` (Wellons' "lowbias32")."""
    x = (x + seed * 0x9E3779B9) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return (x ^ (x >> 16)) - 2**31


def phases(begin: int, n: int, device: torch.device) -> Tensor:
    """Where in its turn each of the elements ``begin``, ``begin + 1``, ... starts: (n,) int32.

    It depends on the index of the element only.
    """
    first, skipped = divmod(begin, PERIOD)
    turned = [_hash(period, SEED + 1) for period in range(first, (begin + n - 1) // PERIOD + 1)]
    turns = torch.tensor(turned, dtype=torch.int32, device=device)
    return (turns[:, None] + _table(device)).view(-1)[skipped : skipped + n]


def chances(phases: Tensor, step: int, which: int) -> Tensor:
    """Numbers in [0, 1) for the elements' rounding at a step, evenly spread over elements and over steps.

    Each element goes on by the same irrational part of a turn at every step. Over the steps its numbers are
    then spread more evenly than random ones, and its rounding errors cancel instead of adding up.
    """
    turn = (step * round(TURNS[which] * 2**32) + 2**31) % 2**32 - 2**31
    return (phases + turn).to(torch.float32).mul_(2.0**-32 * (1 - 2.0**-23)).add_(0.5)


def decode_root(codes: Tensor, span: Tensor) -> Tensor:
    """Codes (b, w) and ranges (b, 2) to roots (b, w)."""
    codes = codes.to(torch.float32)
    return _root_if_not_zero(codes, span).mul_(codes.sign())


def _root_if_not_zero(codes: Tensor, span: Tensor) -> Tensor:
    least, greatest = span.unsqueeze(-1).unbind(1)  # (b, 1) each
    width = (greatest - least) / ROOT_LEVELS
    return (codes * width).add_(least - width).exp2_()


def encode_root(square: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
    """Squares (b, w) to codes (b, w), as floats, and ranges (b, 2).

    The squares are right in the mean, not their roots.
    """
    exponents = square.log2().mul_(0.5)  # (b, w), -inf at zero
    greatest = exponents.amax(1, keepdim=True).nan_to_num(math.nan, math.inf, 0.0)  # (b, 1)
    exponents.nan_to_num_(math.nan, math.inf, HUGE)  # zeros out of the way of the least, for now
    least = torch.minimum(exponents.amin(1, keepdim=True), greatest)
    least = torch.maximum(least, greatest - MOST_OCTAVES)
    width = (greatest - least) / ROOT_LEVELS
    levels = exponents.sub_(least).mul_(1 / width.clamp_min(TINY)).clamp_(0, ROOT_LEVELS)
    lower = levels.floor()
    above = levels.sub_(lower)
    # Of a square between two levels, of ratio e^a, it is (e^(a above) - 1) / (e^a - 1); to second order:
    half_a = width * math.log(2.0)
    above.mul_((above * half_a).add_(1 - half_a))
    codes = lower.add_(above.sub_(chances).ceil_()).add_(1).mul_(square.sign())
    return codes, torch.cat((least, greatest), 1)


def decode(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes (b, w) and scales (b,) to an average in units of the root (b, w)."""
    return codes * (scale / LEVELS).unsqueeze(1)


def encode(levels: Tensor, chances: Tensor | None) -> tuple[Tensor, Tensor]:
    """An average in units of the root (b, w) to codes (b, w), as floats, and scales (b,).

    Without chances to the nearest. Overwrites its arguments.
    """
    scale = torch.maximum(levels.amax(1), -levels.amin(1))
    levels.mul_((LEVELS / scale.clamp_min(TINY)).unsqueeze(1))
    if chances is None:
        return levels.round_(), scale
    lower = levels.floor()
    up = levels.sub_(lower).sub_(chances).ceil_()
    return lower.add_(up).clamp_(-LEVELS, LEVELS), scale


class Settings(NamedTuple):
    r"""The numbers of a step that are the same for all elements of a parameter.

    Of the slow average :math:`m_2 - c m_1` is kept, with :math:`c = (1-\beta_3) / (1-\beta_1)`. In it the
    gradient of the step cancels: with constant decays it is an average of :math:`m_1`, which is far smoother
    than gradients are, and so less is lost in rounding.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool
    share: float  # c as it was when the codes were written
    new_share: float  # c as they are to be written


def update(
    p: Tensor, grad: Tensor, codes: Codes, at: StepCoefficients, settings: Settings, step: int
) -> None:
    """One step of AdEMAMix on a flat parameter (n,) with its gradient (n,), in place.

    Gradients and moments are taken in float32 whatever the type of ``p``, a few blocks at a time.
    """
    for begin, end, w in _pieces(p.numel(), p.device):
        phase = phases(begin, end - begin, p.device).view(-1, w)
        rows = p[begin:end].view(-1, w)
        _update_blocks(
            rows, grad[begin:end].view(-1, w), _blocks(codes, begin, end, w), at, settings, step, phase
        )


def _update_blocks(
    p: Tensor,  # (b, w), as all others
    grad: Tensor,
    codes: Codes,
    at: StepCoefficients,
    settings: Settings,
    step: int,
    phase: Tensor,
) -> None:
    grad = grad.to(torch.float32)
    if settings.maximize:
        grad = -grad
    root = decode_root(codes.root, codes.root_range)
    slow = decode(codes.slow, codes.slow_scale)
    fast = grad
    if codes.fast is not None and codes.fast_scale is not None:
        fast = decode(codes.fast, codes.fast_scale)
        slow.add_(fast, alpha=settings.share)
        fast.mul_(root).lerp_(grad, 1 - settings.beta1)
    slow.mul_(root).lerp_(grad, at.slow_rate)
    square = root.square_().mul_(settings.beta2).addcmul_(grad, grad, value=1 - settings.beta2)
    # A square that overflows would make a scale infinite, and take the whole block with it.
    square.clamp_(max=torch.finfo(torch.float32).max)

    # As in the for-loop of functional.py: this step is made with moments that are not rounded yet.
    weights = p.to(torch.promote_types(p.dtype, torch.float32))
    if settings.weight_decay != 0:
        weights.mul_(1 - settings.lr * settings.weight_decay)
    numerator = (slow * (at.alpha * at.fast_correction)).add_(fast)
    numerator.div_(square.sqrt().div_(at.root_square_correction).add_(settings.eps))
    weights.sub_(numerator, alpha=settings.lr / at.fast_correction)
    if weights is not p:
        p.copy_(weights)

    unit = _store_root(codes, square, chances(phase, step, ROOT))
    slow.div_(unit)
    if codes.fast is not None and codes.fast_scale is not None:
        # Forgotten after some tens of steps, it needs no chances.
        kept = encode(fast.div_(unit), None)
        _store(codes.fast, codes.fast_scale, kept)
        slow.sub_(decode(*kept), alpha=settings.new_share)
    _store(codes.slow, codes.slow_scale, encode(slow, chances(phase, step, SLOW)))


def decode_moments(codes: Codes, share: float) -> tuple[Tensor | None, Tensor, Tensor]:
    """The float32 moments m1 (None where beta1 is 0), m2 and nu, each (n,); ``share`` as in Settings."""
    n, device = codes.root.numel(), codes.root.device
    fast, slow, square = (torch.empty(n, dtype=torch.float32, device=device) for _ in range(3))
    for begin, end, w in _pieces(n, device):
        part = _blocks(codes, begin, end, w)
        root = decode_root(part.root, part.root_range)
        slow_levels = decode(part.slow, part.slow_scale)
        if part.fast is not None and part.fast_scale is not None:
            fast_levels = decode(part.fast, part.fast_scale)
            slow_levels.add_(fast_levels, alpha=share)
            fast[begin:end] = fast_levels.mul_(root).view(-1)
        slow[begin:end] = slow_levels.mul_(root).view(-1)
        square[begin:end] = root.square_().view(-1)
    return None if codes.fast is None else fast, slow, square


def encode_moments(codes: Codes, fast: Tensor | None, square: Tensor, step: int) -> None:
    """Write moments m1 (n,) and nu (n,) into empty ``codes``; the slow average is left empty, its share 0."""
    for begin, end, w in _pieces(square.numel(), square.device):
        part = _blocks(codes, begin, end, w)
        phase = phases(begin, end - begin, square.device).view(-1, w)
        rows = square[begin:end].view(-1, w).to(torch.float32)
        unit = _store_root(part, rows, chances(phase, step, ROOT))
        if fast is not None and part.fast is not None and part.fast_scale is not None:
            average = fast[begin:end].view(-1, w).to(torch.float32, copy=True)
            _store(part.fast, part.fast_scale, encode(average.div_(unit), None))


def _store(codes: Tensor, scale: Tensor, new: tuple[Tensor, Tensor]) -> None:
    codes.copy_(new[0])
    scale.copy_(new[1])


def _store_root(codes: Codes, square: Tensor, chances: Tensor) -> Tensor:
    """Write the squares (b, w) and give the unit (b, w) of the averages: the root as it will be read."""
    new, span = encode_root(square, chances)
    _store(codes.root, codes.root_range, (new, span))
    # What has no root, that is, gradients below 1e-22, has no average: its unit is infinite.
    return _root_if_not_zero(new, span).div_(new.sign())


def _pieces(n: int, device: torch.device) -> Iterator[tuple[int, int, int]]:
    """Begin, end and block length of the pieces of n elements: whole blocks, then what is left."""
    chunk = CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK
    whole = n - n % BLOCK
    for begin in range(0, whole, chunk):
        yield begin, min(begin + chunk, whole), BLOCK
    if whole < n:
        yield whole, n, n - whole


def _blocks(codes: Codes, begin: int, end: int, w: int) -> Codes:
    """Views of the elements ``begin`` to ``end`` as (b, w), and of their blocks' scales (b,) or (b, 2)."""
    blocks = slice(begin // BLOCK, blocks_of(end))

    def of_elements(t: Tensor) -> Tensor:
        return t.view(-1)[begin:end].view(-1, w)

    return Codes(
        None if codes.fast is None else of_elements(codes.fast),
        None if codes.fast_scale is None else codes.fast_scale[blocks],
        of_elements(codes.slow),
        codes.slow_scale[blocks],
        of_elements(codes.root),
        codes.root_range[blocks],
    )
