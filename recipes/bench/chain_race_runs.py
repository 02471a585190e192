"""A run of :mod:`.chain_race`: an agent of a recipe learns until its greedy policy is good enough."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.callbacks import BaseCallback

from .. import stoch_dqn, stoch_dqn_torchrl  # noqa: F401 (register the settings' types)
from ..evaluation import EVAL_SEED, optimum, play
from ..run_folder import RunFolder, where_it_ran
from ..torchrl_collectors import collector_of
from ..torchrl_run import Run
from .kept_runs import is_left_to_run

RUNS = Path("runs/chain_race")
#: environment steps between two looks at the greedy policy
EVERY = 2_500
#: of the optimum, to be reached
SHARE = 0.95


@dataclass(frozen=True)
class Agent:
    """Whose agent it is, and what is changed of its tuned settings."""

    recipe: str
    overrides: tuple[str, ...] = ()


#: Ten times the learning rate, three times that of rows, and half the updates between two targets. Found on
#: seeds 100 and 101 with the agent of TorchRL.
AGENTS = {
    "SB3": Agent("stoch_dqn"),
    "TorchRL": Agent("stoch_dqn_torchrl"),
    "TorchRL, in a hurry": Agent(
        "stoch_dqn_torchrl",
        ("agent.lr=3.0e-2", "agent.row_lr_scale=3.0", "agent.target_update_interval=6"),
    ),
    "SB3, in a hurry": Agent(
        "stoch_dqn",
        (
            "algo.learning_rate.start=3.0e-2",
            "algo.learning_rate.end=3.0e-3",
            "+algo.policy_kwargs.optimizer_kwargs.row_lr_scale=3.0",
            "algo.target_update_interval=100",
        ),
    ),
}


@dataclass(frozen=True)
class Job:
    """A run: an agent and a seed."""

    name: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where its result is."""
        return RUNS / self.name.replace(", ", "-").replace(" ", "_") / f"seed{self.seed}"


def settings(job: Job) -> DictConfig:
    """What the recipe would run with, on one thread of a CPU, looked at every ``EVERY`` steps."""
    agent = AGENTS[job.name]
    given = ["env=scatter_chain_1m", f"seed={job.seed}", f"eval_every={EVERY}", "device=cpu", "threads=1"]
    with initialize_config_module("recipes.conf", version_base="1.3"):
        return compose(agent.recipe, overrides=[*given, *agent.overrides])


class Race:
    """The clock of a run, and what its greedy policy was worth at each look.

    A run is over when two looks in a row found ``SHARE`` of the optimum. The clock does not run while it is
    looked at, nor before the first step.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.envs = gym.make_vec(cfg.env.id, num_envs=cfg.eval_episodes, **cfg.env.kwargs)
        best = optimum(self.envs, EVAL_SEED)
        assert best is not None
        self.optimum = best.mean_return
        self.evaluations: list[dict[str, float]] = []
        self.wall_s = self.cpu_s = 0.0
        self.start()

    def start(self) -> None:
        """Let the clock run."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Halt it."""
        self.wall_s += time.perf_counter() - self._wall
        self.cpu_s += time.process_time() - self._cpu

    @property
    def over(self) -> bool:
        """Whether the last two looks found a good policy."""
        last = self.evaluations[-2:]
        return len(last) == 2 and all(e["share"] >= SHARE for e in last)

    def look(self, step: int, act: Callable[[Any], Any]) -> None:
        """Play the held-out episodes with ``act``, while the clock stands still."""
        self.stop()
        share = play(self.envs, act, EVAL_SEED).mean_return / self.optimum
        self.evaluations.append({"step": step, "share": share, "wall_s": self.wall_s, "cpu_s": self.cpu_s})
        self.start()


class Looks(BaseCallback):
    """Looks at an SB3 agent every ``every`` steps, between two rollouts, until its race is over."""

    def __init__(self, race: Race, every: int) -> None:
        super().__init__()
        self.race, self.every = race, every
        self.next_at = every

    def _on_training_start(self) -> None:
        self.race.start()

    def _on_step(self) -> bool:
        return not self.race.over

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.next_at:
            self._look()

    def _on_training_end(self) -> None:
        if not self.race.over:
            self._look()

    def _look(self) -> None:
        self.next_at += self.every
        self.race.look(self.num_timesteps, lambda obs: self.model.predict(obs, deterministic=True)[0])


def _learn_with_sb3(cfg: DictConfig) -> Race:
    race = Race(cfg)
    model = stoch_dqn.make_model(cfg, stoch_dqn.make_env(cfg))
    model.learn(cfg.total_timesteps, Looks(race, cfg.eval_every), log_interval=None)  # type: ignore[arg-type]
    return race


def _learn_with_torchrl(cfg: DictConfig) -> Race:
    race = Race(cfg)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(cfg, RunFolder(Path(folder)))
        with collector_of(cfg, run.agent, run) as steps:
            race.start()
            while not race.over and run.step < cfg.total_timesteps:
                run.train_until(min((run.step // EVERY + 1) * EVERY, cfg.total_timesteps), steps)
                race.look(run.step, run.greedy)
    return race


LEARN = {"stoch_dqn": _learn_with_sb3, "stoch_dqn_torchrl": _learn_with_torchrl}


def run(job: Job) -> None:
    """Run to the end, unless that was done."""
    cfg = settings(job)
    if not is_left_to_run(job.folder, cfg):
        return
    torch.set_num_threads(cfg.threads)
    folder = RunFolder(job.folder)
    folder.write("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    print(f"{job.name}, seed {job.seed}", flush=True)
    race = LEARN[AGENTS[job.name].recipe](cfg)
    result = {
        "seed": job.seed,
        "optimum": race.optimum,
        "evaluations": race.evaluations,
        "budget": cfg.total_timesteps,
        "cpu_s": race.cpu_s,
        **where_it_ran(),
    }
    folder.write("result.json", json.dumps(result, indent=1) + "\n")
