"""Tables of values Q(s, a), one for each of R runs: dense, or only of the entries that were written."""

from __future__ import annotations

import torch
from torch import Tensor

from .slots import Slots

#: numbers up to which a table is dense if either kind will do (128 MB), and up to which one may be exact
DENSE_UP_TO, EXACT_UP_TO = 1 << 24, 1 << 27


class Table:
    """R tables of S states and n actions, with ``width`` float64 numbers an entry.

    The first numbers of an entry are values, one for each table of a double method; visit counts may follow.

    Args:
        width: numbers an entry.
        runs: R.
        states: S.
        actions: n.
        initial: (width,), what an entry holds before it is written.
        device: where the table is.
    """

    def __init__(
        self, width: int, runs: int, states: int, actions: int, initial: Tensor, device: torch.device
    ) -> None:
        self.width, self.states, self.actions = width, states, actions
        self._initial = initial.double().to(device)
        self._first_rows = torch.arange(runs, device=device) * states  # (R,), of each run among all rows

    def rows(self, states: Tensor) -> Tensor:
        """The row of each run's state among the R * S rows: (R,)."""
        return self._first_rows + states

    def read(self, rows: Tensor, ids: Tensor, width: int | None = None) -> Tensor:
        """The first ``width`` numbers (default all) of entries: rows (R,), ids (R, C) to (width, R, C)."""
        raise NotImplementedError

    def write(self, rows: Tensor, ids: Tensor, values: Tensor, where: Tensor) -> None:
        """Write an entry a run, in the runs of ``where`` (R,) bool: rows, ids (R,), values (width, R)."""
        raise NotImplementedError

    @property
    def entries(self) -> int:
        """How many entries take memory."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        raise NotImplementedError


class DenseTable(Table):
    """All entries, in a tensor (width, R * S, n). Reads all n of a row at once, too."""

    def __init__(
        self, width: int, runs: int, states: int, actions: int, initial: Tensor, device: torch.device
    ) -> None:
        super().__init__(width, runs, states, actions, initial, device)
        size = (width, runs * states, actions)
        if bool((self._initial == 0).all()):
            self.values = torch.zeros(size, dtype=torch.float64, device=device)
        else:
            self.values = self._initial[:, None, None].repeat(1, *size[1:])
        self._flat = self.values.view(width, -1)

    def read(self, rows: Tensor, ids: Tensor, width: int | None = None) -> Tensor:
        return self._flat[:width, (rows * self.actions)[:, None] + ids]

    def read_all(self, rows: Tensor, width: int | None = None) -> Tensor:
        """The first ``width`` numbers of all n entries of rows (R,): (width, R, n)."""
        return self.values[:width, rows]

    def write(self, rows: Tensor, ids: Tensor, values: Tensor, where: Tensor) -> None:
        place = rows * self.actions + ids
        self._flat[:, place] = torch.where(where, values, self._flat[:, place])

    @property
    def entries(self) -> int:
        return self._flat.shape[1]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def state_dict(self) -> dict[str, Tensor]:
        return {"values": self.values.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.values.copy_(state["values"])


class SparseTable(Table):
    """Only the entries that were written: no step, and no byte, depends on n.

    Raises:
        ValueError: R * S * n exceeds 2^62, beyond which entries have no number.
    """

    def __init__(
        self, width: int, runs: int, states: int, actions: int, initial: Tensor, device: torch.device
    ) -> None:
        super().__init__(width, runs, states, actions, initial, device)
        if runs * states * actions > 1 << 62:
            raise ValueError(
                f"{runs} runs x {states} states x {actions} actions are more than the 2^62 entries that can "
                "be told apart: use fewer runs at once, or aggregate states"
            )
        self._slots = Slots(device)
        self._values = torch.empty((width, 512), dtype=torch.float64, device=device)  # by slot

    def read(self, rows: Tensor, ids: Tensor, width: int | None = None) -> Tensor:
        slot = self._slots.find((rows * self.actions)[:, None] + ids)
        return torch.where(slot < 0, self._initial[:width, None, None], self._values[:width, slot])

    def write(self, rows: Tensor, ids: Tensor, values: Tensor, where: Tensor) -> None:
        slot = self._slots.insert((rows * self.actions + ids)[where])
        while self._slots.count > self._values.shape[1]:
            self._values = torch.cat([self._values, torch.empty_like(self._values)], 1)
        self._values[:, slot] = values[:, where]

    @property
    def entries(self) -> int:
        return self._slots.count

    @property
    def nbytes(self) -> int:
        return self._values.nbytes + self._slots.nbytes

    def state_dict(self) -> dict[str, Tensor]:
        # copies: of a part of a tensor, the whole would be saved
        return {
            "keys": self._slots.keys.cpu().clone(),
            "values": self._values[:, : self._slots.count].cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        device = self._values.device
        self._slots = Slots(device)
        self._slots.insert(state["keys"].to(device))
        spare = max(512, len(state["keys"]))
        self._values = torch.cat(
            [state["values"].to(device), torch.empty(self.width, spare, dtype=torch.float64, device=device)],
            1,
        )
