"""A RolloutTrainer with a teacher: what both models make of the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import _host
from ..divergence import TokenDivergences, tiled_divergences
from .checks import check_end, check_given, check_length
from .rollout_trainer import RolloutTrainer
from .rollouts import MULTIMODAL_KEYS
from .teacher import check_not_the_student, check_same_tokenizer, common_vocabulary

CHECKED_PROMPTS = 20_000  # whose length is looked at before training; later ones as they come


class TeacherTrainer(RolloutTrainer):
    """
    A :class:`RolloutTrainer` whose student has a teacher over the same vocabulary.

    Hidden states are taken at the right positions under left padding, and both heads are applied to them in
    tiles.

    Args:
        teacher: is frozen, and handed to accelerate.
        teacher_tokenizer: compared with the student's, if there is one.
        *args, **kwargs: of the parent.

    Raises:
        ValueError: vocabularies, tokenizers or lengths do not fit together.
    """

    teacher_model: Any
    processing_class: Any
    max_completion_length: Any

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        teacher_tokenizer: PreTrainedTokenizerBase | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # TRL puts the tokenizer's there, be it None
        self.eos_token_ids = [token for token in self.eos_token_ids if token is not None]
        self.generation_config.eos_token_id = self.eos_token_ids
        self.generation_kwargs["eos_token_id"] = self.eos_token_ids
        check_end(self._tokenizer, self.eos_token_ids)
        self._adopt(teacher, teacher_tokenizer)
        self._check_prompts()

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
                "allow_padded_vocabulary cuts the heads, which ZeRO-3 keeps in parts. Resize the embeddings "
                "of both models to one vocabulary (model.resize_token_embeddings), or use ZeRO-2 or FSDP."
            )
        beyond = range(common, q)
        if beyond:  # tokens the teacher does not know must not be drawn
            if self.use_vllm:
                raise ValueError(
                    f"vLLM would draw from all {q} tokens of the student, of which the teacher knows "
                    f"{common} (allow_padded_vocabulary). Set use_vllm=False, or cut the student's "
                    f"embeddings first: model.resize_token_embeddings({common})."
                )
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
        if not isinstance(data, Dataset) or self._is_vlm:
            return  # a stream's prompts, and those with pictures, are looked at as they come
        data = data.select_columns(["prompt"])  # and nothing else is decoded
        for start in range(0, min(len(data), CHECKED_PROMPTS), 1000):
            prompts = list(data[start : start + 1000]["prompt"])
            check_given(prompts, start)
            ids, _, _ = self._tokenize_prompts(prompts)
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
            hidden = super()._get_last_hidden_state(
                unwrapped_model, input_ids, attention_mask, logits_to_keep, **multimodal
            )
            return hidden.to(input_ids.device)
        hidden = _host.last_hidden_state(unwrapped_model, input_ids, attention_mask)  # (B, P + T, H)
        # each token of the answer is predicted from the state before it
        return hidden[:, :-1][:, -logits_to_keep:]  # (B, T, H)

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

    def _teacher_hidden(self, batch: dict[str, Any]) -> Tensor:
        """The teacher's last hidden states as :meth:`_hidden`, as they were kept or else made now."""
        kept = batch.get("teacher_hidden")
        return self._through_teacher(self._hidden, batch) if kept is None else kept

    def _teacher_states(self, wanted: bool) -> AbstractContextManager[list[Tensor]]:
        """A list that gets, if wanted, the last hidden states, (B, n, H), of what the teacher reads then."""
        return _host.recording_states(self.accelerator.unwrap_model(self.teacher_model), wanted)

    def _divergences(
        self,
        student: nn.Module,
        student_hidden: Tensor,
        teacher_hidden: Tensor | None,
        targets: Tensor,
        with_forward_kl: bool = False,
    ) -> TokenDivergences:
        """
        Both heads at N positions; hidden states are (N, H), targets (N,).

        It is worked out where the heads are, and returned to where the targets are: a model that is split
        over devices (``device_map``) may have its head on another.
        """
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        head = _host.head_of(student, student_hidden.dtype, self._cut_to)
        teacher_head = None
        if teacher_hidden is not None:
            teacher_head = _host.head_of(teacher, teacher_hidden.dtype, self._cut_to)
            if head.weight.device != teacher_head.weight.device:
                raise ValueError(
                    f"The student's head is on {head.weight.device} but the teacher's is on "
                    f"{teacher_head.weight.device}. Place both on the same device in their `device_map`."
                )
            teacher_hidden = teacher_hidden.to(head.weight.device)
        found = tiled_divergences(
            student_hidden.to(head.weight.device),
            head,
            teacher_hidden,
            teacher_head,
            targets.to(head.weight.device),
            self.temperature,
            with_forward_kl,
            gathered=_host.gathered_heads(student, teacher if teacher_hidden is not None else None),
        )
        return found.to(targets.device)
