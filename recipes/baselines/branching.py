"""A branch of the network for each digit of an action: BDQ (Tavakoli et al., AAAI 2018)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from extensions.stochmax import MixedRadix

from .loop import Record, Run, Task, td_target
from .networks import Branches, follow


@torch.no_grad()
def branching_target(batch: TensorDictBase, online: Branches, target: Branches, gamma: float) -> Tensor:
    """The target that all branches share: (B,).

    ``r + gamma (1 - terminated)`` times the mean over the digits of what the target network thinks of the
    value that the online network thinks best.
    """
    following = batch["next", "observation"]
    best = online(following).argmax(-1, keepdim=True)  # (B, d, 1)
    next_value = target(following).gather(-1, best).squeeze(-1).mean(-1)  # (B,)
    return td_target(batch, next_value, gamma)


def change_digits(codec: MixedRadix, ids: Tensor, eps: Tensor | float) -> Tensor:
    """``ids`` (B,) with each digit drawn uniformly, by itself, with probability ``eps``: (B,)."""
    digits = codec.digits(ids)  # (B, d)
    drawn = (torch.rand(digits.shape, device=ids.device) * codec.nvec).long()
    coin = torch.rand(digits.shape, device=ids.device) < eps
    return (torch.where(coin, drawn, digits) * codec.place).sum(-1)


def train(task: Task, seed: int, device: Any = "cpu", *, lr: float = 1e-3, tau: float = 0.01) -> list[Record]:
    """Train a branching dueling Q network.

    Different from the paper: a target network that moves by ``tau``, no prioritised replay, no scaling of
    the gradient that the branches send to the trunk, smaller networks, and uniform values in exploration
    instead of a normal distribution around the greedy ones. As in the paper each digit explores by itself:
    were whole ids drawn, as for the other methods here, a digit would never be seen alone beside the greedy
    ones, and all branches would credit the greedy digits for what all of them bring together. (On
    JointReplenishmentSeparable-1M the first greedy action then stayed the best to the end.)

    Args:
        task, seed, device: as of every method here; the world's ids must have digits.
        lr: of Adam. tau: how far the target network moves at each update.
    """
    run = Run(task, seed, device)
    codec = MixedRadix(run.world.sizes).to(run.device)
    network = Branches(run.obs_dim, run.world.sizes, task.hidden).to(run.device)
    target = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr)

    @torch.no_grad()
    def policy(td: TensorDictBase) -> TensorDictBase:
        digits = network(td["observation"]).argmax(-1)  # (B, d)
        return td.set("action", (digits * codec.place).sum(-1))

    def explore(td: TensorDictBase) -> TensorDictBase:
        return td.set("action", change_digits(codec, td["action"], run.epsilon.eps))

    def update(batch: TensorDictBase) -> None:
        y = branching_target(batch, network, target, task.gamma)  # (B,)
        digits = codec.digits(batch["action"]).unsqueeze(-1)  # (B, d, 1)
        values = network(batch["observation"]).gather(-1, digits).squeeze(-1)  # (B, d)
        (values - y.unsqueeze(-1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        follow(target, network, tau)

    return run.learn(policy, update, [optimizer], explore)
