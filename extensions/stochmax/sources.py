"""Sources of candidates: the uniform draw R, the replay's actions M, and the neighbours of the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .actions import ActionCodec
from .maximise import Maximum

if TYPE_CHECKING:
    from .diagnostics import Shortfall

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
#: up to here a uniform draw is exactly without replacement; beyond, two of k = log2 n ids coincide too rarely
#: to matter
DISTINCT_BELOW = 256


def flatten_observations(obs: Any) -> Tensor:
    """B observations, a tensor or a dict of tensors, as rows of numbers: (B, width) float."""
    if isinstance(obs, dict):
        return torch.cat([flatten_observations(obs[name]) for name in sorted(obs)], 1)
    return obs.detach().reshape(len(obs), -1).to(torch.get_default_dtype())


@dataclass
class Query:
    r"""A request for candidates for B states, and what a source may look at to answer it.

    Attributes:
        batch: B.
        device: where the ids are wanted.
        obs: the B observations, as the host has them (a tensor or a dict of tensors), or None.
        replay: draws k ids of actions from the replay: k -> (k,) int64; None where there is no replay.
        minibatch: the actions of the training minibatch when bootstrapping, else None: (any number,), drawn
            independently; or of trajectories (\*B, T).
        flatten: makes of ``obs`` the rows of numbers that a network of a source's own reads:
            (B, width) float.
        mask: which of all n actions are legal, (B, n) bool, where the host has masks (small n); else None.
        cached: (B,) the arg max found when the transitions leading to these states were last replayed, or
            None.
        terminal: (B,) bool, in which of the states an episode ended, when bootstrapping; else None. There a
            maximum counts for nothing, so that no action needs to be legal.
    """

    batch: int
    device: torch.device
    obs: Any = None
    replay: Callable[[int], Tensor] | None = None
    minibatch: Tensor | None = None
    cached: Tensor | None = None
    mask: Tensor | None = None
    terminal: Tensor | None = None
    flatten: Callable[[Any], Tensor] = flatten_observations

    def first(self, count: int) -> Query:
        """The query about the first ``count`` of its states, or about all if there are no more."""
        obs = self.obs
        if obs is not None:
            obs = {name: x[:count] for name, x in obs.items()} if isinstance(obs, dict) else obs[:count]
        return replace(
            self,
            batch=min(count, self.batch),
            obs=obs,
            cached=None if self.cached is None else self.cached[:count],
            mask=None if self.mask is None else self.mask[:count],
            terminal=None if self.terminal is None else self.terminal[:count],
        )


class Source:
    """Proposes candidates. Stateless unless it says otherwise.

    Attributes:
        is_memory: whether what it proposes was met before (M) rather than drawn anew (R).
        refines: whether it looks around the best candidate of the other sources instead of proposing first.
        module: what it learns, for a host to save, move and restore with its network; else None.
        keeps_state: whether it proposes by what it kept in Python from earlier calls. A CUDA graph would
            propose the same for ever.
    """

    is_memory = False
    refines = False
    keeps_state = False
    codec: ActionCodec
    module: nn.Module | None = None

    def bind(self, codec: ActionCodec) -> None:
        """Meet the action space. Called before anything else."""
        self.codec = codec

    def build(self, width: int | None) -> None:
        """Make ``module``, if it has one, for observations of ``width`` numbers (None: not known)."""

    def propose(self, query: Query) -> Tensor:
        """Ids (B, c), or (c,) if the states share them; int64, on ``query.device``."""
        raise NotImplementedError

    def around(self, best: Tensor) -> Tensor:
        """For a source that refines: ids (B, c) around the best ones so far (B,)."""
        raise NotImplementedError

    def executed(self, obs: Any, actions: Tensor) -> None:
        """Hear that ``actions`` (B,) were executed in ``obs`` because they were the best candidates."""

    def maximised(self, query: Query, best: Maximum) -> None:
        """Hear the maxima bootstrapped from, those of the states of ``query``: (B,) each."""

    def wants_shortfall(self) -> bool:
        """Whether to measure how far this last maximum bootstrapped from fell short."""
        return False

    def fell_short(self, by: Shortfall) -> None:
        """Hear what was measured."""

    def new_step(self) -> None:
        """Hear that a new environment step begins, or that the one of before has served its update."""

    def __getstate__(self) -> dict[str, Any]:
        # Stored in a model's zip, which must open where there is no GPU: tensors on the CPU, no codec, since
        # binding brings it, and no module, which is the network's.
        state = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in self.__dict__.items()}
        state.pop("codec", None)
        state.pop("module", None)
        return state


@dataclass
class Uniform(Source):
    """R: ids drawn uniformly.

    Exactly without replacement up to n = 256, with replacement above.

    Args:
        k: how many; None is ceil(log2 n).
        shared: one draw for all states of a batch instead of one each.
        once_a_step: keep a draw until the next environment step, so that acting and bootstrapping share it,
            as in the authors' code. Needs ``shared``.
    """

    k: int | None = None
    shared: bool = False
    once_a_step: bool = False
    _draw: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_size(self.k)
        if self.once_a_step and not self.shared:
            raise ValueError("Uniform(once_a_step=True) keeps one draw for all states: it needs shared=True")
        self.keeps_state = self.once_a_step

    def bind(self, codec: ActionCodec) -> None:
        self.codec = codec
        self.k = min(log_size(codec.n) if self.k is None else self.k, codec.n)

    @property
    def size(self) -> int:
        """How many it proposes now."""
        return self.k or 1

    @property
    def most(self) -> int:
        """The most that it ever proposes."""
        return self.size

    def propose(self, query: Query) -> Tensor:
        if self.once_a_step and self._draw is not None:
            return self._draw.to(query.device)
        ids = draw_uniform(self.codec.n, self.size, None if self.shared else query.batch, query.device)
        if self.once_a_step:
            self._draw = ids
        return ids

    def new_step(self) -> None:
        self._draw = None


@dataclass
class ReplayActions(Source):
    """M as the paper has it for continuous states: actions of the replay, whatever state they were taken in.

    Args:
        k: how many; None is ceil(log2 n).
        fresh: when bootstrapping too, sample the replay anew; otherwise the training minibatch's own actions
            serve, which are such a sample already.
        shared: one sample for all states when acting, instead of one each. Many environments in like states
            then all take the same action.
    """

    k: int | None = None
    fresh: bool = False
    shared: bool = True
    is_memory = True

    def __post_init__(self) -> None:
        check_size(self.k)

    def bind(self, codec: ActionCodec) -> None:
        self.codec = codec
        self.k = log_size(codec.n) if self.k is None else self.k

    def propose(self, query: Query) -> Tensor:
        if query.minibatch is not None and not self.fresh:
            return some_of(query.minibatch, self.k or 1)
        if query.replay is None:
            return torch.empty(0, dtype=torch.int64, device=query.device)
        k = self.k or 1
        if self.shared or query.minibatch is not None:
            return query.replay(k)
        ids = query.replay(k * query.batch)
        return ids.view(query.batch, k) if len(ids) == k * query.batch else ids[:k]


@dataclass
class Neighbours(Source):
    """Local search: ids one digit away from the best candidate so far (a refinement; needs a codec with
    digits).

    Args:
        k: how many a round; None is ceil(log2 n).
        rounds: how often to move to the best and look around again.
    """

    k: int | None = None
    rounds: int = 1
    refines = True

    def __post_init__(self) -> None:
        check_size(self.k)
        if self.rounds < 1:
            raise ValueError(f"Neighbours(rounds={self.rounds}): at least one round")

    def bind(self, codec: ActionCodec) -> None:
        self.codec = codec
        self.k = log_size(codec.n) if self.k is None else self.k
        if not codec.has_neighbours:
            codec.neighbours(torch.empty(0, dtype=torch.int64), 1)  # raises, and says what to do

    def around(self, best: Tensor) -> Tensor:
        return self.codec.neighbours(best, self.k or 1)


def draw_uniform(n: int, k: int, batch: int | None, device: torch.device | None = None) -> Tensor:
    """k of n ids a state: (batch, k) int64, or (k,) if ``batch`` is None.

    In order and complete if k >= n; distinct up to n = 256; with replacement above.
    """
    shape = (k,) if batch is None else (batch, k)
    if k >= n:
        return torch.arange(n, device=device).expand(*shape[:-1], n)
    if n <= DISTINCT_BELOW:
        return torch.rand(*shape[:-1], n, device=device).topk(k).indices
    return torch.randint(n, shape, device=device)


def some_of(minibatch: Tensor, k: int) -> Tensor:
    r"""k of a minibatch's actions, or all if there are fewer: (<= k,).

    The first of (N,), which are as good as any. Of trajectories (\*B, T), where neighbours are alike, some
    that lie spread over all of them: by the golden ratio, which walks in step with no length of a trajectory.
    """
    if minibatch.ndim == 1 or minibatch.numel() <= k:
        return minibatch.reshape(-1)[:k]
    turns = torch.arange(k, dtype=torch.float64, device=minibatch.device) * GOLDEN_RATIO
    return minibatch.reshape(-1)[(turns.frac() * minibatch.numel()).long()]


def log_size(n: int) -> int:
    """ceil(log2 n), at least 1: the paper's |R| and |M| (which leaves the base open; 2 is its authors'
    code's).
    """
    return max(1, (n - 1).bit_length())  # exact, where a logarithm in float64 is not


def check_size(k: int | None) -> None:
    if k is not None and k < 1:
        raise ValueError(f"a source proposes at least one id, got k={k}")
