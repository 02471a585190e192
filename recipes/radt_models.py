"""The actors that recipes.radt compares: RADT and TorchRL's Decision Transformer, in the same clothes."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import Bounded
from torchrl.envs import EnvBase
from torchrl.modules import DTActor, ProbabilisticActor, TanhDelta

from extensions.torchrl import RADTActor, RADTConfig, TrajectoryWindows

DT_KEYS = ["observation", "action", "return_to_go"]
RADT_KEYS = [*DT_KEYS, "timestep", "mask"]
DT_FIELDS = ("n_embd", "n_layer", "n_head", "activation", "resid_pdrop", "attn_pdrop")


class ScaledDTActor(DTActor):
    """TorchRL's Decision Transformer, told (r - shift) / scale for the return-to-go r."""

    def __init__(self, state_dim: int, action_dim: int, config: dict[str, Any], shift: float, scale: float):
        super().__init__(state_dim, action_dim, config)
        # its configuration has no place for this one, which would stay at GPT-2's 0.1
        self.transformer.transformer.drop.p = config["resid_pdrop"]
        self.shift, self.scale = shift, scale

    def forward(self, observation: Tensor, action: Tensor, return_to_go: Tensor) -> Tensor:
        return super().forward(observation, action, (return_to_go - self.shift) / self.scale)


def return_units(cfg: DictConfig, windows: TrajectoryWindows) -> tuple[float, float]:
    """What is taken off a return-to-go, and what the rest is divided by."""
    if cfg.return_scale is not None:
        return 0.0, float(cfg.return_scale)
    to_go = windows.return_to_go.double()
    return float(to_go.mean()), float(to_go.std()) + 1e-6


def make_actor(
    cfg: DictConfig, windows: TrajectoryWindows, env: EnvBase, max_steps: int
) -> ProbabilisticActor:
    """The actor of ``cfg.actor``, untrained, for the data's observations and the environment's actions.

    ``max_steps`` is what an episode may have in the environment.

    Raises:
        ValueError: discrete actions, or settings that the actor refuses.
    """
    action_spec, observation_spec = env.action_spec, env.observation_spec["observation"]
    if not isinstance(action_spec, Bounded) or windows.discrete:
        raise ValueError("this recipe is for continuous actions; RADTActor itself takes discrete ones too")
    window = windows.at(torch.zeros(1, dtype=torch.int64, device=windows.device))
    state_dim, action_dim = window["observation"].shape[-1], window["action"].shape[-1]
    theirs = (observation_spec.shape[-1], action_spec.shape[-1])
    if theirs != (state_dim, action_dim):
        raise ValueError(
            f"the data's observations and actions have {state_dim} and {action_dim} features, those of "
            f"{cfg.env.id} {theirs[0]} and {theirs[1]}: give the env that the dataset is from"
        )
    shift, scale = return_units(cfg, windows)
    settings: dict[str, Any] = OmegaConf.to_container(cfg.transformer)  # type: ignore[assignment]
    net: torch.nn.Module
    if cfg.actor == "dt":
        config = {name: settings[name] for name in DT_FIELDS}
        config |= {"n_inner": 4 * config["n_embd"], "n_positions": 3 * windows.context}
        net, keys = ScaledDTActor(state_dim, action_dim, config, shift, scale), DT_KEYS
    else:
        longest = max(int(windows.lengths.max()), max_steps)
        fields = RADTConfig(
            **settings,
            n_positions=3 * windows.context,
            max_ep_len=longest,
            return_shift=shift,
            return_scale=scale,
        )
        net, keys = RADTActor(state_dim, action_dim, fields), RADT_KEYS
    low, high = (bound[0].cpu() for bound in (action_spec.space.low, action_spec.space.high))
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=keys, out_keys=["param"]),
        in_keys=["param"],
        distribution_class=TanhDelta,
        distribution_kwargs={"low": low, "high": high},
    )
