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
from ..divergence import TokenDivergences, tiled_divergences
from .checks import check_datasets, check_end, check_length, check_sampling, check_size, positions_left
from .guards import DegenerationGuard, degeneration
from .minillm_config import MiniLLMConfig
from .objective import Coins, Objective, Scores, advantages, alone, score, token_losses, token_weights
from .pretraining import PretrainingText
from .rollout_trainer import RolloutTrainer
from .rollouts import MULTIMODAL_KEYS, loss_mask, take
from .sampling import sample_mixture
from .teacher import (
    check_not_the_student,
    check_same_tokenizer,
    common_vocabulary,
    load_teacher,
    teacher_tokenizer,
)
from .warm_start import check_answers, warm_start

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig

CHECKED_PROMPTS = 20_000  # whose length is looked at before training; later ones as they come


class MiniLLMTrainer(RolloutTrainer):
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
    teacher_model: Any
    processing_class: Any
    max_completion_length: Any
    objective: Objective

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
        check_datasets(train_dataset, eval_dataset)
        check_sampling(args)
        if args.warm_start_epochs:
            check_answers(train_dataset)
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
        )
        check_end(self._tokenizer, self.eos_token_ids)
        check_size(train_dataset, self._prompts_per_generation)
        self._adopt(loaded_teacher, teacher_processing_class or teacher_tokenizer(teacher_model, args))
        self._check_prompts()

        self.objective = args.objective()
        self.text: Any = None
        if pretraining_dataset is not None and args.pretraining_coef:
            self.text = PretrainingText(
                pretraining_dataset,
                self._tokenizer,
                int(self.args.pretraining_batch_size),
                args.pretraining_max_length,
                args.seed,
                self.accelerator.process_index,
                self.accelerator.num_processes,
            )
        for name in self._logs:  # all answers of a generation, of which an update sees a part
            self._logs[name] = deque(maxlen=self._prompts_per_generation)
        self._turn = (-1, 0)  # the last step that answers were drawn for, and how often before
        self._guard = DegenerationGuard()
        self._coins_of: list[int] = []  # for each answer of the rollout, the call it was drawn in
        self._texts: list[dict[str, Tensor]] = []  # plain text of this update's batches

    # -- models ----------------------------------------------------------------------------------------------

    def _adopt(self, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Checks the teacher against the student, freezes it and hands it to accelerate."""
        check_not_the_student(self.model, teacher)
        teacher.requires_grad_(False).eval()
        if tokenizer is not None:
            check_same_tokenizer(self._tokenizer, tokenizer)
        q, p = (model.config.get_text_config().vocab_size for model in (self.model, teacher))
        common = common_vocabulary(q, p, len(self._tokenizer), self.args.allow_padded_vocabulary)
        self._cut_to = None if q == p else common  # tokens that count, where one vocabulary has more
        if self._cut_to is not None and self.is_deepspeed_enabled and self._dist.is_zero3:
            raise ValueError(
                "allow_padded_vocabulary cuts the heads, which ZeRO-3 keeps in parts. Resize the "
                "embeddings of both "
                "models to one vocabulary (model.resize_token_embeddings), or use ZeRO-2 or FSDP."
            )
        beyond = range(common, q)
        if beyond:  # tokens the teacher does not know must not be drawn
            suppressed = [*(self.generation_config.suppress_tokens or []), *beyond]
            self.generation_config.suppress_tokens = suppressed
            self.generation_kwargs["suppress_tokens"] = suppressed
        if self.is_deepspeed_enabled:
            self.teacher_model = _host.prepare_deepspeed(teacher, self.accelerator)
        else:
            self.teacher_model = self.accelerator.prepare_model(teacher, evaluation_mode=True)

    @property
    def _bare_models(self) -> dict[str, PreTrainedModel]:
        unwrap = self.accelerator.unwrap_model
        return {"student": self.model, "teacher": unwrap(self.teacher_model)}

    @property
    def _sharded(self) -> bool:
        """Whether a model's parameters are spread over processes, which then must run it together."""
        return self._dist.is_fsdp or self._dist.is_zero3

    def _check_prompts(self) -> None:
        data = self.train_dataset
        if not isinstance(data, Dataset) or {"image", "images"} & set(data.column_names):
            return  # a stream's prompts are looked at as they come
        for start in range(0, min(len(data), CHECKED_PROMPTS), 1000):
            ids, _, _ = self._tokenize_prompts(list(data[start : start + 1000]["prompt"]))
            check_length(ids, self.max_completion_length, self._bare_models)

    def _get_last_hidden_state(
        self,
        unwrapped_model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        **multimodal: Any,
    ) -> Tensor:
        if any(value is not None for value in multimodal.values()):
            return super()._get_last_hidden_state(
                unwrapped_model, input_ids, attention_mask, logits_to_keep, **multimodal
            )
        hidden = _host.last_hidden_state(unwrapped_model, input_ids, attention_mask)  # (B, P + T, H)
        return hidden[:, :-1][
            :, -logits_to_keep:
        ]  # (B, T, H): what each token of the answer is predicted from

    def _hidden(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Last hidden states at the positions that predict the answers, (B, T, H)."""
        return self._get_last_hidden_state(
            model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            batch["completion_ids"].size(1),
            **{key: batch[key] for key in MULTIMODAL_KEYS if key in batch},
        )

    @torch.no_grad()
    def _through_teacher(self, method: Callable[..., Tensor], *args: Any) -> Any:
        """``method(teacher, ...)`` inside the teacher's wrapper, so that sharded weights are gathered."""
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        return self._forward_redirection(self.teacher_model, teacher, method, teacher, *args)

    def _divergences(
        self,
        student: nn.Module,
        student_hidden: Tensor,
        teacher_hidden: Tensor | None,
        targets: Tensor,
        with_forward_kl: bool = False,
    ) -> TokenDivergences:
        """Both heads at N positions; hidden states are (N, H), targets (N,)."""
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        head = _host.head_of(student, student_hidden.dtype, self._cut_to)
        teacher_head = None
        if teacher_hidden is not None:
            teacher_hidden = teacher_hidden.to(student_hidden.device)
            teacher_head = _host.head_of(teacher, teacher_hidden.dtype, self._cut_to)
        return tiled_divergences(
            student_hidden,
            head,
            teacher_hidden,
            teacher_head,
            targets,
            self.temperature,
            with_forward_kl,
            gathered=_host.gathered_heads(student, teacher if teacher_hidden is not None else None),
        )

    # -- rollouts --------------------------------------------------------------------------------------------

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, multimodal_fields: dict, has_tool_images: bool = False
    ) -> list:
        check_length(prompt_ids, 0 if self.tools else self.max_completion_length, self._bare_models)
        training = self.model.training
        alpha = self.args.teacher_mix_alpha if training else 0.0
        # token types are no picture: some text tokenizers return them
        pictures = images is not None or bool(multimodal_fields.keys() - {"token_type_ids"})
        if pictures or self.use_vllm:
            if alpha:
                raise ValueError(
                    "Teacher-mixed sampling reads text only, but the prompts have images. Set "
                    "teacher_mix_alpha=0.0 to draw all answers from the student."
                )
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, has_tool_images)
        if alpha:
            step, turn = self._turn
            self._turn = (self._step, turn + 1 if step == self._step else 0)
        answers: list = []
        self._coins_of = []
        chunk = self._rows_per_call(len(prompt_ids)) if alpha else self.args.rollout_chunk_size
        self.model.eval()  # no dropout: answers come from the student that they are scored by
        with self._non_finite_explained({"prompt_ids": prompt_ids}):
            for start in range(0, len(prompt_ids), chunk):
                prompts = prompt_ids[start : start + chunk]
                self._coins_of += [start // chunk] * len(prompts)
                if alpha:
                    answers += self._generate_with_teacher(prompts, alpha, start)
                else:
                    answers += super()._generate_single_turn(prompts, None, {}, False)
        self.model.train(training)
        return answers

    @property
    def _mix_method(self) -> str:
        """Answers that go on after a tool's would flip coins in other company."""
        return "mixture" if self.tools else self.args.teacher_mix_method

    def _rows_per_call(self, n: int) -> int:
        """A leave-one-out baseline is made from answers with other coins: let most have others."""
        calls = 4 if self._mix_method == "coin_flip" and self.args.baseline == "leave_one_out" else 1
        return min(self.args.rollout_chunk_size, -(-n // calls))

    def _generate_with_teacher(self, prompt_ids: list, alpha: float, start: int) -> list:
        """Answers of one chunk, drawn from the mixture of teacher and student (eq. 4)."""
        device, args = self.accelerator.device, self.args
        prompts = [torch.tensor(ids) for ids in prompt_ids]
        # The coins are a function of seed, step and turn (a tool call begins another): a resumed run flips
        # the same. Sharded models are run by all processes together, which must agree whose turn it is.
        process = 0 if self._sharded else self.accelerator.process_index
        key = (args.seed, *self._turn, start, process)
        coins = torch.Generator().manual_seed(hash(key) % 2**63)
        with (
            _host.unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
            ) as student,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.accelerator.autocast(),
        ):
            completion_ids = sample_mixture(
                student,
                self.teacher_model,
                _host.pad(prompts, self._tokenizer.pad_token_id, "left").to(device),
                _host.pad([torch.ones_like(ids) for ids in prompts], 0, "left").to(device),
                alpha=alpha,
                max_new_tokens=min(self.max_completion_length, positions_left(prompt_ids, self._bare_models)),
                eos_token_ids=self.eos_token_ids,
                pad_token_id=self._tokenizer.pad_token_id,
                temperature=self.temperature,
                method=self._mix_method,
                coins=coins,
                vocab_size=self._cut_to,
                synced=self._anyone if self._sharded else None,
            )
        return [_up_to_end(ids, self.eos_token_ids) for ids in completion_ids.tolist()]

    def _anyone(self, going: bool) -> bool:
        """Whether any process still writes."""
        return bool(self.accelerator.gather(torch.tensor([going], device=self.accelerator.device)).any())

    @torch.no_grad()
    def _scored(self, rollouts: dict[str, Any]) -> dict[str, Any]:
        """
        Adds what the student that drew the answers, and the teacher, think of them: the rewards, the
        weights and the advantages of the whole generation, and the teacher's hidden states for later
        passes.
        """
        args, mask = self.args, loss_mask(rollouts)
        del rollouts["num_items_in_batch"]  # counts the generation, not the update
        self._watch_for_degeneration(rollouts, mask)
        keep = args.cache_teacher_hidden and (self.objective.needs_scores or args.num_iterations > 1)
        if not (keep or self.objective.needs_scores):
            return rollouts

        n = len(mask)
        size = n if any(key in rollouts for key in MULTIMODAL_KEYS) else args.per_device_train_batch_size
        student = self.accelerator.unwrap_model(self.model)
        parts: list[tuple[Any, Any, Any]] = []
        self.model.eval()  # no dropout: these are the probabilities the answers were drawn with
        for rows in torch.arange(n, device=mask.device).split(size):
            part = rollouts if size == n else take(rollouts, rows)
            with self.compute_loss_context_manager():
                hidden = self._through_teacher(self._hidden, part)
                log_q = log_p = None
                if self.objective.needs_scores:
                    log_q, log_p = self._forward_redirection(
                        self.model_wrapped, student, self._log_probs, student, part, hidden
                    )
            parts.append((log_q, log_p, hidden if keep else None))
        self.model.train()
        if keep:
            rollouts["teacher_hidden"] = torch.cat([part[2] for part in parts])  # (B, T, H of the teacher)
        if self.objective.needs_scores:
            log_q, log_p = (torch.cat(x) for x in list(zip(*parts, strict=True))[:2])  # (B, T)
            scores = score(log_q, log_p, mask, args.teacher_mix_alpha)
            self._stop_unless_finite("The log-probability of an answer", log_q + log_p, rollouts)
            coins = None
            if args.teacher_mix_alpha and self._mix_method == "coin_flip":
                call = torch.tensor(self._coins_of, device=mask.device)
                coins = Coins(call, self._sum if self._sharded else alone)
            gains = advantages(self.objective, scores, self._sum, coins)
            rollouts |= {"old_log_q": scores.old_log_q, "log_p": scores.log_p, "log_mix": scores.log_mix}
            rollouts["advantages"] = gains  # (B, T)
            self._log_rollouts(scores, gains)
        return rollouts

    def _log_probs(self, student: nn.Module, batch: dict[str, Any], teacher_hidden: Tensor) -> tuple:
        """log q and log p of every token of the answers, (B, T), 0 where nothing is learned."""
        mask = loss_mask(batch) != 0
        hidden = self._hidden(student, batch)
        found = self._divergences(student, hidden[mask], teacher_hidden[mask], batch["completion_ids"][mask])
        return _on_grid(found.log_q, mask), _on_grid(found.log_p, mask)

    def _log_rollouts(self, scores: Scores, gains: Tensor) -> None:
        """What the weights and advantages of a generation look like, over all processes."""
        mask = scores.mask
        weights = token_weights(scores.old_log_q, scores)
        from_teacher = self.args.teacher_mix_alpha * (scores.log_p - scores.log_mix).exp()
        columns = [
            mask,
            weights,
            weights**2,
            from_teacher,
            gains,
            gains**2,
            (scores.log_p - scores.old_log_q),
        ]
        sums = self._sum(torch.stack([(x * mask).sum() for x in columns]))
        _, w, w2, teacher, gain, gain2, reward = (sums / sums[0].clamp(min=1.0)).tolist()
        lowest = self.accelerator.gather(weights.masked_fill(mask == 0, 1.0).min()).min().item()
        self._note(
            {
                "is_weight_mean": w,
                "is_weight_min": lowest,
                "ess": w**2 / max(w2, 1e-12),  # share of the tokens that equal weights would need
                "teacher_token_fraction": teacher if self.args.teacher_mix_alpha else 0.0,
                "advantage_mean": gain,
                "advantage_std": max(gain2 - gain**2, 0.0) ** 0.5,
                "reward": reward,
            }
        )

    def _note(self, values: dict[str, float], group: str = "minillm", mode: str = "train") -> None:
        for name, value in values.items():
            self._metrics[mode][f"{group}/{name}"].append(value)

    def _watch_for_degeneration(self, rollouts: dict[str, Any], mask: Tensor) -> None:
        prompts = _rows(rollouts["prompt_ids"], rollouts["prompt_mask"])
        answers = _rows(rollouts["completion_ids"], mask)
        signs = degeneration(prompts, answers, endings=self.eos_token_ids)
        values = torch.tensor(list(signs.values()), device=mask.device)
        means = (self._sum(values) / self.accelerator.num_processes).tolist()
        logged, warnings = self._guard.look(dict(zip(signs, means, strict=True)))
        self._note(logged, "guards")
        if self.accelerator.is_main_process:
            for warning in warnings:
                _host.logger.warning(
                    f"Step {self.state.global_step}: {warning}. The reverse KL may fall all the same: look "
                    "at the "
                    f"completions (log_completions=True). Length normalization, teacher mixing and a smaller "
                    f"learning rate are what keeps a student from it."
                )

    # -- plain text ------------------------------------------------------------------------------------------

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
        teacher_hidden = inputs.get("teacher_hidden")
        if teacher_hidden is None:
            teacher_hidden = self._through_teacher(self._hidden, inputs)
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
            reverse_kl=_on_grid(found.reverse_kl, mask),
            log_q=_on_grid(found.log_q, mask),
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

    def _own_state(self) -> dict[str, Any]:
        return {"guard": self._guard.state()}

    def _restore_own_state(self, state: dict[str, Any]) -> None:
        self._guard.restore(state["guard"])

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains the student, after fine-tuning it if `warm_start_epochs` is set and no run is resumed."""
        if self.args.warm_start_epochs and not resume_from_checkpoint:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise ValueError(
                    "The warm start trains a second time in one process, which DeepSpeed and FSDP do not "
                    "allow. "
                    "Fine-tune the student with TRL's SFTTrainer first, and set warm_start_epochs=0."
                )
            warm_start(self.model, self.train_dataset, self.eval_dataset, self.processing_class, self.args)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)


def _on_grid(values: Any, mask: Tensor) -> Tensor:
    """(N,) values of the positions on the mask, put back into (B, T)."""
    return torch.zeros(mask.shape, device=values.device, dtype=values.dtype).masked_scatter(mask, values)


def _rows(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.bool().cpu(), strict=True)]


def _up_to_end(ids: list[int], endings: list[int]) -> list[int]:
    for i, token in enumerate(ids):
        if token in endings:
            return ids[: i + 1]
    return ids
