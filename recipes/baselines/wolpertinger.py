"""A proto-action, its nearest actions, and the critic's choice among them: Wolpertinger (Dulac-Arnold et al.,
2015)."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.objectives import DDPGLoss, SoftUpdate, ValueEstimators
from torchrl.objectives.utils import distance_loss

from extensions.stochmax import MixedRadix

from .loop import Record, Run, Task
from .nearest import nearest_ids
from .networks import PointCritic, trunk


class WolpertingerLoss(DDPGLoss):
    """TorchRL's DDPG loss whose target is of the whole policy: of the best of the k actions nearest to the
    target actor's point, as the target critic ranks them, as in the paper's algorithm 2. The actor's
    loss is DDPG's.

    Args:
        actor, critic: read ``"observation"``, write ``"point"``; read both, write ``"state_action_value"``.
        codec: the grid. k: how many actions the critic chooses from.
    """

    def __init__(self, actor: TensorDictModule, critic: TensorDictModule, codec: MixedRadix, k: int) -> None:
        super().__init__(actor, critic, delay_actor=True, delay_value=True)
        self.__dict__["codec"] = codec
        self.k = k

    def best(self, observation: Tensor, noise: float = 0.0, target: bool = False) -> tuple[Tensor, Tensor]:
        """The policy's ids and their values, (B,) each, for observations (B, o)."""
        prefix = "target_" if target else ""
        actor, critic = (getattr(self, f"{prefix}{name}_network_params") for name in ("actor", "value"))
        with (
            torch.no_grad(),
            actor.to_module(self.actor_network, preserve_module_state=False),
            critic.to_module(self.value_network, preserve_module_state=False),
        ):
            point = self.actor_network.module(observation)  # (B, d)
            if noise:
                point = (point + noise * torch.randn_like(point)).clamp(-1.0, 1.0)
            ids = nearest_ids(self.codec, point, self.k)  # (B, k)
            values = self.value_network.module(observation, self.codec.features(ids)).squeeze(-1)  # (B, k)
        value, column = values.max(1)
        return ids.gather(1, column.unsqueeze(1)).squeeze(1), value

    def loss_value(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss."""
        with self.value_network_params.to_module(self.value_network, preserve_module_state=False):
            value = self.value_network.module(tensordict["observation"], tensordict["point"])  # (B, 1)
        next_value = self.best(tensordict["next", "observation"], target=True)[1].unsqueeze(-1)
        target = self.value_estimator.value_estimate(tensordict.clone(False), next_value=next_value)
        loss = distance_loss(value, target, self.loss_function)
        return loss.mean(), {"td_error": (value - target).detach().square()}


def train(
    task: Task,
    seed: int,
    device: Any = "cpu",
    *,
    lr: float = 1e-3,
    tau: float = 0.01,
    k: int = 60,
    noise: float = 0.1,
) -> list[Record]:
    """Train Wolpertinger.

    Different from the paper: the nearest neighbours are exact and found by arithmetic, not by an approximate
    index of n points; exploration is by uniform ids, as of all methods here, and normal noise on the point;
    k is a number and not a share of n; smaller networks.

    Args:
        task, seed, device: as of every method here; the task must have a codec.
        lr: of Adam, actor and critic alike. tau: how far the target networks move at each update.
        k: nearest actions from which the critic chooses, when acting and for targets.
        noise: deviation of the noise on the point when exploring; the box is [-1, 1]^d.
    """
    run = Run(task, seed, device)
    codec, dims = run.codec, len(run.world.sizes)
    actor = nn.Sequential(trunk(run.obs_dim, task.hidden), nn.Linear(task.hidden, dims), nn.Tanh())
    critic = PointCritic(run.obs_dim, dims, task.hidden)
    loss = WolpertingerLoss(
        TensorDictModule(actor.to(run.device), ["observation"], ["point"]),
        TensorDictModule(critic.to(run.device), ["observation", "point"], ["state_action_value"]),
        codec,
        k,
    )
    loss.make_value_estimator(ValueEstimators.TD0, gamma=task.gamma)
    target = SoftUpdate(loss, tau=tau)
    optimizers = [
        torch.optim.Adam(list(params.values(True, True)), lr)
        for params in (loss.actor_network_params, loss.value_network_params)
    ]

    def policy(td: TensorDictBase) -> TensorDictBase:
        exploring = exploration_type() == ExplorationType.RANDOM
        return td.set("action", loss.best(td["observation"], noise if exploring else 0.0)[0])

    def update(batch: TensorDictBase) -> None:
        batch["point"] = codec.features(batch["action"])
        losses: TensorDict = loss(batch)
        (losses["loss_actor"] + losses["loss_value"]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        target.step()

    return run.learn(policy, update, optimizers)
