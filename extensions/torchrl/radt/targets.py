"""A target of its own for each environment of a batch, in the environment."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.envs import TargetReturn


class MultiTargetReturn(TargetReturn):
    """:class:`torchrl.envs.TargetReturn` with a target for each environment, which may change in
    mid-episode.

    An episode begins with its environment's target. In mode "reduce" each step's reward is taken off it:
    ``rtg_0 = target, rtg_{t+1} = rtg_t - r_t``.

    Args:
        target_return: one number; or ``(B,)`` or ``(B, 1)``, where B is the environment's batch size.
        mode: ``"reduce"`` or ``"constant"``.
        in_keys: entries of rewards; the environment's own if None.
        out_keys: where to write; ``["return_to_go"]`` if None, ``(B, 1)`` float32.
        reset_key: as in ``TargetReturn``.
        data_range: lowest and highest return that is in the data, or percentiles of them, for a warning.

    Raises:
        ValueError: targets that are NaN or infinite, or, once the environment is reset, another number of
            them than of environments.

    Warns:
        UserWarning: once, at targets outside ``data_range``.

    Example:
        >>> env = SerialEnv(3, lambda: GymEnv("Pendulum-v1"))
        >>> env = TransformedEnv(env, MultiTargetReturn([-1200.0, -600.0, -150.0]))
        >>> env.reset()["return_to_go"].squeeze(-1)
        tensor([-1200.,  -600.,  -150.])
    """

    def __init__(
        self,
        target_return: float | Sequence[float] | Tensor,
        mode: str = "reduce",
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        reset_key: NestedKey | None = None,
        *,
        data_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(
            0.0,
            mode=mode,
            in_keys=in_keys,
            out_keys=["return_to_go"] if out_keys is None else out_keys,
            reset_key=reset_key,
        )
        self.data_range = data_range
        self._warned = False
        self.target_return = self._checked(target_return)
        self._changed: Tensor | None = None  # (B, 1), for which environments the next step changes it
        self._change: Tensor | None = None  # (B, 1), to what

    def retarget(self, targets: float | Sequence[float] | Tensor, rows: Any = None) -> None:
        """Change what episodes are to bring, from the next step on.

        After the next ``env.step``, ``("next", "return_to_go")`` is what is given here: the return from there
        to the end. The environments' next episodes have their first target again. In a loop that has the
        tensordict in its hands, ``td["return_to_go"][rows] = targets`` does the same without a step between.

        Args:
            targets: one number, or one for each of ``rows``.
            rows: which environments, as an index into the batch; all if None.
        """
        batch, device = self.parent.batch_size, self.parent.device
        if self._changed is None or self._change is None:
            self._changed = torch.zeros(*batch, 1, dtype=torch.bool, device=device)
            self._change = torch.zeros(*batch, 1, device=device)
        rows = slice(None) if rows is None else rows
        self._change[rows] = self._one_each(self._checked(targets), self._change[rows].shape[:-1], device)
        self._changed[rows] = True

    def _checked(self, targets: float | Sequence[float] | Tensor) -> Tensor:
        """As float32."""
        targets = torch.as_tensor(targets, dtype=torch.float32)
        if not bool(targets.isfinite().all()):
            raise ValueError(f"Targets must be finite; got {targets.flatten().tolist()}.")
        if self.data_range is not None and not self._warned:
            low, high = self.data_range
            outside = targets[(targets < low) | (targets > high)]
            if len(outside):
                self._warned = True
                warnings.warn(
                    f"Targets {outside.tolist()} lie outside the data, whose returns are {low:.6g} to "
                    f"{high:.6g}: what a policy makes of them it has not been trained for.",
                    stacklevel=3,
                )
        return targets

    @staticmethod
    def _one_each(targets: Tensor, batch: torch.Size, device: torch.device | None) -> Tensor:
        """(*batch, 1)."""
        if targets.numel() not in (1, batch.numel()):
            raise ValueError(
                f"{targets.numel()} targets for {batch.numel()} environments: give one number, or as many "
                f"as there are environments."
            )
        return targets.to(device).reshape(-1).expand(batch.numel()).reshape(*batch, 1)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        self._forget_changes(tensordict.get(self.reset_key, None))
        targets = self._one_each(self.target_return, tensordict.batch_size, tensordict_reset.device)
        for key in self.out_keys:
            # For all; TorchRL keeps what an environment has that is not reset.
            tensordict_reset.set(key, targets.clone())
        return tensordict_reset

    def _forget_changes(self, reset: Tensor | None) -> None:
        """Those of environments that begin a new episode: all if ``reset`` is None."""
        if reset is None:
            self._changed = self._change = None
        elif self._changed is not None:
            self._changed = self._changed & ~reset.reshape(self._changed.shape)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        next_tensordict = super()._step(tensordict, next_tensordict)
        if self._changed is not None and self._change is not None:
            for key in self.out_keys:
                to_go = torch.where(self._changed, self._change, next_tensordict.get(key))
                next_tensordict.set(key, to_go)
            self._changed = self._change = None
        return next_tensordict
