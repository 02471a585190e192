"""Rounds: pairs made anew by the policy as it has become, in a dataset of constant length."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

PAIRS = "pairs"  # in a checkpoint
ROUND = "round.json"


class RoundPairs(TorchDataset):
    """
    The pairs of a round, as many as the first round had.

    The number of updates is settled before training begins, and the learning rate's schedule with it. A
    round with fewer pairs shows some of them again, one with more leaves some out, both at random.
    """

    def __init__(self, pairs: Dataset, seed: int) -> None:
        self._length, self._seed = len(pairs), seed
        self.show(pairs, 0)

    def show(self, pairs: Dataset, number: int) -> None:
        """From now on these."""
        self.pairs, self.number = pairs, number
        draw = random.Random(f"{self._seed}-{number}")
        order: list[int] = []
        while len(order) < self._length:
            order += draw.sample(range(len(pairs)), min(len(pairs), self._length - len(order)))
        self._order = order

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.pairs[self._order[index]]

    def save(self, checkpoint: Path, figures: dict[str, float]) -> None:
        """The round, its pairs and what is logged of them, beside what the host keeps in a checkpoint."""
        self.pairs.save_to_disk(str(checkpoint / PAIRS))
        (checkpoint / ROUND).write_text(json.dumps({"round": self.number, "figures": figures}))

    def load(self, checkpoint: Path) -> dict[str, float]:
        """
        Show the pairs of a checkpoint.

        Returns:
            What is logged of them.

        Raises:
            FileNotFoundError: it has none.
        """
        if not (checkpoint / ROUND).exists():
            raise FileNotFoundError(
                f"{checkpoint} holds no pairs: it was not written with num_rounds > 1, or is incomplete. "
                "Resume from another checkpoint, or from the beginning."
            )
        written = json.loads((checkpoint / ROUND).read_text())
        self.show(Dataset.load_from_disk(str(checkpoint / PAIRS)), written["round"])
        return written["figures"]


class NewRound(TrainerCallback):
    """Has pairs made when an epoch begins that belongs to another round."""

    def __init__(
        self, shown: RoundPairs, make: Callable[[int], Dataset], num_rounds: int, epochs_per_round: int
    ) -> None:
        self.shown, self.make = shown, make
        self.num_rounds, self.epochs_per_round = num_rounds, epochs_per_round

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """In time for a round without pairs to end training before another step is taken."""
        if state.global_step < state.max_steps:
            self._make(state, control)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where a checkpoint was the last thing of an epoch, and has the pairs of that."""
        self._make(state, control)

    def _make(self, state: TrainerState, control: TrainerControl) -> None:
        epoch = int((state.epoch or 0.0) + 1e-6)
        number = min(epoch // self.epochs_per_round, self.num_rounds - 1)
        if number == self.shown.number or control.should_training_stop:
            return
        pairs = self.make(number)
        if len(pairs):
            self.shown.show(pairs, number)
        else:  # nothing differs any more
            control.should_training_stop = True
