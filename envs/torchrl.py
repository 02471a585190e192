"""The TorchRL door: one `EnvBase` over any world of `envs.dynamics`, on any device, in batches of any
shape."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import expand_as_right
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, Unbounded
from torchrl.envs import EnvBase, step_mdp

from .actions import ACTION_FORMATS
from .dynamics.arrays import may_look
from .dynamics.digits import join
from .dynamics.hashing import subkey
from .dynamics.make import make_world
from .dynamics.world import State, World

SEEDS = 2**62


class LargeActionEnv(EnvBase):
    """A batch of environments of one world, stepped together on one device.

    The step is a pure function of the tensordict: the state of the world travels in it, under ``"world"``, as
    `torchrl.envs.PendulumEnv` has it. So a state can be stored and gone back to
    (``env.reset(td, set_state=True)``), and ``env.step`` can be compiled and captured in a CUDA graph. What
    an agent may see is ``"observation"``; ``"world"`` holds secrets as well. Leave it out of a replay
    buffer with ``td.exclude("world", ("next", "world"))``.

    All randomness is a hash of the seed, the number of the environment, the number of its episode and the
    step: equal on every device, eager and compiled.

    Args:
        world: an id such as ``"LargeAction/ScatterChain-1M-v0"``, with or without the namespace;
            ``"module:Class"`` in `envs.dynamics`; or a world, some of whose fields ``kwargs`` may change.
        batch_size: shape of the batch, such as ``[4096]``, or their number.
        device: where all of it is.
        seed: which episodes; drawn from torch's global generator if None, so that processes that are forked
            from one have the same. See also ``set_seed``.
        action_format: ``"flat"``, a ``Categorical`` of n; or ``"factored"``, a ``MultiCategorical`` with the
            world's ``sizes``, the least significant digit of an id first (a single one is flat).
        run_type_checks: TorchRL's own checks of dtypes at each step.
        **kwargs: fields of the world, such as ``n`` and ``horizon``.

    TensorDict entries (B stands for ``batch_size``):
        ``action`` ``(*B,)`` int64, or ``(*B, len(sizes))``; ``observation`` ``(*B, d)`` float32; ``reward``
        ``(*B, 1)`` float32; ``done``, ``terminated``, ``truncated`` ``(*B, 1)`` bool; ``world``, the
        components of the world's state, ``(*B, ...)``.

    Raises:
        ValueError: an id of another suite; no action, or one of a wrong shape or dtype, or, where looking
            costs nothing (on a CPU, not compiled), out of range; a tensordict without a state.
    """

    batch_locked = True
    _supports_set_state = True

    def __init__(
        self,
        world: str | World,
        batch_size: int | Sequence[int] = (),
        device: Any = "cpu",
        seed: int | None = None,
        action_format: str = "flat",
        run_type_checks: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(world, str) and ("/" in world or ":" not in world):  # an id
            id = world.removeprefix("envs:")
            given = dict(gym.spec(id if "/" in id else f"LargeAction/{id}").kwargs)
            if "world" not in given:
                raise ValueError(
                    f"{world} is none of the worlds of envs.dynamics; for TorchRL it is "
                    f"torchrl.envs.GymEnv({world!r}, categorical_action_encoding=True)."
                )
            world, kwargs = given.pop("world"), {**given, **kwargs}
        self.dynamics = make_world(world, kwargs)
        if action_format not in ACTION_FORMATS:
            raise ValueError(f"action_format must be one of {ACTION_FORMATS}, got {action_format!r}")
        self.factored = action_format == "factored" and len(self.dynamics.sizes) > 1
        batch_size = [batch_size] if isinstance(batch_size, int) else batch_size
        super().__init__(device=device, batch_size=batch_size, run_type_checks=run_type_checks)
        self.count = self.batch_size.numel()
        numbers = torch.arange(self.count, device=self.device)  # (count,)
        self.register_buffer("numbers", numbers, persistent=False)
        self.register_buffer("streams", numbers * 0)  # which episodes each environment has
        self.register_buffer("episodes", numbers * 0)  # how many it has begun
        self.set_seed(int(torch.randint(SEEDS, ())) if seed is None else seed)
        self._make_specs()

    def _make_specs(self) -> None:
        world, batch, device = self.dynamics, self.batch_size, self.device
        state = self._first_step()
        low, high = (torch.as_tensor(x, device=device).expand(*batch, -1) for x in (world.low, world.high))
        states = {name: Unbounded((*batch, *x.shape[1:]), device, x.dtype) for name, x in state.items()}
        self.state_spec = Composite(
            world=Composite(states, shape=batch, device=device), shape=batch, device=device
        )
        self.observation_spec = Composite(
            observation=Bounded(low, high, dtype=torch.float32, device=device),
            world=self.state_spec["world"].clone(),
            shape=batch,
            device=device,
        )
        if self.factored:
            self.action_spec = MultiCategorical(
                list(world.sizes), shape=(*batch, len(world.sizes)), device=device, dtype=torch.int64
            )
        else:
            self.action_spec = Categorical(world.n, shape=batch, device=device, dtype=torch.int64)
        # Unbounded: RewardSum copies a bounded spec onto the sum, which leaves it.
        self.reward_spec = Unbounded((*batch, 1), device, torch.float32)
        flag = Categorical(2, shape=(*batch, 1), device=device, dtype=torch.bool)
        self.done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=batch, device=device
        )

    def _first_step(self) -> State:
        """A first state, and a step from it: before anything is compiled or captured, so that all the tables
        are on the device."""
        state = self.dynamics.reset(self.numbers)
        self.dynamics.observe(self.dynamics.step(state, self.numbers * 0)[0])
        return state

    def to(self, device: Any) -> "LargeActionEnv":
        moved = super().to(device)
        moved._first_step()
        return moved

    def _set_seed(self, seed: int | None) -> None:
        """Begin the episodes of ``seed``, in [0, 2^62), from the first one."""
        seed = int(torch.randint(SEEDS, ())) if seed is None else int(seed) % SEEDS
        self.streams.copy_(subkey(torch.full_like(self.numbers, seed), self.numbers))
        self.episodes.zero_()

    def _resolve_set_state(
        self, set_state: bool | None, tensordict: TensorDictBase | None, select_reset_only: bool
    ) -> bool | None:
        """A reset begins episodes, unless ``set_state=True`` says otherwise: what TorchRL 0.15 announces, as
        0.14 takes a state that happens to be in the tensordict for a wish to go back to it."""
        return super()._resolve_set_state(bool(set_state), tensordict, select_reset_only)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if kwargs.get("set_state") and tensordict is not None and mask is None:
            return self._pack(self.state_of(tensordict))
        # Where the mask is False, TorchRL keeps what the tensordict has.
        state = self.dynamics.reset(subkey(self.streams, self.episodes))
        self.episodes.add_(1 if mask is None else mask.reshape(-1).to(torch.int64))
        return self._pack(state)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        state, reward, terminated = self.dynamics.step(self.state_of(tensordict), self._ids(tensordict))
        truncated = state["t"] >= self.dynamics.horizon
        shape = (*self.batch_size, 1)
        out = self._pack(state)
        out.set("reward", reward.to(torch.float32).reshape(shape))
        out.set("terminated", terminated.reshape(shape))
        out.set("truncated", truncated.reshape(shape))
        out.set("done", (terminated | truncated).reshape(shape))
        return out

    def step_and_maybe_reset(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """As any `EnvBase`'s, without a look at which environments are done: all begin an episode on paper,
        and those that are done take it. So it has fixed shapes, and can be captured in a CUDA graph."""
        tensordict = self.step(tensordict)
        going_on = step_mdp(tensordict, exclude_action=False, exclude_reward=True, exclude_done=False)
        done = going_on.get("done")  # (*B, 1)
        begun = self._reset(TensorDict({"_reset": done}, self.batch_size, device=self.device))
        for key, fresh in begun.items(True, True):
            old = going_on.get(key)
            going_on.set(key, torch.where(expand_as_right(done.reshape(self.batch_size), old), fresh, old))
        for key in ("done", "terminated", "truncated"):
            going_on.set(key, torch.zeros_like(done))
        return tensordict, going_on

    def _pack(self, state: State) -> TensorDictBase:
        """``state`` and what is seen of it, in the shape of the batch."""
        batch = self.batch_size
        observation = self.dynamics.observe(state)
        parts = {name: x.reshape((*batch, *x.shape[1:])) for name, x in state.items()}
        return TensorDict(
            {
                "observation": observation.reshape((*batch, observation.shape[-1])),
                "world": TensorDict(parts, batch_size=batch, device=self.device),
            },
            batch_size=batch,
            device=self.device,
        )

    def optimal_action(self, tensordict: TensorDictBase) -> torch.Tensor:
        """The oracle's actions in the states of a tensordict, as ``step`` takes them."""
        ids = self.dynamics.optimal_action(self.state_of(tensordict))
        return (
            self.dynamics.to_digits(ids).reshape((*self.batch_size, -1))
            if self.factored
            else ids.reshape(self.batch_size)
        )

    def state_of(self, tensordict: TensorDictBase) -> State:
        """The state in a tensordict as the oracles in ``dynamics`` take it: its batch as one axis."""
        world = tensordict.get("world", None)
        if world is None:
            raise ValueError(
                'The tensordict has no "world", the state to go on from: begin with env.reset(), and pass on '
                "what step_mdp(env.step(td)) returns."
            )
        axes = len(self.batch_size)
        return {name: x.reshape((self.count, *x.shape[axes:])) for name, x in world.items()}

    def _ids(self, tensordict: TensorDictBase) -> torch.Tensor:
        """The ids of the actions in a tensordict, checked, ``(count,)``."""
        action = tensordict.get("action", None)
        if action is None:
            raise ValueError('The tensordict has no "action": env.rand_action(td), or a policy, writes one.')
        sizes = self.dynamics.sizes if self.factored else (self.dynamics.n,)
        shape = (*self.batch_size, len(sizes)) if self.factored else self.batch_size
        if action.shape != shape or action.dtype not in (torch.int64, torch.int32):
            hint = ""
            if action.shape == (*self.batch_size, self.dynamics.n):
                hint = " These seem to be one-hot: ask your policy for categorical ones."
            elif self.factored and action.shape == self.batch_size:
                hint = " These seem to be ids: env.dynamics.to_digits(ids) has their digits."
            raise ValueError(
                f"Actions are int64 of shape {tuple(shape)}, got {action.dtype}, {tuple(action.shape)}.{hint}"
            )
        digits = action.to(torch.int64).reshape(self.count, len(sizes))
        if may_look(digits):
            top = torch.tensor(sizes)
            if bool(((digits < 0) | (digits >= top)).any()):
                raise ValueError(f"Actions are below {list(sizes)} and not negative, got {action}.")
        return join(list(digits.unbind(-1)), sizes)
