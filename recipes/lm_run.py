"""A language model's run: trained, evaluated, logged and checkpointed, and resumed exactly."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.tensorboard import SummaryWriter

from extensions.optim import AdEMAMix

from .conf.ademamix_lm_schema import check
from .corpus import Corpus, Stream
from .decoder import Decoder, token_losses
from .devices import torch_device
from .rng import rng_state, set_rng_state
from .run_folder import MetricsTable, RunFolder
from .schedules import lr_share

TRAIN, EVAL, PROBE = 0, 1, 2  # streams of the corpus; the last two are the same for every run


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices, which decay, and the gains of norms, which do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


def make_adamw(cfg: DictConfig, model: nn.Module) -> AdamW:
    """AdamW as configured; of AdEMAMix's settings it takes those that it has."""
    o = cfg.optimizer
    groups = parameter_groups(model, o.weight_decay)
    return AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=o.fused)


def slow_settings(cfg: DictConfig) -> dict[str, Any]:
    """AdEMAMix's settings of its schedules."""
    return {name: cfg.optimizer[name] for name in ("alpha", "alpha_warmup", "beta3_warmup")}


def make_optimizer(cfg: DictConfig, model: nn.Module, step: int) -> Optimizer:
    """What the run steps with after ``step`` steps, without its state."""
    o = cfg.optimizer
    if o.name == "adamw" or (cfg.switch_at is not None and step < cfg.switch_at):
        return make_adamw(cfg, model)
    betas = (o.beta1, o.beta2, o.beta3)
    groups = parameter_groups(model, o.weight_decay)
    return AdEMAMix(groups, lr=o.lr, betas=betas, eps=o.eps, fused=o.fused, **slow_settings(cfg))


class Run:
    """A run in progress: all that a checkpoint holds, and what it takes to go on.

    Args:
        cfg: the settings.
        folder: where everything goes; the run goes on from its checkpoint if it has one.

    Raises:
        ValueError: the settings make no sense.
    """

    def __init__(self, cfg: DictConfig, folder: RunFolder) -> None:
        check(cfg)
        self.cfg, self.folder = cfg, folder
        self.device = torch_device(cfg.device)
        torch.set_num_threads(cfg.threads)
        torch.manual_seed(cfg.seed)
        corpus = Corpus(**cfg.data)
        self.model = Decoder(corpus.vocab_size, cfg.context, **cfg.model).to(self.device)
        self.batches = Stream(corpus, (TRAIN, cfg.seed), cfg.batch_size, cfg.context)
        held_out, log_p = corpus.sample(np.random.default_rng(EVAL), cfg.eval_sequences, cfg.context)
        self.held_out = self._to_device(held_out)  # (N, L + 1)
        self.floor = -float(log_p.mean())
        self.probe = self._to_device(Stream(corpus, (PROBE, 0), cfg.batch_size, cfg.context).batch(0))

        checkpoint = folder.checkpoint()
        #: steps done, evaluations, looks at the probe, and the seconds that it took, pauses left out
        self.progress: dict[str, Any] = {
            "step": 0, "evaluations": [], "probe": [], "wall_s": 0.0, "cpu_s": 0.0, "train_cpu_s": 0.0
        }  # fmt: skip
        if checkpoint is not None:
            self.progress = json.loads((checkpoint / "progress.json").read_text())
        self.optimizer = make_optimizer(cfg, self.model, self.step)
        if checkpoint is not None:
            saved = torch.load(checkpoint / "state.pt", map_location=self.device, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            with np.load(checkpoint / "rng.npz", allow_pickle=False) as file:
                set_rng_state(dict(file))
        self.table = MetricsTable(folder, None if checkpoint is None else self.step)
        self.events = SummaryWriter(
            str(folder.path), purge_step=None if checkpoint is None else self.step + 1
        )
        self.losses: list[Tensor] = []  # of the steps since the last evaluation

    @property
    def step(self) -> int:
        """Steps done."""
        return self.progress["step"]

    def _to_device(self, tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(tokens).to(self.device)

    def to_the_end(self) -> None:
        """Train, look and save, until the last step or until the loss is no number."""
        if not self.progress["evaluations"]:
            self._look_and_save()
        while self.step < self.cfg.steps and not self.diverged:
            before = time.perf_counter(), time.process_time()
            looking = self._train(
                min((self.step // self.cfg.eval_every + 1) * self.cfg.eval_every, self.cfg.steps)
            )
            self.progress["train_cpu_s"] += time.process_time() - before[1] - looking
            self._look_and_save(before)

    @property
    def diverged(self) -> bool:
        """Whether the loss is infinite or no number."""
        return self.progress["evaluations"][-1]["loss"] is None

    def _train(self, until: int) -> float:
        """Train for some steps; returns the CPU seconds of looks at the probe."""
        cfg, looking = self.cfg, 0.0
        for step in range(self.step + 1, until + 1):
            if step == cfg.switch_at:
                self.optimizer = AdEMAMix.from_adamw(
                    self.optimizer, beta3=cfg.optimizer.beta3, **slow_settings(cfg)  # type: ignore[arg-type]
                )  # fmt: skip
            tokens = self.probe if step == cfg.inject_at else self._to_device(self.batches.batch(step - 1))
            self.losses.append(self._update(tokens, step))
            self.progress["step"] = step
            if cfg.probe_every is not None and step % cfg.probe_every == 0:
                began = time.process_time()
                loss = self._mean_loss(self.probe)
                self.progress["probe"].append([step, loss])
                if step < until:  # else it is in the row of the evaluation
                    self._record({"probe/loss": loss})
                looking += time.process_time() - began
        return looking

    def _update(self, tokens: Tensor, step: int) -> Tensor:
        """One step of the optimizer; returns the loss before it."""
        share = lr_share(step, self.cfg.steps, self.cfg.lr_warmup, self.cfg.lr_end)
        for group in self.optimizer.param_groups:
            group["lr"] = self.cfg.optimizer.lr * share
        loss = token_losses(self.model, tokens).mean()
        self.optimizer.zero_grad()
        loss.backward()
        if self.cfg.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.clip_norm)
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def _mean_loss(self, tokens: Tensor) -> float | None:
        """The mean loss on sequences, (N, L + 1); None if it is no finite number."""
        total = sum(token_losses(self.model, part).sum(dtype=torch.float64) for part in tokens.split(128))
        return finite(float(total) / tokens[:, 1:].numel())

    def _look_and_save(self, began: tuple[float, float] | None = None) -> None:
        wall, cpu = began or (time.perf_counter(), time.process_time())
        loss = self._mean_loss(self.held_out)
        training = finite(float(torch.stack(self.losses).mean())) if self.losses else None
        if self.losses and training is None:
            loss = None
        self.losses = []
        self.progress["evaluations"].append({"step": self.step, "loss": loss, "training": training})
        values = {
            "eval/loss": loss,
            "eval/excess": None if loss is None else loss - self.floor,
            "train/loss": training,
            "train/lr": self.optimizer.param_groups[0]["lr"] if self.step else 0.0,
        }
        if isinstance(self.optimizer, AdEMAMix) and self.step:
            values.update({f"train/{name}": x for name, x in self.optimizer.diagnostics()[0].items()})
        if self.progress["probe"] and self.progress["probe"][-1][0] == self.step:
            values["probe/loss"] = self.progress["probe"][-1][1]
        self.progress["wall_s"] += time.perf_counter() - wall
        self.progress["cpu_s"] += time.process_time() - cpu
        self._record({**values, "time/wall_s": round(self.progress["wall_s"], 3)})
        self._show(loss, training)
        with self.folder.new_checkpoint(self.step) as checkpoint:
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, checkpoint / "state.pt")
            np.savez(checkpoint / "rng.npz", **rng_state())  # type: ignore[arg-type]
            (checkpoint / "progress.json").write_text(json.dumps(self.progress))

    def _record(self, values: dict[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        self.table.add(self.step, known)
        for name, value in known.items():
            self.events.add_scalar(name, value, self.step)

    def _show(self, loss: float | None, training: float | None) -> None:
        held_out = "no number" if loss is None else f"{loss:.4f}, {loss - self.floor:.4f} above the floor"
        print(
            f"{self.step:>7,} of {self.cfg.steps:,} steps: loss held out {held_out}; "
            f"training {'-' if training is None else f'{training:.4f}'}",
            flush=True,
        )


def finite(x: float) -> float | None:
    """``x``, or None if it is infinite or no number: JSON has neither."""
    return x if math.isfinite(x) else None
