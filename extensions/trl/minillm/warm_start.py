"""The paper's first phase: supervised fine-tuning, kept at the lowest validation loss."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

if TYPE_CHECKING:
    from .minillm_config import MiniLLMConfig


def warm_start(
    model: Any,
    train_dataset: Any,
    eval_dataset: Any,
    processing_class: PreTrainedTokenizerBase,
    args: MiniLLMConfig,
) -> None:
    """
    Fine-tunes the student in place on prompts and their completions, with TRL's ``SFTTrainer``.

    With a validation set that has completions it is evaluated after each epoch, and the student of the lowest
    loss is kept, as in the paper; without one, the last. Checkpoints lie in ``warm_start`` below the output
    directory.

    Raises:
        ValueError: no ``"completion"`` column, or a dataset without a length.
    """
    check_answers(train_dataset)
    validates = has_completions(eval_dataset)
    when = "epoch" if validates else "no"
    settings = SFTConfig(
        output_dir=os.path.join(str(args.output_dir), "warm_start"),
        num_train_epochs=args.warm_start_epochs,
        learning_rate=args.warm_start_learning_rate or args.learning_rate,
        per_device_train_batch_size=args.per_device_train_batch_size,
        per_device_eval_batch_size=args.per_device_eval_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        gradient_checkpointing=args.gradient_checkpointing,
        gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        bf16=args.bf16,
        fp16=args.fp16,
        use_cpu=args.use_cpu,
        seed=args.seed,
        report_to=args.report_to,
        logging_steps=args.logging_steps,
        disable_tqdm=args.disable_tqdm,
        eval_strategy=when,
        save_strategy=when,
        save_total_limit=1,
        load_best_model_at_end=validates,
        metric_for_best_model="eval_loss" if validates else None,
        greater_is_better=False if validates else None,
        max_length=None,  # as long as the model allows: the answers are what is learned
    )
    columns = ["prompt", "completion"]
    tags = list(model.model_tags or [])
    SFTTrainer(
        model=model,
        args=settings,
        train_dataset=train_dataset.select_columns(columns),
        eval_dataset=eval_dataset.select_columns(columns) if validates else None,
        processing_class=processing_class,
    ).train()
    del model.model_tags[len(tags) :]  # SFTTrainer's, which the student's card would show


def check_answers(train_dataset: Any) -> None:
    """There is something to fine-tune on."""
    if not has_completions(train_dataset):
        raise ValueError(
            "warm_start_epochs needs a train_dataset with 'prompt' and 'completion' columns and a length. "
            "Add the answers as 'completion', or set warm_start_epochs=0 and start from a fine-tuned student."
        )


def has_completions(dataset: Any) -> bool:
    """Whether these are prompts with answers, of a known number."""
    return isinstance(dataset, Dataset) and {"prompt", "completion"} <= set(dataset.column_names)
