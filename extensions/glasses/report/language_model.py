"""The report on a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ..adapters import HFCausalLM
from ..compare import check_remedies
from ..encoding import split
from .config import ReportConfig
from .gaps import gap_part
from .parts import answers_part, retrieval_part, sensitivity_part
from .report import Part, Report

KINDS = {"gap": gap_part, "answers": answers_part, "sensitivity": sensitivity_part}


class GlassesReport(Report):
    """Behaviour, gaps, sensitivities and the ceiling on reward of a language model, on the same sequences.

        report = GlassesReport(HFCausalLM(model, tokenizer), ReportConfig(tasks, lengths)).run()
        report.save("runs/report")

    Args:
        model: in eval mode, with its tokenizer.
        config: what is looked at.

    Attributes:
        parts: what was measured, by name, as "gap/copy_last"; plain Python.

    Raises:
        ValueError: train mode, no tokenizer, lengths beyond what learned positions reach with remedies, and
            what else remedies refuse.
    """

    def __init__(self, model: HFCausalLM, config: ReportConfig) -> None:
        super().__init__(model)
        if model.tokenizer is None:
            raise ValueError("a report asks in words: give the tokenizer, as in HFCausalLM(model, tokenizer)")
        self.config = config
        longest = [task.items(config.lengths[-1], 1)[0] for task in config.tasks]
        check_remedies(model, config.remedies, longest)
        if config.retrieval is not None:
            for item in config.retrieval.items(max(config.retrieval_lengths), 1):
                model.ids([split(model.tokenizer, item)[0]])

    def plan(self) -> Iterator[tuple[str, Callable[[], Part]]]:
        """Gaps, answers and sensitivities of each task, then retrieval."""
        for kind, part in KINDS.items():
            for task in self.config.tasks:
                yield f"{kind}/{task.name}", partial(part, self.model, task, self.config)
        if self.config.retrieval is not None:
            yield "retrieval", partial(retrieval_part, self.model, self.config)
