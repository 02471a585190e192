"""Questions about a sequence, with answers that are known: copy, count, sum, recall, parity.

    from envs.sequence_tasks import SequenceTask, TaskConfig, generate

    items = generate(TaskConfig("copy_last", lengths=(2, 64)), 100)
    task = SequenceTask("count_ones", prompt_style="terse")
    item, one_more = task.minimal_pair(task.items(length=20, size=1)[0])

The tasks are those of the experiments of Barbero et al., "Transformers need glasses!" (NeurIPS 2024), and a
few more. `envs.sequence_tasks.rewards` scores answers for TRL's GRPO, `envs.sequence_tasks.scratchpad` is an
environment with tools for it, and `envs.sequence_tasks.streams` shows sequences to agents token by token.
"""

from .config import KINDS, SeparatorConfig, TaskConfig
from .items import SequenceItem, generate, minimal_pair
from .parsing import parse_answer
from .tasks import SequenceTask, to_hf_dataset

__all__ = [
    "KINDS",
    "SeparatorConfig",
    "SequenceItem",
    "SequenceTask",
    "TaskConfig",
    "generate",
    "minimal_pair",
    "parse_answer",
    "to_hf_dataset",
]
