"""A return-conditioned transformer's run: trained offline, played for targets, and resumed exactly."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from extensions.torchrl import (
    Alignment,
    RADTLoss,
    RADTPolicy,
    TrajectoryWindows,
    evaluate_targets,
    spaced_targets,
)

from .conf.radt_schema import check
from .devices import torch_device
from .gym_batch import GymBatch
from .radt_models import make_actor
from .rng import rng_state, set_rng_state
from .run_folder import MetricsTable, RunFolder
from .schedules import lr_share

EVAL_SEED, TEST_SEED = 1_000_000, 2_000_000  # the same episodes for every run
BEYOND = 0.25  # how far beyond the data's range the last two targets lie, as a share of its width


class Run:
    """A run in progress: all that a checkpoint holds, and what it takes to go on.

    Args:
        cfg: the settings.
        data: what to learn from, flat; see `recipes.data.layout.flatten`.
        folder: where everything goes; the run goes on from its checkpoint if it has one.

    Raises:
        ValueError: the settings make no sense, or not with the data.
    """

    def __init__(self, cfg: DictConfig, data: TensorDict, folder: RunFolder) -> None:
        check(cfg)
        self.cfg, self.folder = cfg, folder
        self.device = torch_device(cfg.device)
        torch.set_num_threads(cfg.threads)
        torch.manual_seed(cfg.seed)
        self.windows = TrajectoryWindows(
            data, cfg.train_context or cfg.context, normalise=True, device=self.device, seed=cfg.seed
        )
        self.low, self.high = self.windows.target_range()
        if not self.high > self.low:
            raise ValueError(f"all episodes of the data bring about {self.low}: there is nothing to align")
        self.eval_env = self.make_env(cfg.eval_targets * cfg.eval_episodes)
        limit = self.eval_env.envs[0].spec.max_episode_steps  # type: ignore[union-attr]
        self.max_steps = limit or int(self.windows.lengths.max())
        self.actor = make_actor(cfg, self.windows, self.eval_env, self.max_steps).to(self.device)
        self.loss = RADTLoss(self.actor)
        self.optimizer = torch.optim.AdamW(
            self.actor.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True
        )
        uncached = cfg.actor == "dt" or cfg.transformer.architecture != "radt"
        self.policy = RADTPolicy(self.actor, cfg.context, cache="none" if uncached else cfg.cache)
        #: the weights that followed the targets best so far
        self.selected: dict[str, torch.Tensor] = {}
        self.progress: dict[str, Any] = {
            "step": 0, "evaluations": [], "wall_s": 0.0, "cpu_s": 0.0, "train_cpu_s": 0.0
        }  # fmt: skip
        checkpoint = folder.checkpoint()
        if checkpoint is not None:
            self.progress = json.loads((checkpoint / "progress.json").read_text())
            saved = torch.load(checkpoint / "state.pt", map_location=self.device, weights_only=True)
            self.actor.load_state_dict(saved["actor"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.selected = saved["selected"]
            self.windows.set_state(saved["windows"])
            with np.load(checkpoint / "rng.npz", allow_pickle=False) as file:
                set_rng_state(dict(file))
        begun_at = None if checkpoint is None else self.step
        self.table = MetricsTable(folder, begun_at)
        self.events = SummaryWriter(str(folder.path), purge_step=None if begun_at is None else begun_at + 1)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.progress["step"]

    def make_env(self, count: int) -> GymBatch:
        return GymBatch(self.cfg.env.id, count, device=self.device, **self.cfg.env.kwargs)

    def to_the_end(self) -> None:
        """Train, look and save, until the last step."""
        if not self.progress["evaluations"]:
            self._look_and_save(None, time.perf_counter(), time.process_time())
        while self.step < self.cfg.steps:
            wall, cpu = time.perf_counter(), time.process_time()
            until = min((self.step // self.cfg.eval_every + 1) * self.cfg.eval_every, self.cfg.steps)
            training = self._train(until)
            self.progress["train_cpu_s"] += time.process_time() - cpu
            self._look_and_save(training, wall, cpu)

    def _train(self, until: int) -> float:
        """Train for some steps; returns their mean loss."""
        cfg, losses = self.cfg, []
        self.actor.train()
        for step in range(self.step + 1, until + 1):
            share = lr_share(step, cfg.steps, cfg.lr_warmup, cfg.lr_end)
            for group in self.optimizer.param_groups:
                group["lr"] = cfg.lr * share
            loss = self.loss(self.windows.sample(cfg.batch_size))["loss"]
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.actor.parameters(), cfg.clip_norm)
            self.optimizer.step()
            losses.append(loss.detach())
        self.progress["step"] = until
        mean = float(torch.stack(losses).mean())
        if not np.isfinite(mean):
            raise ValueError(f"the loss is no finite number by step {until}: try a smaller lr than {cfg.lr}")
        return mean

    def play(
        self, env: GymBatch, targets: torch.Tensor, episodes: int, seed: int, retarget: Any = None
    ) -> Alignment:
        """Episodes for each target, all at once; ``retarget`` as in ``evaluate_targets``."""
        env.set_seed(seed)
        self.policy.reset()
        with tqdm(total=self.max_steps, desc="playing", leave=False, disable=None) as bar:

            def show(step: int, left: int) -> None:
                bar.update(1)
                bar.set_postfix(running=left)

            return evaluate_targets(
                env,
                self.policy,
                targets,
                episodes,
                max_steps=self.max_steps,
                observation_norm=(self.windows.mean, self.windows.std),
                retarget=retarget,
                progress=show,
            )

    def _look_and_save(self, training: float | None, wall: float, cpu: float) -> None:
        cfg = self.cfg
        targets = spaced_targets(self.low, self.high, cfg.eval_targets)
        alignment = self.play(self.eval_env, targets, cfg.eval_episodes, EVAL_SEED)
        error = float(alignment.error_of_mean.sum())
        earlier = [row["error_sum"] for row in self.progress["evaluations"]]
        if not earlier or error < min(earlier):
            self.selected = {name: x.detach().clone() for name, x in self.actor.state_dict().items()}
        figures = alignment.normalised(self.low, self.high).figures()
        row = {"step": self.step, "loss": training, "error_sum": error, **figures}
        self.progress["evaluations"].append(row)
        self.progress["wall_s"] += time.perf_counter() - wall
        self.progress["cpu_s"] += time.process_time() - cpu
        values = {
            f"eval/{name}": figures[name] for name in ("error_of_mean", "mean_error", "slope", "spearman")
        }
        values |= {"train/loss": training, "time/wall_s": round(self.progress["wall_s"], 3)}
        known = {name: value for name, value in values.items() if value is not None}
        self.table.add(self.step, known)
        for name, value in known.items():
            self.events.add_scalar(name, value, self.step)
        self._show(training, figures)
        with self.folder.new_checkpoint(self.step) as checkpoint:
            state = {
                "actor": self.actor.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "selected": self.selected,
                "windows": self.windows.get_state(),
            }
            torch.save(state, checkpoint / "state.pt")
            np.savez(checkpoint / "rng.npz", **rng_state())  # type: ignore[arg-type]
            (checkpoint / "progress.json").write_text(json.dumps(self.progress))

    def _show(self, training: float | None, figures: dict[str, float | None]) -> None:
        slope, left = figures["slope"], ""
        known = "-" if training is None else f"{training:.4f}"
        if self.step:
            left = f", {self.progress['wall_s'] * (self.cfg.steps / self.step - 1) / 60:.1f} min left"
        print(
            f"{self.step:>7,} of {self.cfg.steps:,} steps: loss {known}, "
            f"|target - return| {figures['error_of_mean']:.3f} of the data's range, "
            f"slope {'-' if slope is None else f'{slope:.2f}'}{left}",
            flush=True,
        )

    def test(self) -> dict[str, Any]:
        """The last and the selected weights on the test's targets; what is in ``result.json`` of them."""
        cfg, width = self.cfg, self.high - self.low
        inside = spaced_targets(self.low, self.high, cfg.test_targets)
        beyond = inside.new_tensor([self.low - BEYOND * width, self.high + BEYOND * width])
        targets = torch.cat((inside, beyond)).sort().values
        env = self.make_env(len(targets) * cfg.test_episodes)
        last = {name: x.detach().clone() for name, x in self.actor.state_dict().items()}
        results = {}
        for name, weights in (("last", last), ("selected", self.selected)):
            self.actor.load_state_dict(weights)
            alignment = self.play(env, targets, cfg.test_episodes, TEST_SEED)
            results[name] = alignment.to_dict((self.low, self.high))
        self.actor.load_state_dict(last)
        env.close()
        return results
