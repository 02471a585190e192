"""TorchRL's target updaters for networks with rows: a table's target is moved by counting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.objectives import utils

from ...stochmax.looking import may_look
from ...stochmax.rows import RowTable
from .loss import StochDQNLoss


class _CountsForRows(utils.TargetNetUpdater):
    """What both updaters share: rows are left out of the host's loop over parameters, and counted for."""

    loss_module: Any

    def __init__(self, loss_module: StochDQNLoss, **kwargs: Any) -> None:
        if not isinstance(loss_module, StochDQNLoss):
            raise TypeError(
                f"this updater is for StochDQNLoss, got {type(loss_module).__name__}: use that of the same "
                "name in torchrl.objectives"
            )
        if "target_value_network_params" not in dict(loss_module.named_children()):
            raise RuntimeError(
                "Did not find any target parameters in the loss: make it with delay_value=True, or leave the "
                "updater out"
            )
        super().__init__(loss_module, **kwargs)

    def init_(self) -> None:
        """Let the target be what the online network is."""
        has_rows = any(True for _ in self.loss_module.row_tables())
        if has_rows and not any(x.requires_grad for x in self._sources.values(True, True)):
            # The host refuses to move nothing, and all that is trained are rows.
            self._sources = self._targets = TensorDict()
            self.initialized = True
        else:
            super().init_()
        self._sync_rows(1.0)

    # The host asks for these once, before it has chosen what to move.

    @property
    def _sources(self) -> TensorDictBase:
        chosen = self.__dict__.get("_sources_val", None)
        return self._without_rows(self._source_names) if chosen is None else chosen

    @_sources.setter
    def _sources(self, sources: TensorDictBase) -> None:
        self.__dict__["_sources_val"] = sources

    @property
    def _targets(self) -> TensorDictBase:
        chosen = self.__dict__.get("_targets_val", None)
        return self._without_rows(self._target_names) if chosen is None else chosen

    @_targets.setter
    def _targets(self, targets: TensorDictBase) -> None:
        self.__dict__["_targets_val"] = targets

    def _without_rows(self, names: list[str]) -> TensorDictBase:
        tables = [
            tuple(name.split("."))
            for name, module in self.loss_module.value_network.named_modules()
            if isinstance(module, RowTable)
        ]
        params = TensorDict({name: getattr(self.loss_module, name) for name in names}, [])
        return params.exclude(*[(name, *table) for name in names for table in tables])

    def _check_initialized(self) -> None:
        if not self.initialized:
            raise RuntimeError(f"{type(self).__name__} must be initialized: call init_() before step()")

    def _sync_rows(self, tau: float, when: torch.Tensor | None = None) -> None:
        with self.loss_module.in_place():
            for rows, _ in self.loss_module.row_tables():
                rows.sync(tau, when)
                rows.write_waiting()


class SoftUpdate(_CountsForRows, utils.SoftUpdate):
    """:class:`torchrl.objectives.SoftUpdate` for :class:`StochDQNLoss`: same arguments, same values, and O(1)
    for a table of any number of rows.

    Args:
        loss_module: the loss whose target network is moved.

    Keyword Args:
        eps, tau: the target keeps ``eps`` of itself and takes ``tau = 1 - eps`` of the online network; give
            one of them.
    """

    def __init__(
        self, loss_module: StochDQNLoss, *, eps: float | None = None, tau: float | None = None
    ) -> None:
        super().__init__(loss_module, eps=eps, tau=tau)

    def step(self) -> None:
        """Move the target by ``tau``."""
        self._check_initialized()
        super().step()
        self._sync_rows(1.0 - self.eps)


class HardUpdate(_CountsForRows, utils.HardUpdate):
    """:class:`torchrl.objectives.HardUpdate` for :class:`StochDQNLoss`: same arguments, same moments, and
    O(1) for a table of any number of rows.

    It counts on the loss's device and branches nowhere on a GPU, so that a CUDA graph that holds ``step``
    copies when it should, which a count in Python would not.

    Args:
        loss_module: the loss whose target network is moved.

    Keyword Args:
        value_network_update_interval: calls of ``step`` that copy nothing between two that do.
    """

    _counter: torch.Tensor

    def __init__(self, loss_module: StochDQNLoss, *, value_network_update_interval: float = 1000) -> None:
        super().__init__(loss_module, value_network_update_interval=value_network_update_interval)

    @property
    def counter(self) -> Any:
        """Calls of ``step`` since the last copy: () int64, on the loss's device."""
        device = next(self.loss_module.parameters()).device
        if self._counter.device != device:  # the loss has moved
            self._counter = self._counter.to(device)
        return self._counter

    @counter.setter
    def counter(self, count: Any) -> None:
        device = next(self.loss_module.parameters()).device
        self._counter = torch.tensor(int(count), dtype=torch.int64, device=device)

    @torch.no_grad()
    def step(self) -> None:
        """Count; copy the online network if it is time."""
        self._check_initialized()
        counter = self.counter
        due = counter == self.value_network_update_interval
        if not may_look(due) or bool(due):
            for key, source in self._sources.items(True, True):
                name, *rest = key
                target = self._targets[("target_" + name, *rest)]
                target.copy_(torch.where(due, source, target))
            self._sync_rows(1.0, when=due)
        counter.add_(1).mul_(~due)

    def state_dict(self) -> dict[str, Any]:
        """The host's, with the count as a number."""
        return {**super().state_dict(), "counter": int(self.counter)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the count from a ``state_dict``."""
        self.initialized = bool(state_dict.get("initialized", True))
        self.counter.fill_(state_dict.get("counter", 0))
