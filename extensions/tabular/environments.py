"""What the agents step: R environments at once, whose states and actions are tensors (R,).

Gymnasium's environments and vector environments are met here; `TabularMDP` is one without them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor


class Step(NamedTuple):
    """What came of one step of R environments. All (R,)."""

    next_state: Tensor  # int64, the state reached, before any reset
    reward: Tensor  # float64
    terminated: Tensor  # bool, the episode ended for good: nothing to bootstrap from
    truncated: Tensor  # bool, it was cut short: its last state still has a value
    state: Tensor  # int64, the state to act from next, after a reset where there was one
    happened: Tensor  # bool, False where the step was but a reset, from which nothing is to be learned


class TensorEnv:
    """R environments of S states and n actions whose steps are tensor operations on ``device``.

    Attributes:
        n_runs: R.
        n_states: S.
        n_actions: n.
        device: where states and actions are; a GPU with its index, as `with_index` gives it.
    """

    n_runs: int
    n_states: int
    n_actions: int
    device: torch.device

    def reset(self, seed: int | None = None) -> Tensor:
        """Begin anew, environment i with the seed ``seed + i``, and return the states (R,) int64."""
        raise NotImplementedError

    def step(self, actions: Tensor) -> Step:
        """Make a step with actions (R,) int64; environments whose episode has ended are reset within it."""
        raise NotImplementedError

    def resume(self, ended: Tensor) -> None:
        """Hear that a loaded agent goes on here, whose last step ended the episodes of ``ended`` (R,) bool.

        They were reset within that step, so there is nothing to do, unless the environment resets later.
        """


class GymRun(TensorEnv):
    """One gymnasium environment.

    Raises:
        ValueError: its spaces are not Discrete, or do not start at 0.
    """

    n_runs = 1

    def __init__(self, env: gym.Env[Any, Any], device: torch.device) -> None:
        self.env = env
        self.n_states = size_of(env.observation_space, "observation")
        self.n_actions = size_of(env.action_space, "action")
        self.device = device

    def reset(self, seed: int | None = None) -> Tensor:
        return self._state(self.env.reset(seed=seed)[0])

    def step(self, actions: Tensor) -> Step:
        observation, reward, terminated, truncated, _ = self.env.step(int(actions))
        next_state = self._state(observation)
        check_reward(np.array([reward], dtype=np.float64))
        return Step(
            next_state,
            torch.tensor([reward], dtype=torch.float64, device=self.device),
            torch.tensor([terminated], device=self.device),
            torch.tensor([truncated], device=self.device),
            self.reset() if terminated or truncated else next_state,
            torch.ones(1, dtype=torch.bool, device=self.device),
        )

    def _state(self, observation: Any) -> Tensor:
        return as_states(np.reshape(observation, 1), self.n_states).to(self.device)


class GymRuns(TensorEnv):
    """The R environments of a gymnasium vector environment, in any of its modes of resetting.

    Raises:
        ValueError: their spaces are not Discrete, or do not start at 0.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], device: torch.device) -> None:
        self.env = env
        self.n_runs = env.num_envs
        self.n_states = size_of(env.single_observation_space, "observation")
        self.n_actions = size_of(env.single_action_space, "action")
        self.device = device
        self.mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self._resetting = np.zeros(env.num_envs, dtype=bool)  # which the next step only resets

    def reset(self, seed: int | None = None) -> Tensor:
        self._resetting[:] = False
        return self._states(self.env.reset(seed=seed)[0])

    def step(self, actions: Tensor) -> Step:
        happened = ~self._resetting
        observations, rewards, terminated, truncated, infos = self.env.step(actions.cpu().numpy())
        rewards = np.where(happened, rewards, 0.0)
        check_reward(rewards)
        done = terminated | truncated
        last = after = observations
        if self.mode == AutoresetMode.NEXT_STEP:
            self._resetting = done.copy()
        elif done.any():
            last = np.array(observations)
            if self.mode == AutoresetMode.SAME_STEP:
                last[done] = np.array(infos["final_obs"][done].tolist())
            else:
                after, _ = self.env.reset(options={"reset_mask": done})
                after = np.where(done, after, last)
        return Step(
            self._states(last),
            torch.as_tensor(rewards, dtype=torch.float64, device=self.device),
            torch.tensor(terminated, device=self.device),
            torch.tensor(truncated, device=self.device),
            self._states(after),
            torch.as_tensor(happened, device=self.device),
        )

    def resume(self, ended: Tensor) -> None:
        if self.mode == AutoresetMode.NEXT_STEP:
            self._resetting = ended.cpu().numpy()

    def _states(self, observations: Any) -> Tensor:
        return as_states(observations, self.n_states).to(self.device)


def connect(env: Any, device: torch.device) -> TensorEnv:
    """Meet an environment.

    Args:
        env: an id of gymnasium, an environment, a vector environment, or a `TensorEnv`.
        device: where gymnasium's states go.

    Raises:
        TypeError: it is none of these.
        ValueError: its spaces are not Discrete, or do not start at 0.
    """
    if isinstance(env, TensorEnv):
        return env
    if isinstance(env, str):
        env = gym.make(env)
    if isinstance(env, VectorEnv):
        return GymRuns(env, device)
    if isinstance(env, gym.Env):
        return GymRun(env, device)
    raise TypeError(
        "env must be an id of gymnasium, a gymnasium.Env, a gymnasium.vector.VectorEnv or a TensorEnv such "
        f"as TabularMDP; got {type(env).__name__}"
    )


def with_index(device: torch.device | str) -> torch.device:
    """The device that tensors made on it name: "cuda" is the present GPU, and has its index."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def size_of(space: Any, what: str) -> int:
    """How many elements a space has, which must be Discrete and start at 0."""
    wrapper = {"observation": "TransformObservation", "action": "TransformAction"}[what]
    if not isinstance(space, gym.spaces.Discrete):
        raise ValueError(
            f"The {what} space must be Discrete, since a table has a row a state and a column an action; got "
            f"{space}. Number its elements with gymnasium.wrappers.{wrapper}, or use a method with a "
            "network, such as StochDQN."
        )
    if space.start != 0:
        raise ValueError(
            f"The {what} space must start at 0; got {space}. Subtract its start with "
            f"gymnasium.wrappers.{wrapper}."
        )
    return int(space.n)


def as_states(observations: Any, n: int) -> Tensor:
    """Observations as an int64 tensor of the same shape.

    Raises:
        ValueError: they are no whole numbers of [0, n).
    """
    array = np.asarray(observations)
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"Observations must be whole numbers of [0, {n}); got {array.dtype}: {observations!r}"
        )
    if array.size and (array.min() < 0 or array.max() >= n):
        raise ValueError(
            f"Observations must lie in [0, {n}), as the observation space says; got {observations!r}"
        )
    return torch.from_numpy(array.astype(np.int64))


def check_reward(rewards: np.ndarray) -> None:
    """Refuse NaN and infinity before they reach a table.

    Args:
        rewards: (R,), of all environments.
    """
    finite = np.isfinite(rewards)
    if not finite.all():
        env = int(np.flatnonzero(~finite)[0])
        raise ValueError(
            f"Environment {env} returned a reward of {rewards[env]}. Nothing was learned from it; find the "
            "step with gymnasium's PassiveEnvChecker, or clip with gymnasium.wrappers.TransformReward."
        )
