"""DQN with an output for each action, as TorchRL has it."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate, ValueEstimators

from .loop import Record, Run, Task
from .networks import trunk, zero_at_first

MOST = 10_000  # actions


def train(
    task: Task,
    seed: int,
    device: Any = "cpu",
    *,
    lr: float = 1e-3,
    tau: float = 0.01,
    linear: bool = False,
) -> list[Record]:
    """Train TorchRL's DQN, whose maximum is exact.

    Different from the paper: Adam, the squared error, a target network that moves by ``tau``, and outputs
    that are zero at first, as for every method here: of n random ones the largest is far above all others.

    Args:
        task, seed, device: as of every method here; the world may have 10,000 actions at most.
        lr: of Adam. tau: how far the target network moves at each update.
        linear: no hidden layers, as StochDQN with rows.

    Raises:
        ValueError: there are more actions.
    """
    run = Run(task, seed, device)
    if run.n > MOST:
        raise ValueError(f"exact DQN is run up to {MOST:,} actions here, and {task.world} has {run.n:,}")
    last = zero_at_first(nn.Linear(run.obs_dim if linear else task.hidden, run.n))
    network = last if linear else nn.Sequential(trunk(run.obs_dim, task.hidden), last)
    actor = QValueActor(network.to(run.device), in_keys=["observation"], spec=run.spec)
    loss = DQNLoss(actor, loss_function="l2", delay_value=True, action_space="categorical")
    loss.make_value_estimator(ValueEstimators.TD0, gamma=task.gamma)
    target = SoftUpdate(loss, tau=tau)
    optimizer = torch.optim.Adam(loss.parameters(), lr)

    def update(batch: TensorDictBase) -> None:
        loss(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        target.step()

    return run.learn(actor, update, [optimizer])
