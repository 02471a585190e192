"""The maximum over candidates C = R u M and further sources, on which a host's agent acts and bootstraps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .actions import ActionCodec
from .diagnostics import LARGE_SAMPLE, measure_shortfall
from .legal import LegalActions, LegalMask
from .looking import capturing
from .maximise import Maximum, QFunction, better, exact_maximise, maximise, maximise_in_chunks
from .sources import Neighbours, Query, ReplayActions, Source, Uniform

#: up to this many actions ``candidates="auto"`` takes the exact maximum (measured:
#: docs/benchmarks/action_scaling.md)
EXACT_UP_TO = 512
#: states on which a shortfall is measured for sources that want it
PROBED = 32


class SampledMaximum:
    """Maximum of Q(s, .) over what the sources propose.

    The sources propose, the best candidate is found, then those that refine look around it.

    Args:
        sources: in order; ties go to the first candidate. With the uniform draw first, a network that knows
            nothing yet acts at random.
        codec: the actions.
        legal: the legal ids, if not all are. Uniform draws are then taken from them, and every other
            candidate that is not among them is left out.
    """

    def __init__(
        self, sources: Sequence[Source], codec: ActionCodec, legal: LegalActions | LegalMask | None = None
    ) -> None:
        self.sources, self.codec, self.legal = list(sources), codec, legal
        self.proposers = [s for s in self.sources if not s.refines]
        if not self.proposers:
            raise ValueError("candidates need at least one source that proposes, e.g. Uniform()")
        if legal is not None and not any(isinstance(s, Uniform) for s in self.proposers):
            raise ValueError(
                "with legal_actions the candidates need Uniform(), which draws legal ids; those of a memory "
                "may be legal in no state that comes"
            )
        for source in self.sources:
            source.bind(codec)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for source in self.sources:  # copied unbound
            source.bind(self.codec)

    @torch.no_grad()
    def __call__(self, q: QFunction, states: Any, query: Query) -> Maximum:
        """The best candidate of each of ``query.batch`` states. ``column`` is -1 where refining found it."""
        return self.best_of(q, states, query, *self.propose(query))

    def bootstrap(self, q: QFunction, states: Any, query: Query) -> Maximum:
        """The maximum, of which the sources hear, to learn from it."""
        best = self(q, states, query)
        for source in self.sources:
            source.maximised(query, best)
        if any(source.wants_shortfall() for source in self.sources):
            few = query.first(PROBED)
            known = None if query.replay is None else query.replay(LARGE_SAMPLE)
            shortfall = measure_shortfall(self, q, states[: few.batch], few, known)
            for source in self.sources:
                source.fell_short(shortfall)
        return best

    def best_of(
        self, q: QFunction, states: Any, query: Query, sets: list[Tensor], valid: Tensor | None
    ) -> Maximum:
        """The best of what was proposed for ``query``, refined."""
        best = maximise(q, states, *sets, valid=valid)
        for source in self.sources:
            if isinstance(source, Neighbours):
                best = self._refine(q, states, query, best, source)
        return best

    def propose(self, query: Query) -> tuple[list[Tensor], Tensor | None]:
        """One set a proposing source, (B, c) or (c,), and which candidates are valid (B, C) where not all
        are.

        Raises:
            RuntimeError: while a CUDA graph is captured, with sources that keep state in Python.
        """
        if capturing(query.device):
            check_capturable(self.sources)
        if self.legal is None:
            return [s.propose(query) for s in self.proposers], None
        sets = [
            self.legal.draw(query, s.size)
            if isinstance(s, Uniform)
            else s.propose(query).expand(query.batch, -1)
            for s in self.proposers
        ]
        return sets, self.legal.contains(query, torch.cat(sets, 1))

    def _refine(self, q: QFunction, states: Any, query: Query, best: Maximum, source: Neighbours) -> Maximum:
        for _ in range(source.rounds):
            ids = source.around(best.action)  # (B, k)
            valid = None if self.legal is None else self.legal.contains(query, ids)
            near = maximise(q, states, ids, valid=valid)
            best = better(best, near._replace(column=torch.full_like(near.column, -1)))
        return best

    def from_memory(self, sets: Sequence[Tensor], best: Maximum) -> Tensor:
        """Whether each maximum over ``sets``, as proposed here, came from a memory: (B,) bool."""
        flags = [
            s.is_memory for s, ids in zip(self.proposers, sets, strict=True) for _ in range(ids.shape[-1])
        ]
        return torch.tensor([*flags, False], device=best.column.device)[
            best.column
        ]  # -1, a refinement, is the last

    def build_modules(self, width: int | None) -> nn.ModuleDict:
        """What the sources learn, for observations of ``width`` numbers (None: not known), by the source's
        place among them. The host saves, moves and restores it with its network.
        """
        for source in self.sources:
            source.build(width)
        return nn.ModuleDict({str(i): s.module for i, s in enumerate(self.sources) if s.module is not None})

    def take_modules(self, modules: nn.ModuleDict) -> None:
        """Go on with these: copied sources come without their modules, which are copied with the host's."""
        for i, module in modules.items():
            self.sources[int(i)].module = module

    def widened(self, k: int) -> SampledMaximum:
        """The same sources with R and M of at least ``k`` ids, shared by all states: for greedy
        evaluation.
        """
        return SampledMaximum([_widen(s, k) for s in self.sources], self.codec, self.legal)


class ExactMaximum:
    """Maximum of Q(s, .) over all n actions, or over all that are legal: O(n) a call."""

    #: values computed at a time; bounds the memory of large n
    CHUNK_VALUES = 1 << 20

    sources: tuple[Source, ...] = ()

    def __init__(self, codec: ActionCodec, legal: LegalActions | LegalMask | None = None) -> None:
        self.codec, self.legal = codec, legal

    @torch.no_grad()
    def __call__(self, q: Any, states: Any, query: Query) -> Maximum:
        """The best legal action of each of ``query.batch`` states."""
        chunk = max(1, self.CHUNK_VALUES // max(1, query.batch))
        if self.legal is not None:
            return maximise_in_chunks(q, states, self.legal.all(query), chunk)
        if self.codec.n * query.batch <= self.CHUNK_VALUES:
            value, action = q(states, None).max(dim=1)  # heads take None for all n
            return Maximum(value, action, action)
        return exact_maximise(q, states, self.codec.n, query.device, chunk)

    bootstrap = __call__  # nobody proposes, so nobody is to hear

    def build_modules(self, width: int | None) -> nn.ModuleDict:
        """None: nobody learns."""
        return nn.ModuleDict()

    def take_modules(self, modules: nn.ModuleDict) -> None:
        """Nothing to take."""


def preset(name: str, n: int) -> list[Source]:
    """The sources behind a name.

    - ``"log"``: R of ceil(log2 n) a state, and M of ceil(log2 n) actions of the replay, which when
      bootstrapping are the training minibatch's own.
    - ``"paper"``: the same sizes, and M a fresh sample of the replay at every maximisation.
    - ``"authors_code"``: as released by the authors: round(log2 n) uniform ids drawn once an environment step
      and shared by acting, bootstrapping and all states; M twice as large.
    """
    if name == "log":
        return [Uniform(), ReplayActions()]
    if name == "paper":
        return [Uniform(), ReplayActions(fresh=True)]
    if name == "authors_code":
        k = max(1, round(math.log2(n)))
        return [Uniform(k, shared=True, once_a_step=True), ReplayActions(2 * k)]
    raise ValueError(
        f"unknown candidates {name!r}; choose 'log', 'all', 'auto', 'paper', 'authors_code' or give a list "
        "of sources"
    )


def resolve(candidates: str | Sequence[Source], n: int) -> list[Source] | None:
    """Sources of a name or list; None stands for the exact maximum (``"all"``, and ``"auto"`` up to 512
    actions).
    """
    if candidates == "auto":
        candidates = "all" if n <= EXACT_UP_TO else "log"
    if candidates == "all":
        return None
    if isinstance(candidates, str):
        return preset(candidates, n)
    if isinstance(candidates, Source) or not all(isinstance(s, Source) for s in candidates):
        raise ValueError(
            f"candidates must be a name or a list of sources such as [Uniform()], got {candidates!r}"
        )
    return list(candidates)


def check_capturable(sources: Sequence[Source]) -> None:
    """Raise RuntimeError if one of ``sources`` would propose the same at each replay of a CUDA graph."""
    for source in sources:
        if source.keeps_state:
            raise RuntimeError(
                f"{source!r} keeps in Python what it proposes from, and a CUDA graph would repeat that: "
                "use candidates='log' (Uniform() and ReplayActions()), or no CUDA graph"
            )


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """The same random numbers at every call, and none from the streams of a run: for greedy evaluation."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed every GPU there is
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


def _widen(source: Source, k: int) -> Source:
    if isinstance(source, Uniform):
        return Uniform(max(k, source.most), shared=True)
    if isinstance(source, ReplayActions):
        return replace(source, k=max(k, source.k or 1), shared=True)
    return source
