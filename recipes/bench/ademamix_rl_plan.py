"""What :mod:`.ademamix_rl` runs: the tasks, with all their settings, and the optimizers that are compared.

The settings of the algorithms began as those of rl-baselines3-zoo for these tasks. What differs is said
beside each task: fewer steps and smaller networks, so that everything runs on one core in half an hour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from extensions.optim import AdEMAMix

#: evaluations of a run, equally spaced; the slow average is emptied as often where it is emptied at all
CHECKPOINTS = 10
PAPERS_BETAS = (0.9, 0.999, 0.9999)


@dataclass(frozen=True)
class Task:
    """An algorithm of SB3 on an environment.

    Attributes:
        name: its heading and, without the blanks, its folder.
        algorithm: DQN or PPO.
        env: the gymnasium id.
        steps: environment steps of a run; a whole number of rollouts.
        n_envs: environments side by side.
        lr: the starting point of every grid of learning rates.
        linear: whether the learning rate (and PPO's clip range) falls to 0 over the run.
        eps: of Adam and AdEMAMix alike. SB3 gives PPO's Adam 1e-5, but only if the class is Adam.
        returns: the least and the greatest return of an episode; None where there are none.
        kwargs: everything else that the algorithm is given.
        epsilon: the share of random actions when it is evaluated. A greedy policy of DQN in the middle of
            its training takes the same wrong action for ever where it is stuck, and such episodes hide the
            others.
        long: whether it is run only when it is named.
    """

    name: str
    algorithm: type[BaseAlgorithm]
    env: str
    steps: int
    n_envs: int
    lr: float
    linear: bool
    eps: float
    returns: tuple[float, float] | None
    kwargs: dict[str, Any] = field(hash=False)
    epsilon: float = 0.0
    long: bool = False

    @cached_property
    def updates(self) -> int:
        """Steps of the optimizer in a whole run, over which the warm-ups go."""
        k = self.kwargs
        if self.algorithm is PPO:
            rollout = self.n_envs * k["n_steps"]
            return self.steps // rollout * k["n_epochs"] * (rollout // k["batch_size"])
        return (self.steps - k["learning_starts"]) // k["train_freq"] * k["gradient_steps"]

    def settings(self) -> dict[str, Any]:
        """Everything above, for a file."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "long"}
        return {**fields, "algorithm": self.algorithm.__name__, "updates": self.updates}

    def share(self, score: float) -> float:
        """A return as a share of the range that the task allows."""
        assert self.returns is not None
        low, high = self.returns
        return (score - low) / (high - low)


@dataclass(frozen=True)
class Setting:
    """An optimizer with its hyper-parameters.

    Attributes:
        factor: the learning rate, as a multiple of the task's.
        beta1: of the fast average.
        beta3, alpha: of the slow one; None stands for Adam, which has none.
        warmup: whether alpha and beta3 warm up, over the whole run or, with ``reset``, until the next reset.
        reset: whether the slow average is emptied CHECKPOINTS - 1 times, at equal intervals.
    """

    factor: float
    beta1: float = 0.9
    beta3: float | None = None
    alpha: float | None = None
    warmup: bool = True
    reset: bool = False

    @property
    def name(self) -> str:
        """A short unique name, which is also a folder's."""
        if self.beta3 is None:
            return f"adam-lr{self.factor:g}-beta1_{self.beta1:g}"
        ending = ("" if self.warmup else "-no_warmup") + ("-reset" if self.reset else "")
        return f"ademamix-lr{self.factor:g}-alpha{self.alpha:g}-beta3_{self.beta3:g}{ending}"

    def optimizer(self, task: Task) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        """The class and the arguments for SB3's ``policy_kwargs``; the learning rate is SB3's to pass."""
        if self.beta3 is None:
            return torch.optim.Adam, {"betas": (self.beta1, 0.999), "eps": task.eps}
        warmup = None
        if self.warmup:
            warmup = task.updates // CHECKPOINTS if self.reset else task.updates
        return AdEMAMix, {
            "betas": (self.beta1, 0.999, self.beta3),
            "eps": task.eps,
            "alpha": self.alpha,
            "alpha_warmup": warmup,
            "beta3_warmup": warmup,
        }


#: Trials of equal number. Adam's learning rates reach higher: AdEMAMix's alpha lengthens its steps by up to
#: 1 + alpha times.
ADAM_TRIALS = tuple(
    Setting(factor, beta1) for factor in (1 / 3, 2 / 3, 1.0, 2.0, 4.0, 8.0) for beta1 in (0.9, 0.95, 0.99)
)
ADEMAMIX_TRIALS = tuple(
    Setting(factor, beta3=beta3, alpha=alpha)
    for factor in (1 / 3, 1.0, 3.0)
    for alpha in (1.0, 2.0, 5.0)
    for beta3 in (0.99, 0.999)
)
#: What is compared beside the best of either. The last is what ``optimizer_class=AdEMAMix`` alone gives.
UNTUNED = {
    "Adam, not tuned": Setting(1.0),
    "AdEMAMix as in the paper, not tuned": Setting(1.0, beta3=PAPERS_BETAS[2], alpha=5.0),
    "the same without warm-ups": Setting(1.0, beta3=PAPERS_BETAS[2], alpha=5.0, warmup=False),
}

_SMALL: dict[str, Any] = {"net_arch": [64, 64]}
TASKS = (
    # As the zoo's, but for a quarter of its steps.
    Task(
        "PPO, CartPole-v1",
        PPO,
        "CartPole-v1",
        steps=25_600,
        n_envs=8,
        lr=1e-3,
        linear=True,
        eps=1e-5,
        returns=(0, 500),
        kwargs={"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gae_lambda": 0.8, "gamma": 0.98},
    ),
    # The zoo's has 1,000,000 steps, normalized observations and rewards, 256 steps a rollout, a rate of 3e-4.
    Task(
        "PPO, Acrobot-v1",
        PPO,
        "Acrobot-v1",
        steps=40_960,
        n_envs=16,
        lr=1e-3,
        linear=False,
        eps=1e-5,
        returns=(-500, 0),
        kwargs={"n_steps": 128, "batch_size": 64, "n_epochs": 4, "gae_lambda": 0.94, "gamma": 0.99},
    ),
    # The zoo's has 50,000 steps, layers of 256, an update every other step and a rate of 2.3e-3.
    Task(
        "DQN, CartPole-v1",
        DQN,
        "CartPole-v1",
        steps=17_920,
        n_envs=1,
        lr=1e-3,
        linear=False,
        eps=1e-8,
        returns=(0, 500),
        kwargs={
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1_024,
            "gamma": 0.99,
            "target_update_interval": 10,
            "train_freq": 256,
            "gradient_steps": 96,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
            "policy_kwargs": _SMALL,
        },
        epsilon=0.05,
    ),
    # The zoo's has 100,000 steps, layers of 256, and an update a step, from batches of 128.
    Task(
        "DQN, Acrobot-v1",
        DQN,
        "Acrobot-v1",
        steps=15_360,
        n_envs=1,
        lr=6.3e-4,
        linear=False,
        eps=1e-8,
        returns=(-500, 0),
        kwargs={
            "batch_size": 64,
            "buffer_size": 50_000,
            "learning_starts": 0,
            "gamma": 0.99,
            "target_update_interval": 250,
            "train_freq": 128,
            "gradient_steps": 48,
            "exploration_fraction": 0.12,
            "exploration_final_eps": 0.1,
            "policy_kwargs": _SMALL,
        },
        epsilon=0.05,
    ),
    # SB3's defaults.
    Task(
        "PPO, HalfCheetah-v5",
        PPO,
        "HalfCheetah-v5",
        steps=491_520,
        n_envs=1,
        lr=3e-4,
        linear=False,
        eps=1e-5,
        returns=None,
        kwargs={"n_steps": 2_048, "batch_size": 64, "n_epochs": 10},
        long=True,
    ),
)


def make(task: Task, setting: Setting, seed: int) -> BaseAlgorithm:
    """The algorithm, ready to learn."""
    optimizer_class, optimizer_kwargs = setting.optimizer(task)
    kwargs = dict(task.kwargs)
    kwargs["policy_kwargs"] = {
        **kwargs.get("policy_kwargs", {}),
        "optimizer_class": optimizer_class,
        "optimizer_kwargs": optimizer_kwargs,
    }
    if task.algorithm is PPO:
        kwargs["clip_range"] = _falling(0.2) if task.linear else 0.2
    return task.algorithm(
        "MlpPolicy",
        make_vec_env(task.env, task.n_envs, seed=seed),
        learning_rate=_falling(task.lr * setting.factor) if task.linear else task.lr * setting.factor,
        seed=seed,
        device="cpu",
        **kwargs,
    )


def _falling(start: float) -> Callable[[float], float]:
    return lambda remaining: start * remaining
