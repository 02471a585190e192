"""MiniLLM as a TRL trainer."""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback

from .. import _host
from ..arguments import check_arguments
from .checks import (
    check_datasets,
    check_generation_config,
    check_sampling,
    check_size,
    positions_left,
)
from .minillm_config import MiniLLMConfig
from .mixture_trainer import MixtureTrainer
from .objective import Scores, token_losses
from .pretraining import PretrainingText
from .rollouts import loss_mask, on_grid
from .teacher import load_teacher, teacher_tokenizer, warn_if_the_same
from .warm_start import check_answers, warm_start

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig


class MiniLLMTrainer(MixtureTrainer):
    """
    Trainer for MiniLLM: the student writes answers, together with its teacher, and follows the policy
    gradient of the reverse KL divergence KL(student || teacher) (Gu et al. 2024, arXiv 2306.08543).

    It is TRL's [`~trl.DistillationTrainer`] with what that one leaves out: the credit a token deserves
    for all that follows it, answers drawn from a mixture of teacher and student with importance weights,
    updates from a buffer of rollouts, and a language-modelling loss on plain text. Each is a switch of
    [`MiniLLMConfig`].

    Example:

    >>> from datasets import load_dataset
    >>> from extensions.trl import MiniLLMTrainer

    >>> trainer = MiniLLMTrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     teacher_model="Qwen/Qwen2.5-1.5B-Instruct",
    ...     train_dataset=load_dataset("trl-lib/tldr", split="train"),
    ... )
    >>> trainer.train()

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The student, as in [`~trl.DistillationTrainer`].
        teacher_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            The teacher, over the same vocabulary. It is frozen. If `None`, `args.teacher_model_name_or_path`.
        args ([`MiniLLMConfig`], *optional*):
            Configuration. If `None`, the paper's.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts, plain or conversational, in a column `"prompt"`. A column `"completion"` is used by
            the warm start only.
        eval_dataset, processing_class, callbacks, optimizers, quantization_config, peft_config, tools:
            As in [`~trl.DistillationTrainer`]. The evaluation loss is the reverse KL per token on the
            student's own answers.
        pretraining_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Plain text in a column `"text"` (or `"input_ids"`), for L_PT.
        teacher_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The teacher's tokenizer, to be compared with the student's. If `None`, it is looked for beside the
            teacher's weights.

    Raises:
        TypeError: `args` or `pretraining_dataset` is of another class.
        ValueError: what does not fit together, with the fix: vocabularies, tokenizers, columns, lengths,
            sampling.
        FloatingPointError: logits or loss are not finite; the step and its batch have been saved.
    """

    _tag_names = ["trl", "minillm"]  # noqa: RUF012
    _name = "MiniLLM"
    _paper = {  # noqa: RUF012
        "title": "MiniLLM: Knowledge Distillation of Large Language Models",
        "id": "2306.08543",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{gu2024minillm,
                title     = {{MiniLLM: Knowledge Distillation of Large Language Models}},
                author    = {Yuxian Gu and Li Dong and Furu Wei and Minlie Huang},
                year      = 2024,
                booktitle = {The Twelfth International Conference on Learning Representations, {ICLR} 2024},
                url       = {https://openreview.net/forum?id=5h0qf7IBZZ},
            }"""),
    }

    # what transformers annotates as perhaps missing, or of more types than a causal language model has
    args: Any
    model: Any
    processing_class: Any

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        teacher_model: str | PreTrainedModel | None = None,
        args: MiniLLMConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (
            None,
            None,
        ),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        tools: list[Callable] | None = None,
        pretraining_dataset: Dataset | IterableDataset | None = None,
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else _host.get_config_model_id(model.config)
            args = MiniLLMConfig(f"{name.split('/')[-1]}-MiniLLM")
        check_arguments(args, MiniLLMConfig, model, processing_class)
        check_datasets(train_dataset, eval_dataset)
        check_sampling(args)
        if args.warm_start_epochs:
            check_answers(train_dataset)
        warn_if_the_same(model, teacher_model, args)
        loaded_teacher = load_teacher(teacher_model, args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            teacher=loaded_teacher,
            teacher_tokenizer=teacher_processing_class or teacher_tokenizer(teacher_model, args),
        )
        check_size(train_dataset, self._prompts_per_generation)
        if not args.use_vllm:
            check_generation_config(
                self.generation_config, self.model.generation_config, args.teacher_mix_alpha or 0.0
            )
        self.text: Any = None
        if pretraining_dataset is not None and args.pretraining_coef:
            end = self._tokenizer.eos_token_id
            self.text = PretrainingText(
                pretraining_dataset,
                self._tokenizer,
                self.eos_token_ids[0] if end is None else end,
                int(self.args.pretraining_batch_size),
                args.pretraining_max_length,
                args.seed,
                self.accelerator.process_index,
                self.accelerator.num_processes,
                self._readable(),
            )
        for name in self._logs:  # all answers of a generation, of which an update sees a part
            self._logs[name] = deque(maxlen=self._prompts_per_generation)
        self._texts: list[dict[str, Tensor]] = []  # plain text of this update's batches

    # -- plain text ------------------------------------------------------------------------------------------

    def _readable(self) -> int:
        """Tokens of a text that those who read it have positions for."""
        models = self._bare_models
        if not self.args.pretraining_kd_ratio:
            del models["teacher"]
        return positions_left([], models)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        batch = super()._prepare_inputs(generation_batch)
        if self.text is None or not self.model.training:
            return batch
        within = self._step % self.args.gradient_accumulation_steps
        if within == 0 or not self._texts:
            self._texts = self._read_texts(self._step - within)
        return {**batch, "text": self._texts[within]}

    def _read_texts(self, step: int) -> list[dict[str, Any]]:
        """The plain text of one update's batches, each with what its sum is divided by."""
        texts = []
        for k in range(step, step + self.args.gradient_accumulation_steps):
            texts.append({name: x.to(self.accelerator.device) for name, x in self.text.batch(k).items()})
        by_token = self.args.normalization == "token"
        counts = [int(x["attention_mask"][:, 1:].sum()) if by_token else len(x["input_ids"]) for x in texts]
        normalizers = self._over_updates(torch.tensor(counts, device=self.accelerator.device).float())
        return [{**text, "normalizer": n} for text, n in zip(texts, normalizers, strict=True)]

    # -- loss ------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """MiniLLM's loss of one batch, inside the student's wrapper; logs its parts."""
        student = self.accelerator.unwrap_model(model)
        loss, sums = self._forward_redirection(
            model, student, self._compute_loss, student, inputs, inputs.get("normalizer")
        )
        total = self._sum(torch.stack(list(sums.values())))
        self._stop_unless_finite("The loss", total, inputs)
        totals = dict(zip(sums, total.tolist(), strict=True))
        mode = "train" if self.model.training else "eval"
        tokens, texts = max(totals.pop("tokens"), 1.0), totals.pop("text_tokens", 0.0)
        if texts:
            self._note({"pt_loss": totals.pop("pt_loss") / texts}, mode=mode)
        self._metrics[mode]["entropy"].append(totals.pop("entropy") / tokens)
        self._note({name: total / tokens for name, total in totals.items()}, mode=mode)
        return (loss, None) if return_outputs else loss

    def _compute_loss(
        self, unwrapped_student: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mask = loss_mask(inputs) != 0  # (B, T)
        teacher_hidden = self._teacher_hidden(inputs)
        hidden = self._hidden(unwrapped_student, inputs)
        found = self._divergences(
            unwrapped_student, hidden[mask], teacher_hidden[mask], inputs["completion_ids"][mask]
        )
        assert found.reverse_kl is not None  # there is a teacher
        sums = {
            "tokens": mask.sum().float(),
            "entropy": found.entropy.sum(),
            "reverse_kl": found.reverse_kl.detach().sum(),
        }
        if not self.model.training:
            return found.reverse_kl.sum() / mask.sum().clamp(min=1), sums

        scores = None
        if "old_log_q" in inputs:
            scores = Scores(inputs["old_log_q"], inputs["log_p"], inputs["log_mix"], mask.to(hidden.dtype))
        single, long, measured = token_losses(
            self.objective,
            reverse_kl=on_grid(found.reverse_kl, mask),
            log_q=on_grid(found.log_q, mask),
            scores=scores,
            advantages=inputs.get("advantages"),
        )
        single, long = single * mask, long * mask
        loss = (single + long).sum() / num_items_in_batch
        sums["single_loss"], sums["long_loss"] = single.detach().sum(), long.detach().sum()
        sums["clip_ratio"] = (measured["clipped"] * mask).sum()
        if "text" in inputs:
            text_loss, text_tokens = self._text_loss(unwrapped_student, inputs["text"])
            loss = loss + self.args.pretraining_coef * text_loss.sum() / inputs["text"]["normalizer"]
            sums["pt_loss"], sums["text_tokens"] = text_loss.detach().sum(), text_tokens
        return loss, sums

    def _text_loss(self, student: nn.Module, text: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """L_PT at each predicted token, (N,): -log q, mixed with KL(p || q) to the teacher if asked for."""
        ids, attention = text["input_ids"], text["attention_mask"]  # (B, L)
        mask, share = attention[:, 1:] != 0, self.args.pretraining_kd_ratio
        hidden = _host.last_hidden_state(student, ids, attention)[:, :-1][mask]
        teacher_hidden = None
        if share:
            teacher_hidden = self._through_teacher(_host.last_hidden_state, ids, attention)[:, :-1][mask]
        found = self._divergences(
            student, hidden, teacher_hidden, ids[:, 1:][mask], with_forward_kl=share > 0.0
        )
        loss = -(1.0 - share) * found.log_q
        if found.forward_kl is not None:
            loss = loss + share * found.forward_kl
        return loss, mask.sum().float()

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains the student, after fine-tuning it if `warm_start_epochs` is set and no run is resumed."""
        if self.train_dataset is None:
            raise ValueError("There is nothing to train on: pass prompts to the trainer as `train_dataset`.")
        if self.args.warm_start_epochs and not resume_from_checkpoint:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise ValueError(
                    "The warm start trains a second time in one process, which DeepSpeed and FSDP do not "
                    "allow. Fine-tune the student with TRL's SFTTrainer first, and set warm_start_epochs=0."
                )
            warm_start(self.model, self.train_dataset, self.eval_dataset, self.processing_class, self.args)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
