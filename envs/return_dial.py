"""A toy in which any return can be had: does a policy that is told a return reach it, and no other?"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .canvas import Canvas
from .dynamics.world import require_integer
from .gymnasium import RENDER_MODES, check_render_mode, pack_generator, unpack_generator

DISTRACTOR = 5.0  # distractors are cut off here
CENTRE, RADIUS, TICKS = (0.5, 0.3), 0.46, 40  # of the dial in pictures


def best_action(return_to_go: Any, steps_left: Any) -> Any:
    """The action that spreads ``return_to_go`` evenly over ``steps_left`` steps: 2 R / n - 1, in [-1, 1].

    Numbers or arrays that broadcast; float64. Taken anew at every step, it reaches every R in [0, n] exactly,
    and else the end that is nearer. The policy is the best one, not the only one.

    Raises:
        ValueError: no step is left.
    """
    if np.any(np.asarray(steps_left) < 1):
        raise ValueError(f"steps_left must be at least 1, got {steps_left!r}")
    return np.clip(2.0 * np.asarray(return_to_go, dtype=np.float64) / steps_left - 1.0, -1.0, 1.0)


def flip(return_to_go: Any, steps_left: Any) -> Any:
    """The complement of a return, n - R: the dial turned over in the middle of an episode.

    Who was told to collect much is now told to collect little. A policy that copies its own past actions,
    which is enough for as long as nobody touches the dial, misses it. Numbers or arrays.
    """
    return steps_left - return_to_go


class ReturnDial(gym.Env[np.ndarray, Any]):
    """A task to reach a return, not a high one: every return in [0, T] can be had, by one formula.

    ## Description
    A dial that an agent turns a little further at each of T steps, by as much as it likes up to 1. Policies
    that are conditioned on a return, such as decision transformers, are told where it should stand at the
    end. How far from there it stands is all that counts, and it can always be 0. What to do depends on the
    return that is left to collect and the steps left for it, and on nothing else that is observed.

    ## Action Space
    ``Box(-1, 1, (1,), float32)``. What is outside is cut off, as in gymnasium's Pendulum.

    ## Observation Space
    ``Box((1 + distractors,), float32)``: t / T in [0, 1], then numbers drawn from the standard normal
    distribution at every step, cut off at -5 and 5, that mean nothing. The return so far is not observed: an
    agent is to keep account of its rewards, as the return-to-go of a decision transformer does.

    ## Starting State
    t = 0, the dial at 0.

    ## Rewards
    (action + 1) / 2, in [0, 1]: an episode returns anything in [0, T].

    ## Episode End
    Never terminates; truncated after T = ``horizon`` steps.

    ## Arguments
    - ``horizon`` (20): T, in [1, 2^20].
    - ``distractors`` (16): how many observations mean nothing, in [0, 2^20].
    - ``render_mode`` (None): ``"ansi"`` or ``"rgb_array"``.

    ## Optimum
    `best_action`: with R to collect in n steps, 2 R / n - 1. Its actions in float32 end within 1e-6 of R.

    A target that stays tells little of a model: to go on as the episode began is enough. `flip` turns the
    dial over in the middle: at t = T / 2, with R to go, the new target is T / 2 - R. The error is the
    distance of the second half's return from it, as a share of T / 2. Going on as before makes that
    ``|1 - 2 R / (T / 2)|``: 1 for a target of 0 or T, and 1/2 on average over uniform targets.

    ## Version History
    - v0: initial version.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 10}  # noqa: RUF012 (gymnasium's own idiom)

    def __init__(self, horizon: int = 20, distractors: int = 16, render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = _spaces(horizon, distractors)
        self.horizon, self.distractors = horizon, distractors
        self.render_mode = check_render_mode(render_mode)
        self.t: int | None = None  # steps taken; None before the first reset
        self.achieved = 0.0  # the return so far
        self._last = math.nan  # the last action

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start an episode. ``options`` is ignored."""
        super().reset(seed=seed)
        self.t, self.achieved, self._last = 0, 0.0, math.nan
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        return _observations(self.np_random, np.array([self.t]), self.horizon, self.distractors)[0]

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Turn the dial by (action + 1) / 2.

        Raises:
            InvalidAction: not one finite number, as an array or list of shape (1,).
            ResetNeeded: before the first reset, or after the end of an episode.
        """
        if self.t is None or self.t >= self.horizon:
            raise ResetNeeded("The episode has not begun or is over: call env.reset() before env.step().")
        self._last = _controls(action, (1,)).item()
        reward = (self._last + 1.0) / 2.0
        self.t, self.achieved = self.t + 1, self.achieved + reward
        return self._observe(), reward, False, self.t >= self.horizon, {}

    def render(self) -> Any:
        """A string (``"ansi"``) or an ``(H, W, 3)`` uint8 array (``"rgb_array"``) of the dial."""
        if self.render_mode is None:
            gym.logger.warn("render() does nothing: pass render_mode='ansi' or 'rgb_array' to gym.make.")
            return None
        if self.t is None:
            raise ResetNeeded("Nothing to render yet: call env.reset() before env.render().")
        return _picture(self.render_mode, self.t, self.achieved, self.horizon, self._last)

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that decides how stepping goes on, the random generator included."""
        if self.t is None:
            raise ResetNeeded("There is no state yet: call env.reset() before env.get_state().")
        generator = pack_generator(self.np_random)
        return {"t": np.array(self.t), "achieved": np.array(self.achieved), "np_random": generator}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on bit for bit from what `get_state` returned. The environment must have the same arguments."""
        self.t, self.achieved, self._last = int(state["t"]), float(state["achieved"]), math.nan
        unpack_generator(self.np_random, state["np_random"])


class ReturnDialVector(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``num_envs`` dials stepped as one batch; equal to `ReturnDial` for ``num_envs=1``.

    The step after an end ignores the action, resets and pays 0: gymnasium's ``AutoresetMode.NEXT_STEP``. For
    other modes take ``gym.make_vec(id, vectorization_mode="sync", vector_kwargs={"autoreset_mode": ...})``.

    Args:
        num_envs: how many, at least 1.
        horizon, distractors, render_mode: as in `ReturnDial`; `render` returns one picture per environment.
    """

    metadata = {  # noqa: RUF012 (gymnasium's own idiom)
        "render_modes": RENDER_MODES,
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self, num_envs: int = 1, horizon: int = 20, distractors: int = 16, render_mode: str | None = None
    ) -> None:
        require_integer("num_envs", num_envs, 1, 2**31)
        self.num_envs, self.horizon, self.distractors = num_envs, horizon, distractors
        self.single_observation_space, self.single_action_space = _spaces(horizon, distractors)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = check_render_mode(render_mode)
        self.t: np.ndarray | None = None  # (num_envs,) int64
        self.achieved = np.zeros(num_envs)
        self._last = np.full(num_envs, math.nan)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start an episode everywhere. ``options`` is ignored."""
        super().reset(seed=seed)
        self.t = np.zeros(self.num_envs, dtype=np.int64)
        self.achieved, self._last = np.zeros(self.num_envs), np.full(self.num_envs, math.nan)
        return _observations(self.np_random, self.t, self.horizon, self.distractors), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one action in each environment.

        Args:
            actions: finite numbers, ``(num_envs, 1)``.

        Returns: observations ``(num_envs, 1 + distractors)`` float32, rewards float64, terminated and
            truncated bool, ``(num_envs,)`` each, and infos.
        """
        if self.t is None:
            raise ResetNeeded("No episode has begun: call envs.reset() before envs.step().")
        controls = _controls(actions, (self.num_envs, 1))[:, 0]
        over = self.t >= self.horizon  # these spend the step on their reset
        rewards = np.where(over, 0.0, (controls + 1.0) / 2.0)
        self.t = np.where(over, 0, self.t + 1)
        self.achieved = np.where(over, 0.0, self.achieved + rewards)
        self._last = np.where(over, math.nan, controls)
        observations = _observations(self.np_random, self.t, self.horizon, self.distractors)
        return observations, rewards, np.zeros(self.num_envs, dtype=bool), self.t >= self.horizon, {}

    def render(self) -> tuple[Any, ...] | None:
        """One picture per environment."""
        if self.render_mode is None:
            gym.logger.warn("render() does nothing: pass render_mode='ansi' or 'rgb_array' to gym.make_vec.")
            return None
        if self.t is None:
            raise ResetNeeded("Nothing to render yet: call envs.reset() before envs.render().")
        each = zip(self.t.tolist(), self.achieved.tolist(), self._last.tolist(), strict=True)
        return tuple(_picture(self.render_mode, t, sum_, self.horizon, last) for t, sum_, last in each)

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that decides how stepping goes on, the random generator included."""
        if self.t is None:
            raise ResetNeeded("There is no state yet: call envs.reset() before envs.get_state().")
        generator = pack_generator(self.np_random)
        return {"t": self.t.copy(), "achieved": self.achieved.copy(), "np_random": generator}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on bit for bit from what `get_state` returned. The arguments must be the same."""
        if state["t"].shape != (self.num_envs,):
            raise ValueError(
                f"This is the state of {state['t'].size} environments, and there are {self.num_envs}."
            )
        self.t, self.achieved = np.array(state["t"]), np.array(state["achieved"])
        self._last = np.full(self.num_envs, math.nan)
        unpack_generator(self.np_random, state["np_random"])


def _spaces(horizon: int, distractors: int) -> tuple[Box, Box]:
    """Of observations and actions; the arguments are checked."""
    require_integer("horizon", horizon, 1, 2**20)
    require_integer("distractors", distractors, 0, 2**20)
    low = np.array([0.0] + [-DISTRACTOR] * distractors, dtype=np.float32)
    high = np.array([1.0] + [DISTRACTOR] * distractors, dtype=np.float32)
    return Box(low, high), Box(-1.0, 1.0, (1,), dtype=np.float32)


def _observations(
    generator: np.random.Generator, t: np.ndarray, horizon: int, distractors: int
) -> np.ndarray:
    """Observations at the steps ``t``, (B,): ``(B, 1 + distractors)`` float32."""
    noise = generator.standard_normal((len(t), distractors)).clip(-DISTRACTOR, DISTRACTOR)
    return np.concatenate([t[:, None] / horizon, noise], axis=1).astype(np.float32)


def _controls(actions: Any, shape: tuple[int, ...]) -> np.ndarray:
    """``actions`` as float64 of this shape, cut off at -1 and 1."""
    try:
        controls = np.asarray(actions, dtype=np.float64)
    except (TypeError, ValueError):
        controls = np.array(math.nan)
    if controls.shape != shape or not np.isfinite(controls).all():
        raise InvalidAction(f"Actions are finite numbers of shape {shape}, got {actions!r}")
    return controls.clip(-1.0, 1.0)


def _picture(mode: str, t: int, achieved: float, horizon: int, last: float) -> Any:
    """One environment as text or as an ``(H, W, 3)`` uint8 array."""
    reachable = achieved + horizon - t
    lines = [
        f"step {t} of {horizon}",
        f"return {achieved:.2f}, and {reachable:.2f} at most",
        "" if math.isnan(last) else f"last action {last:+.2f}: reward {(last + 1) / 2:.2f}",
    ]
    if mode == "ansi":
        return "\n".join(line for line in lines if line) + "\n"
    canvas = Canvas(lines)
    draw(canvas, achieved / horizon, reachable / horizon, last)
    return canvas.pixels


def draw(canvas: Canvas, achieved: float, reachable: float, last: float) -> None:
    """The dial goes from 0 on the left to T on the right. The red needle is the return so far; the blue
    ticks are the returns that can still be had. The red bar below is the last action, from 0 in the middle.
    """
    for tick in range(TICKS + 1):
        share = tick / TICKS
        colour = "blue" if achieved - 1e-9 <= share <= reachable + 1e-9 else "light"
        _hand(canvas, share, 0.8 if tick % 10 == 0 else 0.88, 1.0, colour)
    _hand(canvas, achieved, 0.0, 0.78, "red")
    canvas.disc(*CENTRE, 0.03, "black")
    canvas.box(0.04, 0.1, 0.96, 0.16, "light")
    if not math.isnan(last):
        end = 0.5 + 0.46 * last
        canvas.box(min(0.5, end), 0.1, max(0.5, end), 0.16, "red")


def _hand(canvas: Canvas, share: float, inner: float, outer: float, colour: str) -> None:
    """A line from the share ``inner`` of the dial's radius to ``outer``, pointing at ``share`` of T."""
    x, y = -RADIUS * math.cos(math.pi * share), RADIUS * math.sin(math.pi * share)
    x0, y0 = CENTRE
    canvas.line(x0 + inner * x, y0 + inner * y, x0 + outer * x, y0 + outer * y, colour, 4)
