"""What all methods share: a task with its budget, the collection of steps, the replay, the evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type, step_mdp

from envs.dynamics.world import World
from envs.torchrl import LargeActionEnv
from extensions.stochmax import BoxBins, MixedRadix
from extensions.stochmax.candidates import same_draws
from extensions.torchrl import StochEGreedyModule

from ..evaluation import EVAL_SEED

CODECS = (None, "digits", "bins")

#: reads "observation", writes "action", ids (B,); greedy if the exploration type is deterministic
Policy = Callable[[TensorDictBase], TensorDictBase]
#: one update from a minibatch
Update = Callable[[TensorDictBase], None]


@dataclass(frozen=True)
class Task:
    """A world and a budget, the same for every method.

    Attributes:
        world: an id, with or without its namespace. kwargs: fields of the world.
        steps: environment steps in all. num_envs: environments stepped together.
        codec: what the digits of an id are: "digits" without an order, "bins" of a box, in order; None is
            nothing.
        gamma, batch, buffer: of any DQN.
        updates: after each step of all environments. warm_up: environment steps before the first one.
        eps_end, eps_steps: uniform ids are taken with a probability that falls from 1 to ``eps_end`` in a
            straight line over ``eps_steps`` environment steps.
        lr_end: learning rates fall to this share of themselves, in a straight line over the run.
        hidden: width of the networks.
        eval_every: environment steps between evaluations. eval_episodes: in each, side by side.
    """

    world: str
    steps: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    num_envs: int = 16
    codec: str | None = None
    gamma: float = 0.9
    batch: int = 128
    buffer: int = 100_000
    updates: int = 1
    warm_up: int = 1_000
    eps_end: float = 0.05
    eps_steps: int = 10_000
    lr_end: float = 0.1
    hidden: int = 64
    eval_every: int = 5_000
    eval_episodes: int = 64

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ValueError(f"codec must be one of {CODECS}, got {self.codec!r}")

    def make(self, count: int, seed: int, device: Any = "cpu") -> LargeActionEnv:
        """``count`` environments of the world, on the episodes of ``seed``."""
        return LargeActionEnv(self.world, count, device, seed, **self.kwargs)


@dataclass
class Record:
    """What an evaluation found. The clocks are of training alone."""

    steps: int  # of the environments, so far
    updates: int  # so far
    greedy: float  # undiscounted return of the greedy policy, mean over the episodes
    length: float  # steps of an episode
    wall_s: float
    cpu_s: float  # of this process
    #: undiscounted return in training, exploration and all, mean over the episodes that ended since the
    #: evaluation before; None if none did
    training: float | None = None


class Run:
    """One run of one method: its environments, its replay, and what it came to.

    Args:
        task: world and budget. seed: of everything that is drawn. device: of all of it.
    """

    def __init__(self, task: Task, seed: int, device: Any = "cpu") -> None:
        torch.manual_seed(seed)
        self.task, self.device = task, torch.device(device)
        self.env = task.make(task.num_envs, seed, device)
        self.world: World = self.env.dynamics
        self.n = self.world.n
        self.obs_dim = len(self.world.low)
        self.spec = self.env.action_spec_unbatched
        self.replay = TensorDictReplayBuffer(
            storage=LazyTensorStorage(task.buffer, device=self.device), batch_size=task.batch
        )
        self.epsilon = StochEGreedyModule(
            self.spec, 1.0, task.eps_end, max(1, task.eps_steps), device=self.device
        )

    @property
    def codec(self) -> MixedRadix:
        """What the digits of an id are, as the task says."""
        if self.task.codec is None:
            raise ValueError(f"nothing is known of the actions of {self.task.world} but their names")
        sizes = self.world.sizes
        bins = self.task.codec == "bins"
        made = BoxBins([-1.0] * len(sizes), [1.0] * len(sizes), sizes) if bins else MixedRadix(sizes)
        return made.to(self.device)

    def learn(
        self,
        policy: Policy,
        update: Update,
        optimizers: Iterable[torch.optim.Optimizer] = (),
        explore: Policy | None = None,
    ) -> list[Record]:
        """Train to the end of the budget and evaluate on the way, before the first step and after the last.

        Args:
            policy: acts; with exploration it may draw, and uniform ids are mixed in here.
            update: one update from a minibatch with ``observation``, ``action``, and ``next``'s
                ``observation``, ``reward``, ``done``, ``terminated``.
            optimizers: whose learning rates fall.
            explore: changes actions at random by ``self.epsilon.eps``; by default whole ids, for uniform
                ones.
        """
        task, records, updates = self.task, [], 0
        groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
        evaluate, explore = Evaluation(task, self.device), explore or self.epsilon
        training = Returns(task.num_envs, self.device)
        wall = cpu = 0.0  # of training
        td, taken, due = self.env.reset(), 0, 0
        while True:
            if taken >= due or taken >= task.steps:
                greedy, length = evaluate(policy)
                records.append(Record(taken, updates, greedy, length, wall, cpu, training.mean()))
                due += task.eval_every
            if taken >= task.steps:
                return records
            wall_0, cpu_0 = time.perf_counter(), time.process_time()
            for group, lr in groups:
                group["lr"] = lr * (1.0 - (1.0 - task.lr_end) * taken / task.steps)
            with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
                td = explore(policy(td))
            stepped, td = self.env.step_and_maybe_reset(td)
            self.epsilon.step(task.num_envs)
            self.replay.extend(transition(stepped))
            taken += task.num_envs
            if taken >= task.warm_up:
                for _ in range(task.updates):
                    update(self.replay.sample())
                    updates += 1
            wall += time.perf_counter() - wall_0
            cpu += time.process_time() - cpu_0
            training.add(stepped)


def transition(stepped: TensorDictBase) -> TensorDictBase:
    """What is learned from of a step of B environments."""
    following = ("observation", "reward", "done", "terminated")
    return stepped.select("observation", "action", *[("next", key) for key in following])


class Returns:
    """Mean of the returns of the episodes that end while B environments are stepped.

    Args:
        count: B. device: of the environments.
    """

    def __init__(self, count: int, device: Any = "cpu") -> None:
        self.so_far = torch.zeros(count, dtype=torch.float64, device=device)  # of the episodes under way
        self.sum = torch.zeros((), dtype=torch.float64, device=device)
        self.ended = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, stepped: TensorDictBase) -> None:
        """Meet a step of all of them."""
        self.so_far += stepped["next", "reward"].squeeze(-1)
        done = stepped["next", "done"].squeeze(-1)  # (B,)
        self.sum += (self.so_far * done).sum()
        self.ended += done.sum()
        self.so_far *= ~done

    def mean(self) -> float | None:
        """Of those that ended since this was asked for; None if none did."""
        found = float(self.sum / self.ended) if int(self.ended) else None
        self.sum.zero_()
        self.ended.zero_()
        return found


class Evaluation:
    """Plays the same episodes at each call, with the same draws, and touches none of the draws of a run.

    Args:
        task: whose world, and how many episodes. device: where.
    """

    def __init__(self, task: Task, device: Any = "cpu") -> None:
        self.env = task.make(task.eval_episodes, EVAL_SEED, device)

    @torch.no_grad()
    def __call__(self, policy: Policy) -> tuple[float, float]:
        """Mean undiscounted return of the greedy policy, and mean length."""
        self.env.set_seed(EVAL_SEED)
        td = self.env.reset()
        returns = torch.zeros(self.env.count, dtype=torch.float64, device=self.env.device)
        lengths, alive = torch.zeros_like(returns), torch.ones_like(returns)
        with same_draws(self.env.device), set_exploration_type(ExplorationType.DETERMINISTIC):
            while bool(alive.any()):
                td = self.env.step(policy(td))
                returns += alive * td["next", "reward"].squeeze(-1)
                lengths += alive
                alive = alive * ~td["next", "done"].squeeze(-1)
                td = step_mdp(td)
        return float(returns.mean()), float(lengths.mean())


def td_target(batch: TensorDictBase, next_value: torch.Tensor, gamma: float) -> torch.Tensor:
    """``r + gamma (1 - terminated) next_value``: (B,), of the values (B,) of the next states."""
    ended = batch["next", "terminated"].squeeze(-1)  # (B,)
    return batch["next", "reward"].squeeze(-1) + gamma * ~ended * next_value
