"""Sequences for agents: shown token by token, or whole, and asked for once."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from ..actions import check_action
from ..gymnasium import pack_generator, unpack_generator
from .config import require_one_of

KINDS = ("copy_first", "copy_last", "count")
ASK, PAD = 2, 3  # beside the tokens 0 and 1
WAIT = 0  # the action that answers nothing


class SequenceStream(gym.Env[Any, Any]):
    """A sequence of zeros and ones goes by, and then the agent is asked for its first, its last, or its ones.

    ## Description
    The tasks of Barbero et al., "Transformers need glasses!" (NeurIPS 2024), for policies with a memory:
    recurrent ones, or transformers over the steps so far. ``Glasses-CopyFirst-v0`` and
    ``Glasses-CopyLast-v0`` ask for one token of a run of ones, which alone may be 0. ``Glasses-Count-v0``
    asks how many ones there were. A policy without a memory can do no better than chance on CopyFirst and
    Count, and neither on CopyLast: when it is asked, it no longer sees the last token.

    ## Action Space
    ``Discrete(1 + answers)``: 0 waits, 1 + a answers a. Copying has 2 answers, counting ``max(lengths) + 1``.
    Before the question every action is as good as waiting.

    ## Observation Space
    ``obs_mode="stream"``: ``Discrete(3)``, the token, or 2 for the question; with ``one_hot=True``
    ``Box(0, 1, (3,), float32)``. ``obs_mode="full"``: ``Dict(tokens=MultiDiscrete([4] * max(lengths)),
    mask=MultiBinary(max(lengths)))``, the whole sequence, padded with 3 where the mask is 0.

    ## Starting State
    A length drawn uniformly from ``lengths``, and a sequence of which every answer is as likely as any other:
    0 and 1 when copying, and 0 to n when counting n tokens.

    ## Rewards
    1 for the right answer to the question, and 0 for any other, for waiting, and at all other steps.

    ## Episode End
    Terminates with the step that answers: the (n + 1)-th of a sequence of n tokens, the first with
    ``obs_mode="full"``. Never truncates.

    ## Arguments

    - ``kind``: ``"copy_first"``, ``"copy_last"`` or ``"count"``; the ids set it.
    - ``lengths`` ((4, 16)): from and up to how many tokens, both included, at least 1.
    - ``p`` (None): the chance in [0, 1] that a token that is not asked for is a one. None is 1 when copying,
      the paper's run of ones; when counting, it makes all counts equally likely, as a ``p`` does not.
    - ``obs_mode`` (``"stream"``): or ``"full"``.
    - ``one_hot`` (False): observations of a stream as vectors.
    - ``render_mode`` (None): ``"ansi"``, the tokens so far.

    ## Optimum
    1 an episode. Uniform actions bring 1 / (1 + answers): 1/3 when copying, 1/18 when counting up to 16.

    ## Version History
    - v0: initial version.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 10}  # noqa: RUF012 (gymnasium's own idiom)

    def __init__(
        self,
        kind: str,
        lengths: tuple[int, int] = (4, 16),
        p: float | None = None,
        obs_mode: str = "stream",
        one_hot: bool = False,
        render_mode: str | None = None,
    ) -> None:
        require_one_of("kind", kind, KINDS)
        require_one_of("obs_mode", obs_mode, ("stream", "full"))
        if len(lengths) != 2 or not 1 <= lengths[0] <= lengths[1]:
            raise ValueError(f"lengths must be (lo, hi) with 1 <= lo <= hi, got {lengths!r}")
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"p must be None or a chance in [0, 1], got {p!r}")
        if one_hot and obs_mode == "full":
            raise ValueError("one_hot is for obs_mode='stream': leave it False with 'full'")
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode must be None or 'ansi', got {render_mode!r}")
        self.kind, self.lengths, self.p = kind, (int(lengths[0]), int(lengths[1])), p
        self.obs_mode, self.one_hot, self.render_mode = obs_mode, one_hot, render_mode
        self.answers = self.lengths[1] + 1 if kind == "count" else 2
        self.action_space = spaces.Discrete(1 + self.answers)
        self.observation_space = _observation_space(self.lengths[1], obs_mode, one_hot)
        self.tokens: np.ndarray | None = None  # (n,) int64; None before the first reset
        self.t = 0  # steps taken
        self._done = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start an episode. ``options`` is ignored."""
        super().reset(seed=seed)
        length = int(self.np_random.integers(self.lengths[0], self.lengths[1] + 1))
        self.tokens = _draw(self.kind, length, self.p, self.np_random)
        self.t, self._done = 0, False
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Wait for the next token, or answer.

        Raises:
            InvalidAction: not one integer in [0, answers].
            ResetNeeded: before the first reset, or after the end of an episode.
        """
        if self.tokens is None or self._done:
            raise ResetNeeded("The episode has not begun or is over: call env.reset() before env.step().")
        action = check_action(action, 1 + self.answers)
        self._done = self.obs_mode == "full" or self.t == len(self.tokens)
        reward = float(self._done and action == self.optimal_action())
        self.t += 1
        return self._observe(), reward, self._done, False, {}

    def optimal_action(self) -> int:
        """The right answer if it is asked for, else to wait.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self.tokens is None:
            raise ResetNeeded("No episode has begun: call env.reset() before env.optimal_action().")
        if self.obs_mode == "stream" and self.t < len(self.tokens):
            return WAIT
        if self.kind == "count":
            return 1 + int(self.tokens.sum())
        return 1 + int(self.tokens[0 if self.kind == "copy_first" else -1])

    def _observe(self) -> Any:
        assert self.tokens is not None
        length = len(self.tokens)
        if self.obs_mode == "full":
            tokens = np.full(self.lengths[1], PAD, dtype=np.int64)  # (n_max,)
            tokens[:length] = self.tokens
            return {"tokens": tokens, "mask": (tokens != PAD).astype(np.int8)}
        token = int(self.tokens[self.t]) if self.t < length else ASK
        return np.eye(3, dtype=np.float32)[token] if self.one_hot else np.int64(token)

    def render(self) -> Any:
        """The tokens so far, and a question mark when it is asked for, as a string."""
        if self.render_mode is None:
            gym.logger.warn("render() does nothing: pass render_mode='ansi' to gym.make.")
            return None
        if self.tokens is None:
            raise ResetNeeded("Nothing to render yet: call env.reset() before env.render().")
        shown = len(self.tokens) if self.obs_mode == "full" else self.t + 1
        question = " ?" if self.obs_mode == "full" or self.t >= len(self.tokens) else ""
        return f"{self.kind}: {' '.join(map(str, self.tokens[:shown]))}{question}\n"

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that decides how stepping goes on, the random generator included."""
        if self.tokens is None:
            raise ResetNeeded("There is no state yet: call env.reset() before env.get_state().")
        state = {"tokens": self.tokens.copy(), "t": np.array(self.t), "done": np.array(self._done)}
        return {**state, "np_random": pack_generator(self.np_random)}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on bit for bit from what `get_state` returned. The environment must have the same arguments."""
        self.tokens = np.array(state["tokens"])
        self.t, self._done = int(state["t"]), bool(state["done"])
        unpack_generator(self.np_random, state["np_random"])


def _observation_space(longest: int, obs_mode: str, one_hot: bool) -> spaces.Space:
    if obs_mode == "full":
        tokens, mask = spaces.MultiDiscrete([PAD + 1] * longest), spaces.MultiBinary(longest)
        return spaces.Dict({"tokens": tokens, "mask": mask})
    return spaces.Box(0.0, 1.0, (ASK + 1,), np.float32) if one_hot else spaces.Discrete(ASK + 1)


def _draw(kind: str, length: int, p: float | None, rng: np.random.Generator) -> np.ndarray:
    """Tokens ``(length,)`` int64, all answers being equally likely."""
    if kind == "count" and p is None:
        return rng.permutation((np.arange(length) < rng.integers(length + 1)).astype(np.int64))
    tokens = (rng.random(length) < (1.0 if p is None else p)).astype(np.int64)
    if kind != "count":
        tokens[0 if kind == "copy_first" else -1] = rng.integers(2)
    return tokens
