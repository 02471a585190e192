"""The types of the settings of ``python -m recipes.stoch_dqn_torchrl``, and what none of them may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from ..devices import torch_device
from . import checks
from .schema import EnvConfig

COLLECTORS = ("single", "multi", "ray")
LOSSES = ("l1", "l2", "smooth_l1")


@dataclass
class AgentConfig:
    """`extensions.torchrl.StochDQNLoss` and what it learns by."""

    #: hidden layers before the head; none hands it the observation itself
    net_arch: list[int] = field(default_factory=lambda: [256, 256])
    head: str = "auto"
    head_kwargs: dict[str, Any] = field(default_factory=dict)
    candidates: Any = "log"
    eval_candidates: Any = 1024
    double_dqn: bool = False
    loss_function: str = "smooth_l1"
    gamma: float = 0.99
    n_steps: int = 1
    lr: float = 1e-3
    #: the learning rate at the end, as a share of ``lr``; it falls in a straight line
    lr_end: float = 0.1
    #: the learning rate of rows as a multiple of ``lr``
    row_lr_scale: float = 10.0
    max_grad_norm: float = 10.0
    batch_size: int = 256
    buffer_size: int = 100_000
    #: environment steps before the first update; enough for every environment to have done ``n_steps``
    learning_starts: int = 1_000
    #: updates for each step of all environments: a whole number, or 1/2, 1/3, ... for one in so many steps
    updates_per_step: float = 1.0
    #: updates between two copies of the target network; with tau < 1 it is moved at each instead
    target_update_interval: int = 200
    tau: float = 1.0
    eps_init: float = 1.0
    eps_end: float = 0.05
    #: share of the steps over which epsilon falls
    exploration_fraction: float = 0.5


@dataclass
class StochDQNTorchRLConfig:
    """What ``python -m recipes.stoch_dqn_torchrl`` takes."""

    env: EnvConfig = field(default_factory=EnvConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    total_timesteps: int = 150_000
    eval_every: int = 10_000
    eval_episodes: int = 1
    #: environments that step together, in all, or in each worker
    n_envs: int = 64
    #: single: acting and learning in turn; multi: workers are processes; ray: they are actors of Ray
    collector: str = "single"
    workers: int = 2
    #: torch.compile the step, and hold it in a CUDA graph (both with collector=single)
    compile: bool = False
    cudagraphs: bool = False
    seed: int = 0
    device: str = "auto"
    #: threads of torch; with one, a run repeats bit for bit on like machines
    threads: int = 1
    #: the whole path in seconds
    smoke: bool = False
    #: the folder of a run to go on with
    resume: str | None = None


def check(cfg: DictConfig) -> None:
    """Refuse settings that make no sense.

    Raises:
        ValueError: which, and why.
    """
    checks.at_least(cfg, ("total_timesteps", "eval_every", "eval_episodes", "n_envs", "workers", "threads"))
    checks.seed_and_device(cfg)
    if cfg.collector not in COLLECTORS:
        raise ValueError(f"collector={cfg.collector}: it must be one of {', '.join(COLLECTORS)}")
    if cfg.collector != "single" and (cfg.compile or cfg.cudagraphs):
        raise ValueError("compile and cudagraphs are of the whole step: they need collector=single")
    if cfg.cudagraphs and torch_device(cfg.device).type != "cuda":
        raise ValueError(f"cudagraphs=true needs device=cuda and a GPU, got device={cfg.device} without one")
    agent = cfg.agent
    checks.at_least(agent, ("n_steps", "batch_size", "buffer_size", "target_update_interval"))
    for name in ("lr", "row_lr_scale", "max_grad_norm", "updates_per_step"):
        if not agent[name] > 0:
            raise ValueError(f"agent.{name}={agent[name]}: it must be above 0")
    for name in ("gamma", "lr_end", "exploration_fraction", "eps_init", "eps_end"):
        if not 0 <= agent[name] <= 1:
            raise ValueError(f"agent.{name}={agent[name]}: it must be from 0 to 1")
    if agent.eps_end > agent.eps_init:
        raise ValueError(
            f"agent.eps_end={agent.eps_end}: epsilon falls, so it must be at most "
            f"agent.eps_init={agent.eps_init}"
        )
    if agent.loss_function not in LOSSES:
        raise ValueError(f"agent.loss_function={agent.loss_function}: it must be one of {', '.join(LOSSES)}")
    if not 0 < agent.tau <= 1:
        raise ValueError(f"agent.tau={agent.tau}: it must be above 0 and at most 1")
    _updates_per_step(agent.updates_per_step)
    n_envs = cfg.n_envs * (1 if cfg.collector == "single" else cfg.workers)
    if agent.buffer_size < n_envs * (agent.n_steps + 1):
        raise ValueError(
            f"agent.buffer_size={agent.buffer_size}: {n_envs} environments need one of at least "
            f"{n_envs * (agent.n_steps + 1)}, agent.n_steps + 1 transitions each"
        )
    if agent.n_steps > 1 and agent.learning_starts <= n_envs * (agent.n_steps - 1):
        raise ValueError(
            f"agent.learning_starts={agent.learning_starts}: {n_envs} environments have not yet done the "
            f"agent.n_steps={agent.n_steps} of a sample; make it at least {n_envs * (agent.n_steps - 1) + 1}"
        )


def _updates_per_step(value: float) -> None:
    if value > 1 and value != int(value):
        raise ValueError(f"agent.updates_per_step={value}: above 1 it must be whole")
    between = 1 / value
    if value < 1 and abs(value * round(between) - 1) > 1e-3:  # 0.3333 is a third
        more, fewer = int(between), int(between) + 1
        raise ValueError(
            f"agent.updates_per_step={value}: below 1 it is one update in a whole number of steps; the "
            f"nearest are {1 / fewer:.4g} (one in {fewer}) and {1 / more:.4g} (one in {more})"
        )


def register() -> None:
    """Tell Hydra of the schema."""
    ConfigStore.instance().store(name="schema_stoch_dqn_torchrl", node=StochDQNTorchRLConfig)
