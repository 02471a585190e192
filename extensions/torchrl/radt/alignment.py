"""How closely a policy brings the return that it was asked for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase


@dataclass(frozen=True)
class Alignment:
    """Targets, and the returns of the episodes that were played for them.

    Attributes:
        targets: ``(n,)`` float64.
        returns: ``(n, episodes)`` float64, undiscounted.
        lengths: ``(n, episodes)`` int64.
        goals: ``(n, episodes)`` float64: what the whole episode was to bring. That is its target, or where
            the target was changed on the way, what had been collected by then and what was asked for since.
    """

    targets: Tensor
    returns: Tensor
    lengths: Tensor
    goals: Tensor

    @property
    def error_of_mean(self) -> Tensor:
        """``|target - mean return|``, (n,), the paper's measure: too much and too little cancel."""
        return (self.goals.mean(1) - self.returns.mean(1)).abs()

    @property
    def mean_error(self) -> Tensor:
        """The mean over episodes of ``|target - return|``, (n,): nothing cancels."""
        return (self.goals - self.returns).abs().mean(1)

    @property
    def bias(self) -> float:
        """The mean of return - target."""
        return float((self.returns - self.goals).mean())

    @property
    def slope(self) -> float:
        """Of returns on targets, by least squares over all episodes: 1 is best, 0 is a policy that does not
        listen. NaN if all targets are equal."""
        x, y = self.goals.flatten(), self.returns.flatten()
        if bool((x == x[:1]).all()):
            return math.nan
        spread = x - x.mean()
        return float((spread * y).sum() / spread.square().sum())

    @property
    def intercept(self) -> float:
        """What that line returns at a target of 0."""
        return float(self.returns.mean() - self.slope * self.goals.mean())

    @property
    def spearman(self) -> float:
        """Spearman's rank correlation of returns and targets over all episodes: 1 is an order that is
        always kept. NaN if all targets or all returns are equal."""
        ranks = torch.stack([_ranks(self.goals.flatten()), _ranks(self.returns.flatten())])
        return float(torch.corrcoef(ranks)[0, 1]) if ranks.numel() else math.nan

    def normalised(self, low: float, high: float) -> Alignment:
        """In the scale in which ``low`` is 0 and ``high`` is 1, such as two percentiles of the returns in the
        data: errors and bias are then multiples of ``high - low``."""
        if not high > low:
            raise ValueError(f"high must be above low to scale by their difference; got {low} and {high}.")

        def scaled(x: Tensor) -> Tensor:
            return (x - low) / (high - low)

        return Alignment(scaled(self.targets), scaled(self.returns), self.lengths, scaled(self.goals))

    def within(self, low: float, high: float) -> Alignment:
        """Of the targets in [low, high] alone."""
        return self._of((self.targets >= low) & (self.targets <= high))

    def beyond(self, low: float, high: float) -> Alignment:
        """Of the targets outside [low, high] alone."""
        return self._of((self.targets < low) | (self.targets > high))

    def _of(self, rows: Tensor) -> Alignment:
        return Alignment(self.targets[rows], self.returns[rows], self.lengths[rows], self.goals[rows])

    def figures(self) -> dict[str, float | None]:
        """Over all targets: means of both errors, bias, slope, intercept, spearman; None where undefined."""
        figures = {
            "error_of_mean": float(self.error_of_mean.mean()),
            "mean_error": float(self.mean_error.mean()),
            "bias": self.bias,
            "slope": self.slope,
            "intercept": self.intercept,
            "spearman": self.spearman,
        }
        return {name: x if math.isfinite(x) else None for name, x in figures.items()}

    def to_dict(self, data_range: tuple[float, float] | None = None) -> dict[str, Any]:
        """Everything, in plain numbers. With ``data_range``, such as the 5th and 95th percentile of the
        returns in the data, also the ``figures`` of targets inside and outside it, and all of them
        ``normalised`` by it."""
        report: dict[str, Any] = {
            "targets": self.targets.tolist(),
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "goals": self.goals.tolist(),
            "error_of_mean": self.error_of_mean.tolist(),
            "mean_error": self.mean_error.tolist(),
            "overall": self.figures(),
        }
        if data_range is not None:
            parts = {
                "overall": self,
                "in_range": self.within(*data_range),
                "out_of_range": self.beyond(*data_range),
            }
            report["data_range"] = list(data_range)
            report |= {name: part.figures() for name, part in parts.items()}
            report["normalised"] = {
                name: part.normalised(*data_range).figures() for name, part in parts.items()
            }
        return report


def _ranks(x: Tensor) -> Tensor:
    """(m,) -> (m,) float64, from 1; equal values share the mean of their ranks."""
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]


def spaced_targets(low: float, high: float, n: int) -> Tensor:
    """(n,) float64, equally spaced from ``low`` to ``high``; n is at least 2."""
    if n < 2 or not high > low:
        raise ValueError(f"Give n >= 2 targets from low to a higher high; got n={n}, {low} to {high}.")
    return torch.linspace(low, high, n, dtype=torch.float64)


def evaluate_targets(
    env: EnvBase,
    policy: Callable[[TensorDictBase], TensorDictBase],
    targets: Tensor | Sequence[float],
    episodes: int,
    *,
    max_steps: int,
    observation_norm: tuple[Tensor, Tensor] | None = None,
    retarget: tuple[int, Callable[[Tensor, int], Tensor]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Alignment:
    """Play ``episodes`` episodes for each target, all at once, an episode an environment.

    At each step the policy is given, besides what the environment gives, ``return_to_go`` ``(B, 1)``
    float32, which is the target at first and then less each reward, and ``is_init`` ``(B, 1)`` bool, True at
    the first step. What an environment does after its first end is ignored. Modules are in eval mode
    meanwhile, and no gradients are kept. Seed ``env`` yourself, by ``env.set_seed``.

    Args:
        env: of batch size ``[len(targets) * episodes]``, without a transform that writes targets.
            Environments i * episodes to (i + 1) * episodes - 1 have target i.
        policy: writes ``action``; rows must not depend on each other.
        targets: ``(n,)``.
        episodes: for each target.
        max_steps: when to stop, if not all episodes have ended before.
        observation_norm: mean and standard deviation ``(S,)``, for a policy that reads ``observation``
            normalised.
        retarget: a step, and a function of the ``(B, 1)`` float64 returns to go at that step, and of the
            step, whose values replace them: what is to be collected from that step on.
        progress: called after each step with the number of steps done, and of episodes still running.

    Raises:
        ValueError: a wrong number of environments; no targets, or NaN ones; a reward that is not finite.
    """
    target = torch.as_tensor(targets, dtype=torch.float64).reshape(-1)
    if not len(target) or not bool(target.isfinite().all()):
        raise ValueError(f"targets must be finite numbers, at least one; got {target.tolist()}.")
    if episodes < 1 or max_steps < 1:
        raise ValueError(f"episodes and max_steps are at least 1; got {episodes} and {max_steps}.")
    if retarget is not None and not (
        isinstance(retarget, tuple) and len(retarget) == 2 and callable(retarget[1])
    ):
        raise ValueError(
            "retarget must be a step and a function of the returns to go and the step, such as "
            f"(10, lambda to_go, step: to_go / 2); got {retarget!r}"
        )
    if env.batch_size != (len(target) * episodes,):
        raise ValueError(
            f"{len(target)} targets with {episodes} episodes each need an environment of batch size "
            f"[{len(target) * episodes}]; got {list(env.batch_size)}."
        )
    goal = target.repeat_interleave(episodes).unsqueeze(1).to(env.device or "cpu")  # (B, 1)
    to_go = goal.clone()
    returns = torch.zeros_like(goal)
    lengths = torch.zeros_like(goal, dtype=torch.int64)
    running = torch.ones_like(goal, dtype=torch.bool)

    with torch.no_grad(), _eval_mode(policy):
        td = env.reset()
        for step in range(max_steps):
            if retarget is not None and step == retarget[0]:
                to_go = retarget[1](to_go, step).reshape(goal.shape).to(to_go)
                goal = torch.where(running, returns + to_go, goal)
            td["return_to_go"] = to_go.float()
            td["is_init"] = torch.full_like(running, step == 0)
            td, after = env.step_and_maybe_reset(_act(policy, td, observation_norm))

            reward = torch.where(running, td["next", "reward"].double(), 0)
            if not bool(reward.isfinite().all()):
                row = int((~reward.isfinite()).flatten().int().argmax())
                raise ValueError(f"Environment {row} gave the reward {float(reward[row])} at step {step}.")
            returns += reward
            to_go -= reward
            lengths += running
            running &= ~td["next", "done"]
            td = after
            left = int(running.sum())
            if progress is not None:
                progress(step + 1, left)
            if left == 0:
                break
        else:
            warnings.warn(
                f"{left} of {len(goal)} episodes had not ended after max_steps={max_steps}; their returns "
                "are of what they had until then.",
                stacklevel=2,
            )
    shape = (len(target), episodes)
    returns, lengths, goal = (x.reshape(shape).cpu() for x in (returns, lengths, goal))
    return Alignment(target.cpu(), returns, lengths, goal)


def _act(
    policy: Callable[[TensorDictBase], TensorDictBase],
    td: TensorDictBase,
    observation_norm: tuple[Tensor, Tensor] | None,
) -> TensorDictBase:
    """``td`` with an action. The policy alone sees normalised observations: an environment may keep its state
    in them."""
    if observation_norm is None:
        return policy(td)
    observation = td["observation"]
    mean, std = (x.to(observation) for x in observation_norm)
    td["observation"] = (observation - mean) / std
    td = policy(td)
    td["observation"] = observation
    return td


@contextmanager
def _eval_mode(policy: Any) -> Iterator[None]:
    """Every module in eval mode, then each as it was."""
    if not isinstance(policy, torch.nn.Module):
        yield
        return
    training = [(module, module.training) for module in policy.modules()]
    policy.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
