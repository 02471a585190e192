"""What Glasses asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

RETURN, STATE, ACTION, TIME = range(4)
ROLES = ("return", "state", "action", "time")


@runtime_checkable
class SequenceModel(Protocol):
    """A model that turns a sequence of vectors into a sequence of states, layer by layer.

    Shapes: B sequences, n tokens, d features. States are numbered 0 to L: 0 is what goes into the first
    layer, L what comes out behind the final norm.
    """

    token_roles: Tensor | None
    """Of each token of one step, such as ``(RETURN, STATE, ACTION)``; None if all are alike."""

    def embed(self, batch: Any) -> Tensor:
        """(B, n, d), the continuous inputs."""
        ...

    def states(
        self, emb: Tensor, mask: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> list[Tensor]:
        """States of layers, all if None, (B, n, d) each; ``mask`` is (B, n), True for real tokens."""
        ...

    def attentions(self, emb: Tensor, mask: Tensor | None = None) -> list[Tensor] | None:
        """Weights of each attention in the order they are computed, (B, H, n, n); None if they are hidden."""
        ...

    def readout(self, state: Tensor) -> Tensor:
        """Logits or actions from states L, (B, d) or (B, n, d)."""
        ...
