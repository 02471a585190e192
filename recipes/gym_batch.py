"""Many gymnasium environments as one TorchRL environment, each of which plays one episode and then idles."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase


@contextmanager
def mujoco_warnings_dropped() -> Iterator[None]:
    """MuJoCo writes what it has against a model each time that the model is made; not meanwhile."""
    mujoco = sys.modules.get("mujoco")  # there if an environment of MuJoCo's is
    if mujoco is None:
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


class GymBatch(EnvBase):
    """A batch ``[N]`` of environments of one gymnasium id, stepped in a loop, for evaluation.

    TorchRL's own wrappers begin a new episode where one has ended. This one doesn't: an environment that has
    ended is not stepped any more, its reward is 0, and it stays done, with its last observation, also after
    the partial reset that TorchRL asks for. A reset of the whole batch, ``env.reset()``, begins anew. After
    ``set_seed(s)``, environment i has the seed s + i at the next such reset.

    Args:
        id: of gymnasium, with observations in a one-dimensional ``Box``, and actions in such a one, into
            which they are clipped, or ``Discrete``.
        count: how many environments, N.
        device: where the tensors are.
        **kwargs: of ``gymnasium.make``.

    TensorDict entries:
        ``observation`` ``(N, S)`` float32; ``action`` ``(N, A)`` float32, or ``(N,)`` int64 if discrete;
        ``reward`` ``(N, 1)`` float32; ``done``, ``terminated``, ``truncated`` ``(N, 1)`` bool.

    Raises:
        ValueError: other spaces; no environments; an action that is NaN.
    """

    def __init__(self, id: str, count: int, *, device: Any = "cpu", **kwargs: Any) -> None:
        if count < 1:
            raise ValueError(f"count is the number of environments, at least 1; got {count}.")
        super().__init__(device=device, batch_size=[count])
        self.envs = [gym.make(id, **kwargs)]
        with mujoco_warnings_dropped():  # they were seen once
            self.envs += [gym.make(id, **kwargs) for _ in range(count - 1)]
        seen, acted = self.envs[0].observation_space, self.envs[0].action_space
        if not isinstance(seen, Box) or len(seen.shape) != 1:
            raise ValueError(
                f"{id} observes {seen}; GymBatch takes vectors. Register it with gymnasium's "
                "FlattenObservation."
            )
        if not isinstance(acted, Discrete) and not (isinstance(acted, Box) and len(acted.shape) == 1):
            raise ValueError(f"{id} acts in {acted}; GymBatch takes a Discrete or a one-dimensional Box.")
        self.action_space = acted
        self.seeds: list[int | None] = [None] * count  # of the next reset
        self.last_observation = np.zeros((count, *seen.shape), np.float32)
        self.terminated = np.zeros(count, bool)
        self.truncated = np.zeros(count, bool)
        self._make_specs()

    def _make_specs(self) -> None:
        batch, device = self.batch_size, self.device
        self.observation_spec = Composite(
            observation=Unbounded(self.last_observation.shape, device, torch.float32),
            shape=batch,
            device=device,
        )
        if isinstance(self.action_space, Discrete):
            self.action_spec = Categorical(int(self.action_space.n), shape=batch, device=device)
        else:
            low, high = (
                torch.as_tensor(x, dtype=torch.float32, device=device).expand(*batch, -1)
                for x in (self.action_space.low, self.action_space.high)
            )
            self.action_spec = Bounded(low, high, dtype=torch.float32, device=device)
        self.reward_spec = Unbounded((*batch, 1), device, torch.float32)
        flag = Categorical(2, shape=(*batch, 1), device=device, dtype=torch.bool)
        self.done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=batch, device=device
        )

    def _set_seed(self, seed: int | None) -> None:
        self.seeds = [None if seed is None else seed + i for i in range(len(self.envs))]

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is not None:
            # What has ended stays so. What a transform has cut off, such as StepCounter, ends with it.
            cut = mask.reshape(-1).cpu().numpy() & ~self.ended
            self.truncated |= cut
        else:
            self.terminated[:] = self.truncated[:] = False
            for i, (env, seed) in enumerate(zip(self.envs, self.seeds, strict=True)):
                self.last_observation[i], _ = env.reset(seed=seed)
            self._set_seed(None)
        # TorchRL wants nothing to be done after its reset; the next step says again what is.
        no = np.zeros_like(self.ended)
        return self._pack(terminated=no, truncated=no)

    @property
    def ended(self) -> np.ndarray:
        """(N,) bool: which environments idle."""
        return self.terminated | self.truncated

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = self._actions(tensordict.get("action").cpu().numpy())
        reward = np.zeros(len(self.envs), np.float32)
        for i in (~self.ended).nonzero()[0]:
            self.last_observation[i], reward[i], self.terminated[i], self.truncated[i], _ = self.envs[i].step(
                actions[i]
            )
        out = self._pack(terminated=self.terminated, truncated=self.truncated)
        out.set("reward", self._column(reward))
        return out

    def _actions(self, actions: np.ndarray) -> np.ndarray:
        """As the environments take them."""
        if isinstance(self.action_space, Discrete):
            return actions + self.action_space.start
        if not np.isfinite(actions).all():
            raise ValueError("Actions are NaN or infinite: so is what the policy reads, or are its weights.")
        return actions.clip(self.action_space.low, self.action_space.high)

    def _pack(self, terminated: np.ndarray, truncated: np.ndarray) -> TensorDictBase:
        return TensorDict(
            {
                "observation": torch.tensor(self.last_observation, device=self.device),
                "terminated": self._column(terminated),
                "truncated": self._column(truncated),
                "done": self._column(terminated | truncated),
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _column(self, values: np.ndarray) -> torch.Tensor:
        """(N,) -> (N, 1), a copy."""
        return torch.tensor(values, device=self.device).unsqueeze(1)

    def close(self, *, raise_if_closed: bool = True) -> None:
        for env in self.envs:
            env.close()
        super().close(raise_if_closed=raise_if_closed)
