"""Rouge-L of sampled answers as a metric of the evaluation, by which checkpoints can be chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean, stdev
from typing import Any

from accelerate.utils import gather_object
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import Trainer, TrainerCallback

from .inputs import check_prompts, encode_prompts
from .sampling import generate_texts
from .texts import rouge_l_scores


class RougeCallback(TrainerCallback):
    """Answer held-out prompts at each evaluation and report the answers' Rouge-L.

    The metric ``eval_rougeL`` joins those of the evaluation, so that the checkpoint of the best Rouge-L
    is kept by ``metric_for_best_model="eval_rougeL", greater_is_better=True,
    load_best_model_at_end=True``; so are checkpoints chosen in MiniLLM (its SFT phase goes by the
    validation loss instead). With several seeds ``eval_rougeL_se`` is the standard error over them.
    Training is not disturbed: random states and the model's modes are left as they were.

    Processes share the prompts. A callback that acts on the metric, such as ``EarlyStoppingCallback``,
    must be added after this one.

    Example:
        >>> trainer = MiniLLMTrainer(...)
        >>> trainer.add_callback(RougeCallback(trainer, validation))

    Args:
        trainer: any ``transformers.Trainer`` of a causal language model with a processing class.
        dataset: a dataset with columns ``prompt`` and ``completion``, or pairs of them. Prompts are all
            strings or all conversations; a completion is a string, a conversation, or a list of strings
            of which the nearest counts.
        max_new_tokens: where an answer is cut that has not ended, by default at the
            ``max_completion_length`` of ``trainer.args``, or at 256 if these have none.
        seeds: of the answers; one pass over the prompts for each.
        temperature: of the softmax; 0 takes the likeliest token each time.
        batch_size: prompts answered together, by default ``per_device_eval_batch_size``.

    Raises:
        ImportError: rouge-score is not installed.
        ValueError: no examples or no seeds, an example is no pair, or a prompt is too long for the model.
    """

    def __init__(
        self,
        trainer: Any,
        dataset: Iterable[Any],
        *,
        max_new_tokens: int | None = None,
        seeds: Sequence[int] = (10,),
        temperature: float = 1.0,
        batch_size: int | None = None,
    ) -> None:
        pairs = [_pair(example) for example in dataset]
        self.prompts = [prompt for prompt, _ in pairs]
        self.references = [_references(completion) for _, completion in pairs]
        if not seeds:
            raise ValueError("RougeCallback needs at least one seed.")
        rouge_l_scores([], [])  # fails now rather than at the first evaluation
        self.trainer = trainer
        if max_new_tokens is None:
            max_new_tokens = getattr(trainer.args, "max_completion_length", None) or 256
        check_prompts(trainer.model, encode_prompts(trainer.processing_class, self.prompts), max_new_tokens)
        self.max_new_tokens = max_new_tokens
        self.seeds = list(seeds)
        self.temperature = temperature
        self.batch_size = batch_size or trainer.args.per_device_eval_batch_size

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the metrics to the evaluation's, and log them."""
        with _generating(self.trainer) as model:
            by_seed = [self._rouge_l(model, seed) for seed in self.seeds]
        found = {"eval_rougeL": fmean(by_seed)}
        if len(by_seed) > 1:
            found["eval_rougeL_se"] = stdev(by_seed) / math.sqrt(len(by_seed))
        kwargs["metrics"].update(found)
        # Not trainer.log: TRL's trainers would log their completions of this step a second time.
        Trainer.log(self.trainer, dict(found))

    def _rouge_l(self, model: Any, seed: int) -> float:
        """Mean Rouge-L over all prompts, of which this process answers its share."""
        accelerator = self.trainer.accelerator
        n, processes = len(self.prompts), accelerator.num_processes
        # Sharded models generate in step, so that all processes have as many prompts: some repeat one.
        turns = [accelerator.process_index + k * processes for k in range(math.ceil(n / processes))]
        predictions = generate_texts(
            model,
            self.trainer.processing_class,
            [self.prompts[turn % n] for turn in turns],
            self.max_new_tokens,
            seed=seed * processes + accelerator.process_index,
            temperature=self.temperature,
            batch_size=self.batch_size,
        )
        mine = [(turn, prediction) for turn, prediction in zip(turns, predictions, strict=True) if turn < n]
        scores = rouge_l_scores([text for _, text in mine], [self.references[turn] for turn, _ in mine])
        return fmean(gather_object(scores))


@contextmanager
def _generating(trainer: Any) -> Iterator[Any]:
    """The trainer's model as one that can generate, its shards put together if it has any."""
    from trl.models import unwrap_model_for_generation

    wrapped = trainer.model_wrapped
    with unwrap_model_for_generation(
        wrapped,
        trainer.accelerator,
        gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
    ) as model:
        if isinstance(wrapped, FullyShardedDataParallel):
            with FullyShardedDataParallel.summon_full_params(wrapped, recurse=False):
                yield model
        else:
            yield model


def _pair(example: Any) -> tuple[Any, Any]:
    """Prompt and completion of an example."""
    if isinstance(example, Mapping):
        if not {"prompt", "completion"} <= example.keys():
            raise ValueError(
                "RougeCallback needs the columns 'prompt' and 'completion'; the dataset has "
                f"{sorted(example)}."
            )
        return example["prompt"], example["completion"]
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        raise ValueError(f"RougeCallback needs pairs of prompt and completion, got {example!r}.")
    return example[0], example[1]


def _references(completion: Any) -> str | list[str]:
    """The text or texts that an answer is compared with."""
    if isinstance(completion, str):
        return completion
    if completion and isinstance(completion[0], Mapping):
        return "\n".join(message["content"] for message in completion)
    return list(completion)
