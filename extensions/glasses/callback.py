"""The gap of minimal pairs, logged while a model is trained by a Trainer of transformers or TRL."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from .adapters import HFCausalLM, refuse_learned_prompts
from .curve import CollapseCurve, collapse_curve
from .encoding import MinimalPairs
from .families import PairFamily
from .tasks import Task

Pairs = PairFamily | Task


class GlassesCallback(TrainerCallback):
    """Logs how far apart a model in training holds minimal pairs, and whether that is more than rounding.

    It is given the trainer and then added to it::

        trainer = GRPOTrainer(...)
        trainer.add_callback(GlassesCallback(trainer, Ones(one=5, prefix=(1,)), lengths=(16, 64, 256)))

    Before the first step, every N steps and at the last one it logs, through the trainer itself, so that its
    history and all reporters get them, for each length, of the answer's state behind the final norm, means
    over pairs:

    - ``glasses/gap_l1/LENGTH``: the gap in the reference, in units of the residual stream;
    - ``glasses/argmax_equal/LENGTH``: share of pairs with the same likeliest token, in the reference;
    - and of each other dtype ``glasses/snr_DTYPE/LENGTH`` (gap over rounding),
      ``glasses/argmax_equal_DTYPE/LENGTH`` and ``glasses/bitwise_equal_DTYPE/LENGTH``.

    Training goes on as it would have without it, to the last bit: modules go back to the mode they were in,
    and generators to their states. A measurement is 2 forwards of each pair in each dtype. The main process
    alone makes them, and needs the whole weights: DDP and adapters of PEFT are fine, weights sharded by FSDP
    or ZeRO-3 are not.

    Args:
        trainer: any `transformers.Trainer`, those of TRL included.
        pairs: a family such as `Ones`, or a task, whose minimal pairs are encoded by the trainer's tokenizer;
            or a dictionary of these, whose keys then come behind ``glasses/`` in the names.
        lengths: ascending, in payload tokens.
        every: steps from one measurement to the next.
        dtypes, reference: as in `representation_gap`.
        norm: of "l1", "l2" and "linf".
        size: of a task, pairs at each length.

    Raises:
        ValueError: ``every`` or ``size`` below 1; when training begins, what `collapse_curve` raises.
        TypeError: when training begins, what `HFCausalLM` refuses.
    """

    def __init__(
        self,
        trainer: Trainer,
        pairs: Pairs | Mapping[str, Pairs],
        lengths: Sequence[int],
        *,
        every: int = 50,
        dtypes: Sequence[str] = ("float32", "bfloat16"),
        reference: str = "float32",
        norm: str = "l1",
        size: int = 8,
    ) -> None:
        if isinstance(lengths, int):
            raise TypeError(f"lengths must be a list: give ({lengths},) for one")
        if every < 1 or size < 1:
            raise ValueError(f"every and size must be at least 1, got {every} and {size}")
        self.trainer, self.lengths, self.every, self.norm = trainer, tuple(lengths), every, norm
        self.how: dict[str, Any] = {"dtypes": dtypes, "reference": reference, "norms": (norm,)}
        named = (
            {f"glasses/{name}": of for name, of in pairs.items()}
            if isinstance(pairs, Mapping)
            else {"glasses": pairs}
        )
        self.families: dict[str, Any] = {
            prefix: of if hasattr(of, "pairs") else MinimalPairs(_tokenizer(trainer), of, size)
            for prefix, of in named.items()
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first step; a training that is resumed has that already."""
        if state.global_step == 0:
            self._log(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every N steps, and at the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._log(state, control)

    def _log(self, state: Any, control: Any) -> None:
        if not state.is_world_process_zero:
            return
        should_log = control.should_log
        # not trainer.log: the trainers of TRL would empty their own means into this entry
        Trainer.log(self.trainer, self.measure())
        control.should_log = should_log  # of the step itself, which logging has just taken back

    def measure(self) -> dict[str, float]:
        """What is logged, of the model as it is."""
        model: Any = self.trainer.model
        refuse_learned_prompts(model)
        model = (
            model.get_base_model() if hasattr(model, "get_base_model") else model
        )  # PEFT's layers stay in it
        with _left_as_it_was(model), _without_autocast(model):
            adapter = HFCausalLM(model.eval())
            curves = {
                prefix: collapse_curve(adapter, family, self.lengths, layers=(-1,), **self.how)
                for prefix, family in self.families.items()
            }
        return {
            f"{prefix}/{name}": value
            for prefix, curve in curves.items()
            for name, value in self._named(curve).items()
        }

    def _named(self, curve: CollapseCurve) -> dict[str, float]:
        found: dict[str, Tensor] = {
            f"gap_{self.norm}": curve.gap[curve.reference][:, 0, 0],
            "argmax_equal": curve.argmax_equal[curve.reference],
        }
        for dtype, snr in curve.snr.items():
            found[f"snr_{dtype}"] = snr[:, 0, 0]
            found[f"argmax_equal_{dtype}"] = curve.argmax_equal[dtype]
            equal = [report.bitwise_equal[dtype][:, 0].double().mean() for report in curve.reports]
            found[f"bitwise_equal_{dtype}"] = torch.stack(equal)
        return {
            f"{name}/{length}": value
            for name, values in found.items()
            for length, value in zip(self.lengths, values.tolist(), strict=True)
        }


def _tokenizer(trainer: Trainer) -> Any:
    if not callable(trainer.processing_class):
        raise ValueError(
            "a task's prompts must be encoded: give the trainer its tokenizer (processing_class=...)"
        )
    return trainer.processing_class


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Each module's mode and the state of every generator, put back afterwards."""
    training = {module: module.training for module in model.modules()}
    python, numpy = random.getstate(), np.random.get_state()
    cuda = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _without_autocast(model: nn.Module) -> Iterator[None]:
    """The model's own forward, where accelerate has put one in mixed precision in its place."""
    mixed = model.__dict__.get("forward") if "_original_forward" in model.__dict__ else None
    if mixed is not None:
        del model.__dict__["forward"]
    try:
        yield
    finally:
        if mixed is not None:
            model.__dict__["forward"] = mixed
