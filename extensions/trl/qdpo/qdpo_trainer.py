"""QDPO as a TRL trainer."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    DataCollator,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)

from .. import _host
from ..arguments import check_arguments
from .batches import HALVES, TEACHER, PairCollator
from .bitsandbytes_cpu import keep_trainable
from .checks import check_datasets, check_model, check_vocabulary, has_pictures
from .export import export_packed
from .learned_scales import train_scales_only
from .lora import fold_adapters
from .loss_trainer import LossTrainer
from .models import Teacher, frozen_copy, load, load_processing_class, make_policy, place
from .qdpo_config import TRL_PAIR_LOSSES, QDPOConfig
from .reading import halves_read
from .report import ReportCard, report_card

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig


class QDPOTrainer(LossTrainer):
    """
    Trainer for QDPO: a low-bit model is aligned to its own full-precision self by preference optimization,
    without labels (Lee et al. 2024, arXiv 2407.03051).

    It is TRL's [`~trl.DPOTrainer`] with a policy whose weights are quantized in the forward pass, and
    trained through a straight-through estimator. Of each prompt it makes a pair: the full-precision model's
    greedy reply is chosen, and the quantized model's rejected. The reference is the initial quantized model.

    Example:

    >>> from datasets import load_dataset
    >>> from extensions.trl import QDPOConfig, QDPOTrainer

    >>> trainer = QDPOTrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     args=QDPOConfig("Qwen2.5-0.5B-4bit", bits=4, group_size=64),
    ...     train_dataset=load_dataset("trl-lib/ultrafeedback-prompt", split="train"),
    ... )
    >>> trainer.train()
    >>> trainer.export_packed("Qwen2.5-0.5B-4bit/packed")

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model in full precision. It is quantized in place, and is its own teacher. With `bits=None`
            any model that [`~trl.DPOTrainer`] takes.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Another reference than the initial quantized model.
        args ([`QDPOConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts, plain or conversational, in a column `"prompt"`. Ready pairs are taken as well: as text,
            with `"chosen"` and `"rejected"` as in [`~trl.DPOTrainer`], or as tokens, in `"prompt_ids"`,
            `"chosen_ids"` and `"rejected_ids"`.
        eval_dataset:
            As `train_dataset`. Of prompts, identical replies are kept: `eval_flip_rate` is the share of the
            teacher's tokens, over all of them, that are not the policy's first choice. Of several sets, in a
            dictionary, it is `eval_NAME_flip_rate`.
        data_collator, processing_class, compute_metrics, callbacks, optimizers, quantization_config:
            As in [`~trl.DPOTrainer`].
        peft_config ([`~peft.PeftConfig`], *optional*):
            Of LoRA. The adapter is folded into the latent weights before these are quantized, so that what
            is trained is the low-bit model.
        teacher_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            Another teacher than the model before it was quantized. Needed for a model that is quantized
            already.

    Raises:
        TypeError: `args` is of another class.
        ValueError: what does not fit together, with the fix: a model that is quantized already, shared
            weights, modules that cannot be quantized, no chat template.
    """

    _tag_names = ["trl", "dpo", "qdpo"]  # noqa: RUF012
    _name = "QDPO"
    _paper = {  # noqa: RUF012
        "title": "Improving Conversational Abilities of Quantized Large Language Models via Direct "
        "Preference Alignment",
        "id": "2407.03051",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{lee2024qdpo,
                title     = {{Improving Conversational Abilities of Quantized Large Language Models via
                             Direct Preference Alignment}},
                author    = {Janghwan Lee and Seongmin Park and Sukjin Hong and Minsoo Kim and
                             Du-Seong Chang and Jungwook Choi},
                year      = 2024,
                booktitle = {Proceedings of the 62nd Annual Meeting of the Association for Computational
                             Linguistics},
                pages     = {11346--11364},
            }"""),
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        args: QDPOConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (
            None,
            None,
        ),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        teacher_model: str | PreTrainedModel | None = None,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else _host.get_config_model_id(model.config)
            args = QDPOConfig(f"{name.split('/')[-1]}-QDPO")
        check_arguments(args, QDPOConfig, model, processing_class)
        if args.pairs_dir is None:
            args.pairs_dir = os.path.join(str(args.output_dir), "pairs")
        self.args = args
        self.pair_counts, self.violation_rates, self._pair_figures = {}, {}, {}
        self.nothing_differs = self.constructed = False
        self._scoring = set()
        self._flips = {"train": [0.0, 0.0], "eval": [0.0, 0.0]}  # flipped tokens, tokens
        self._evaluated = "eval"  # what is evaluated, as its figures are named

        policy: Any = model
        quantizing = args.bits is not None
        other = None if teacher_model is None else load(teacher_model, args, leave_out=("revision",))
        own_loading = quantizing or other is not None
        if own_loading:
            policy = load(policy, args, quantization_config=quantization_config)
        check_model(policy, args, other, peft_config)
        if processing_class is None and own_loading:
            processing_class = load_processing_class(policy, args)
        check_datasets(train_dataset, eval_dataset, args, processing_class, alone=not own_loading)
        initial = None
        if quantizing:
            make_policy(policy, args)
            # Adapters leave the initial model in place. Else a copy is kept, to be the reference and the
            # teacher.
            keeping = ref_model is None and not args.precompute_ref_log_probs
            if peft_config is None and (keeping or args.asks_teacher()):
                initial = frozen_copy(policy)
            if args.train_scales_only:
                train_scales_only(policy)
            if initial is not None and keeping and args.compares_with_reference():
                # one that follows the policy has its parameters, and is of no use as a teacher
                ref_model = frozen_copy(policy) if args.sync_ref_model else initial
        if other is not None:
            keep_trainable(policy)  # it speaks before it is trained
            check_vocabulary(policy, other)
            other.eval().requires_grad_(False)
        self.teacher, self.ref_model = Teacher(policy, other, initial), ref_model
        text = train_dataset is not None and not has_pictures(next(iter(train_dataset)))
        if data_collator is None and processing_class is not None and text:
            data_collator = self._collator(processing_class, args)
        before = {name: getattr(args, name) for name in ("model_init_kwargs", "precompute_ref_log_probs")}
        if own_loading:
            quantization_config = None  # the model is loaded
            if quantizing:
                args.model_init_kwargs = None  # and so is its reference
            # The host would load a reference. Precomputing, it asks for scores, and gets none that are not
            # needed.
            args.precompute_ref_log_probs |= ref_model is None and not args.compares_with_reference()
        try:
            super().__init__(
                model=policy,
                ref_model=ref_model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        finally:
            vars(args).update(before)
        self.precompute_ref_logps = args.precompute_ref_log_probs and self._needs_reference()
        self.teacher.policy = self.model
        if quantizing and peft_config is not None:
            fold_adapters(self.model)
        self.constructed = True

        weights = dict(zip(self.loss_types, self.loss_weights, strict=True))
        self.own_losses = {name: w for name, w in weights.items() if name not in TRL_PAIR_LOSSES}
        self.loss_types = [name for name in weights if name in TRL_PAIR_LOSSES]
        self.loss_weights = [weights[name] for name in self.loss_types]
        # A collator of another's makes both halves of a batch.
        ours = isinstance(self.data_collator, PairCollator)
        self.halves = halves_read(args.loss_type) if ours else HALVES

        self.train_dataset = self._ready(self.train_dataset, "train", training=True)
        if isinstance(self.train_dataset, Dataset) and not len(self.train_dataset):
            raise ValueError(
                "pair_filter='teacher' leaves no pair: the teacher finds every rejected reply likelier than "
                "the chosen one. Set pair_filter='none', or loss_type='qdpo_target', which needs no labels."
            )
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: self._ready(part, name) for name, part in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = self._ready(self.eval_dataset, "eval")
        if args.num_rounds > 1:
            self._begin_rounds()
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def _collator(self, processing_class: Any, args: Any) -> PairCollator:
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        pad_token = args.pad_token or tokenizer.pad_token or tokenizer.eos_token
        if pad_token not in tokenizer.get_vocab():
            raise ValueError(f"The tokenizer has no token {pad_token!r}: set pad_token to one that it has.")
        tokenizer.pad_token = pad_token
        return PairCollator(
            pad_token_id=tokenizer.pad_token_id,
            max_length=args.max_length,
            truncation_mode=args.truncation_mode,
            pad_to_multiple_of=args.pad_to_multiple_of,
            divergence_window=args.divergence_window,
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns += [name for name in TEACHER if name not in columns]

    def export_packed(
        self,
        directory: str | os.PathLike[str],
        format: str = "compressed-tensors",
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        Write the trained low-bit model, packed, with its tokenizer; see :func:`~.export.export_packed`.

        Plain `from_pretrained` reads it, and its logits are those of the trained model to the last bit.
        """
        if self.accelerator.is_main_process:
            policy = self.accelerator.unwrap_model(self.model)
            export_packed(policy, self.processing_class, directory, format, dtype)
        self.accelerator.wait_for_everyone()

    def report_card(self, prompts: Sequence[Any] | Dataset, **settings: Any) -> ReportCard:
        """
        Compare the policy with the full-precision model on held-out prompts; see
        :func:`~.report.report_card`.

        Args:
            prompts: strings or conversations, or a dataset with a column `"prompt"`.
            settings: of that function, such as `judge`, `texts` or `batch_size`. `max_new_tokens` is the
                configuration's if not given.

        Raises:
            RuntimeError: the full-precision weights were not kept, see `precompute_ref_log_probs`.
        """
        policy = self.accelerator.unwrap_model(self.model)
        prompts = prompts["prompt"][:] if isinstance(prompts, Dataset) else prompts
        settings.setdefault("max_new_tokens", self.args.max_new_tokens)
        with self._precision(), self.teacher.speaking(beside_policy=True) as teacher:
            place(teacher, self.accelerator.device)
            return report_card(policy, teacher, self.processing_class, prompts, **settings)
