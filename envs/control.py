"""Continuous control with the box of actions cut into one flat ``Discrete(n)``."""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.utils import EzPickle

from .actions import ACTION_FORMATS, check_action, check_digits
from .gymnasium import pack_generator, unpack_generator

# What some MuJoCo environments read before they step, and the integrator does not restore.
DERIVED = ("xpos", "xipos")


class DiscretizeFlat(gym.Env[np.ndarray, Any], EzPickle):
    """A continuous-control environment whose actions are the points of a grid, numbered 0 .. n-1.

    ## Description
    The environment named by ``env_id``, usually a MuJoCo one, with each control cut into ``bins`` evenly
    spaced values. The two end points are among them, and so is the middle (mostly 0) if ``bins`` is odd. Near
    ids are near in the last control or two: **the structure of the action space is factored and metric.** No
    optimum is known; compare with a continuous-control agent on the original.

    ## Action Space
    ``Discrete(n)``, n the product of ``nvec``. Control j of id a is digit (a // prod(nvec[:j])) % nvec[j],
    the least significant first; digit c stands for low + c / (nvec[j] - 1) (high - low). With
    ``action_format="factored"`` it is ``MultiDiscrete(nvec)``, the digits themselves.

    ## Observation Space, Starting State, Rewards
    Those of the original.

    ## Episode End
    As in the original; truncated after ``horizon`` steps.

    ## Arguments
    - ``env_id``: id of an environment with a finite one-dimensional ``Box`` of actions.
    - ``bins``: values of each control, or a sequence of one number per control; each at least 2, their
      product at most 2^62.
    - ``horizon`` (None): steps in an episode; the default is the original's ``max_episode_steps``.
    - ``action_format`` ("flat"): ids, or "factored": their digits.
    - ``render_mode`` (None): ``"ansi"`` or a mode of the original.
    - further keyword arguments go to the original.

    ## Version History
    - v5: over version 5 of gymnasium's MuJoCo environments.
    """

    metadata = {  # noqa: RUF012 (gymnasium's own idiom)
        "render_modes": ["ansi", "human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 20,
    }

    def __init__(
        self,
        env_id: str,
        bins: int | Sequence[int],
        horizon: int | None = None,
        render_mode: str | None = None,
        action_format: str = "flat",
        **kwargs: Any,
    ) -> None:
        EzPickle.__init__(self, env_id, bins, horizon, render_mode, action_format, **kwargs)
        if action_format not in ACTION_FORMATS:
            raise ValueError(f"action_format must be one of {ACTION_FORMATS}, got {action_format!r}")
        inner_mode = None if render_mode == "ansi" else render_mode
        try:
            # Bare: this class checks the order of calls and counts the steps, so that get_state has them all.
            made = gym.make(env_id, render_mode=inner_mode, disable_env_checker=True, **kwargs)
        except (ImportError, DependencyNotInstalled) as error:
            raise DependencyNotInstalled(
                f'{env_id} needs a package that is missing; for MuJoCo: pip install "rl-extensions[mujoco]".'
            ) from error
        self.env = made.unwrapped
        box = self.env.action_space
        if not isinstance(box, gym.spaces.Box) or len(box.shape) != 1 or not box.is_bounded():
            raise ValueError(f"{env_id} must have a finite one-dimensional Box of actions, has {box}.")
        self.low, self.high = box.low.astype(np.float64), box.high.astype(np.float64)
        sizes = list(bins) if isinstance(bins, Sequence) else [bins] * len(self.low)
        if len(sizes) != len(self.low) or not all(isinstance(m, int) and m >= 2 for m in sizes):
            raise ValueError(
                f"bins must be an int >= 2, or {len(self.low)} of them for {env_id}, got {bins!r}."
            )
        n = math.prod(sizes)  # Python integers: no silent overflow
        if n > 2**62:
            most = _most_bins(len(sizes))
            fix = f"take at most {most} bins for each" if most >= 2 else "it has too many controls to cut up"
            raise ValueError(
                f"bins={bins!r} makes {n} actions of the {len(sizes)} controls of {env_id}, more than 2^62: "
                f"{fix}."
            )
        self.n, self.nvec = n, np.array(sizes, dtype=np.int64)
        self._radix = np.array([math.prod(sizes[:j]) for j in range(len(sizes))], dtype=np.int64)
        spec = gym.spec(env_id)
        self.horizon: int | None = horizon if horizon is not None else spec.max_episode_steps
        self.render_mode = render_mode
        self.observation_space = self.env.observation_space
        self.action_format = action_format
        self.action_space = (
            gym.spaces.Discrete(n) if action_format == "flat" else gym.spaces.MultiDiscrete(sizes)
        )
        self._elapsed, self._done = 0, True  # not begun
        self._last: tuple[int, float] | None = None

    def decode(self, ids: Any) -> np.ndarray:
        """Controls of ``ids``: integers of any shape to ``(*ids.shape, d)``, in the dtype of the box."""
        digits = np.asarray(ids, dtype=np.int64)[..., None] // self._radix % self.nvec
        share = digits / (self.nvec - 1)
        # (1 - s) low + s high has both ends, and the middle of a symmetric box, exactly
        points = np.clip((1 - share) * self.low + share * self.high, self.low, self.high)
        return points.astype(self.env.action_space.dtype)

    def encode(self, points: Any) -> np.ndarray:
        """Ids of the grid points nearest to ``points``: ``(*shape, d)`` to int64 of that shape."""
        share = (np.asarray(points, dtype=np.float64) - self.low) / (self.high - self.low)
        digits = np.rint(np.clip(share, 0, 1) * (self.nvec - 1)).astype(np.int64)
        return (np.minimum(digits, self.nvec - 1) * self._radix).sum(axis=-1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start an episode of the original, with the same ``seed`` and ``options``."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._np_random, self._np_random_seed = self.env.np_random, self.env.np_random_seed
        self._elapsed, self._done, self._last = 0, False, None
        return observation, info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take the action with this id, or with these digits.

        Raises:
            InvalidAction: not one integer in [0, n); factored: not integers in [0, nvec), ``(d,)``.
            ResetNeeded: before the first reset, or after the end of an episode.
        """
        if self._done:
            raise ResetNeeded("The episode has not begun or is over: call env.reset() before env.step().")
        if self.action_format == "flat":
            action = check_action(action, self.n)
        else:
            action = check_digits(action, tuple(self.nvec.tolist())).item()
        observation, reward, terminated, truncated, info = self.env.step(self.decode(action))
        self._elapsed += 1
        self._last = (action, float(reward))
        truncated = bool(truncated) or (self.horizon is not None and self._elapsed >= self.horizon)
        self._done = bool(terminated) or truncated
        return observation, float(reward), bool(terminated), truncated, info

    def render(self) -> Any:
        """The original's picture, or text for ``render_mode="ansi"``."""
        if self.render_mode != "ansi":
            return self.env.render()
        text = f"{type(self.env).__name__}, {self.n} actions, step {self._elapsed} of {self.horizon}\n"
        if self._last is not None:
            action, reward = self._last
            controls = " ".join(f"{control:+.3f}" for control in self.decode(action))
            text += f"action {action}: controls {controls}, reward {reward:.3f}\n"
        return text

    def close(self) -> None:
        self.env.close()

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that decides how stepping goes on: MuJoCo's full integration state (positions,
        velocities, time, warm start), the steps since the reset and the random generator.

        Raises:
            TypeError: the original is not a MuJoCo environment.
        """
        mujoco, model, data = self._simulation()
        physics = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        return {
            "physics": physics,
            **{name: getattr(data, name).copy() for name in DERIVED},
            "elapsed": np.asarray(self._elapsed),
            "done": np.asarray(self._done),
            "np_random": pack_generator(self.env.np_random),
        }

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on bit for bit from what `get_state` returned."""
        mujoco, model, data = self._simulation()
        mujoco.mj_setState(model, data, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, data)  # contacts and frames, for rendering; it may touch the warm start
        mujoco.mj_setState(model, data, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
        for name in DERIVED:
            getattr(data, name)[:] = state[name]
        self._elapsed, self._done, self._last = int(state["elapsed"]), bool(state["done"]), None
        unpack_generator(self.env.np_random, state["np_random"])
        self._np_random, self._np_random_seed = self.env.np_random, self.env.np_random_seed

    def _simulation(self) -> tuple[Any, Any, Any]:
        if not hasattr(self.env, "data") or not hasattr(self.env, "model"):
            raise TypeError(
                f"get_state and set_state need a MuJoCo environment, not {type(self.env).__name__}."
            )
        import mujoco  # type: ignore[import-untyped, unused-ignore]

        return mujoco, self.env.model, self.env.data


def _most_bins(controls: int) -> int:
    """The largest number of bins for each control that makes at most 2^62 actions."""
    most = int(2 ** (62 / controls))  # up to rounding
    return next(bins for bins in range(most + 1, 0, -1) if bins**controls <= 2**62)
