"""Any torch model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Adapter


class ModuleAdapter(Adapter):
    """Any torch model, or plain callable, as a `SequenceModel`.

    Args:
        forward: takes vectors (B, n, d), and ``mask=`` (B, n) where sequences are padded, and returns the
            last state, (B, n, d).
        embed: makes vectors of a batch; if None, the batch is the vectors.
        readout: makes logits or an action of states; if None, the states are the answer.
        blocks: the layers that ``forward`` calls, in order, each once; with none, states are 0 and 1 alone.
        module: where the parameters are; ``forward`` itself if None and it is a module.
        discrete: whether the readout is logits, else it is an action.
    """

    def __init__(
        self,
        forward: Callable[..., Tensor],
        *,
        embed: Callable[[Any], Tensor] | None = None,
        readout: Callable[[Tensor], Tensor] | None = None,
        blocks: Sequence[nn.Module] = (),
        module: nn.Module | None = None,
        token_roles: Tensor | None = None,
        position: int = -1,
        discrete: bool = True,
    ) -> None:
        if module is None:
            module = forward if isinstance(forward, nn.Module) else nn.Module().eval()
        super().__init__(module, blocks)
        self._forward, self._embed, self._readout = forward, embed, readout
        self.token_roles, self.position, self.discrete = token_roles, position, discrete

    @property
    def depth(self) -> int:
        """L; 1 if no layers were given."""
        return max(1, len(self.blocks))

    def embed(self, batch: Any) -> Tensor:
        """(B, n, d), the continuous inputs."""
        return torch.as_tensor(batch) if self._embed is None else self._embed(batch)

    def readout(self, state: Tensor) -> Tensor:
        """What the answer is made of."""
        return state if self._readout is None else self._readout(state)

    def _final(self, emb: Tensor, mask: Tensor | None) -> Tensor:
        return self._forward(emb) if mask is None else self._forward(emb, mask=mask)
