"""A run of :mod:`.qdpo`: the model in full precision, and the quantized one after the method."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import transformers
from omegaconf import DictConfig
from safetensors.torch import load_model, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PrinterCallback

from extensions.trl import QDPOConfig, QDPOTrainer
from extensions.trl.qdpo.learned_scales import train_scales_only
from extensions.trl.qdpo.models import make_policy
from extensions.trl.qdpo.qdpo_config import PAIR_LOSSES

from .chat_model import STEPS, train_chat_model
from .devices import torch_device
from .distill_models import readable
from .qdpo_data import load_data
from .run_folder import RunFolder
from .trainer_recorder import Recorder, last_checkpoint

CHECKPOINTS, POLICY, PROGRESS = "checkpoints", "policy.safetensors", "progress.json"


class Run:
    """
    Models, tokenizer and data of a run.

    Args:
        cfg: the settings, which :func:`.conf.qdpo_schema.check` has looked at.
        folder: where everything goes; what it holds already is not done again.

    Raises:
        ValueError: a setting of the method is unknown or out of range; model or data cannot be read.
    """

    def __init__(self, cfg: DictConfig, folder: RunFolder) -> None:
        self.cfg, self.folder = cfg, folder
        self.device = torch_device(cfg.device)
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()
        try:  # wrong settings of a method end it before it begins
            self.args = trainer_config(cfg, folder.path)
        except TypeError as error:
            raise ValueError(f"method.args: {error}") from None
        #: how many updates were made, and the seconds they took
        self.progress: dict[str, Any] = {"updates": 0, "wall_s": 0.0, "cpu_s": 0.0}
        if (folder.path / PROGRESS).exists():
            self.progress = json.loads((folder.path / PROGRESS).read_text())
        self.teacher, self.tokenizer = self._full_precision()
        self.data = load_data(cfg, self.tokenizer)

    def quantized(self) -> PreTrainedModel:
        """The quantized model that every method begins with."""
        policy = self._full_precision()[0]
        make_policy(policy, self.args)
        return policy

    def policy(self) -> PreTrainedModel:
        """The quantized model after the method."""
        saved = self.folder.path / POLICY
        if self.cfg.method.losses and not saved.exists():
            return self._train(saved)
        policy = self.quantized()
        if self.args.train_scales_only:
            train_scales_only(policy)
        if saved.exists():
            load_model(policy, saved)
        return policy

    def _train(self, saved: Path) -> PreTrainedModel:
        """Train to the end, from the last checkpoint if there is one, and save the best."""
        output = self.folder.path / CHECKPOINTS
        last = last_checkpoint(output)
        recorder = Recorder(self.folder, "train", 0, last)
        trainer = QDPOTrainer(
            model=self._full_precision()[0],
            args=self.args,
            train_dataset=self.data.train,
            eval_dataset=self.data.valid,
            processing_class=self.tokenizer,
            callbacks=[recorder],
        )
        trainer.remove_callback(PrinterCallback)  # the recorder prints
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        recorder.events.close()
        policy = trainer.accelerator.unwrap_model(trainer.model).eval()
        save_model(policy, str(saved))
        best = trainer.state.best_model_checkpoint
        counts = trainer.pair_counts["train"]
        self.progress = {
            "updates": trainer.state.global_step,
            "best_update": None if best is None else int(best.rsplit("-", 1)[1]),
            "prompts": counts.prompts,
            "pairs": counts.differing,
            "anchors": counts.anchors,
            "label_violation": trainer.violation_rates.get("train"),
            **recorder.now(),
        }
        self.folder.write(PROGRESS, json.dumps(self.progress, indent=2) + "\n")
        return policy

    def _full_precision(self) -> tuple[PreTrainedModel, Any]:
        """The model in full precision, anew, and its tokenizer, which pads on the left."""
        c = self.cfg.model
        if c.name is None:
            folder = self.folder.path / "model" if c.folder is None else Path(c.folder)
            return train_chat_model(folder, self.cfg.seed, c.steps or STEPS, self.device)
        with readable("model.name", c.name, "a model"):
            model: Any = AutoModelForCausalLM.from_pretrained(c.name, dtype="float32")
            tokenizer = AutoTokenizer.from_pretrained(c.name, padding_side="left")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model.to(self.device).eval(), tokenizer


def trainer_config(cfg: DictConfig, folder: Path) -> QDPOConfig:
    """
    What the trainer is told. A batch has the same number of replies for all methods.

    Raises:
        TypeError: ``method.args`` has what `QDPOConfig` has not.
        ValueError: a setting is out of its range.
    """
    losses = dict(cfg.method.losses)
    compares = any(name in PAIR_LOSSES for name in losses)
    micro = cfg.micro_batch_size or cfg.batch_size
    given: dict[str, Any] = {
        "output_dir": str(folder / CHECKPOINTS),
        "loss_type": list(losses) or ["sigmoid"],
        "loss_weights": list(losses.values()) or None,
        "bits": cfg.bits,
        "group_size": cfg.group_size,
        "max_new_tokens": cfg.data.max_new_tokens,
        "generation_batch_size": cfg.evaluation_batch_size,
        "pairs_dir": str(cfg.pairs_dir or folder / "pairs"),
        # what compares two replies asks the reference of each pair once, and again at each look
        "precompute_ref_log_probs": compares,
        "precompute_ref_batch_size": cfg.evaluation_batch_size // 2,
        "max_length": None,
        "max_steps": cfg.updates,
        "learning_rate": cfg.method.lr,
        "lr_scheduler_type": cfg.method.schedule,
        "warmup_steps": math.ceil(cfg.updates / 20),
        "per_device_train_batch_size": micro // 2 if compares else micro,
        "per_device_eval_batch_size": max(1, cfg.evaluation_batch_size // 2),
        "gradient_accumulation_steps": cfg.batch_size // micro,
        "eval_strategy": "steps",
        "eval_steps": cfg.evaluate_every,
        "save_steps": cfg.evaluate_every,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_flip_rate",
        "greater_is_better": False,
        "logging_steps": cfg.log_every,
        "seed": cfg.seed,
        "bf16": cfg.bf16,
        "gradient_checkpointing": cfg.gradient_checkpointing,
        "use_cpu": torch_device(cfg.device).type == "cpu",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return QDPOConfig(**{**given, **cfg.method.args})
