"""What a run records on its way: returns, and what the stochastic maximum falls short by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .environments import Step


class Records:
    """Means over intervals of steps, of each run apart.

    Args:
        interval: steps.
        runs: R.
        device: where they are summed.

    Attributes:
        rows: one an interval: ``time/total_timesteps``, an int, and these, each (R,) on the CPU, NaN where
            there was nothing:

            - ``rollout/rew_mean``, mean reward of a step;
            - ``rollout/ep_rew_mean``, mean return of the episodes that ended, undiscounted;
            - ``train/omega``, mean of stochastic maximum / maximum where the maximum is positive;
            - ``train/beta``, mean of maximum - stochastic maximum.

            The last two are of the maximisations made for the actions that were executed, explored ones
            included, and there if the maximum is at hand: not of a sparse table. Steps that only reset are
            in none of these means.
    """

    def __init__(self, interval: int, runs: int, device: torch.device) -> None:
        self.interval = interval
        self.rows: list[dict[str, Any]] = []
        self._returns = torch.zeros(runs, dtype=torch.float64, device=device)  # of the episodes under way
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def _add(self, name: str, values: Tensor, where: Tensor) -> None:
        if name not in self._sums:
            self._sums[name] = torch.zeros_like(self._returns)
            self._counts[name] = torch.zeros_like(self._returns)
        self._sums[name] += torch.where(where, values, 0.0)
        self._counts[name] += where

    def shortfall(self, stochastic: Tensor, exact: Tensor, where: Tensor) -> None:
        """Hear of the two maxima (R,), in the runs of ``where`` (R,) bool; not of one that is NaN."""
        where = where & ~exact.isnan()
        self._add("train/omega", stochastic / exact, where & (exact > 0))
        self._add("train/beta", exact - stochastic, where)

    def step(self, step: Step, timesteps: int) -> None:
        """Hear of a step, and write a row where an interval ends."""
        self._add("rollout/rew_mean", step.reward, step.happened)
        self._returns += step.reward
        done = step.terminated | step.truncated
        self._add("rollout/ep_rew_mean", self._returns, done & ~self._returns.isnan())
        self._returns = self._returns.masked_fill(done, 0.0)
        if timesteps % self.interval == 0:
            means = {name: (self._sums[name] / self._counts[name]).cpu() for name in self._sums}
            self.rows.append({"time/total_timesteps": timesteps, **means})
            self._sums, self._counts = {}, {}

    def new_episodes(self) -> None:
        """Hear that all environments were reset."""
        self._returns = torch.zeros_like(self._returns)

    def join(self, ended: Tensor) -> None:
        """Hear that episodes are under way already, but for those that ``ended`` (R,) bool.

        What they returned so far is not known, so their returns are in no mean.
        """
        self._returns = torch.zeros_like(self._returns).masked_fill(~ended, torch.nan)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "returns": self._returns.cpu(),
            "sums": {name: x.cpu() for name, x in self._sums.items()},
            "counts": {name: x.cpu() for name, x in self._counts.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self._returns.device
        self.rows = state["rows"]
        self._returns = state["returns"].to(device)
        self._sums = {name: x.to(device) for name, x in state["sums"].items()}
        self._counts = {name: x.to(device) for name, x in state["counts"].items()}
