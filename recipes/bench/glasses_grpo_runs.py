"""The runs of :mod:`.glasses_grpo`: a warmed-up model, the ceilings on its reward, GRPO, what it came to."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from envs.sequence_tasks.rewards import ROUND_NUMBERS, exact_reward
from extensions.glasses import HFCausalLM
from extensions.glasses.callback import GlassesCallback
from extensions.glasses.ceiling import CRITERIA, ceiling_of, reward_ceiling
from extensions.glasses.tasks import Question

from ..run_folder import where_it_ran
from .glasses_grpo_model import warmed_up
from .glasses_grpo_plan import (
    BINS,
    DTYPES,
    EVERY,
    FAR,
    LOGGED,
    NEIGHBOURS,
    SETTINGS,
    TRAINING,
    Far,
    Job,
    Setting,
)  # fmt: skip
from .glasses_grpo_questions import ArmPairs, make_tokenizer, pool, question
from .training_runs import alone, as_json, keep, result

#: what stands for exact arithmetic beside a precision
REFERENCE = {"float32": "float64", "bfloat16": "float32"}


def run(job: Job | Far) -> bool:
    """Make one run, unless that was done or another process is at it; whether it was made."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with alone(job.folder / "lock") as mine:
        if not mine or result(job) is not None:
            return False
        wall, cpu = time.perf_counter(), time.process_time()
        made = train(job) if isinstance(job, Job) else far(job)
        found = {
            **job.names,
            **made,
            "settings": as_json(job.settings),
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            **where_it_ran(),
        }
        keep(job.file, found)
    print(f"{job}: {in_words(made)}, {found['cpu_s']:.0f} s", flush=True)
    return True


def in_words(made: dict[str, Any]) -> str:
    """What a run came to."""
    if "before" not in made:
        return str(made["ceilings"])
    told = ", ".join(f"{name} {x:.3f}" for name, x in made["before"]["ceilings"].items())
    before, after = (made[when]["expected_reward"] for when in ("before", "after"))
    return f"reward {before:.3f} to {after:.3f}, ceilings {told}"


def far(job: Far) -> dict[str, Any]:
    """By length and precision, the ceilings of so many ones and their neighbours."""
    setting, draw = SETTINGS[job.setting], random.Random(job.seed)
    tokenizer, questions = make_tokenizer(setting), pool(setting, "plain", job.seed)
    model = warmed_up(job.folder / "warmed_up.pt", setting, tokenizer, questions, job.seed)
    found: dict[int, dict[str, dict[str, float]]] = {}
    for first in FAR:
        items = [question(setting, "plain", n, draw) for n in range(first, first + NEIGHBOURS)]
        ids, answers = _read(tokenizer, items)
        found[first] = {dtype: ceilings(model, ids, answers, [1] * len(ids), dtype) for dtype in DTYPES}
    return {"ceilings": found}


def train(job: Job) -> dict[str, Any]:
    """The ceilings before, GRPO, and what became of it."""
    setting = SETTINGS[job.setting]
    tokenizer, questions = make_tokenizer(setting), pool(setting, job.arm, job.seed)
    model = warmed_up(job.folder / "warmed_up.pt", setting, tokenizer, questions, job.seed)
    before = state_of(model, tokenizer, questions, setting, job.dtype)
    history = grpo(model, tokenizer, questions, job)
    model.eval()
    after = state_of(model, tokenizer, questions, setting, job.dtype)
    return {"before": before, "after": after, "history": history}


@contextlib.contextmanager
def arithmetic(dtype: str) -> Iterator[None]:
    """As a run computes: in float32, or by autocast in bfloat16, whose residual stream stays in float32."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        yield


def state_of(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    questions: list[Question],
    setting: Setting,
    dtype: str,
) -> dict[str, Any]:
    """What a model's reward is and can be, over all questions; each prompt is read once, by itself."""
    copies: dict[str, int] = {}
    for item in questions:
        copies[item.prompt] = copies.get(item.prompt, 0) + 1
    items = list({item.prompt: item for item in questions}.values())
    ids, right_answers = _read(tokenizer, items)
    weights = torch.tensor([copies[item.prompt] for item in items], dtype=torch.float64)
    answers = torch.tensor(tokenizer.convert_tokens_to_ids(right_answers))
    with arithmetic(dtype):
        logits = torch.cat([model(torch.tensor([row])).logits[:, -1].float() for row in ids])  # (P, V)
    probabilities = logits.softmax(-1)[torch.arange(len(ids)), answers].double()
    said = logits.argmax(-1)
    right = (said == answers).double()
    lengths = torch.tensor([item.length for item in items])
    bins = (lengths - 1) * BINS // setting.longest
    return {
        "expected_reward": _mean(probabilities, weights),
        "greedy": _mean(right, weights),
        "greedy_by_bin": [_mean(right[bins == b], weights[bins == b]) for b in range(BINS)],
        "reward_by_bin": [_mean(probabilities[bins == b], weights[bins == b]) for b in range(BINS)],
        "round_numbers": _mean(_is_round(tokenizer.convert_ids_to_tokens(said.tolist())), weights),
        "ceilings": ceilings(model, ids, right_answers, weights.long().tolist(), dtype),
    }


def ceilings(
    model: LlamaForCausalLM, ids: list[list[int]], answers: list[str], copies: list[int], dtype: str
) -> dict[str, float]:
    """By criterion. Bits and likeliest tokens are those of the run's own arithmetic, rounding is that of a
    model all in its precision."""
    adapter = HFCausalLM(model)
    found = {}
    for criterion in CRITERIA:
        if criterion == "snr":
            ceiling = reward_ceiling(
                adapter, ids, answers, criterion=criterion, dtype=dtype, reference=REFERENCE[dtype]
            )
        else:
            with arithmetic(dtype):
                ceiling = reward_ceiling(adapter, ids, answers, criterion=criterion, dtype="float32")
        classes = [c for c, n in zip(ceiling.classes.tolist(), copies, strict=True) for _ in range(n)]
        repeated = [answer for answer, n in zip(answers, copies, strict=True) for _ in range(n)]
        found[criterion] = ceiling_of(classes, repeated)[0]
    return found


def grpo(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[Question], job: Job
) -> list[dict[str, float]]:
    """Train in place; what was logged, an entry each time. An answer is one token."""
    columns = {
        "prompt": [item.prompt for item in questions],
        "answer": [item.answer for item in questions],
        "kind": ["count_ones"] * len(questions),
        "length": [item.length for item in questions],
    }
    setting = SETTINGS[job.setting]
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=job.dtype == "bfloat16",  # TRL's own default is True
            seed=job.seed,
            max_steps=TRAINING.updates,
            learning_rate=TRAINING.lr,
            lr_scheduler_type="constant",
            num_generations=TRAINING.generations,
            per_device_train_batch_size=TRAINING.prompts * TRAINING.generations,
            max_completion_length=1,
            beta=0.0,
            gradient_checkpointing=False,
            logging_steps=TRAINING.updates // 6,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        reward: Any = exact_reward
        trainer = GRPOTrainer(
            model, reward, arguments, Dataset.from_dict(columns), processing_class=tokenizer
        )
        pairs = {f"plus_{more}": ArmPairs(setting, job.arm, tokenizer, more) for more in (1, EVERY)}
        trainer.add_callback(GlassesCallback(trainer, pairs, setting.watched, every=TRAINING.updates // 3))
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            trainer.train()
    return [kept for entry in trainer.state.log_history if len(kept := _kept(entry)) > 1]


def _kept(entry: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in entry.items()
        if value is not None and (name == "step" or name in LOGGED or name.startswith("glasses"))
    }


def _read(tokenizer: PreTrainedTokenizerFast, items: list[Question]) -> tuple[list[list[int]], list[str]]:
    """Prompts as ids, and answers."""
    return [tokenizer(item.prompt)["input_ids"] for item in items], [item.answer for item in items]


def _mean(values: torch.Tensor, weights: torch.Tensor) -> float:
    return ((values * weights).sum() / weights.sum()).item()


def _is_round(said: Iterable[str]) -> torch.Tensor:
    """Of which answers `exact_reward` would log that they are round."""
    return torch.tensor([float(word.isdigit() and int(word) in ROUND_NUMBERS) for word in said])


def ended(jobs: Iterable[Job | Far]) -> list[dict[str, Any]]:
    """What there is of some jobs."""
    return [found for job in jobs if (found := result(job)) is not None]
