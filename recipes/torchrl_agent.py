"""StochDQN's TorchRL parts, put together from a recipe's settings."""

from __future__ import annotations

from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor
from torchrl.envs import DoubleToFloat, EnvBase, GymEnv, TransformedEnv
from torchrl.modules import MLP

from envs.torchrl import LargeActionEnv
from extensions.optim import RowAdam, clip_grad_norm_
from extensions.stochmax import Elite, RecentExploited
from extensions.stochmax.candidates import check_capturable
from extensions.torchrl import (
    HardUpdate,
    SoftUpdate,
    StochDQNLoss,
    StochEGreedyModule,
    StochQNetwork,
    StochQValueActor,
)


def make_env(cfg: DictConfig, device: Any, seed: int) -> EnvBase:
    """``cfg.n_envs`` environments that step together."""
    kwargs: Any = OmegaConf.to_container(cfg.env.kwargs)
    try:
        return LargeActionEnv(cfg.env.id, cfg.n_envs, device=device, seed=seed, **kwargs)
    except ValueError as error:
        if "GymEnv" not in str(error):
            raise
    # Of MuJoCo, which steps on the CPU.
    env = GymEnv(cfg.env.id, num_envs=cfg.n_envs, device=device, categorical_action_encoding=True, **kwargs)
    env.set_seed(seed)
    return TransformedEnv(env, DoubleToFloat())


class Agent:
    """Actor, exploration, loss, optimizer and target updater: all that learns and acts.

    Args:
        cfg: the settings.
        env: what it will act in.
        device: where it learns.
    """

    def __init__(self, cfg: DictConfig, env: EnvBase, device: torch.device) -> None:
        agent = cfg.agent
        self.cfg = agent
        spec = env.action_spec_unbatched
        width = env.observation_spec_unbatched["observation"].shape[-1]
        codec: Any = int(spec.space.n)
        if cfg.env.codec is not None:
            codec = hydra.utils.instantiate(cfg.env.codec, _convert_="all")
        hidden = list(agent.net_arch)
        trunk = None
        if hidden:
            trunk = MLP(
                in_features=width,
                out_features=hidden[-1],
                num_cells=hidden[:-1],
                activation_class=torch.nn.ReLU,
                activate_last_layer=True,
            )
        network = StochQNetwork(
            trunk,
            codec,
            width=hidden[-1] if hidden else width,
            head=agent.head,
            head_kwargs=OmegaConf.to_container(agent.head_kwargs),  # type: ignore[arg-type]
            device=device,
        )
        candidates = agent.candidates
        if not isinstance(candidates, str):
            candidates = hydra.utils.instantiate(candidates, _convert_="all")
        self.actor = StochQValueActor(
            network, spec=spec.to(device), candidates=candidates, eval_candidates=agent.eval_candidates
        ).to(device)
        if cfg.cudagraphs:
            check_capturable(self.actor.maximum.sources)
        self.explore = StochEGreedyModule(
            spec.to(device),
            eps_init=agent.eps_init,
            eps_end=agent.eps_end,
            annealing_num_steps=max(1, round(agent.exploration_fraction * cfg.total_timesteps)),
            device=device,
        )
        self.policy = TensorDictSequential(self.actor, self.explore)
        self.loss = StochDQNLoss(self.actor, double_dqn=agent.double_dqn, loss_function=agent.loss_function)
        self.loss.make_value_estimator(gamma=agent.gamma)
        #: a tensor, so that a captured step sees it fall
        self.lr = torch.tensor(agent.lr, device=device) if cfg.cudagraphs else agent.lr
        self.optimizer = RowAdam(
            self.loss.parameters(), lr=self.lr, row_lr_scale=agent.row_lr_scale, capturable=cfg.cudagraphs
        )
        self.updater: Any = (
            HardUpdate(self.loss, value_network_update_interval=agent.target_update_interval - 1)
            if agent.tau == 1.0
            else SoftUpdate(self.loss, tau=agent.tau)
        )

    @property
    def forgets(self) -> str:
        """The sources of candidates whose memory is Python's and in no state; empty if there are none."""
        sources = self.actor.maximum.sources
        return ", ".join(str(source) for source in sources if isinstance(source, (RecentExploited, Elite)))

    def update(self, batch: TensorDict) -> Tensor:
        """One step of the optimizer on transitions (B,); returns the loss."""
        loss = self.loss(batch)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.loss.parameters(), self.cfg.max_grad_norm)
        self.optimizer.step()
        self.updater.step()
        return loss.detach()

    def set_progress(self, share: float) -> None:
        """Set the learning rate for a run of which ``share`` is done, in [0, 1]."""
        lr = self.cfg.lr * (1 - (1 - self.cfg.lr_end) * share)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """All that decides how it goes on; loads with ``weights_only=True``."""
        return {
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updater": self.updater.state_dict(),
            "explore": self.explore.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what ``state_dict`` was of."""
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updater.load_state_dict(state["updater"])
        self.explore.load_state_dict(state["explore"])
