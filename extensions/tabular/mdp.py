"""A finite MDP given by its tables, R copies of which step at once on a device."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from .environments import Step, TensorEnv, with_index
from .randomness import Stream, normal

_STREAM = 1  # the agents draw from stream 0
_BLOCK = 64


class TabularMDP(TensorEnv):
    """R independent copies of a finite MDP. Copy i makes the same steps whatever R is.

    Args:
        transitions: (S, n, S), the probabilities P(s' | s, a).
        rewards: (S, n), the mean of a step's reward; or (S, n, S), where it depends on the state reached.
        reward_std: standard deviation of normal noise on each reward.
        initial: (S,), the probabilities of the first state; state 0 by default.
        terminal: (S,) bool, the states that end an episode when they are reached; none by default.
        max_episode_steps: an episode is truncated after so many steps; never by default.
        n_runs: R.
        device: where it steps.

    Raises:
        ValueError: shapes do not fit, probabilities are none, rewards are not finite.
    """

    def __init__(
        self,
        transitions: Tensor,
        rewards: Tensor,
        *,
        reward_std: float = 0.0,
        initial: Tensor | None = None,
        terminal: Tensor | None = None,
        max_episode_steps: int | None = None,
        n_runs: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = with_index(device)
        self.transitions = torch.as_tensor(transitions, dtype=torch.float64, device=self.device)
        self.rewards = torch.as_tensor(rewards, dtype=torch.float64, device=self.device)
        if self.transitions.ndim != 3 or self.transitions.shape[0] != self.transitions.shape[2]:
            raise ValueError(f"transitions must be (S, n, S); got {tuple(self.transitions.shape)}")
        self.n_states, self.n_actions = states, n = self.transitions.shape[:2]
        self.n_runs = n_runs
        if initial is None:
            initial = torch.eye(1, states)[0]
        self.initial = torch.as_tensor(initial, dtype=torch.float64, device=self.device)
        self.terminal = torch.zeros(states, dtype=torch.bool, device=self.device)
        if terminal is not None:
            self.terminal = torch.as_tensor(terminal, dtype=torch.bool, device=self.device)
        self.reward_std, self.max_episode_steps = reward_std, max_episode_steps
        self._check()
        if self.rewards.ndim == 2:
            self.rewards = self.rewards[..., None].expand(states, n, states)
        self._cumulated = self.transitions.cumsum(-1)
        self._first_cumulated = self.initial.cumsum(-1)
        self.reset(int(torch.randint(1 << 31, ())))  # until there is a seed

    def _check(self) -> None:
        states, n = self.n_states, self.n_actions
        if self.rewards.shape not in ((states, n), (states, n, states)):
            raise ValueError(
                f"rewards must be (S, n) or (S, n, S), S = {states} and n = {n}; got "
                f"{tuple(self.rewards.shape)}"
            )
        if self.initial.shape != (states,) or self.terminal.shape != (states,):
            raise ValueError(f"initial and terminal must be (S,), S = {states}")
        if not (bool(torch.isfinite(self.rewards).all()) and 0 <= self.reward_std < float("inf")):
            raise ValueError("rewards must be finite, and reward_std finite and not negative")
        for name, p in (("transitions", self.transitions), ("initial", self.initial)):
            if not bool(((p >= 0).all(-1) & ((p.sum(-1) - 1).abs() < 1e-9)).all()):
                raise ValueError(
                    f"{name} must be probabilities: none negative, and with sum 1 over the last axis"
                )
        if self.n_runs < 1:
            raise ValueError(f"n_runs is the number of copies, at least 1; got {self.n_runs}")
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, or None; got {self.max_episode_steps}")

    @classmethod
    def from_gymnasium(cls, env: gym.Env[Any, Any] | str, **kwargs: Any) -> TabularMDP:
        """The MDP of one of gymnasium's toy texts (FrozenLake, CliffWalking, Taxi), which list it as ``P``.

        Args:
            env: the environment or its id, with its limit on an episode's steps, if it has one.
            **kwargs: of the class: ``n_runs``, ``device``.

        Raises:
            ValueError: it does not list its transitions, or has a state that ends an episode or not,
                depending on how it was reached.
        """
        if isinstance(env, str):
            env = gym.make(env)
        listed = getattr(env.unwrapped, "P", None)
        if not isinstance(listed, dict):
            raise ValueError(f"{env} has no dict P of its transitions, as gymnasium's toy texts have")
        states, n = len(listed), len(listed[0])
        p = torch.zeros(states, n, states, dtype=torch.float64)
        rewards, ends = torch.zeros_like(p), torch.zeros_like(p)
        for s, by_action in listed.items():
            for a, outcomes in by_action.items():
                for probability, reached, reward, ended in outcomes:
                    rewards[s, a, reached] += probability * float(reward)
                    ends[s, a, reached] += probability * bool(ended)
                    p[s, a, reached] += probability
        rewards = torch.where(p > 0, rewards / p, 0.0)
        terminal = (ends > 0).any(1).any(0)
        initial = torch.as_tensor(env.unwrapped.initial_state_distrib)  # type: ignore[attr-defined]
        # what a terminal state leads to does not matter, nor what states do that are never reached
        live = torch.zeros(states, dtype=torch.bool)
        reached_now = initial > 0
        while bool((reached_now & ~live).any()):
            live |= reached_now & ~terminal
            reached_now = (p[live] > 0).any(1).any(0) & ~terminal
        if bool(((p - ends)[live][..., terminal] > 1e-12).any()):
            raise ValueError(f"{env} has a state that ends an episode or not, as it was reached")
        limit = env.spec.max_episode_steps if env.spec else None
        return cls(p, rewards, initial=initial, terminal=terminal, max_episode_steps=limit, **kwargs)

    def reset(self, seed: int | None = None) -> Tensor:
        if seed is not None:
            self._seed_with(seed)
        self._state = self._first(self._next()[0][:, 1])
        self._elapsed = torch.zeros_like(self._state)
        return self._state

    def _seed_with(self, seed: int) -> None:
        self._seed, self._clock = seed, 0
        self._random = Stream(seed + torch.arange(self.n_runs, device=self.device), _STREAM, self.device)
        self._drawn = -1  # no block yet

    def _next(self) -> tuple[Tensor, Tensor]:
        """Numbers for a step: for the state reached and for a first state (R, 2), and the noise (R,)."""
        block, at = divmod(self._clock, _BLOCK)
        if block != self._drawn:
            self._u = self._random.uniform(block * _BLOCK, _BLOCK, 4)
            self._noise = normal(self._u[..., 2:]) * self.reward_std
            self._drawn = block
        self._clock += 1
        return self._u[at, :, :2], self._noise[at]

    def step(self, actions: Tensor) -> Step:
        u, noise = self._next()
        s = self._state
        reached = _inverse(self._cumulated[s, actions], u[:, :1])
        reward = self.rewards[s, actions, reached] + noise
        self._elapsed = self._elapsed + 1
        terminated = self.terminal[reached]
        truncated = torch.zeros_like(terminated)
        if self.max_episode_steps is not None:
            truncated = (self._elapsed >= self.max_episode_steps) & ~terminated
        done = terminated | truncated
        self._state = torch.where(done, self._first(u[:, 1]), reached)
        self._elapsed = self._elapsed.masked_fill(done, 0)
        return Step(reached, reward, terminated, truncated, self._state, torch.ones_like(done))

    def _first(self, u: Tensor) -> Tensor:
        return _inverse(self._first_cumulated, u[:, None])

    def get_state(self) -> dict[str, Any]:
        """All that a step depends on, as tensors and numbers."""
        return {
            "seed": self._seed,
            "clock": self._clock,
            "state": self._state.cpu(),
            "elapsed": self._elapsed.cpu(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where `get_state` was called."""
        self._seed_with(state["seed"])
        self._clock = state["clock"]
        self._state = state["state"].to(self.device)
        self._elapsed = state["elapsed"].to(self.device)


def _inverse(cumulated: Tensor, u: Tensor) -> Tensor:
    """The index at which cumulated probabilities (..., S) first exceed u (R, 1): (R,)."""
    # the last sums may fall short of 1 by a rounding: a state without probability is never taken
    u = torch.minimum(u * cumulated[..., -1:], cumulated[..., -1:] * (1 - 2.0**-53))
    return (u >= cumulated).sum(-1)
