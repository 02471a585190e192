"""Learned proposals: candidates from a network that learns where the best ones were found."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .actions import ActionCodec
from .digit_policy import DigitPolicy
from .maximise import Maximum
from .sources import Query, Source, check_size, log_size


@dataclass
class LearnedProposals(Source):
    """Ids drawn from a distribution over actions that is learned for each state.

    As in Amortised Q-learning (Van de Wiele et al., 2020, arXiv:2001.08116): the best of *all* candidates of
    every maximum that is bootstrapped from is what the distribution is to make likely. So what the others
    found by chance, or a local search step by step, is proposed at once the next time, and in states like
    it. Its own network reads the observation and puts out a distribution for each digit of the id
    (:class:`~extensions.stochmax.digit_policy.DigitPolicy`). The first of the k is the likeliest id.

    Its ids are drawn anew, and may never have been met: it counts as R, not as a memory. It needs another
    source that looks elsewhere, such as ``Uniform``: alone it would only learn what it proposes itself.

    Next states in which an episode ended are learned from like all others, though nothing trains their
    values.

    Args:
        k: how many; None is ceil(log2 n).
        hidden: width of its network's two hidden layers.
        lr: learning rate of its own Adam, which makes one step a maximum that is bootstrapped from.
        entropy: weight of the entropy beside the likelihood, >= 0.
        explore: of how many digits of an id the values are drawn uniformly, on average, >= 0; of a quarter
            of them at most.
        width: numbers in an observation; needed where the host cannot tell.
    """

    k: int | None = None
    hidden: int = 64
    lr: float = 1e-3
    entropy: float = 0.01
    explore: float = 1.0
    width: int | None = None

    def __post_init__(self) -> None:
        check_size(self.k)
        if self.hidden < 1 or (self.width is not None and self.width < 1):
            raise ValueError(f"hidden and width must be at least 1, got {self.hidden} and {self.width}")
        if not self.lr > 0.0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        if not (self.entropy >= 0.0 and self.explore >= 0.0):
            raise ValueError(f"entropy and explore must be >= 0, got {self.entropy} and {self.explore}")

    def bind(self, codec: ActionCodec) -> None:
        self.codec = codec
        self.k = log_size(codec.n) if self.k is None else self.k

    def build(self, width: int | None) -> None:
        width = width if self.width is None else self.width
        if width is None:
            raise ValueError(
                "LearnedProposals has a network of its own that reads the observations, and how many numbers "
                "they have cannot be told from the layers of the trunk: give LearnedProposals(width=...)"
            )
        self.module = DigitPolicy(width, self.codec, self.hidden, self.lr, self.entropy, self.explore)

    def propose(self, query: Query) -> Tensor:
        return self._policy.propose(self._read(query), self.k or 1)

    def maximised(self, query: Query, best: Maximum) -> None:
        self._policy.learn(self._read(query), best.action)

    @property
    def _policy(self) -> DigitPolicy:
        assert isinstance(self.module, nn.Module), "the host calls build_modules first"
        return self.module  # type: ignore[return-value]

    def _read(self, query: Query) -> Tensor:
        """The observations as its network reads them: (B, width)."""
        x = query.flatten(query.obs).to(self._policy.weights.dtype)
        if x.shape[1] != self._policy.width:
            raise ValueError(
                f"LearnedProposals was made for observations of {self._policy.width} numbers and got "
                f"{x.shape[1]}: give LearnedProposals(width={x.shape[1]})"
            )
        return x
