"""QDPO as a TRL trainer."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    DataCollator,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.trainer_utils import EvalLoopOutput

from .. import _host
from ..arguments import check_arguments
from ..divergence import tiled_divergences
from .batches import HALVES, OURS, TEACHER, PairCollator
from .bitsandbytes_cpu import keep_trainable
from .checks import check_datasets, check_model, check_vocabulary, has_pictures
from .export import export_packed
from .learned_scales import train_scales_only
from .lora import fold_adapters
from .losses import mean_over_tokens, target_loss
from .models import Teacher, frozen_copy, load, load_processing_class, make_policy, place
from .pair_trainer import REFERENCE, PairTrainer
from .qdpo_config import TRL_PAIR_LOSSES, QDPOConfig
from .reading import Reading, halves_read
from .report import ReportCard, report_card

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig


class QDPOTrainer(PairTrainer):
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

    # -- loss ------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Batches without the replies that no loss reads."""
        whole = self.data_collator
        if isinstance(whole, PairCollator):
            self.data_collator = replace(whole, halves=self.halves)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = whole

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """
        The batches of an update, each with the number of tokens that its sums over replies are divided by.

        It is the same for all of them, on all processes: means are over the tokens of the update. There are
        none once a round was found to have no pairs, which on going on from a checkpoint may be as its epoch
        begins, where the host would make one more update.
        """
        if self.control.should_training_stop:
            return [], None
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.asks_teacher() and batches and "reply_mask" in batches[0]:
            counts = [batch["reply_mask"][:, 1:].chunk(len(self.halves)) for batch in batches]
            tokens = torch.tensor(
                [[float(half.sum()) for half in halves] for halves in counts], device=device
            )
            total = self.accelerator.reduce(tokens.sum(0), reduction="sum")  # (halves,)
            shared = total / (len(batches) * self.accelerator.num_processes)
            batches = [{**batch, "reply_tokens": shared} for batch in batches]
        return batches, items

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """TRL's losses on pairs, and with the same forward pass ours."""
        reading = Reading(model, inputs, self.halves if self.model.training else HALVES)
        theirs = {name: value for name, value in inputs.items() if name not in OURS}
        policy = self.accelerator.unwrap_model(self.model)
        with _host.recording_states(policy, bool({"kd", "kd_on_policy"} & self.own_losses.keys())) as states:
            if self.loss_types or (self.teacher.same and len(reading.rows) == len(HALVES)):
                result = super()._compute_loss(reading, theirs, return_outputs)
            else:
                result = self._without_host(reading, theirs, return_outputs)
        loss, outputs = result if isinstance(result, tuple) else (result, None)
        for name, weight in self.own_losses.items():
            part = self._own_loss(name, reading, inputs, states)
            self._note(f"{name}_loss", part)
            loss = loss + weight * part
        self._count_flips(reading)
        return (loss, outputs) if return_outputs else loss

    def _without_host(self, reading: Reading, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """
        Where no loss is the host's, which asks the reference: the forward pass and its figures.

        Returns:
            What the host adds for experts, else 0; and the logits, from another pass as in the host, if they
            are asked for.
        """
        asked = {k: v for k, v in inputs.items() if k not in ("completion_mask", *REFERENCE)}
        if self.aux_loss_enabled:
            asked["output_router_logits"] = True
        reading(**asked, use_cache=False, fused_lm_head=True)
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            read = self.accelerator.gather_for_metrics(inputs["attention_mask"].sum()).sum()
            self._total_train_tokens += read.item() // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        for half, rows in reading.rows.items():
            self._note(f"logps/{half}", reading.log_probs[rows].sum(1).mean())
        loss = self.router_aux_loss_coef * reading.outputs.aux_loss if self.aux_loss_enabled else 0.0
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, reading.model(**asked, use_cache=False)

    def _own_loss(self, name: str, reading: Reading, inputs: dict[str, Any], states: list[Tensor]) -> Tensor:
        if name == "qdpo_target":
            if TEACHER[0] not in inputs:
                raise ValueError(
                    "loss_type 'qdpo_target' needs the teacher's log-probabilities in a batch. Leave "
                    "data_collator unset, or keep its columns."
                )
            log_ratio = torch.sub(*reading.pair_log_probs.sum(1).chunk(2))  # (B,)
            wanted = torch.sub(*(inputs[name] for name in TEACHER))
            return target_loss(log_ratio, wanted, self.args.target_loss).mean()
        half = "rejected" if name == "kd_on_policy" else "chosen"
        rows = reading.rows[half]
        if name == "sft":
            return -mean_over_tokens(reading.log_probs[rows], reading.mask[rows])
        texts = {key: inputs[key][rows] for key in ("input_ids", "attention_mask")}
        hidden = states[0][rows, -texts["input_ids"].size(1) :]  # (B, L, H)
        divergence = self._forward_kl(hidden, texts, reading.mask[rows].bool())
        tokens = inputs.get("reply_tokens")
        if tokens is None:  # outside of training
            return divergence / reading.mask[rows].sum().clamp(min=1)
        return divergence / tokens[list(reading.rows).index(half)].clamp(min=1)

    def _forward_kl(self, hidden: Tensor, inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
        """KL(teacher || policy), summed over replies' tokens; ``hidden`` (B, L, H), ``mask`` (B, L - 1)."""
        policy = self.accelerator.unwrap_model(self.model)
        with torch.no_grad(), self._precision(), self.teacher.speaking() as teacher:
            place(teacher, hidden.device)
            teacher_hidden = _host.last_hidden_state(teacher, inputs["input_ids"], inputs["attention_mask"])
            teacher_head = _host.head_of(teacher, teacher_hidden.dtype)
        found = tiled_divergences(
            hidden[:, :-1][mask],
            _host.head_of(policy, hidden.dtype),
            teacher_hidden[:, :-1][mask],
            teacher_head,
            inputs["input_ids"][:, 1:][mask],
            with_forward_kl=True,
        )
        assert found.forward_kl is not None
        return found.forward_kl.sum()

    # -- results ---------------------------------------------------------------------------------------------

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

    # -- figures ---------------------------------------------------------------------------------------------

    def _note(self, name: str, value: Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        self._metrics[mode][name].append(self._gathered(value.detach()).mean().item())

    def _gathered(self, values: Tensor) -> Tensor:
        """
        Of all processes; in evaluation without the rows that fill up the last batch.

        In training all micro-batches of an epoch's last update would be cut as its last one is.
        """
        gather = self.accelerator.gather if self.model.training else self.accelerator.gather_for_metrics
        return gather(values)

    def _count_flips(self, reading: Reading) -> None:
        """Tokens of the full-precision replies that are not the policy's first choice."""
        if "chosen" not in reading.rows:
            return
        rows = reading.rows["chosen"]
        mask = reading.mask[rows].bool()
        flipped = mask & ~reading.is_top1[rows].bool()
        counts = torch.stack([flipped.sum(1), mask.sum(1)], 1).float()  # (B, 2)
        sums = self._gathered(counts).sum(0).tolist()
        totals = self._flips["train" if self.model.training else "eval"]
        totals[:] = [total + more for total, more in zip(totals, sums, strict=True)]

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Flips are counted anew, and logged under the name of what is evaluated."""
        self._flips["eval"], self._evaluated = [0.0, 0.0], metric_key_prefix
        return super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the share of flipped tokens, over all of them, and what became of the prompts."""
        mode = "train" if self.model.training else "eval"
        flipped, tokens = self._flips[mode]
        if tokens:
            logs["flip_rate" if mode == "train" else f"{self._evaluated}_flip_rate"] = flipped / tokens
            self._flips[mode] = [0.0, 0.0]
        if mode == "train" and "loss" in logs:
            logs.update(self._pair_figures)
        super().log(logs, start_time)
