"""Q(s, x) maximised by the cross-entropy method, as QT-Opt does (Kalashnikov et al., 2018)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from extensions.stochmax import MixedRadix
from extensions.torchrl import StochQNetwork

from .loop import Record, Run, Task, td_target
from .nearest import nearest_id
from .networks import follow, trunk


@torch.no_grad()
def cross_entropy(
    q: Callable[[Tensor], Tensor], codec: MixedRadix, batch: int, samples: int, rounds: int, elites: int
) -> tuple[Tensor, Tensor]:
    """The best id that the cross-entropy method meets, and its value: (B,) each.

    The first round draws ids uniformly. Each later one draws points of a normal distribution with the mean
    and deviation, digit by digit, of the best ``elites`` of the round before, and takes the nearest ids. The
    deviation is kept above a quarter of a bin.

    Args:
        q: values (B, C) of ids (B, C). codec: the grid. batch: B.
        samples: ids a round. rounds: how many; rounds times samples are evaluated.
        elites: of a round, at least 2.
    """
    device = codec.nvec.device
    floor = 0.5 / (codec.nvec - 1).clamp(min=1)  # (d,), a bin is 2 / (m - 1) wide
    ids = torch.randint(codec.n, (batch, samples), device=device)
    best_value, best = torch.full((batch,), -torch.inf, device=device), ids[:, 0]
    for last in range(rounds - 1, -1, -1):
        value, place = q(ids).topk(elites, dim=1)  # (B, elites)
        elite = ids.gather(1, place)
        better = value[:, 0] > best_value
        best_value = torch.where(better, value[:, 0], best_value)
        best = torch.where(better, elite[:, 0], best)
        if last:
            points = codec.features(elite)  # (B, elites, d)
            mean, deviation = points.mean(1, keepdim=True), points.std(1, keepdim=True)
            noise = torch.randn(batch, samples, points.shape[-1], device=device)
            ids = nearest_id(codec, mean + noise * torch.maximum(deviation, floor))
    return best, best_value


def train(
    task: Task,
    seed: int,
    device: Any = "cpu",
    *,
    lr: float = 1e-3,
    tau: float = 0.01,
    samples: int = 20,
    rounds: int = 3,
    elites: int = 4,
) -> list[Record]:
    """Train Q with the cross-entropy method as the arg max, when acting and for targets.

    The network is StochDQN's: only the maximum is another. Different from the paper: actions are the points
    of a grid; 20 samples a round and not 64, as many in all as StochDQN has candidates; the first round is
    uniform; the squared error, and one target network instead of the lesser of two with a lag.

    Args:
        task, seed, device: as of every method here; the task must have a codec.
        lr: of Adam. tau: how far the target network moves at each update.
        samples, rounds, elites: of :func:`cross_entropy`.
    """
    run = Run(task, seed, device)
    codec = run.codec
    network = StochQNetwork(
        trunk(run.obs_dim, task.hidden),
        codec,
        width=task.hidden,
        head="feature",
        head_kwargs={"hidden": task.hidden},
        device=run.device,
    )
    target = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr)

    def maximise(net: StochQNetwork, observation: Tensor) -> tuple[Tensor, Tensor]:
        states = net.trunk(observation)  # once, whatever the rounds
        return cross_entropy(lambda ids: net.head(states, ids), codec, len(states), samples, rounds, elites)

    @torch.no_grad()
    def policy(td: TensorDictBase) -> TensorDictBase:
        return td.set("action", maximise(network, td["observation"])[0])

    def update(batch: TensorDictBase) -> None:
        with torch.no_grad():
            y = td_target(batch, maximise(target, batch["next", "observation"])[1], task.gamma)  # (B,)
        value = network(batch["observation"], batch["action"].unsqueeze(1)).squeeze(1)
        F.mse_loss(value, y).backward()
        optimizer.step()
        optimizer.zero_grad()
        follow(target, network, tau)

    return run.learn(policy, update, [optimizer])
