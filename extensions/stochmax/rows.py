"""Tables of which a step touches few rows: sparse gradients, exact lazy target rows, compact checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..row_set import RowSet, lazy_zeros


class RowTable(nn.Module):
    """n rows of ``width`` numbers, all zero at first, read and trained a few rows at a time.

    Zero rows cost no memory until they are touched (the operating system backs the pages lazily) and none at
    all in a checkpoint. They also mean that no action starts with a phantom advantage: with random rows the
    maximum over candidates picks whichever untrained row happens to be large.

    Args:
        n: number of rows.
        width: numbers in a row.
    """

    #: tables up to this many rows are saved whole, as any other parameter
    DENSE_BELOW = 1 << 16

    def __init__(self, n: int, width: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(lazy_zeros(n, width, dtype))
        self.touched = RowSet()
        #: rows that may differ from what a target copied last
        self.changed = RowSet()

    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``ids`` (any shape) -> (..., width); their gradient is sparse."""
        return F.embedding(ids, self.weight, sparse=True)

    def grad_rows(self) -> Tensor | None:
        """Ids of the rows that the current gradient would change, repeats included; None without gradient."""
        grad = self.weight.grad
        if grad is None:
            return None
        return grad._indices()[0] if grad.is_sparse else torch.arange(len(grad), device=grad.device)

    @torch.no_grad()
    def assign(self, ids: Tensor, values: Tensor) -> None:
        """Set rows ``ids`` (U,) to ``values`` (U, width) and mark them as touched."""
        self.weight[ids] = values.to(self.weight)
        self._mark(ids.to(self.weight.device))

    def _mark(self, ids: Tensor) -> None:
        self.touched.add(ids)
        self.changed.add(ids)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.touched.to(self.weight.device)
        self.changed.to(self.weight.device)
        return self

    # -- checkpoints: whole when small, touched rows only when large --

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if len(self.weight) <= self.DENSE_BELOW:
            return super()._save_to_state_dict(destination, prefix, keep_vars)
        ids = self.touched.ids()
        destination[prefix + "row_ids"] = ids
        destination[prefix + "row_values"] = self.weight.detach()[ids]
        destination[prefix + "row_shape"] = torch.tensor(self.weight.shape)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if prefix + "row_ids" not in state_dict:
            before = self.touched.ids()
            super()._load_from_state_dict(state_dict, prefix, *args)
            self._mark(torch.cat([before, self.weight.detach().any(1).nonzero().squeeze(1)]))
            return
        ids = state_dict[prefix + "row_ids"].to(self.weight.device)
        values, shape = state_dict[prefix + "row_values"], state_dict[prefix + "row_shape"].tolist()
        ours, error_msgs = list(self.weight.shape), args[-1]
        if shape != ours:
            error_msgs.append(f"{prefix}rows: {shape} in the checkpoint, this table is {ours}")
            return
        with torch.no_grad():
            before = self.touched.ids().to(self.weight.device)
            self.weight[before] = 0.0
            self.touched.clear()
            self.changed.add(before)
            self.assign(ids, values)


class TargetRows(RowTable):
    r"""The target of an online table, updated only where the online table changed.

    *Hard* (``tau`` = 1): a sync copies the rows that changed since the last one.

    *Polyak* (``tau`` < 1): a sync only counts. Between two of its updates an online row :math:`w` stands
    still, so after :math:`k` syncs the dense recursion :math:`\bar w \leftarrow (1-\tau)\bar w + \tau w` has
    the closed form :math:`w + (1-\tau)^k (\bar w - w)`, which is evaluated when a row is read, and written
    when its online row is about to change. Rows never touched equal their target and cost nothing.

    ``before_update`` must be called with the rows that an optimizer step will change, before it changes them.
    """

    def __init__(self, n: int, width: int, dtype: torch.dtype | None = None) -> None:
        super().__init__(n, width, dtype)
        self._online: list[RowTable] = []  # in a list, so that it does not register as a submodule
        self._tau = 1.0
        self._syncs = 0
        self._synced_at: Tensor | None = None  # (n,) int64, the sync count up to which a row is written

    def follow(self, online: RowTable) -> None:
        """Become the target of ``online``, from its present values."""
        self._online = [online]

    @torch.no_grad()
    def before_update(self, ids: Tensor) -> None:
        """Rows ``ids`` of the online table are about to change."""
        self._online[0]._mark(ids)
        self.touched.add(ids)
        if self._tau < 1.0:
            self._write(ids)

    @torch.no_grad()
    def sync(self, tau: float) -> None:
        """Move every row towards its online row by ``tau`` in (0, 1]."""
        if tau != self._tau:
            self._settle()
            self._tau = tau
            if tau < 1.0 and self._synced_at is None:
                self._synced_at = torch.zeros(len(self.weight), dtype=torch.int64, device=self.weight.device)
            if self._synced_at is not None:
                self._synced_at[self._in_use()] = self._syncs
        if tau < 1.0:
            self._syncs += 1
            return
        changed = self._online[0].changed
        ids = changed.ids()
        self.weight[ids] = self._online[0].weight[ids]
        self.touched.add(ids)
        changed.clear()

    def forward(self, ids: Tensor) -> Tensor:
        rows = super().forward(ids)
        if self._tau == 1.0 or self._synced_at is None:
            return rows
        online = F.embedding(ids, self._online[0].weight)  # a quarter of the time of indexing
        syncs = self._syncs - self._synced_at[ids]
        decay = ((1.0 - self._tau) ** syncs.to(torch.float64)).to(rows.dtype)
        return torch.lerp(online, rows, decay.unsqueeze(-1))

    def _write(self, ids: Tensor) -> None:
        self.weight[ids] = self(ids)
        if self._synced_at is not None:
            self._synced_at[ids] = self._syncs

    def _in_use(self) -> Tensor:
        """Rows of which we or the online table may not be zero any more."""
        return torch.cat([self.touched.ids(), self._online[0].touched.ids()])

    def _settle(self) -> None:
        """Write out every row that is behind, as after the dense recursion."""
        if self._tau < 1.0 and self._syncs:
            self._write(self._in_use())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if self._synced_at is not None:
            self._synced_at = self._synced_at.to(self.weight.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        with torch.no_grad():
            self._settle()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self._online:  # what changed since the last sync is not in a checkpoint
            self._online[0].changed.add(self.touched.ids())
        if self._synced_at is not None:
            self._synced_at.fill_(self._syncs)
