"""A replay that lives where the environments do, whose every operation has fixed shapes."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from extensions.stochmax.looking import may_look


class RingReplay:
    """The last transitions of E environments, stored and drawn by arithmetic on their device.

    TorchRL's buffers count on the host, so they cannot be part of a CUDA graph; this one can.

    Args:
        capacity: transitions; a multiple of E is kept, at least ``n_steps`` + 1 of each environment.
        n_envs: E.
        n_steps: rewards that are summed before bootstrapping.
        gamma: discount of these sums.
    """

    def __init__(self, capacity: int, n_envs: int, n_steps: int = 1, gamma: float = 0.99) -> None:
        self.rows, self.n_envs = max(capacity // n_envs, n_steps + 1), n_envs
        self.n_steps, self.gamma = n_steps, gamma
        self.data: TensorDict | None = None  # (rows, E)
        self.added: Tensor | None = None  # () int64, rows ever added

    def add(self, step: TensorDict) -> None:
        """Store a transition of each environment, (E,)."""
        if self.data is None or self.added is None:
            rows = [x.new_zeros(self.rows, *x.shape) for x in step.values(True, True)]
            keys = list(step.keys(True, True))
            self.data = TensorDict(dict(zip(keys, rows, strict=True)), [self.rows, self.n_envs])
            self.added = torch.zeros((), dtype=torch.int64, device=rows[0].device)
        place = (self.added % self.rows).reshape(1)
        for key, x in step.items(True, True):
            self.data.get(key).index_copy_(0, place, x.unsqueeze(0))
        self.added.add_(1)

    def sample(self, batch_size: int) -> TensorDict:
        """Transitions drawn uniformly with replacement, (B,), of up to ``n_steps`` steps each.

        An end of an episode ends a sum early; ``steps_to_next_obs`` (B, 1) says how long it is.

        Raises:
            RuntimeError: fewer than ``n_steps`` transitions of each environment were added (on a GPU this is
                not looked at).
        """
        if self.added is None or (may_look(self.added) and int(self.added) < self.n_steps):
            raise RuntimeError(
                f"a sample is of {self.n_steps} steps, and {0 if self.added is None else int(self.added)} "
                f"transitions of each environment were added: add at least {self.n_steps} before sampling"
            )
        device = self.added.device
        held = self.added.clamp(max=self.rows)
        starts = held - self.n_steps + 1  # rows from which n steps are there
        u = torch.rand(2, batch_size, dtype=torch.float64, device=device)
        row = (self.added - held + (u[0] * starts).long()) % self.rows  # (B,)
        env = (u[1] * self.n_envs).long()
        flat = row * self.n_envs + env
        first = self._at(flat)
        if self.n_steps == 1:
            return first
        reward, steps = first["next", "reward"].clone(), torch.ones(batch_size, 1, device=device)
        last = first["next"]
        going, discount = ~last["done"], self.gamma
        for k in range(1, self.n_steps):
            then = self._at((row + k) % self.rows * self.n_envs + env)["next"]
            reward = torch.where(going, reward + discount * then["reward"], reward)
            last = torch.where(going.squeeze(-1), then, last)
            steps = steps + going
            going, discount = going & ~then["done"], discount * self.gamma
        first.set("next", last.set("reward", reward))
        return first.set("steps_to_next_obs", steps)

    def _at(self, flat: Tensor) -> TensorDict:
        assert self.data is not None
        return self.data.reshape(-1).apply(lambda x: x.index_select(0, flat), batch_size=[len(flat)])

    def state_dict(self) -> dict[str, Tensor]:
        """All that is stored."""
        assert self.data is not None
        assert self.added is not None
        flat = {".".join((k,) if isinstance(k, str) else k): x for k, x in self.data.items(True, True)}
        return {**flat, "added": self.added}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what ``state_dict`` gave."""
        state = dict(state)
        self.added = state.pop("added").clone()
        rows = {tuple(k.split(".")): x.clone() for k, x in state.items()}
        self.data = TensorDict(rows, [self.rows, self.n_envs])
