"""Tables of which a step touches few rows: sparse gradients, lazy targets, compact checkpoints.

What a step does to a table is arithmetic on the rows it names, of fixed shapes and on the table's device, so
that it can be compiled and captured in a CUDA graph: which rows were touched, and how far a target row is
behind, are tensors too.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..lazy_zeros import flagged, lazy_zeros
from .looking import may_look


class RowTable(nn.Module):
    """n rows of ``width`` numbers, all zero at first, read and trained a few rows at a time.

    Zero rows cost no memory until they are touched (the operating system backs the pages lazily) and none at
    all in a checkpoint. They also mean that no action starts with a phantom advantage: with random rows the
    maximum over candidates picks whichever untrained row happens to be large.
    """

    #: tables up to this many rows are saved and copied whole, as any other parameter
    DENSE_BELOW = 1 << 16

    touched: Tensor  # (n,) bool, the rows that may differ from zero

    def __init__(self, n: int, width: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(lazy_zeros(n, width, dtype=dtype))
        self.register_buffer("touched", lazy_zeros(n, dtype=torch.bool), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``ids`` (any shape) -> (..., width); their gradient is sparse."""
        if torch.is_grad_enabled():
            self.mark(ids)  # who asks for a gradient may train them
        return F.embedding(ids, self.weight, sparse=True)

    def grad_rows(self) -> Tensor | None:
        """Ids of the rows that the gradient would change, repeats included; None without gradient."""
        grad = self.weight.grad
        if grad is None:
            return None
        return grad._indices()[0] if grad.is_sparse else torch.arange(len(grad), device=grad.device)

    def touched_ids(self) -> Tensor:
        """Every row that was ever touched: (U,) int64, sorted."""
        return flagged(self.touched)

    @torch.no_grad()
    def mark(self, ids: Tensor) -> None:
        """Rows ``ids`` (any shape) are about to change."""
        self.touched.index_fill_(0, ids.reshape(-1), True)

    @torch.no_grad()
    def assign(self, ids: Tensor, values: Tensor) -> None:
        """Set rows ``ids`` (U,) to ``values`` (U, width) and mark them as touched."""
        self.mark(ids)
        self.weight[ids] = values.to(self.weight)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """All rows zero, as at first."""
        self.weight[self.touched_ids()] = 0.0
        self.touched.zero_()

    def __deepcopy__(self, memo: dict[int, Any]) -> RowTable:
        # A large table is copied by its touched rows, as it is saved: a copy of all n would take memory.
        if len(self.weight) > self.DENSE_BELOW and self.weight.device.type == "cpu":
            for whole, ids in self._lazy_tensors():
                if id(whole) in memo:  # whoever holds it too was copied before
                    continue
                part = lazy_zeros(*whole.shape, dtype=whole.dtype)
                part[ids] = whole.detach()[ids]
                memo[id(whole)] = nn.Parameter(part, whole.requires_grad) if whole is self.weight else part
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def _lazy_tensors(self) -> list[tuple[Tensor, Tensor]]:
        """The tensors of n rows, and which of their rows may differ from zero."""
        ids = self.touched_ids()
        return [(self.weight, ids), (self.touched, ids)]

    # -- checkpoints: whole when small, touched rows only when large --

    def save_rows(self, destination: Any, prefix: str) -> None:
        """Put the touched rows into ``destination``, as ``row_ids``, ``row_values`` and ``row_shape``."""
        ids = self.touched_ids()
        destination[prefix + "row_ids"] = ids
        destination[prefix + "row_values"] = self.weight.detach()[ids]
        destination[prefix + "row_shape"] = torch.tensor(self.weight.shape)

    @torch.no_grad()
    def load_rows(self, state_dict: Any, prefix: str, error_msgs: list[str]) -> None:
        """Become what ``save_rows`` put into ``state_dict``, or add to ``error_msgs`` why not."""
        ids = state_dict[prefix + "row_ids"].to(self.weight.device)
        values, shape = state_dict[prefix + "row_values"], state_dict[prefix + "row_shape"].tolist()
        ours = list(self.weight.shape)
        if shape != ours:
            error_msgs.append(f"{prefix}rows: {shape} in the checkpoint, this table is {ours}")
            return
        self.reset_parameters()
        self.assign(ids, values)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if len(self.weight) <= self.DENSE_BELOW:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        else:
            self.save_rows(destination, prefix)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if prefix + "row_ids" in state_dict:
            self.load_rows(state_dict, prefix, args[-1])
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.mark(self.weight.detach().any(1).nonzero())


class TargetRows(RowTable):
    r"""The target of an online table, of which a sync writes no row.

    Between two of its updates an online row :math:`w` stands still. After :math:`k` syncs the dense recursion
    :math:`\bar w \leftarrow (1-\tau)\bar w + \tau w` has then the closed form
    :math:`w + (1-\tau)^k (\bar w - w)`. So a sync only counts; the form is evaluated when a row is read, and
    written when its online row is about to change. With :math:`\tau = 1`, a hard copy, it says: the row as
    it was written, until the next sync; the online row from then on. Rows never touched equal their target
    and cost nothing.

    ``before_update`` must be called with the rows that an optimizer step will change, before it changes them.
    To call it with more rows does no harm, nor does a sync between the call and the step, if
    ``write_waiting`` follows the sync.
    """

    syncs: Tensor  # () int32, how many there were
    synced_at: Tensor  # (n,) int32, the sync up to which a row is written

    def __init__(self, n: int, width: int, dtype: torch.dtype | None = None) -> None:
        super().__init__(n, width, dtype)
        self._online: list[RowTable] = []  # in a list, so that it does not register as a submodule
        self._tau: float | None = None  # until the first sync
        self.register_buffer("syncs", torch.zeros((), dtype=torch.int32), persistent=False)
        self.register_buffer("synced_at", lazy_zeros(n, dtype=torch.int32), persistent=False)

    def follow(self, online: RowTable) -> None:
        """Become the target of ``online``, from its present values."""
        self._online = [online]

    @torch.no_grad()
    def before_update(self, ids: Tensor) -> None:
        """Rows ``ids`` of the online table are about to change."""
        ids = ids.reshape(-1)
        self._online[0].mark(ids)
        self._write(ids)

    @torch.no_grad()
    def sync(self, tau: float, when: Tensor | None = None) -> None:
        """Move every row towards its online row by ``tau`` in (0, 1].

        Args:
            when: a () bool on the table's device: whether to; always if None.
        """
        if self._tau is not None and tau != self._tau:
            self.settle()
        self._tau = tau
        self.syncs.add_(1 if when is None else when)

    @torch.no_grad()
    def write_waiting(self) -> None:
        """Write the rows whose online rows have a gradient: to be called after a sync that comes between
        ``before_update`` and the optimizer's step.
        """
        waiting = self._online[0].grad_rows()
        if waiting is not None:
            self._write(waiting)

    def forward(self, ids: Tensor) -> Tensor:
        if not self._online:
            return super().forward(ids)
        online = F.embedding(ids, self._online[0].weight.detach())  # (..., width)
        behind = self.syncs - F.embedding(ids, self.synced_at.unsqueeze(1)).squeeze(-1)  # (...)
        if not may_look(ids):
            return self._lag(online, F.embedding(ids, self.weight.detach()), behind)
        touched = self._online[0].touched.unsqueeze(1)
        apart = behind == 0 if self._is_hard else F.embedding(ids, touched).squeeze(-1)
        place = flagged(apart.reshape(-1))
        if 2 * len(place) > ids.numel():
            return self._lag(online, F.embedding(ids, self.weight.detach()), behind)
        # For most rows the online one serves as well. Only the others are read.
        flat = online.view(-1, online.shape[-1])
        rows = self.weight.detach().index_select(0, ids.reshape(-1).index_select(0, place))
        flat[place] = self._lag(flat.index_select(0, place), rows, behind.reshape(-1)[place])
        return online

    @property
    def _is_hard(self) -> bool:
        return self._tau is None or self._tau == 1.0

    def _lag(self, online: Tensor, rows: Tensor, behind: Tensor) -> Tensor:
        """What rows that were written so many syncs ago have become: (..., width) each, behind (...)."""
        if self._is_hard:
            return torch.where(behind.unsqueeze(-1) == 0, rows, online)
        decay = ((1.0 - self._tau) ** behind.to(torch.float64)).to(rows.dtype)  # type: ignore[operator]
        return torch.lerp(online, rows, decay.unsqueeze(-1))

    def _write(self, ids: Tensor) -> None:
        self.touched.index_fill_(0, ids, True)
        self.weight[ids] = self(ids)
        self.synced_at[ids] = self.syncs

    @torch.no_grad()
    def settle(self) -> None:
        """Write out every row that is behind, as after the dense recursion."""
        if self._online:
            self._write(self._in_use())

    def _lazy_tensors(self) -> list[tuple[Tensor, Tensor]]:
        return [*super()._lazy_tensors(), (self.synced_at, flagged(self.synced_at))]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.settle()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    @torch.no_grad()
    def load_rows(self, state_dict: Any, prefix: str, error_msgs: list[str]) -> None:
        """As of any table; what is loaded is up to date, as it was settled before."""
        before = self._in_use()
        super().load_rows(state_dict, prefix, error_msgs)
        self.synced_at[torch.cat([before, self.touched_ids()])] = self.syncs

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        before = self._in_use()
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.synced_at[torch.cat([before, self.touched_ids()])] = self.syncs

    def _in_use(self) -> Tensor:
        """Rows of which this table or the online one may not be zero any more."""
        return flagged(self.touched | self._online[0].touched) if self._online else self.touched_ids()


def target_copy(network: nn.Module) -> nn.Module:
    """A copy of ``network`` to bootstrap from: its tables of rows follow those of ``network`` lazily.

    No parameter of it takes a gradient.
    """
    tables: dict[int, Any] = {}
    for module in network.modules():
        if isinstance(module, RowTable):
            n, width = module.weight.shape
            target = TargetRows(n, width, module.weight.dtype)
            if module.weight.device.type != "cpu":
                target.to(module.weight.device)
            target.follow(module)
            ids = flagged(module.weight.detach().any(1))  # whoever wrote them
            module.mark(ids)
            target.assign(ids, module.weight.detach()[ids])
            tables[id(module)] = target
    # Of what is copied the tables are left out, as the memo has them already.
    return copy.deepcopy(network, tables).requires_grad_(False)
