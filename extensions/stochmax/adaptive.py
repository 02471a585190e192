"""A uniform draw whose size follows from how far the maximum falls short."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .actions import ActionCodec
from .diagnostics import Shortfall
from .maximise import Maximum
from .sources import Query, Uniform, check_size, log_size


class AdaptiveUniform(Uniform):
    r"""R with a k that doubles where the maximum falls short, and halves where it does not.

    Every ``interval`` maxima that are bootstrapped from, beta is measured on 32 states of one (Fourati
    et al., section 5; :func:`~extensions.stochmax.diagnostics.measure_shortfall`) and set against the scale
    of the values there, the mean of the maxima's absolute values. Above ``tolerance``, k doubles. Below a
    quarter of it, k halves: for independent uniform values beta is close to b / (k + 1), so that half as
    many fall short by twice as much, which is then still below half of the tolerance.

    The limit is off by at most :math:`\frac{\gamma}{1 - \gamma} \beta`. To keep that below a share x of the
    values, take ``tolerance = x (1 - gamma) / gamma``: about 0.01 x at gamma = 0.99. beta is that of all
    candidates together. Where a memory finds the maximum, k stays small.

    A measurement costs up to 2^20 values: all n of each state, or all that are legal; where they are more,
    4,096 of them drawn uniformly and 4,096 of the replay.

    k changes shapes and is looked at from the host: not for compiled code or CUDA graphs.

    Args:
        k_min: the least k, at which it begins; None is ceil(log2 n).
        k_max: the largest k; None is 64 times ``k_min``.
        tolerance: of beta, as a share of the scale of the values, above 0.
        interval: maxima between measurements.
    """

    def __init__(
        self,
        k_min: int | None = None,
        k_max: int | None = None,
        tolerance: float = 0.01,
        interval: int = 500,
    ) -> None:
        check_size(k_min)
        if k_max is not None and k_max < (k_min or 1):
            raise ValueError(f"k_max must be at least k_min, got {k_min} and {k_max}")
        if not tolerance > 0.0 or interval < 1:
            raise ValueError(
                f"tolerance must be above 0 and interval at least 1, got {tolerance} and {interval}"
            )
        super().__init__()
        self.k_min, self.k_max, self.tolerance, self.interval = k_min, k_max, tolerance, interval
        self.keeps_state = True  # a CUDA graph would keep k

    def __repr__(self) -> str:
        return (
            f"AdaptiveUniform(k_min={self.k_min}, k_max={self.k_max}, tolerance={self.tolerance}, "
            f"interval={self.interval})"
        )

    def bind(self, codec: ActionCodec) -> None:
        self.codec = codec
        self.k_min = min(log_size(codec.n) if self.k_min is None else self.k_min, codec.n)
        self.k_max = min(64 * self.k_min if self.k_max is None else self.k_max, codec.n)

    def build(self, width: int | None) -> None:
        assert self.k_min is not None
        self.module = AdaptiveSize(self.k_min)

    @property
    def size(self) -> int:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "AdaptiveUniform changes the number of candidates, which compiled code fixes: use Uniform(k) "
                "there"
            )
        return int(self._state.k)

    @property
    def most(self) -> int:
        return self.k_max or 1

    def maximised(self, query: Query, best: Maximum) -> None:
        self._state.maxima.add_(1)

    def wants_shortfall(self) -> bool:
        return int(self._state.maxima) % self.interval == 0

    def fell_short(self, by: Shortfall) -> None:
        k, allowed = self._state.k, self.tolerance * by.value
        if by.beta > allowed:
            k.mul_(2).clamp_(max=self.k_max)
        elif by.beta < allowed / 4:
            k.div_(2, rounding_mode="floor").clamp_(min=self.k_min)

    @property
    def _state(self) -> AdaptiveSize:
        assert isinstance(self.module, AdaptiveSize), "the host calls build_modules first"
        return self.module


class AdaptiveSize(nn.Module):
    """How many ids are drawn, and after how many maxima: a module so that they are saved with a network."""

    k: Tensor  # () int64
    maxima: Tensor  # () int64

    def __init__(self, k: int) -> None:
        super().__init__()
        self.register_buffer("k", torch.tensor(k))
        self.register_buffer("maxima", torch.tensor(0))
