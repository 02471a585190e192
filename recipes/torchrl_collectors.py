"""Where transitions come from: the same process, other processes, or actors of Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from .torchrl_agent import Agent, make_env

#: steps of every environment between two looks of the workers at the learner's weights
STEPS_A_BATCH = 8


@contextmanager
def collector_of(cfg: DictConfig, agent: Agent, run: Any) -> Iterator[Iterator[Tensor]]:
    """An iterator of which each item is a step of every environment, put into the run's replay: its mean
    reward.

    Raises:
        ModuleNotFoundError: ``collector=ray`` without Ray.
    """
    if cfg.collector == "single":
        yield iter(run.act, None)
        return
    made = _multi if cfg.collector == "multi" else _ray
    collector = made(cfg, agent, run.step)
    try:
        yield _steps(collector, run)
    finally:
        collector.shutdown()


def _steps(collector: Any, run: Any) -> Iterator[Tensor]:
    batches = iter(collector)
    while True:
        collector.update_policy_weights_()
        batch: TensorDictBase = next(batches)
        batch = batch.reshape(run.n_envs, STEPS_A_BATCH).to(run.device)
        for step in batch.unbind(1):
            run.store(step)
            yield step["next", "reward"].mean()


def worker_seed(seed: int, step: int, worker: int) -> int:
    """Of a run's worker: no other run's, no other worker's, and another where a run goes on."""
    return int(np.random.SeedSequence((seed, step, worker)).generate_state(1)[0])


def env_of_worker(cfg: DictConfig, step: int, worker: int) -> EnvBase:
    """Called in the worker's own process, which it seeds: exploration and candidates are drawn there too."""
    seed = worker_seed(cfg.seed, step, worker)
    torch.manual_seed(seed)
    return make_env(cfg, "cpu", seed)


def _envs(cfg: DictConfig, step: int) -> list[Any]:
    return [partial(env_of_worker, cfg, step, worker) for worker in range(cfg.workers)]


def _multi(cfg: DictConfig, agent: Agent, step: int) -> Any:
    from torchrl.collectors import MultiSyncCollector

    return MultiSyncCollector(
        _envs(cfg, step),
        agent.policy,
        frames_per_batch=cfg.n_envs * cfg.workers * STEPS_A_BATCH,
        total_frames=-1,
        auto_register_policy_transforms=False,
    )


def _ray(cfg: DictConfig, agent: Agent, step: int) -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('collector=ray needs Ray: pip install "rl-extensions[ray]"') from error
    from torchrl.collectors.distributed import RayCollector

    if not ray.is_initialized():
        ray.init(num_cpus=cfg.workers, include_dashboard=False, log_to_driver=False)
    return RayCollector(
        _envs(cfg, step),
        agent.policy,
        frames_per_batch=cfg.n_envs * cfg.workers * STEPS_A_BATCH,
        total_frames=1 << 60,  # for Ray, -1 is none
        sync=True,
        remote_configs={"num_cpus": 1, "num_gpus": 0, "memory": 1 << 30},
        collector_kwargs={"auto_register_policy_transforms": False},
    )
