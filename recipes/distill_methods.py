"""The trainers: each method is one of TRL's, or ours, with its own configuration class."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from extensions.trl import MiniLLMConfig, MiniLLMTrainer
from extensions.trl.evaluation import sample_completions

from .distill_data import Data
from .distill_models import reads_padding

CONFIGS: dict[str, type] = {
    "sft": SFTConfig,
    "kd": GKDConfig,
    "seqkd": SFTConfig,
    "gkd": GKDConfig,
    "distillation": DistillationConfig,
    "minillm": MiniLLMConfig,
}


def phase_arguments(cfg: DictConfig, folder: str, phase: DictConfig) -> dict[str, Any]:
    """What every trainer is told. The batch is the same for all; ``micro_batch_size`` only splits it."""
    micro = min(cfg.micro_batch_size or phase.batch_size, phase.batch_size)
    return {
        "output_dir": folder,
        "max_steps": phase.steps,
        "learning_rate": phase.lr,
        "lr_scheduler_type": phase.schedule,
        "warmup_steps": math.ceil(phase.steps / 20),
        "weight_decay": cfg.weight_decay,
        "max_grad_norm": cfg.max_grad_norm,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": phase.batch_size // micro,
        "seed": cfg.seed,
        "bf16": cfg.bf16,
        "gradient_checkpointing": cfg.gradient_checkpointing,
        "use_cpu": cfg.device == "cpu" or not torch.cuda.is_available(),
        "logging_steps": cfg.log_every,
        "save_steps": cfg.save_every,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def sft_config(cfg: DictConfig, folder: str, phase: DictConfig, **more: Any) -> SFTConfig:
    """For finetuning on ``prompt`` and ``completion``, or on plain ``text``."""
    length = cfg.data.max_prompt_length + cfg.data.max_completion_length
    given = {"max_length": length, "packing": False, **phase_arguments(cfg, folder, phase), **more}
    return SFTConfig(**given)


def method_config(cfg: DictConfig, folder: str) -> Any:
    """The trainer's configuration of ``cfg.method``.

    Raises:
        TypeError: ``method.args`` has what the trainer's configuration has not.
        ValueError: a setting is out of its range.
    """
    name, longest = cfg.method.name, cfg.data.max_completion_length
    phase = OmegaConf.create(
        {
            "steps": cfg.updates,
            "lr": cfg.method.lr,
            "batch_size": cfg.batch_size,
            "schedule": cfg.method.schedule,
        }
    )
    more = dict(cfg.method.args)
    if name in ("sft", "seqkd"):
        return sft_config(cfg, folder, phase, **more)
    own: dict[str, Any] = {"max_completion_length": longest}
    if name in ("kd", "gkd"):
        on_policy = float(name == "gkd")
        own = {
            "max_length": cfg.data.max_prompt_length + longest,
            "max_new_tokens": longest,
            "lmbda": on_policy,
            "beta": 0.5 * on_policy,
            "temperature": 1.0,
        }
    return CONFIGS[name](**{**own, **phase_arguments(cfg, folder, phase), **more})


class WordKDTrainer(GKDTrainer):
    """Word-level distillation: half cross entropy, half KL(p || q), both on the answers of the data."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        kl, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        labels = inputs["labels"][:, 1:]  # (B, L - 1)
        logits = outputs.logits[:, :-1].float().flatten(0, 1)
        total = torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
        n = num_items_in_batch if num_items_in_batch is not None else (labels != -100).sum()
        loss = 0.5 * kl + 0.5 * total / n
        return (loss, outputs) if return_outputs else loss


class PromptCollator:
    """Batches for GKDTrainer of rows with ``prompt`` and ``completion``, all padded on the left."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, rows: Sequence[dict[str, str]]) -> dict[str, Tensor]:
        prompts = self.tokenizer([row["prompt"] for row in rows])["input_ids"]
        completions = self.tokenizer([row["completion"] for row in rows], add_special_tokens=False)[
            "input_ids"
        ]
        end = [self.tokenizer.eos_token_id]
        whole = [(p + c + end)[: self.max_length] for p, c in zip(prompts, completions, strict=True)]
        labels = [[-100] * len(p) + ids[len(p) :] for p, ids in zip(prompts, whole, strict=True)]
        pad = self.tokenizer.pad_token_id
        return {
            "input_ids": _left(whole, pad),
            "attention_mask": _left([[1] * len(ids) for ids in whole], 0),
            "labels": _left(labels, -100),
            "prompts": _left(prompts, pad),
            "prompt_attention_mask": _left([[1] * len(ids) for ids in prompts], 0),
        }


def _left(rows: list[list[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(row)) + row for row in rows])


def answered_by(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Dataset, cfg: DictConfig
) -> Dataset:
    """The prompts with an answer that the teacher sampled; those that did not end are left out."""
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts["prompt"]]
    answers = sample_completions(
        teacher,
        ids,
        cfg.data.max_completion_length,
        seed=cfg.seed,
        batch_size=cfg.evaluation.batch_size,
        eos_token_id=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),  # the rest, if any, is padding and has no text
    )
    ended = [i for i, answer in enumerate(answers) if answer[-1] == tokenizer.eos_token_id]
    texts = tokenizer.batch_decode([answers[i] for i in ended], skip_special_tokens=True)
    return Dataset.from_dict({"prompt": [prompts["prompt"][i] for i in ended], "completion": texts})


def method_trainer(
    cfg: DictConfig,
    folder: str,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """The trainer of ``cfg.method``, ready to train the student."""
    name, args = cfg.method.name, method_config(cfg, folder)
    rows = data.train.select(range(min(len(data.train), cfg.updates * cfg.batch_size)))
    common: dict[str, Any] = {
        "model": student, "args": args, "processing_class": tokenizer, "callbacks": callbacks
    }  # fmt: skip
    if name in ("sft", "seqkd"):
        if name == "seqkd":
            rows = answered_by(teacher, tokenizer, rows, cfg)
        return SFTTrainer(train_dataset=rows, **common)
    common["teacher_model"] = teacher.requires_grad_(False)
    if name != "minillm" and reads_padding(student):
        warnings.warn(
            f"{type(student).__name__} has learned positions. TRL's trainers pass none, so with prompts of "
            f"different lengths method={name} learns at other positions than the answers are written at.",
            stacklevel=2,
        )
    if name in ("kd", "gkd"):
        trainer = WordKDTrainer if name == "kd" else GKDTrainer
        return trainer(train_dataset=rows, data_collator=PromptCollator(tokenizer, args.max_length), **common)
    prompts = data.train.select_columns(["prompt"])
    if name == "distillation":
        return DistillationTrainer(train_dataset=prompts, **common)
    return MiniLLMTrainer(train_dataset=prompts, pretraining_dataset=data.texts, **common)
