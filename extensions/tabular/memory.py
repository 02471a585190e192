"""M for discrete states: the actions most recently exploited in each state, by run."""

from __future__ import annotations

import torch
from torch import Tensor

from .slots import Slots

_EMPTY = -1


class DenseMemory:
    """The last ``size`` distinct actions exploited in each state, most recent first.

    Args:
        size: ids a state, at least 1.
        rows: R * S, the states of all runs.
        device: where they are kept.
    """

    def __init__(self, size: int, rows: int, device: torch.device) -> None:
        self.size = size
        self._device = device
        self._column = torch.arange(size, device=device)
        self._actions = self._empty(rows)

    def _empty(self, rows: int) -> Tensor:
        return torch.full((rows, self.size), _EMPTY, device=self._device)

    def recall(self, rows: Tensor) -> Tensor:
        """Ids (R, size) int64 of rows (R,), and -1 where fewer were exploited."""
        return self._actions[rows]

    def remember(self, rows: Tensor, actions: Tensor, where: Tensor) -> None:
        """Hear that ``actions`` (R,) were exploited in ``rows`` (R,), in the runs of ``where`` (R,) bool."""
        known = self.recall(rows)
        self._store(rows, torch.where(where[:, None], self._moved_to_front(known, actions), known), where)

    def _moved_to_front(self, known: Tensor, actions: Tensor) -> Tensor:
        same = known == actions[:, None]
        # where it was, or the last place, whose action is forgotten
        was = torch.where(same.any(1), same.byte().argmax(1), self.size - 1)
        moved = torch.where(self._column <= was[:, None], known.roll(1, 1), known)
        moved[:, 0] = actions
        return moved

    def _store(self, rows: Tensor, known: Tensor, where: Tensor) -> None:
        self._actions[rows] = known

    @property
    def nbytes(self) -> int:
        return self._actions.nbytes

    def state_dict(self) -> dict[str, Tensor]:
        return {"actions": self._actions.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._actions.copy_(state["actions"])


class SparseMemory(DenseMemory):
    """The same, of the states in which something was exploited."""

    def __init__(self, size: int, rows: int, device: torch.device) -> None:
        super().__init__(size, 512, device)  # by slot
        self._slots = Slots(device)

    def recall(self, rows: Tensor) -> Tensor:
        slot = self._slots.find(rows)
        return self._actions[slot].masked_fill(slot[:, None] < 0, _EMPTY)

    def _store(self, rows: Tensor, known: Tensor, where: Tensor) -> None:
        slot = self._slots.insert(rows[where])
        while self._slots.count > len(self._actions):
            self._actions = torch.cat([self._actions, self._empty(len(self._actions))])
        self._actions[slot] = known[where]

    @property
    def nbytes(self) -> int:
        return self._actions.nbytes + self._slots.nbytes

    def state_dict(self) -> dict[str, Tensor]:
        # copies: of a part of a tensor, the whole would be saved
        return {
            "keys": self._slots.keys.cpu().clone(),
            "actions": self._actions[: self._slots.count].cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._slots = Slots(self._device)
        self._slots.insert(state["keys"].to(self._device))
        spare = self._empty(max(512, len(state["keys"])))
        self._actions = torch.cat([state["actions"].to(self._device), spare])
