"""The loss side of QDPO: TRL's losses on pairs, ours beside them in one forward pass, and what is logged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from .. import _host
from ..divergence import tiled_divergences
from .batches import HALVES, OURS, TEACHER, PairCollator
from .losses import mean_over_tokens, target_loss
from .models import place
from .pair_trainer import REFERENCE, PairTrainer
from .reading import Reading


class LossTrainer(PairTrainer):
    """A trainer on pairs whose losses are TRL's and ours, with their weights."""

    #: the replies of a pair that a batch for training holds
    halves: tuple[str, ...]
    #: weights of the losses that are not TRL's, by name
    own_losses: dict[str, float]
    _flips: dict[str, list[float]]  # flipped tokens and tokens, in training and in evaluation
    _evaluated: str  # what is evaluated, as its figures are named

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
