"""The data side of QDPO: prompts in, pairs out, scored by reference and teacher, made anew each round."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.trainer_utils import TrainOutput, get_last_checkpoint
from trl import DPOTrainer

from .. import _host
from ..evaluation import inputs as evaluation
from . import pairs
from .batches import OURS, TEACHER, PairCollator
from .checks import IDS, check_dataset, check_rounds
from .layers import quantized_layers
from .models import Teacher, place
from .pairs import Generation, PairCounts
from .prompts import encode_rows
from .quantizer_file import check_written, write_settings
from .replies import end_tokens, hash_of, key, quiet
from .rounds import NewRound, RoundPairs

logger = logging.getLogger("extensions.trl.qdpo")

REFERENCE = ["ref_chosen_logps", "ref_rejected_logps"]


class PairTrainer(DPOTrainer):
    """TRL's [`~trl.DPOTrainer`] on pairs that it makes of prompts."""

    # what transformers annotates as perhaps missing, or of more types than a causal language model has
    args: Any
    model: Any
    teacher: Teacher
    constructed: bool
    nothing_differs: bool
    #: share of the differing pairs of which the teacher finds the rejected reply likelier, by dataset
    violation_rates: dict[str, float]
    _scoring: set[int]  # ids of models that can score, with a fused head
    _prompts: list[list[int]]  # of the training set, with the teacher's replies
    _chosen: list[list[int]]
    _pair_figures: dict[str, float]  # of the round, for the log
    #: how many prompts gave a pair, by the name of the dataset
    pair_counts: dict[str, PairCounts]

    # -- prompts to pairs ------------------------------------------------------------------------------------

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Dataset | IterableDataset:
        """Token ids of pairs: those of a dataset that has them, else made of its prompts."""
        columns = set(dataset.column_names or next(iter(dataset)))
        training = dataset_name == "train" and not self.constructed
        ready = bool(columns & {"chosen", "rejected"})
        if training:
            check_rounds(args, ready or set(IDS) <= columns)
        if ready:
            dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        elif not set(IDS) <= columns:
            check_dataset(dataset, processing_class, dataset_name, self.teacher.same)
            prompts = self._prompt_ids(dataset, processing_class, dataset_name)
            with self._precision():
                dataset = self._pairs_of(prompts, dataset_name, training)
        # In the constructor the host scores what it gets; what evaluate() is given comes later.
        return self._ready(dataset, dataset_name) if self.constructed else dataset

    def _prompt_ids(self, dataset: Dataset, processing_class: Any, name: str) -> list[list[int]]:
        """Token ids of the prompts that leave room for a reply, with the tools and settings of their rows."""
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        prompts = encode_rows(tokenizer, dataset)
        room = self.args.max_length
        short = [ids for ids in prompts if room is None or len(ids) < room]
        if not short:
            raise ValueError(
                f"Every prompt of the {name} dataset has max_length={room} tokens or more, which leaves no "
                "room for a reply: raise max_length, or pass shorter prompts."
            )
        if len(short) < len(prompts):
            logger.warning(
                f"{len(prompts) - len(short)} of {len(prompts)} prompts of the {name} dataset are left "
                f"out: they have max_length={room} tokens or more. Raise max_length to keep them."
            )
        evaluation.check_prompts(self.teacher.policy, short, self.args.max_new_tokens)
        return short

    def _pairs_of(self, prompts: list[list[int]], name: str, training: bool) -> Dataset:
        policy = self.teacher.policy
        generation = self._generation()
        place(policy, self.args.device)
        with self.teacher.speaking() as teacher:
            place(teacher, self.args.device)
            folder = self._folder("teacher", teacher, teacher.named_parameters(), prompts, generation)
            chosen = generation.replies(teacher, prompts, folder, f"Full-precision replies to {name}")
            self._leave_device(teacher)
        weights = policy.state_dict().items()
        folder = self._folder("policy", policy, weights, prompts, generation, self._quantizer())
        rejected = generation.replies(policy, prompts, folder, f"Quantized replies to {name}")
        if training:
            self._prompts, self._chosen = prompts, chosen
        return self._rows(prompts, chosen, rejected, name, training)

    def _rows(
        self,
        prompts: list[list[int]],
        chosen: list[list[int]],
        rejected: list[list[int]],
        name: str,
        training: bool,
        number: int = 0,
    ) -> Dataset:
        """Pairs of replies, counted: for training those that teach something, for evaluation all."""
        args = self.args
        same = [i for i, (w, y) in enumerate(zip(chosen, rejected, strict=True)) if w == y]
        anchored: list[int] = []
        if training and args.anchor_fraction:
            anchored = pairs.choose_anchors(same, args.anchor_fraction, args.seed + number)
            replies = pairs.anchors(
                self.teacher.policy,
                [prompts[i] for i in anchored],
                [chosen[i] for i in anchored],
                self._generation(),
            )
            rejected = list(rejected)
            for i, reply in zip(anchored, replies, strict=True):
                rejected[i] = reply
        counts = PairCounts(len(prompts), len(same), len(anchored))
        self.pair_counts[name] = counts
        if training:
            self._pair_figures = {"pairs/differing": counts.differing / counts.prompts}
        logger.info(
            f"{name}: {counts.differing} of {counts.prompts} prompts have replies that differ, "
            f"{counts.identical} the same reply twice; {counts.anchors} of these give an anchor."
        )
        nothing = training and counts.differing == 0 and not anchored and not args.reads_replies()
        if nothing and number == 0:
            self.nothing_differs = True  # and identical pairs stand in, for the host wants a dataset
        keep = not training or args.reads_replies() or self.nothing_differs
        rows = pairs.pair_rows(prompts, chosen, rejected, keep)
        return pairs.swap_half(rows, args.seed + number) if training and args.shuffle_labels else rows

    def _generation(self) -> Generation:
        args = self.args
        ends = tuple(end_tokens(self.teacher.policy, self._tokenizer))
        return Generation(args.max_new_tokens, args.generation_batch_size, ends)

    def _quantizer(self) -> list[Any]:
        layers = quantized_layers(self.teacher.policy)
        schemes = {name: str(layer.scheme) for name, layer in layers.items()}
        return [schemes, self.args.activation_bits, self.args.kv_bits]

    def _folder(
        self, who: str, model: Any, weights: Iterable[tuple[str, Tensor]], *made_of: Any
    ) -> Path | None:
        """Where replies of a model are kept: a folder for all that they depend on."""
        where = self.args.pairs_dir
        if not where:
            return None
        config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "use_cache")}
        precision = [self.args.bf16, self.args.fp16]
        return Path(where) / f"{who}-{key(hash_of(weights), config, precision, *made_of)}"

    def _precision(self) -> AbstractContextManager[Any]:
        """
        What training computes in, for whoever speaks outside of it.

        The policy is wrapped in it once training has begun, and other roundings would be other replies.
        """
        args = self.args
        dtype = torch.float16 if args.fp16 else torch.bfloat16
        return torch.autocast(args.device.type, dtype=dtype, enabled=bool(args.fp16 or args.bf16))

    # -- scores ----------------------------------------------------------------------------------------------

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k not in OURS})

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """
        The pairs with the reference's log-probabilities of both replies.

        The host keeps them in a file beside that of the dataset, by a key made of the weights. Pairs that are
        made here have no such file, which the processes could share; and the weights in the key are latent
        ones, the same for policies of all numbers of bits. So they are made anew each time.
        """
        if not self._needs_reference():
            return dataset
        if self.teacher.same or isinstance(dataset, IterableDataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)
        if set(REFERENCE) <= set(dataset.column_names):
            return dataset
        reference = self.model if self.teacher.initial is None else self.teacher.initial
        if self.ref_model is not None:
            reference = self.ref_model
        return self._scored(dataset, reference, REFERENCE, f"The reference reads {name}", batch_size)

    def _needs_reference(self) -> bool:
        return self.teacher.same or self.args.compares_with_reference()

    def _scored(
        self,
        dataset: Dataset,
        model: Any,
        names: Sequence[str],
        description: str,
        batch_size: int,
        collator: Any = None,
    ) -> Dataset:
        """Pairs with a model's log-probabilities of the chosen and the rejected reply, under these names."""
        self._can_score(model)
        collator = collator or self.data_collator
        batches = self.accelerator.prepare(DataLoader(dataset, batch_size, collate_fn=collator))
        scores = []
        for batch in tqdm(batches, description, disable=quiet(PartialState())):
            found = torch.stack(self.compute_ref_log_probs(model, batch), 1)  # (B, 2)
            scores.append(self.accelerator.gather_for_metrics(found).cpu())
        for name, column in zip(names, torch.cat(scores).unbind(1), strict=True):
            dataset = dataset.add_column(name, column.numpy())
        return dataset

    def _can_score(self, model: Any) -> None:
        """Have a model make the log-probabilities of its replies in its forward, as the host's own do."""
        if model is self.model or model is self.ref_model:
            return  # the host saw to them
        place(model, self.accelerator.device)
        if id(model) not in self._scoring:
            _host.add_fused_lm_head(model, outputs=("log_probs",))
            self._scoring.add(id(model))

    def _leave_device(self, teacher: Any) -> None:
        """Make room for training where no loss asks the teacher again, and it is not the reference either."""
        own = teacher is self.teacher.other or teacher is self.teacher.initial
        if own and teacher is not self.ref_model and not self.args.asks_teacher():
            place(teacher, torch.device("cpu"))

    def _ready(self, dataset: Any, name: str, training: bool = False) -> Any:
        """Pairs with what the losses need of the teacher, and without those that the filter leaves out."""
        args = self.args
        if self.teacher.same or set(TEACHER) <= set(dataset.column_names or ()):
            return dataset
        if not args.compares_pairs() and args.pair_filter == "none":
            return dataset  # single replies are read: nobody asks which of two the teacher finds likelier
        if isinstance(dataset, IterableDataset):
            if "qdpo_target" in args.loss_type or (training and args.pair_filter == "teacher"):
                raise ValueError(
                    "loss_type='qdpo_target' and pair_filter='teacher' score all pairs with the teacher "
                    "before training: pass a Dataset, not a stream."
                )
            return dataset
        batch_size = args.precompute_ref_batch_size or args.per_device_train_batch_size
        with self.teacher.speaking() as teacher:
            dataset = self._scored(dataset, teacher, TEACHER, f"The teacher reads {name}", batch_size)
            whole = dataset
            collator = self.data_collator
            if isinstance(collator, PairCollator) and collator.divergence_window is not None:
                # losses count the tokens of a window, a label is of whole replies
                collator = replace(collator, divergence_window=None)
                whole = dataset.remove_columns(list(TEACHER))
                description = f"The teacher reads whole replies of {name}"
                whole = self._scored(whole, teacher, TEACHER, description, batch_size, collator)
            self._leave_device(teacher)
        margins = torch.sub(*(torch.tensor(whole[name][:]) for name in TEACHER))
        replies = zip(dataset["chosen_ids"][:], dataset["rejected_ids"][:], strict=True)
        differ = torch.tensor([w != y for w, y in replies])
        violated = (margins < 0) & differ
        if differ.any():
            self.violation_rates[name] = float(violated.sum() / differ.sum())
            if training:
                self._pair_figures["pairs/label_violations"] = self.violation_rates[name]
        if training and args.pair_filter == "teacher":
            dataset = dataset.select((~violated).nonzero()[:, 0].tolist())
        return dataset

    # -- rounds ----------------------------------------------------------------------------------------------

    def _begin_rounds(self) -> None:
        """Put the training pairs where they can be exchanged."""
        args = self.args
        self.train_dataset = RoundPairs(self.train_dataset, args.seed)
        self.add_callback(
            NewRound(self.train_dataset, self._new_round, args.num_rounds, args.epochs_per_round)
        )

    def _new_round(self, number: int) -> Dataset:
        """Pairs with the replies of the policy as it is now, scored like those of the first round."""
        args, name = self.args, f"train of round {number + 1}"
        with self._precision():
            rejected = self._generation().replies(
                self.teacher.policy, self._prompts, None, f"Replies of round {number + 1}"
            )
            rows = self._rows(self._prompts, self._chosen, rejected, name, True, number)
        if len(rows) and args.precompute_ref_log_probs:
            batch_size = args.precompute_ref_batch_size or args.per_device_train_batch_size
            rows = self._precompute_ref_logps(rows, name, batch_size)
        rows = self._ready(rows, name, training=True) if len(rows) else rows
        if not len(rows):
            logger.warning(f"Round {number + 1} has no pair left to learn from: training ends.")
        return rows

    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """
        Train, or go on from a checkpoint: with its pairs, if they were made anew each round.

        With nothing but identical replies there is nothing to learn: a warning says so, and no step is taken.
        """
        if self.nothing_differs:
            counts = self.pair_counts["train"]
            logger.warning(
                f"All {counts.prompts} prompts have the same reply from the full-precision model and from "
                "the quantized one: there is no pair, and nothing to train. Use more prompts or longer "
                "replies (max_new_tokens), fewer bits, anchors (anchor_fraction), or a loss on replies "
                "(loss_type='kd')."
            )
            return TrainOutput(0, 0.0, {})
        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(self.args.output_dir)
        if found:
            check_written(Path(found), self.args)
            if isinstance(self.train_dataset, RoundPairs):
                self._pair_figures = self.train_dataset.load(Path(found))
        self.teacher.untrained = False
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.args.bits is not None:  # the host calls this on every process
            write_settings(Path(output_dir or self.args.output_dir), self.args)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if isinstance(self.train_dataset, RoundPairs) and self.accelerator.is_main_process:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            self.train_dataset.save(folder, self._pair_figures)
