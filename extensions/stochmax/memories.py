"""Memories: candidates that were good before. All off by default; see docs/stoch_dqn.md for when they
help.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .actions import ActionCodec
from .maximise import Maximum
from .sources import Query, Source, check_size, draw_uniform, log_size


@dataclass
class RecentExploited(Source):
    """M as the paper has it for discrete states: the actions most recently exploited in *this* state.

    States are told apart by a hash of their observation; the least recently visited are forgotten first.
    States never exploited get uniform ids. Lives on the CPU: a look-up costs a device synchronisation.

    Args:
        k: ids a state; None is ceil(log2 n).
        capacity: states remembered.
    """

    k: int | None = None
    capacity: int = 100_000
    is_memory = True
    keeps_state = True
    _states: OrderedDict[int, list[int]] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        check_size(self.k)
        if self.capacity < 1:
            raise ValueError(f"RecentExploited(capacity={self.capacity}): at least one state")

    def bind(self, codec: ActionCodec) -> None:
        self.codec = codec
        self.k = log_size(codec.n) if self.k is None else self.k

    def propose(self, query: Query) -> Tensor:
        ids = torch.randint(self.codec.n, (query.batch, self.k or 1))  # for states not met
        for row, key in enumerate(hash_observations(query.obs).tolist()):
            known = self._states.get(key)
            if known:
                ids[row, : len(known)] = torch.tensor(known)
        return ids.to(query.device)

    def executed(self, obs: Any, actions: Tensor) -> None:
        for key, a in zip(hash_observations(obs).tolist(), actions.tolist(), strict=True):
            known = self._states.pop(key, [])
            self._states[key] = [a, *(b for b in known if b != a)][: self.k]
            if len(self._states) > self.capacity:
                self._states.popitem(last=False)


@dataclass
class CachedArgmax(Source):
    """The arg max found when this transition was last replayed: one id, carried in the replay and refreshed
    there.

    It is the paper's per-state memory for states that never recur, at one int64 a transition. When acting
    there is no transition yet, and it proposes nothing. Do not use it alone: without fresh candidates it
    under-estimates.
    """

    is_memory = True

    def propose(self, query: Query) -> Tensor:
        if query.cached is None:
            return torch.empty(0, dtype=torch.int64, device=query.device)
        return query.cached.unsqueeze(1)


@dataclass
class Elite(Source):
    """The actions of the highest values among recent maximisers, the same for every state.

    Args:
        k: ids proposed; None is ceil(log2 n).
        window: maximisers looked back on.
    """

    k: int | None = None
    window: int = 4096
    is_memory = True
    keeps_state = True
    _actions: Tensor | None = field(default=None, repr=False)
    _values: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_size(self.k)
        if self.k is not None and self.window < self.k:
            raise ValueError(f"Elite(k={self.k}, window={self.window}): the window must hold k")

    def bind(self, codec: ActionCodec) -> None:
        self.codec = codec
        self.k = log_size(codec.n) if self.k is None else self.k

    def propose(self, query: Query) -> Tensor:
        if self._actions is None or self._values is None:
            return draw_uniform(self.codec.n, self.k or 1, None, query.device)
        top = self._values.topk(min(self.k or 1, len(self._values))).indices
        return self._actions[top].to(query.device)

    def maximised(self, query: Query, best: Maximum) -> None:
        actions, values = best.action, best.value
        if self._actions is not None and self._values is not None:
            actions = torch.cat([self._actions.to(actions.device), actions])
            values = torch.cat([self._values.to(values.device), values])
        self._actions, self._values = actions[-self.window :], values[-self.window :]


class MostExploited(nn.Module):
    """The ids exploited most often of late. A module so that its ids are saved with a network.

    By how often, not by how lately: what was exploited again and again has a value that was put right again
    and again, while a value that is too high by mistake is exploited a few times, and found out.

    Args:
        capacity: ids remembered.
        window: exploited ids among which they are counted.
    """

    def __init__(self, capacity: int, window: int = 10_000) -> None:
        super().__init__()
        self.capacity, self.window = capacity, window
        self._recent: deque[int] = deque()
        self._count: Counter[int] = Counter()
        self._most: Tensor | None = None  # until more are met

    def add(self, ids: Any) -> None:
        """Meet ``ids``, an array (B,) on the host."""
        self._most = None
        self._recent.extend(ids.tolist())
        self._count.update(ids.tolist())
        while len(self._recent) > self.window:
            oldest = self._recent.popleft()
            self._count[oldest] -= 1
            if not self._count[oldest]:
                del self._count[oldest]

    def ids(self) -> Tensor:
        """(<= capacity,) int64 on the CPU, the most frequent first, of equals the lowest."""
        if self._most is None:
            most = heapq.nsmallest(self.capacity, self._count, key=lambda i: (-self._count[i], i))
            self._most = torch.tensor(most, dtype=torch.int64)
        return self._most

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._recent, dtype=torch.int64)

    def set_extra_state(self, recent: Tensor) -> None:
        self._recent, self._count = deque(), Counter()
        self.add(recent)


def hash_observations(obs: Any) -> Tensor:
    """A 64-bit key of each of B observations (a tensor or a dict of tensors): (B,) int64 on the CPU.

    Equal bits give equal keys, in any process.
    """
    if isinstance(obs, dict):
        keys = [hash_observations(obs[name]) for name in sorted(obs)]
        return _mix(torch.stack(keys, 1))
    flat = obs.detach().cpu().reshape(len(obs), -1)
    if flat.dtype.is_floating_point:
        flat = (flat.to(torch.float32) + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal 0.0
    return _mix(flat.long())


def _mix(words: Tensor) -> Tensor:
    """(B, w) int64 -> (B,): each word scrambled at its place, summed (arithmetic wraps around)."""
    place = torch.arange(1, words.shape[1] + 1) * -0x61C8864680B583EB  # 2**64 / golden ratio, as an int64
    return scramble(scramble(words + place).sum(1))


def scramble(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: a bijection of int64 in which every bit of ``x`` moves all others."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47  # the masks make the shifts logical
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & ((1 << 33) - 1))
