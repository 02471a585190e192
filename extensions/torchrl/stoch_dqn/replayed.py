"""The actions that were replayed of late: the memory M of an actor, on its device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ReplayedActions(nn.Module):
    """A ring of the ids in the minibatches of late, from which acting draws what the paper calls M.

    A minibatch is a sample of the replay. So is what is drawn from some minibatches, and it is at hand where
    the policy is: on its device, in a CUDA graph, in the process of a collector, to which it travels with
    the weights.

    Args:
        n: number of actions; before any is replayed, the ring holds random ones.
        size: ids remembered.
    """

    ids: Tensor  # (size,) int64
    seen: Tensor  # () int64, how many there were in all

    def __init__(self, n: int, size: int = 1 << 16) -> None:
        super().__init__()
        own = torch.Generator().manual_seed(0)  # the draws of a run are not touched
        self.register_buffer("ids", torch.randint(n, (size,), generator=own))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._most: tuple[tuple[int, int, int], Tensor] | None = None

    @torch.no_grad()
    def add(self, ids: Tensor) -> None:
        """Meet ``ids`` (B,)."""
        size = len(self.ids)
        ids = ids.detach()[-size:]
        self.ids[(self.seen + torch.arange(len(ids), device=ids.device)) % size] = ids
        self.seen.add_(len(ids))

    def draw(self, k: int) -> Tensor:
        """k of those that are remembered, with replacement: (k,)."""
        size = len(self.ids)
        u = torch.rand(k, dtype=torch.float64, device=self.ids.device)
        back = (u * self.seen.clamp(1, size)).long()  # 0 is the last one
        return self.ids[(self.seen - 1 - back) % size]

    def most(self, k: int) -> Tensor:
        """Those met most often, at most k, the most frequent first, of equals the lowest: (<= k,).

        By how often, not by how lately: what was exploited again and again has a value that was put right
        again and again. For evaluation: its shape depends on the data.
        """
        seen = int(self.seen)
        key = (seen, k, self.ids._version)  # the version tells of a loaded memory
        if self._most is None or self._most[0] != key or self._most[1].device != self.ids.device:
            ids, counts = self.ids[: min(seen, len(self.ids))].unique(return_counts=True)
            order = counts.sort(descending=True, stable=True).indices[:k]
            self._most = (key, ids[order])
        return self._most[1]
