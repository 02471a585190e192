"""What a report looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapters import HFCausalLM
from ..compare import Remedy
from ..encoding import encode
from ..precision import check_dtype, check_reference
from ..remedies import Dilute
from ..retrieval import DepthTask
from ..tasks import Task


@dataclass(frozen=True)
class ReportConfig:
    """Settings of `GlassesReport`.

    Args:
        tasks: such as those of ``envs.sequence_tasks``, each of another name.
        lengths: ascending, in elements.
        remedies: that are compared on each task; see `compare`, which adds controls to separators.
        dtypes: of gaps, and of answers without a remedy. The first is the reference, and that of answers
            with one.
        trials: items of each task and length.
        trial_tokens: of long ones there are fewer, so that together they have so many tokens; at least 2.
        pairs: minimal pairs of each task and length; of long ones fewer likewise, at least 1.
        sensitivity_tokens: longest sequence whose sensitivities are taken.
        probes: of sensitivities; a quarter of them for each of the many of retrieval.
        retrieval: a task for `retrieval_probe`; None for none.
        retrieval_lengths: its lengths, in elements.
        retrieval_trials: its items at each length and depth.
        chunk: sequences in one forward.
        seed: of probes.

    Raises:
        ValueError: a setting is out of its range.
    """

    tasks: Sequence[Task]
    lengths: Sequence[int]
    remedies: Sequence[Remedy] = (Dilute(3),)
    dtypes: Sequence[str] = ("float32", "bfloat16")
    trials: int = 16
    trial_tokens: int = 1024
    pairs: int = 2
    sensitivity_tokens: int = 512
    probes: int = 16
    retrieval: DepthTask | None = None
    retrieval_lengths: Sequence[int] = (8, 32)
    retrieval_trials: int = 8
    chunk: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tasks or len({task.name for task in self.tasks}) < len(self.tasks):
            names = [task.name for task in self.tasks]
            raise ValueError(f"tasks must be at least one, each with a name of its own; got {names}")
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < 2:
            raise ValueError(f"lengths must be at least 2 and ascending, got {list(self.lengths)}")
        if not self.dtypes:
            raise ValueError("dtypes must be at least one, such as float32")
        names = [check_dtype(name) for name in self.dtypes]
        check_reference(names[0], names)
        for name in ("trial_tokens", "pairs", "sensitivity_tokens", "retrieval_trials", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.retrieval is not None and min(self.retrieval_lengths, default=0) < 1:
            raise ValueError(
                f"retrieval_lengths must be at least one, all positive; got {list(self.retrieval_lengths)}"
            )
        for name in ("trials", "probes"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")


def items_of(
    most: int, model: HFCausalLM, task: Task, length: int, config: ReportConfig, least: int = 2
) -> int:
    """How many items of a length have `trial_tokens` tokens together."""
    item = task.items(length, 1)[0]
    tokens = len(encode(model.tokenizer, item.prompt + item.lead))
    return max(least, min(most, config.trial_tokens // tokens))
