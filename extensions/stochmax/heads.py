"""Q(s, ids) -> values, for a few ids at a time: what replaces the n outputs of a DQN."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .actions import ActionCodec
from .rows import RowTable, TargetRows

#: up to this many actions, ``head="auto"`` keeps DQN's own n outputs: with more, they make the dearer update
#: (measured: docs/benchmarks/action_scaling.md)
DENSE_BELOW = 512
#: from here on, ``head="auto"`` prefers low-rank rows to full ones: as fast, and an eighth of the memory
LOW_RANK_FROM = 1 << 16


class LinearHead(nn.Linear):
    """DQN's own output layer: computes all n values and picks. For small n, and as the reference of the
    others.

    All heads share this interface. ``forward(states, ids)``:

    - states (B, in_features): the state tower's output;
    - ids (B, C) int64, or (C,) if all states share them, or None for all n;
    - returns (B, C) or (B, n).

    ``is_target`` marks the head of a target network, whose rows follow the online ones lazily.
    """

    tables = ()

    def __init__(self, in_features: int, codec: ActionCodec, is_target: bool = False) -> None:
        super().__init__(in_features, codec.n)

    @staticmethod
    def floats(in_features: int, codec: ActionCodec) -> int:
        """Numbers in one copy of the parameters."""
        return (in_features + 1) * codec.n

    def forward(self, states: Tensor, ids: Tensor | None = None) -> Tensor:
        values = super().forward(states)  # (B, n)
        if ids is None:
            return values
        return values[:, ids] if ids.ndim == 1 else values.gather(1, ids)


class RowHead(nn.Module):
    """A row of weights an action: Q(s, a) = [V(s) +] <w_a, s> + b_a.

    With ``dueling=False`` this is :class:`LinearHead`'s function, computed for the ids asked. The dueling
    form adds V(s), so that an action never tried is worth what the state is worth, not zero.

    Memory: n x (in_features + 1) numbers a copy.
    """

    def __init__(
        self, in_features: int, codec: ActionCodec, is_target: bool = False, dueling: bool = True
    ) -> None:
        super().__init__()
        table = TargetRows if is_target else RowTable
        self.rows = table(codec.n, in_features + 1)  # the last column is b_a
        self.value = nn.Linear(in_features, 1) if dueling else None

    @property
    def tables(self) -> tuple[RowTable, ...]:
        return (self.rows,)

    @staticmethod
    def floats(in_features: int, codec: ActionCodec, dueling: bool = True) -> int:
        return (in_features + 1) * codec.n

    def forward(self, states: Tensor, ids: Tensor | None = None) -> Tensor:
        ids = _all_ids(self.rows, ids)
        advantage = _dot(F.pad(states, (0, 1), value=1.0), self.rows(ids))  # (B, C)
        return advantage if self.value is None else self.value(states) + advantage


class LowRankHead(nn.Module):
    """A short row an action: Q(s, a) = V(s) + <e_a, g(s)>, with e_a in R^rank zero at first.

    Eight times smaller than :class:`RowHead` at rank 32 and width 256, and what it reads of a candidate is
    one or two cache lines.

    Memory: n x rank numbers a copy.
    """

    def __init__(self, in_features: int, codec: ActionCodec, is_target: bool = False, rank: int = 32) -> None:
        super().__init__()
        table = TargetRows if is_target else RowTable
        self.rows = table(codec.n, rank)
        self.value = nn.Linear(in_features, 1)
        self.project = nn.Linear(in_features, rank)  # its bias gives e_a a constant to weigh

    @property
    def tables(self) -> tuple[RowTable, ...]:
        return (self.rows,)

    @staticmethod
    def floats(in_features: int, codec: ActionCodec, rank: int = 32) -> int:
        return rank * codec.n

    def forward(self, states: Tensor, ids: Tensor | None = None) -> Tensor:
        ids = _all_ids(self.rows, ids)
        return self.value(states) + _dot(self.project(states), self.rows(ids))


class FeatureHead(nn.Module):
    """Q(s, a) from the action's features: nothing grows with n.

    Q(s, a) = V(s) + w . relu(F relu(W s + A(x_a))). The state's part W s is computed once a state, the
    action's once a candidate (once in all for a shared set); only the last two small layers see both. The
    last layer starts at zero: no phantom advantages.

    Memory: independent of n.
    """

    tables = ()

    def __init__(
        self, in_features: int, codec: ActionCodec, is_target: bool = False, hidden: int = 64
    ) -> None:
        super().__init__()
        if not codec.feature_dim:
            codec.features(torch.zeros(1, dtype=torch.int64))  # raises, and says what to do
        self.codec = codec
        self.value = nn.Linear(in_features, 1)
        self.state = nn.Linear(in_features, hidden)
        self.action = nn.Sequential(
            nn.Linear(codec.feature_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )
        self.fuse = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The last layer zero; the others reset themselves."""
        nn.init.zeros_(self.out.weight)

    @staticmethod
    def floats(in_features: int, codec: ActionCodec, hidden: int = 64) -> int:
        return (in_features + codec.feature_dim + 2 * hidden + 5) * hidden + in_features + 1

    def forward(self, states: Tensor, ids: Tensor | None = None) -> Tensor:
        if ids is None:
            ids = torch.arange(self.codec.n, device=states.device)
        action = self.action(self.codec.features(ids).to(states.dtype))  # (C, h) or (B, C, h)
        h = F.relu(self.state(states).unsqueeze(1) + action, inplace=True)  # (B, C, h)
        return self.value(states) + self.out(F.relu(self.fuse(h), inplace=True)).squeeze(-1)


HEADS: dict[str, Any] = {
    "linear": LinearHead,
    "row": RowHead,
    "low_rank": LowRankHead,
    "feature": FeatureHead,
}


def choose_head(codec: ActionCodec) -> str:
    """The rule of ``head="auto"``.

    - up to 512 actions: ``linear``, DQN's own layer;
    - else, if the codec has features: ``feature``, since of a million actions few are ever tried and only
      features carry what was learned to the others;
    - else ``row`` below 65,536 actions and ``low_rank`` from there.
    """
    if codec.n <= DENSE_BELOW:
        return "linear"
    if codec.feature_dim:
        return "feature"
    return "row" if codec.n < LOW_RANK_FROM else "low_rank"


def make_head(
    name: str, in_features: int, codec: ActionCodec, is_target: bool = False, **kwargs: Any
) -> nn.Module:
    """A head by name (one of ``HEADS``), with the target's kind of rows if ``is_target``.

    Raises:
        ValueError: an unknown name.
        TypeError: a keyword argument that the head does not have; the message lists those it has.
    """
    _check_kwargs(name, kwargs)
    return _head(name)(in_features, codec, is_target, **kwargs)


def memory_bytes(name: str, in_features: int, codec: ActionCodec, **kwargs: Any) -> int:
    """Bytes that training with this head can come to: online, target and Adam's two moments, in float32."""
    _check_kwargs(name, kwargs)
    copies = 5 if name == "linear" else 4  # a dense head has a dense gradient too
    return copies * 4 * _head(name).floats(in_features, codec, **kwargs)


def check_memory(
    name: str, in_features: int, codec: ActionCodec, available: int | None = None, **kwargs: Any
) -> None:
    """Raise MemoryError if the head cannot fit, and name one that can; nothing has been allocated yet.

    Args:
        available: bytes free on the device, by default this machine's (not checked where that is unknown).
    """
    available = available_bytes() if available is None else available
    need = memory_bytes(name, in_features, codec, **kwargs)
    if available is None or need <= available:
        return
    fits = [h for h in ("row", "low_rank") if h != name and memory_bytes(h, in_features, codec) <= available]
    if codec.feature_dim:
        fits.append("feature")
    advice = (
        f"head={fits[0]!r} would fit ({_gb(memory_bytes(fits[0], in_features, codec))})"
        if fits
        else "head='feature' would fit at any n, given an action_codec with features (MixedRadix, BoxBins, "
        "ActionFeatures)"
    )
    raise MemoryError(
        f"head={name!r} with {codec.n:,} actions needs {_gb(need)} for online and target "
        f"parameters and Adam's moments; {_gb(available)} are free. {advice}."
    )


def _head(name: str) -> Any:
    if name not in HEADS:
        raise ValueError(f"unknown head {name!r}; choose from 'auto', {', '.join(map(repr, HEADS))}")
    return HEADS[name]


def _check_kwargs(name: str, kwargs: dict[str, Any]) -> None:
    common = {"self", "in_features", "codec", "is_target"}
    own = [p for p in inspect.signature(_head(name).__init__).parameters if p not in common]
    for unknown in kwargs.keys() - set(own):
        raise TypeError(f"head={name!r} has no argument {unknown!r}; it takes {', '.join(own) or 'none'}")


def _gb(size: int) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 1e11 else f"{size / 1e9:.3g} GB"


def available_bytes(device: torch.device | str = "cpu") -> int | None:
    """Memory free on ``device``, or None where the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    return None


def _all_ids(rows: RowTable, ids: Tensor | None) -> Tensor:
    return torch.arange(len(rows.weight), device=rows.weight.device) if ids is None else ids


def _dot(states: Tensor, rows: Tensor) -> Tensor:
    """<states (B, d), rows> for rows (C, d) shared, or (B, C, d): (B, C)."""
    if rows.ndim == 2:
        return states @ rows.T
    return (rows * states.unsqueeze(1)).sum(-1)  # torch.bmm takes 5 times as long for such thin products
