"""A run of StochDQN by TorchRL: acting and learning, looked at, checkpointed and resumed exactly."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from omegaconf import DictConfig
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import CudaGraphModule
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchrl.envs import ExplorationType, set_exploration_type

from .devices import torch_device
from .evaluation import EVAL_SEED, play
from .ring_replay import RingReplay
from .rng import rng_state, set_rng_state
from .run_folder import MetricsTable, RunFolder
from .torchrl_agent import Agent, make_env
from .torchrl_collectors import collector_of

#: what of a step is stored
STORED = (
    "observation",
    "action",
    *[("next", key) for key in ("observation", "reward", "done", "terminated")],
)


class Run:
    """A run in progress: all that a checkpoint holds, and what it takes to go on.

    Args:
        cfg: the settings.
        folder: where everything goes; the run goes on from its checkpoint if it has one.
    """

    def __init__(self, cfg: DictConfig, folder: RunFolder) -> None:
        self.cfg, self.folder = cfg, folder
        self.device = torch_device(cfg.device)
        torch.set_num_threads(cfg.threads)
        torch.manual_seed(cfg.seed)
        self.env = make_env(cfg, self.device, cfg.seed)
        self.agent = Agent(cfg, self.env, self.device)
        workers = 1 if cfg.collector == "single" else cfg.workers
        self.n_envs = cfg.n_envs * workers
        self.replay = RingReplay(cfg.agent.buffer_size, self.n_envs, cfg.agent.n_steps, cfg.agent.gamma)
        self.eval_envs = gym.make_vec(cfg.env.id, num_envs=cfg.eval_episodes, **cfg.env.kwargs)
        self.progress: dict[str, Any] = {
            "step": 0, "updates": 0, "evaluations": [], "wall_s": 0.0, "cpu_s": 0.0
        }  # fmt: skip
        self.state: TensorDictBase = self.env.reset()
        checkpoint = folder.checkpoint()
        if checkpoint is not None:
            self.progress = json.loads((checkpoint / "progress.json").read_text())
            self._load(torch.load(checkpoint / "state.pt", map_location=self.device, weights_only=True))
            with np.load(checkpoint / "rng.npz", allow_pickle=False) as file:
                set_rng_state(dict(file))
        begun_at = None if checkpoint is None else self.step
        self.table = MetricsTable(folder, begun_at)
        self.events = SummaryWriter(str(folder.path), purge_step=None if begun_at is None else begun_at + 1)
        self._act: Any = self._act_and_store
        self._learn: Any = self._sample_and_update
        if cfg.compile:
            self._act, self._learn = torch.compile(self._act), torch.compile(self._learn)
        if cfg.cudagraphs:
            self._act, self._learn = CudaGraphModule(self._act), CudaGraphModule(self._learn)

    @property
    def step(self) -> int:
        """Environment steps done."""
        return self.progress["step"]

    def to_the_end(self) -> None:
        """Act, learn, look and save, until the last step."""
        if not self.progress["evaluations"]:
            self._look_and_save([], [], time.perf_counter(), time.process_time())
        with collector_of(self.cfg, self.agent, self) as steps:
            while self.step < self.cfg.total_timesteps:
                wall, cpu = time.perf_counter(), time.process_time()
                every = self.cfg.eval_every
                until = min((self.step // every + 1) * every, self.cfg.total_timesteps)
                losses, rewards = self.train_until(until, steps)
                self._look_and_save(losses, rewards, wall, cpu)

    def train_until(self, until: int, steps: Iterator[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Act and learn until ``until`` steps are done; returns losses and rewards of a step.

        Args:
            steps: of `collector_of`.
        """
        cfg, losses, rewards = self.cfg, [], []
        per_step = cfg.agent.updates_per_step
        while self.step < until:
            rewards.append(next(steps))
            before, self.progress["step"] = self.step, self.step + self.n_envs
            self.agent.explore.step(self.n_envs)
            if self.step < cfg.agent.learning_starts:
                continue
            self.agent.set_progress(min(1.0, self.step / cfg.total_timesteps))
            if per_step < 1 and before // self.n_envs % round(1 / per_step):
                continue
            for _ in range(max(1, int(per_step))):
                losses.append(self._learn())
                self.progress["updates"] += 1
        return losses, rewards

    def act(self) -> Tensor:
        """A step of every environment, stored; returns the mean reward."""
        return self._act()

    def _act_and_store(self) -> Tensor:
        with torch.no_grad():
            step, following = self.env.step_and_maybe_reset(self.agent.policy(self.state.clone(False)))
            self.store(step)
            self.state.update_(following.select(*self.state.keys(True, True)))
            return step["next", "reward"].mean()

    def store(self, step: TensorDictBase) -> None:
        """Put a step of every environment into the replay."""
        self.replay.add(step.select(*STORED))

    def _sample_and_update(self) -> Tensor:
        return self.agent.update(self.replay.sample(self.cfg.agent.batch_size))

    # -- looking and saving --

    def greedy(self, observations: np.ndarray) -> np.ndarray:
        """The deterministic policy's actions."""
        data = TensorDict(
            {"observation": torch.as_tensor(observations, device=self.device)}, [len(observations)]
        )
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            return self.agent.actor(data)["action"].cpu().numpy()

    def _look_and_save(self, losses: list[Tensor], rewards: list[Tensor], wall: float, cpu: float) -> None:
        greedy = play(self.eval_envs, self.greedy, EVAL_SEED)
        loss = float(torch.stack(losses).mean()) if losses else None
        if loss is not None and not np.isfinite(loss):
            raise ValueError(f"the loss is no finite number by step {self.step}: try a smaller agent.lr")
        reward = float(torch.stack(rewards).mean()) if rewards else None
        self.progress["evaluations"].append(
            {"step": self.step, "greedy": greedy.mean_return, "greedy_length": greedy.mean_length,
             "reward_while_learning": reward}
        )  # fmt: skip
        self.progress["wall_s"] += time.perf_counter() - wall
        self.progress["cpu_s"] += time.process_time() - cpu
        self.progress["evaluations"][-1] |= {
            "wall_s": self.progress["wall_s"],
            "cpu_s": self.progress["cpu_s"],
        }
        values = {
            "eval/mean_reward": greedy.mean_return,
            "eval/mean_ep_length": greedy.mean_length,
            "train/loss": loss,
            "train/n_updates": self.progress["updates"],
            "rollout/mean_step_reward": reward,
            "rollout/exploration_rate": float(self.agent.explore.eps),
            "time/wall_s": round(self.progress["wall_s"], 3),
        }
        known = {name: value for name, value in values.items() if value is not None}
        self.table.add(self.step, known)
        for name, value in known.items():
            self.events.add_scalar(name, value, self.step)
        total, left = self.cfg.total_timesteps, ""
        if self.step:
            left = f", {self.progress['wall_s'] * (total / self.step - 1) / 60:.1f} min left"
        known_reward = "-" if reward is None else f"{reward:.3f}"
        print(
            f"{self.step:>9,} of {total:,} steps: greedy return {greedy.mean_return:9.2f}, "
            f"reward of a step while learning {known_reward}{left}",
            flush=True,
        )
        with self.folder.new_checkpoint(self.step) as checkpoint:
            torch.save(self._state(), checkpoint / "state.pt")
            np.savez(checkpoint / "rng.npz", **rng_state())  # type: ignore[arg-type]
            (checkpoint / "progress.json").write_text(json.dumps(self.progress))

    def _state(self) -> dict[str, Any]:
        flat = {".".join((k,) if isinstance(k, str) else k): x for k, x in self.state.items(True, True)}
        state = {"agent": self.agent.state_dict(), "state": flat}
        if self.step:
            state["replay"] = self.replay.state_dict()
        if hasattr(self.env, "episodes"):
            state["env"] = {"streams": self.env.streams, "episodes": self.env.episodes}
        return state

    def _load(self, saved: dict[str, Any]) -> None:
        if "env" not in saved:
            raise ValueError(
                f"{self.cfg.env.id} cannot be put back into the middle of an episode, so a run in it cannot "
                "go on. Begin it anew, or use a world of envs.dynamics."
            )
        if self.agent.forgets:
            raise ValueError(
                f"a run with {self.agent.forgets} cannot go on: what that keeps is in no checkpoint. Begin "
                "it anew, or with agent.candidates=log"
            )
        self.agent.load_state_dict(saved["agent"])
        if "replay" in saved:
            self.replay.load_state_dict(saved["replay"])
        for name, x in saved["env"].items():
            getattr(self.env, name).copy_(x)
        for name, x in saved["state"].items():
            self.state.set(tuple(name.split(".")), x)
