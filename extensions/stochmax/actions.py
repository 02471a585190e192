"""Action codecs: what an id in {0..n-1} stands for, by arithmetic and never by a table of n."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: ids are int64 and sums of two of them must not overflow
MAX_ACTIONS = 1 << 62


class ActionCodec(nn.Module):
    """What the ids 0..n-1 mean.

    A codec is a module only so that its constants follow the network from device to device; it has no
    parameters and leaves nothing in a state dict.

    Args:
        n: number of actions, 1 <= n <= 2**62.

    Attributes:
        n: number of actions.
        feature_dim: width of ``features``; 0 if ids carry no structure that a network could generalise over.
        has_neighbours: whether ``neighbours`` is defined.
    """

    feature_dim: int = 0
    has_neighbours: bool = False

    def __init__(self, n: int) -> None:
        super().__init__()
        if not 1 <= n <= MAX_ACTIONS:
            raise ValueError(f"n must be in [1, 2**62], got {n}")
        self.n = int(n)

    def features(self, ids: Tensor) -> Tensor:
        """Network input for ``ids`` (any shape, int64): (..., feature_dim) float, about [-1, 1]."""
        raise TypeError(
            f"{type(self).__name__} has no action features. Give an action_codec that has: MixedRadix, "
            "BoxBins or "
            "ActionFeatures; or use head='row' or 'low_rank', which need none."
        )

    def neighbours(self, ids: Tensor, k: int) -> Tensor:
        """k ids near each of ``ids`` (B,): (B, k)."""
        raise TypeError(
            f"{type(self).__name__} has no digits to change, so no neighbours. Use MixedRadix or BoxBins."
        )

    def check_ids(self, ids: Any) -> Tensor:
        """``ids`` as an int64 tensor, or a ValueError that says which are not in 0..n-1."""
        ids = torch.as_tensor(ids)
        if ids.dtype.is_floating_point or ids.dtype == torch.bool:
            raise ValueError(
                f"action ids must be integers, got {ids.dtype}: give a list of ids, not a mask, and round "
                "and cast floats yourself"
            )
        wrong = (ids < 0) | (ids >= self.n)
        if bool(wrong.any()):
            raise ValueError(f"action ids must be in [0, {self.n - 1}], got {ids[wrong][:3].tolist()}")
        return ids.long()


class IdCodec(ActionCodec):
    """Plain ids: nothing is known of an action but its name."""

    def encode(self, ids: Any) -> Tensor:
        return self.check_ids(ids)

    def decode(self, ids: Any) -> Tensor:
        return self.check_ids(ids)


class MixedRadix(ActionCodec):
    """Ids as digits, least significant first: digit j of id a is ``(a // prod(nvec[:j])) % nvec[j]``.

    A flat view of ``MultiDiscrete(nvec)``, e.g. ``MixedRadix([10] * 6)`` for a million actions or
    ``MixedRadix([2] * 20)`` for twenty switches.

    Args:
        nvec: values of each digit, each >= 1, with a product of at most 2**62.
        one_hot: features are one one-hot block a digit (for digits without an order), sum(nvec) wide;
            otherwise each digit is scaled to [-1, 1], len(nvec) wide.
    """

    has_neighbours = True
    nvec: Tensor  # (d,)
    place: Tensor  # (d,) value of a one in each digit

    def __init__(self, nvec: Sequence[int], one_hot: bool = False) -> None:
        digits = [int(m) for m in nvec]
        if not digits or min(digits) < 1:
            raise ValueError(f"nvec must hold one or more integers >= 1, got {list(nvec)}")
        n = math.prod(digits)  # Python integers: numpy's product would wrap around in silence
        if n > MAX_ACTIONS:
            raise ValueError(f"prod(nvec) = {n} exceeds 2**62; use fewer digits or fewer values a digit")
        super().__init__(n)
        self.one_hot = one_hot
        self.feature_dim = sum(digits) if one_hot else len(digits)
        place = [math.prod(digits[:j]) for j in range(len(digits))]
        self.register_buffer("nvec", torch.tensor(digits), persistent=False)
        self.register_buffer("place", torch.tensor(place), persistent=False)

    def digits(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., d) int64, unchecked."""
        return torch.remainder(torch.div(ids.unsqueeze(-1), self.place, rounding_mode="floor"), self.nvec)

    def decode(self, ids: Any) -> Tensor:
        """Ids (...) -> digits (..., d) int64."""
        return self.digits(self.check_ids(ids).to(self.nvec.device))

    def encode(self, digits: Any) -> Tensor:
        """Digits (..., d) -> ids (...) int64."""
        digits = torch.as_tensor(digits, device=self.nvec.device)
        if digits.dtype.is_floating_point or digits.shape[-1:] != self.nvec.shape:
            raise ValueError(
                f"expected integer digits (..., {len(self.nvec)}), got {digits.dtype} {tuple(digits.shape)}"
            )
        if bool(((digits < 0) | (digits >= self.nvec)).any()):
            raise ValueError(f"a digit is out of range for nvec={self.nvec.tolist()}")
        return (digits.long() * self.place).sum(-1)

    def features(self, ids: Tensor) -> Tensor:
        digits = self.digits(ids)  # (..., d)
        if self.one_hot:
            first = torch.cumsum(self.nvec, 0) - self.nvec  # (d,) column of each block's zero
            hot = torch.zeros(*ids.shape, self.feature_dim, device=ids.device)
            return hot.scatter_(-1, digits + first, 1.0)
        # In float64, since a digit may have more than 2**24 values. A digit of one value sits at -1.
        return (2.0 * digits.double() / (self.nvec - 1).clamp(min=1) - 1.0).to(torch.get_default_dtype())

    def neighbours(self, ids: Tensor, k: int) -> Tensor:
        """Each of ``ids`` (B,) with one digit changed: (B, k). The k changes walk round the digits in
        turn.
        """
        d = len(self.nvec)
        start = torch.randint(d, (len(ids), 1), device=ids.device)
        which = (start + torch.arange(k, device=ids.device)) % d  # (B, k)
        place, m = self.place[which], self.nvec[which]
        digit = torch.remainder(torch.div(ids.unsqueeze(1), place, rounding_mode="floor"), m)
        return ids.unsqueeze(1) + (self._another(digit, m) - digit) * place

    def _another(self, digit: Tensor, m: Tensor) -> Tensor:
        """Another value of a digit that has ``m``, uniformly: digits here have no order."""
        jump = 1 + (torch.rand(digit.shape, dtype=torch.float64, device=digit.device) * (m - 1)).long()
        return torch.remainder(digit + jump, m)


class BoxBins(MixedRadix):
    """A box of real actions cut into bins a dimension, end points included.

    Bin c of m stands for ``low + c / (m - 1) * (high - low)``, so that both ends are reachable and an odd m
    has the middle exactly (0 in a symmetric box); one bin stands for the middle.

    Args:
        low, high: (d,) finite bounds, low <= high.
        bins: bins of every dimension, or one number for all.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Any, high: Any, bins: int | Sequence[int]) -> None:
        lo, hi = torch.atleast_1d(_float64(low)), torch.atleast_1d(_float64(high))
        if (
            lo.ndim != 1
            or lo.shape != hi.shape
            or not bool((torch.isfinite(lo) & torch.isfinite(hi) & (lo <= hi)).all())
        ):
            raise ValueError("low and high must be finite vectors of one length with low <= high")
        super().__init__([int(bins)] * len(lo) if np.ndim(bins) == 0 else bins)  # type: ignore[arg-type]
        if len(self.nvec) != len(lo):
            raise ValueError(f"{len(self.nvec)} bin counts for {len(lo)} dimensions")
        self.register_buffer("low", lo, persistent=False)
        self.register_buffer("high", hi, persistent=False)

    def decode(self, ids: Any) -> Tensor:
        """Ids (...) -> points (..., d) float64."""
        t = self._unit(self.digits(self.check_ids(ids).to(self.nvec.device)))
        points = (1.0 - t) * self.low + t * self.high
        return torch.clamp(points, self.low, self.high)  # rounding may step outside

    def encode(self, points: Any) -> Tensor:
        """Points (..., d) -> ids (...) of the nearest bins."""
        points = _float64(points).to(self.low.device)
        if points.shape[-1:] != self.low.shape or not bool(torch.isfinite(points).all()):
            raise ValueError(f"expected finite points (..., {len(self.low)}), got {tuple(points.shape)}")
        t = (points - self.low) / (self.high - self.low).clamp(min=torch.finfo(torch.float64).tiny)
        digits = (t.clamp(0.0, 1.0) * (self.nvec - 1)).round().long()
        return super().encode(torch.minimum(digits, self.nvec - 1))  # beyond 2**53 bins the product rounds up

    def features(self, ids: Tensor) -> Tensor:
        return (2.0 * self._unit(self.digits(ids)) - 1.0).to(torch.get_default_dtype())

    def _unit(self, digits: Tensor) -> Tensor:
        return torch.where(self.nvec > 1, digits.double() / (self.nvec - 1).clamp(min=1), 0.5)

    def _another(self, digit: Tensor, m: Tensor) -> Tensor:
        """A step of 1..m-1 bins up or down, small and large scales alike (log-uniform), kept inside the
        box.
        """
        u = torch.rand(2, *digit.shape, dtype=torch.float64, device=digit.device)
        reach = (m - 1).double()
        step = torch.exp(u[0] * torch.log(reach.clamp(min=1.0) + 1.0)).long()  # 1..m-1, rarely m
        step = torch.where(u[1] < 0.5, step, -step)
        there = digit + step
        there = torch.where((there < 0) | (there >= m), digit - step, there)  # turn back at an end
        return torch.minimum(there.clamp(min=0), m - 1)


class ActionFeatures(ActionCodec):
    """Ids described by the user.

    Args:
        n: number of actions.
        features: an (n, d) array or tensor, or a callable that maps int64 ids (...) to floats (..., d). A
            callable should compute, not look up, where n is large.
    """

    table: Tensor | None

    def __init__(self, n: int, features: Any | Callable[[Tensor], Tensor]) -> None:
        super().__init__(n)
        self.function = features if callable(features) else None
        table = None if callable(features) else torch.as_tensor(features, dtype=torch.get_default_dtype())
        if table is not None and (table.ndim != 2 or len(table) != n):
            raise ValueError(f"features must be ({n}, d) for n={n} actions, got {tuple(table.shape)}")
        self.register_buffer("table", table, persistent=False)
        ends = torch.tensor([[0, n - 1]])  # (1, 2): a batch shape, to catch functions that lose it
        probe = self.features(ends)
        if probe.ndim != 3 or probe.shape[:2] != (1, 2) or not probe.numel() or not probe.is_floating_point():
            raise ValueError(
                "the feature function must map int64 ids of shape (B, C) to floats of shape (B, C, d); for "
                "(1, 2) it "
                f"returned {probe.dtype} {tuple(probe.shape)}"
            )
        if not bool(torch.isfinite(probe if table is None else table).all()):
            raise ValueError("action features must be finite, and some are NaN or infinite")
        self.feature_dim = probe.shape[-1]

    def features(self, ids: Tensor) -> Tensor:
        if self.function is None:
            return self.table[ids]  # type: ignore[index]
        return torch.as_tensor(self.function(ids), device=ids.device)


def _float64(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)  # not by way of float32, the default for lists
