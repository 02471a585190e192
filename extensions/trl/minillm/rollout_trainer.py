"""A DistillationTrainer that learns from each batch of answers several times, and resumes exactly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from trl import DistillationTrainer

from .. import _host
from .rollout_sampler import RolloutSampler, RolloutStream
from .rollouts import loss_mask, take, trimmed


class RolloutTrainer(DistillationTrainer):
    """
    TRL's [`~trl.DistillationTrainer`] with a buffer of rollouts.

    One generation serves ``steps_per_generation`` batches, each ``num_iterations`` times, in an order
    that is drawn anew for each pass. What a subclass adds to the answers in :meth:`_scored` is kept with
    them.

    Checkpoints hold the buffer, the place in it and every random state: N + N steps are 2N steps. Values
    that are not finite stop all processes at once, with the step and the batch saved.
    """

    # what transformers annotates as perhaps missing, or of more types than a causal language model has
    args: Any
    model: Any
    pad_to_multiple_of: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rollouts: dict[str, Any] | None = None  # answers of one generation on this process, with scores
        self._order: Tensor | None = None  # in which this pass over them reads them
        self._normalizers: list[Tensor] = []  # what the sums of each of its batches are divided by

    def _scored(self, rollouts: dict[str, Any]) -> dict[str, Any]:
        """Adds to the answers what is to be known of them before they are learned from."""
        return rollouts

    def _own_state(self) -> dict[str, Any]:
        """What a subclass must know to go on: tensors, numbers, strings, lists and dictionaries of them."""
        return {}

    def _restore_own_state(self, state: dict[str, Any]) -> None:
        """Goes on from what :meth:`_own_state` returned."""

    # -- data ------------------------------------------------------------------------------------------------

    @property
    def _prompts_per_generation(self) -> int:
        """Over all processes."""
        args = self.args
        return args.per_device_train_batch_size * args.steps_per_generation * self.accelerator.num_processes

    @property
    def _blocks(self) -> dict[str, Any]:
        """How prompts are read: all of a generation, for every batch it serves."""
        return {
            "block": self._prompts_per_generation,
            "repeats": self.args.steps_per_generation * self.args.num_iterations,
            "shuffle": bool(self.shuffle_dataset),
            "seed": self.args.seed,
        }

    def get_train_dataloader(self) -> DataLoader:
        """Batches of prompts, each a whole generation's, repeated for every batch the generation serves."""
        data: Any = self.train_dataset
        if isinstance(data, IterableDataset):
            data = RolloutStream(data, **self._blocks)
        return self._get_dataloader(
            dataset=data,
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        data: Any = self.train_dataset if dataset is None else dataset
        return RolloutSampler(data, **self._blocks)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """
        The answers this step learns from. In evaluation, fresh ones; in training, the next slice of the
        rollouts, which are drawn every ``steps_per_generation * num_iterations`` steps and shuffled
        before each pass.
        """
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        args = self.args
        within = self._step % (args.steps_per_generation * args.num_iterations)
        if within == 0 or self._rollouts is None:
            self._rollouts = self._scored(self._generate_and_score_completions(generation_batch))
            self._order = None
        if within % args.steps_per_generation == 0 or self._order is None:
            self._order = torch.randperm(len(self._rollouts["prompt_ids"]))
            self._normalizers = self._normalizers_of(self._rollouts, self._order)
        return self._slice(self._rollouts, self._order, within % args.steps_per_generation)

    def _slice(self, rollouts: dict[str, Any], order: Tensor, i: int) -> dict[str, Any]:
        """Batch ``i`` of this pass over the rollouts."""
        rows = order.split(self.args.per_device_train_batch_size)[i]
        rollouts = _host.split_pixel_values_by_grid(rollouts)
        taken = _host.unsplit_pixel_values_by_grid(take(rollouts, rows))
        batch = trimmed(taken, self.pad_to_multiple_of)
        return {**batch, "normalizer": self._normalizers[i]}

    def _normalizers_of(self, rollouts: dict[str, Any], order: Tensor) -> list[Tensor]:
        size = self.args.per_device_train_batch_size
        if self.args.normalization == "token":
            tokens = loss_mask(rollouts).sum(1).float()  # (rows,)
            counts = tokens[order.to(tokens.device)].view(-1, size).sum(1)
        else:
            counts = torch.full((len(order) // size,), float(size), device=self.accelerator.device)
        return self._over_updates(counts)

    def _over_updates(self, counts: Tensor) -> list[Tensor]:
        """
        For each batch the count of its whole update, over accumulated batches and processes.

        It is divided by the number of processes, over which gradients are averaged.
        """
        accumulated = self.args.gradient_accumulation_steps
        updates = self._sum(counts).view(-1, accumulated).sum(1).clamp(min=1.0)
        return list((updates / self.accelerator.num_processes).repeat_interleave(accumulated))

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over processes. Vectors may differ in length: missing elements are zeros."""
        if self.accelerator.num_processes == 1:
            return values
        if values.ndim == 0:
            return self.accelerator.reduce(values, "sum")
        padded = self.accelerator.pad_across_processes(values)
        return self.accelerator.reduce(padded, "sum")[: len(values)]

    def _note(self, values: dict[str, float], group: str = "minillm", mode: str = "train") -> None:
        """For the next log."""
        for name, value in values.items():
            self._metrics[mode][f"{group}/{name}"].append(value)

    # -- stopping and going on -------------------------------------------------------------------------------

    def _stop_unless_finite(self, what: str, values: Tensor, batch: dict[str, Any]) -> None:
        """All processes stop together, each with its own batch saved."""
        bad = self._sum((~torch.isfinite(values)).sum().float())
        if bad.item():
            path = self._save_batch(batch)
            raise FloatingPointError(
                f"{what} is not finite at step {self.state.global_step}. The batch is saved in {path} "
                "(torch.load(..., weights_only=True)). Look for NaN in the models' weights or in a teacher "
                "in half precision (load it with dtype='bfloat16' or 'float32'), or lower learning_rate or "
                "max_grad_norm."
            )

    @contextmanager
    def _non_finite_explained(self, batch: dict[str, Any], together: bool) -> Iterator[None]:
        """
        Sampling from NaN fails in torch, far from its cause: say where it was and keep the prompts.

        If all processes sample ``together``, all stop together, as they would wait for each other otherwise.
        """
        failed: Exception | None = None
        try:
            yield
        except (FloatingPointError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "probability tensor contains" not in str(error):
                raise
            failed = error
        count = torch.tensor(float(failed is not None), device=self.accelerator.device)
        if (self._sum(count) if together else count).item():
            path = self._save_batch(batch)
            raise FloatingPointError(
                f"Answers could not be drawn at step {self.state.global_step}: logits are not finite "
                f"({failed or 'on another process'}). The prompts are saved in {path} (torch.load(..., "
                "weights_only=True)). Look for NaN in the models' weights, or lower learning_rate."
            ) from failed

    def _save_batch(self, batch: dict[str, Any]) -> str:
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = (
            folder / f"not_finite_step_{self.state.global_step}_process_{self.accelerator.process_index}.pt"
        )
        torch.save({"step": self.state.global_step, "batch": batch}, path)
        return str(path)

    def _state_path(self, checkpoint: str) -> str:
        return os.path.join(checkpoint, f"rollouts_{self.accelerator.process_index}.pt")

    @property
    def _shape(self) -> dict[str, int]:
        """What must be as it was for a rollout to be gone on with."""
        names = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
        args = {name: getattr(self.args, name) for name in (*names, "num_iterations")}
        return {"processes": self.accelerator.num_processes, **args}

    def _save_rng_state(self, output_dir: str) -> None:
        """With the random states, what a resumed run needs to go on in the middle of a rollout."""
        super()._save_rng_state(output_dir)
        state = {
            "shape": self._shape,
            "step": self._step,
            "rollouts": self._rollouts,
            "order": self._order,
            "metrics": dict(self._metrics["train"]),
            "own": self._own_state(),
        }
        torch.save(state, self._state_path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        path = self._state_path(checkpoint)
        # on the CPU first: a process of several there is at "cpu:0", which torch.load does not know
        state = torch.load(path, map_location="cpu", weights_only=True) if os.path.isfile(path) else {}
        if state:
            self._restore_own_state(state["own"])
        shape, processes = state.get("shape", {}), self.accelerator.num_processes
        fits = torch.tensor(float(shape == self._shape), device=self.accelerator.device)
        if self._sum(fits).item() < processes:  # none goes on in a rollout of which another has no part
            changed = [
                f"{name} was {shape[name]} and is {now}"
                for name, now in self._shape.items()
                if name in shape and shape[name] != now
            ]
            why = "; ".join(changed) or "of another process"
            why = why if shape else f"there is no {os.path.basename(path)}"
            _host.logger.warning(
                f"The rollout of {checkpoint} cannot be gone on with ({why}): training goes on from its "
                "weights with new answers, not exactly where it was."
            )
            # Prompts are read on from this batch: number the texts and coins as if all before had been drawn.
            # The new answers serve what is left of their prompts' turn.
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
            return
        device = self.accelerator.device
        self._step, self._order = state["step"], state["order"]
        self._rollouts = state["rollouts"] and {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in state["rollouts"].items()
        }
        if self._rollouts is not None and self._order is not None:
            self._normalizers = self._normalizers_of(self._rollouts, self._order)
        self._metrics["train"].update(state["metrics"])
