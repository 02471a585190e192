"""The gymnasium door: one `Env` and one `VectorEnv` over any world of `envs.dynamics`."""

import json
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .actions import check_action, check_digits, check_ids, single_spaces
from .canvas import Canvas
from .dynamics.make import make_world
from .dynamics.world import State, World, require_integer

RENDER_MODES = ["ansi", "rgb_array"]
KEYS = 2**62  # an episode is named by a key below this


def check_render_mode(render_mode: str | None) -> str | None:
    """Return ``render_mode`` if it is one of ours; a ValueError names those that are."""
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode must be None or one of {RENDER_MODES}, got {render_mode!r}")
    return render_mode


def picture(world: World, mode: str, state: State, last: tuple[State, int, float] | None) -> Any:
    """One environment as text or as an ``(H, W, 3)`` uint8 array."""
    lines = world.describe(state, last)
    if mode == "ansi":
        return "\n".join(lines) + "\n"
    canvas = Canvas(lines)
    world.draw(canvas, state, last)
    return canvas.pixels


def pack_generator(generator: np.random.Generator) -> np.ndarray:
    """The state of a generator as bytes in a uint8 array."""
    text = json.dumps(generator.bit_generator.state, default=lambda array: array.tolist())
    return np.frombuffer(text.encode(), dtype=np.uint8).copy()


def unpack_generator(generator: np.random.Generator, packed: np.ndarray) -> None:
    """Put a generator into the state that `pack_generator` returned."""
    generator.bit_generator.state = json.loads(np.asarray(packed, dtype=np.uint8).tobytes())


class LargeActionEnv(gym.Env[np.ndarray, Any]):
    """One environment over a world; see the world's own docstring for what it is.

    Args:
        world: ``"module:Class"`` in `envs.dynamics`, or a world.
        action_format: ``"flat"``, ``Discrete(n)``; or ``"factored"``, ``MultiDiscrete`` with the world's
            ``sizes``, the least significant digit of an id first.
        render_mode: None, ``"ansi"`` or ``"rgb_array"``.
        **kwargs: fields of the world, such as ``n`` and ``horizon``.

    The env truncates an episode after ``dynamics.horizon`` steps by itself: change it by ``horizon=...``, so
    that the oracle knows it. Gymnasium's ``max_episode_steps`` wraps a `TimeLimit` around it, as ever, which
    the oracle does not know.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 10}  # noqa: RUF012 (gymnasium's own idiom)

    def __init__(
        self,
        world: str | World,
        action_format: str = "flat",
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.dynamics = make_world(world, kwargs)
        self.observation_space, self.action_space = single_spaces(self.dynamics, action_format)
        self.action_format = action_format
        self.render_mode = check_render_mode(render_mode)
        self.state: State | None = None  # Python numbers, or a batch of one
        self._last: tuple[State, int, float] | None = None
        self._done = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start an episode. ``options`` is ignored."""
        super().reset(seed=seed)
        key = self.np_random.integers(KEYS, size=1)
        self.state = self.dynamics.reset(key if self.dynamics.batched else key.item())
        self._last, self._done = None, False
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        observation = self.dynamics.observe(self.state)  # type: ignore[arg-type]
        return observation[0] if self.dynamics.batched else observation

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take the action with this id.

        Raises:
            InvalidAction: not one integer in [0, n).
            ResetNeeded: before the first reset, or after the end of an episode.
        """
        if self.state is None or self._done:
            raise ResetNeeded("The episode has not begun or is over: call env.reset() before env.step().")
        before = self.state
        if self.action_format == "flat":
            action = check_action(action, self.dynamics.n)
        else:
            action = check_digits(action, self.dynamics.sizes).item()
        if self.dynamics.batched:
            self.state, rewards, ended = self.dynamics.step(before, np.array([action]))
            reward, terminated, t = rewards.item(), ended.item(), self.state["t"].item()
        else:
            self.state, reward, terminated = self.dynamics.step(before, action)
            t = self.state["t"]
        self._last = (before, action, reward)
        truncated = t >= self.dynamics.horizon
        self._done = terminated or truncated
        return self._observe(), reward, terminated, truncated, {}

    def optimal_action(self) -> Any:
        """The oracle's action in the present state, as `step` takes it.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self.state is None:
            raise ResetNeeded("No episode has begun: call env.reset() before env.optimal_action().")
        action = np.atleast_1d(self.dynamics.optimal_action(self.state))  # (1,)
        return action.item() if self.action_format == "flat" else self.dynamics.to_digits(action)[0]

    def render(self) -> Any:
        """A string (``"ansi"``) or an ``(H, W, 3)`` uint8 array (``"rgb_array"``) of the current state."""
        if self.render_mode is None:
            gym.logger.warn("render() does nothing: pass render_mode='ansi' or 'rgb_array' to gym.make.")
            return None
        if self.state is None:
            raise ResetNeeded("Nothing to render yet: call env.reset() before env.render().")
        return picture(self.dynamics, self.render_mode, self.state, self._last)

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that decides how stepping goes on, the random generator included."""
        if self.state is None:
            raise ResetNeeded("There is no state yet: call env.reset() before env.get_state().")
        state = {f"state.{name}": np.array(value) for name, value in self.state.items()}
        return {**state, "done": np.asarray(self._done), "np_random": pack_generator(self.np_random)}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on bit for bit from what `get_state` returned. The world must have the same arguments."""
        parts = {name[6:]: np.array(value) for name, value in state.items() if name.startswith("state.")}
        self.state = parts if self.dynamics.batched else {name: x.item() for name, x in parts.items()}
        self._last, self._done = None, bool(state["done"])
        unpack_generator(self.np_random, state["np_random"])


class LargeActionVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``num_envs`` environments of one world, stepped as one batch; equal to `LargeActionEnv` for
    ``num_envs=1``.

    Args:
        world: ``"module:Class"`` in `envs.dynamics`, or a world.
        num_envs: how many, at least 1.
        max_episode_steps: truncate earlier than the world's ``horizon``, as gymnasium's `TimeLimit` does with
            a single environment. The oracle does not know of it.
        autoreset_mode: `AutoresetMode` or its value. ``NEXT_STEP``: the step after an end ignores the action,
            resets and pays 0. ``SAME_STEP``: resets at once, ``infos["final_obs"]`` keeps the last
            observation. ``DISABLED``: the user resets, ``options={"reset_mask": mask}`` with ``mask`` a bool
            ``(num_envs,)``.
        action_format: ``"flat"`` or ``"factored"``, as in `LargeActionEnv`.
        render_mode: None, ``"ansi"`` or ``"rgb_array"``; `render` returns one picture per environment.
        **kwargs: fields of the world.
    """

    def __init__(
        self,
        world: str | World,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        action_format: str = "flat",
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs must be an int of at least 1, got {num_envs!r}")
        if max_episode_steps is not None:
            require_integer("max_episode_steps", max_episode_steps, 1, 2**62)
        modes = [mode.value for mode in AutoresetMode]
        if autoreset_mode not in [*AutoresetMode, *modes]:
            raise ValueError(
                f"autoreset_mode must be an AutoresetMode or one of {modes}, got {autoreset_mode!r}"
            )
        self.dynamics = make_world(world, kwargs)
        self.num_envs = num_envs
        self.last_step = min(self.dynamics.horizon, max_episode_steps or self.dynamics.horizon)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {
            "render_modes": RENDER_MODES,
            "render_fps": 10,
            "autoreset_mode": self.autoreset_mode,
        }
        self.render_mode = check_render_mode(render_mode)
        self.action_format = action_format
        self.single_observation_space, self.single_action_space = single_spaces(self.dynamics, action_format)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.state: State | None = None  # arrays of shape (num_envs,)
        self._last: tuple[State, np.ndarray, np.ndarray] | None = None
        self._done = np.zeros(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start an episode everywhere, or only where ``options["reset_mask"]`` says."""
        super().reset(seed=seed)
        mask = (options or {}).get("reset_mask")
        if mask is None:
            self.state = self.dynamics.reset(self.np_random.integers(KEYS, size=self.num_envs))
            self._done = np.zeros(self.num_envs, dtype=bool)
        else:
            if (
                not isinstance(mask, np.ndarray)
                or mask.dtype != bool
                or mask.shape != (self.num_envs,)
                or not mask.any()
            ):
                raise ValueError(
                    f"reset_mask must be a bool array of shape ({self.num_envs},) with a True in it."
                )
            if self.state is None:
                raise ResetNeeded("The first reset is one of all environments: call it without a reset_mask.")
            self.state = self._restart(self.state, mask)
            self._done = self._done & ~mask
        self._last = None
        return self.dynamics.observe(self.state), {}

    def _restart(self, state: State, mask: np.ndarray) -> State:
        """``state`` with new episodes where ``mask`` is True."""
        fresh = self.dynamics.reset(self.np_random.integers(KEYS, size=int(mask.sum())))
        restarted = {name: value.copy() for name, value in state.items()}
        for name, value in fresh.items():
            restarted[name][mask] = value
        return restarted

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one action in each environment.

        Args:
            actions: integers in [0, n), shape ``(num_envs,)``; or their digits, ``(num_envs, len(sizes))``.

        Returns: observations ``(num_envs, d)`` float32, rewards float64, terminated and truncated bool,
            ``(num_envs,)`` each, and infos.
        """
        if self.state is None:
            raise ResetNeeded("No episode has begun: call envs.reset() before envs.step().")
        actions, before, over = self._ids(actions), self.state, self._done
        if self.autoreset_mode == AutoresetMode.DISABLED and over.any():
            raise ResetNeeded(
                "Episodes are over and autoreset is disabled: reset(options={'reset_mask': ...}) them."
            )

        state, rewards, terminated = self.dynamics.step(before, actions)
        truncated = state["t"] >= self.last_step
        if over.any():  # NEXT_STEP: these environments spend the step on their reset
            state = self._restart(state, over)
            rewards, terminated, truncated = (
                np.where(over, 0.0, rewards),
                terminated & ~over,
                truncated & ~over,
            )
        done = terminated | truncated
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and done.any():
            final = np.full(self.num_envs, None, dtype=object)
            observations = self.dynamics.observe(state)
            for i in np.flatnonzero(done):
                final[i] = observations[i]
            infos = {
                "final_obs": final,
                "_final_obs": done.copy(),
                "final_info": {},
                "_final_info": done.copy(),
            }
            state = self._restart(state, done)
            done = np.zeros(self.num_envs, dtype=bool)
        self.state, self._done, self._last = state, done, (before, actions, rewards)
        return self.dynamics.observe(state), rewards, terminated, truncated, infos

    def _ids(self, actions: Any) -> np.ndarray:
        """The ids of ``actions``, int64 of shape ``(num_envs,)``, checked."""
        if self.action_format == "factored":
            return check_digits(actions, self.dynamics.sizes, (self.num_envs,))
        return check_ids(actions, self.dynamics.n, (self.num_envs,))

    def optimal_action(self) -> np.ndarray:
        """The oracle's actions in the present states, as `step` takes them.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self.state is None:
            raise ResetNeeded("No episode has begun: call envs.reset() before envs.optimal_action().")
        ids = np.asarray(self.dynamics.optimal_action(self.state))
        return ids if self.action_format == "flat" else self.dynamics.to_digits(ids)

    def render(self) -> tuple[Any, ...] | None:
        """One picture per environment."""
        if self.render_mode is None:
            gym.logger.warn("render() does nothing: pass render_mode='ansi' or 'rgb_array' to gym.make_vec.")
            return None
        if self.state is None:
            raise ResetNeeded("Nothing to render yet: call envs.reset() before envs.render().")
        frames = []
        for i in range(self.num_envs):
            last = None
            if self._last is not None and self.state["t"][i] > 0:
                before, actions, rewards = self._last
                last = (_at(self.dynamics, before, i), int(actions[i]), float(rewards[i]))
            frames.append(picture(self.dynamics, self.render_mode, _at(self.dynamics, self.state, i), last))
        return tuple(frames)

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that decides how stepping goes on: states, autoreset flags and the random generator."""
        if self.state is None:
            raise ResetNeeded("There is no state yet: call envs.reset() before envs.get_state().")
        state = {f"state.{name}": value.copy() for name, value in self.state.items()}
        return {**state, "done": self._done.copy(), "np_random": pack_generator(self.np_random)}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on bit for bit from what `get_state` returned. World and ``num_envs`` must be the same."""
        done = np.array(state["done"], dtype=bool)
        if done.shape != (self.num_envs,):
            raise ValueError(f"This is the state of {done.size} environments, and there are {self.num_envs}.")
        self.state = {name[6:]: np.array(value) for name, value in state.items() if name.startswith("state.")}
        self._last, self._done = None, done
        unpack_generator(self.np_random, state["np_random"])


def _at(world: World, state: State, i: int) -> State:
    """The ``i``-th environment of a batch: Python numbers, or a batch of one."""
    return {name: value[i : i + 1] if world.batched else value[i].item() for name, value in state.items()}
