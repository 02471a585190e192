"""Updates of MiniLLMTrainer and of TRL's DistillationTrainer on the same models and prompts, taking turns."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
)
from trl import DistillationConfig, DistillationTrainer

from extensions.trl import MiniLLMConfig, MiniLLMTrainer

from .minillm_speed_page import BASE, MODERN, OFF, ONE_PASS, PAPER, PARTS, STUDENT

FIELDS = ["device", "threads", "case", "trainer", "clock", "ratio", "q25", "q75", "median_ms", "q25_ms"]
FIELDS += ["q75_ms", "answers", *(f"{part}_ms" for part in PARTS), "rounds"]
RAW_FIELDS = ["case", "round", "trainer", "wall_s", "cpu_s", *(f"{part}_s" for part in PARTS)]
# As TRL does: one generation for one update, drawn by the student.
EVEN: dict[str, Any] = {"steps_per_generation": 1, "num_iterations": 1}
OURS: dict[str, dict[str, Any]] = {
    OFF: {
        "mode": "modern",
        "long_term": False,
        "importance_weights": "none",
        "teacher_mix_alpha": 0.0,
        **EVEN,
    },
    STUDENT: {"mode": "modern", "teacher_mix_alpha": 0.0},
    MODERN: {"mode": "modern"},
    ONE_PASS: {"mode": "paper", **EVEN},
    PAPER: {"mode": "paper"},
}
UPDATES = 4  # of a turn, or one whole cycle over the rollouts if that is longer
UNKNOWN = 2


@dataclass(frozen=True)
class Case:
    """A pair of models as (layers, width), and the work of one update."""

    student: tuple[int, int] = (2, 128)
    teacher: tuple[int, int] = (4, 256)
    vocabulary: int = 8_192
    batch: int = 16
    prompt: int = 16
    new: int = 32
    bf16: bool = False


CPU = {
    "8,192 tokens": Case(),
    "300 tokens": Case(vocabulary=300),
    "a larger teacher": Case(teacher=(8, 384), batch=8),
    "longer answers": Case(batch=8, new=96),
}
CUDA = {
    "GPT-2 small and medium": Case((12, 768), (24, 1024), 50_257, 16, 128, 256, bf16=True),
    "Qwen3's vocabulary": Case((12, 768), (24, 1024), 151_936, 16, 128, 256, bf16=True),
}
QUICK = {"quick": Case((1, 16), (2, 32), 64, 2, 3, 4)}


@dataclass
class Stopwatch:
    """CPU and wall time of named parts; a part inside of another counts for itself only."""

    synchronize: Callable[[], None]
    clock: Callable[[], float]
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    running: list[str] = field(default_factory=list)
    since: float = 0.0

    def start(self, part: str) -> None:
        self._charge()
        self.running.append(part)

    def stop(self) -> None:
        self._charge()
        self.running.pop()

    def _charge(self) -> None:
        self.synchronize()
        now = self.clock()
        if self.running:
            self.spent[self.running[-1]] += now - self.since
        self.since = now

    def wrap(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, timed as this part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.start(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.stop()

        return timed


class Turns(TrainerCallback):
    """Times from the first update's begin to the last one's end, without what ``train()`` sets up."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch
        self.begin = self.end = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.watch.spent.clear()
            self.watch.start("rest")
            self.begin = (time.perf_counter(), time.process_time())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch.start("optimizer")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch.stop()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps:
            self.watch.stop()
            self.end = (time.perf_counter(), time.process_time())


class Contestant:
    """A trainer that trains for one turn at a time, and goes on with the next where it was."""

    def __init__(self, name: str, case: Case, device: str, folder: str) -> None:
        self.trainer: Any = make_trainer(name, case, device, folder)
        self.updates: int = self.trainer.args.max_steps
        iterations = getattr(self.trainer.args, "num_iterations", 1)
        self.tokens = self.updates * case.batch * (case.prompt + case.new) // iterations
        on_gpu = device == "cuda"
        self.watch = Stopwatch(
            torch.cuda.synchronize if on_gpu else lambda: None,
            time.perf_counter if on_gpu else time.process_time,
        )
        self.turns = Turns(self.watch)
        trainer, wrap = self.trainer, self.watch.wrap
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self.turns)
        trainer._prepare_inputs = wrap("answers", trainer._prepare_inputs)
        if isinstance(trainer, MiniLLMTrainer):
            hidden: Any = trainer  # mypy lets nobody assign to a method
            hidden._scored = wrap("scores", trainer._scored)
        trainer.compute_loss = wrap("loss", trainer.compute_loss)
        trainer.accelerator.backward = wrap("backward", trainer.accelerator.backward)

    def turn(self) -> dict[str, float]:
        """Seconds of an update: by either clock, and of each part."""
        self.trainer.train()
        assert self.trainer.state.num_input_tokens_seen == self.tokens  # all answers, of full length
        wall, cpu = (b - a for a, b in zip(self.turns.begin, self.turns.end, strict=True))
        times = {"wall_s": wall, "cpu_s": cpu, **{f"{part}_s": self.watch.spent[part] for part in PARTS}}
        return {name: seconds / self.updates for name, seconds in times.items()}


def make_trainer(name: str, case: Case, device: str, folder: str) -> Any:
    """BASE or one of OURS, set up alike: same weights, same prompts, same seeds."""
    settings: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": case.batch,
        "max_completion_length": case.new,
        "temperature": 1.0,
        "top_k": 0,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "max_steps": UPDATES,
        "bf16": case.bf16,
        "use_cpu": device == "cpu",
        "gradient_checkpointing": False,  # more of the same work for either
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if name == BASE:
        args: Any = DistillationConfig(beta=1.0, **settings)
    else:
        args = MiniLLMConfig(**settings, **OURS[name])
        args.max_steps = max(UPDATES, int(args.steps_per_generation) * int(args.num_iterations))
    words = [f"w{i}" for i in range(case.vocabulary - 3)]
    draw = random.Random(0)
    prompts = [" ".join(draw.choices(words, k=case.prompt)) for _ in range(8 * case.batch)]
    made = DistillationTrainer if name == BASE else MiniLLMTrainer
    return made(
        model=model(case.student, case, seed=0),
        teacher_model=model(case.teacher, case, seed=1),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer(words),
    )


def tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token a word."""
    ids = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **special)


def model(shape: tuple[int, int], case: Case, seed: int) -> Any:
    """A Qwen3 with random weights that ends no answer: all that is drawn is of the same length."""
    layers, width = shape
    heads = max(1, width // 64)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=case.vocabulary,
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=3 * width,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=width // heads,
        max_position_embeddings=case.prompt + case.new,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    made: Any = Qwen3ForCausalLM(config)
    # Generation calls the head, for either trainer; the losses take its weights and do not see this.
    made.lm_head.register_forward_hook(never_ends)
    return made


def never_ends(head: Any, inputs: Any, logits: torch.Tensor) -> None:
    """The special tokens are never drawn."""
    logits[..., : UNKNOWN + 1] = -1e4


def measure(name: str, case: Case, device: str, rounds: int) -> list[dict[str, Any]]:
    """Every time of a case: a row a round and trainer, after a round that warms all up."""
    order = random.Random(0)
    raw: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainers = {who: Contestant(who, case, device, folder) for who in (BASE, *OURS)}
        for r in range(-1, rounds):
            names = list(trainers)
            order.shuffle(names)
            for who in names:
                times = trainers[who].turn()
                if r >= 0:
                    raw.append({"case": name, "round": r, "trainer": who, **times})
    return sorted(raw, key=lambda one: (one["round"], list(trainers).index(one["trainer"])))


def rows_of(raw: list[dict[str, Any]], cases: dict[str, Case], device: str) -> list[dict[str, Any]]:
    """A row for each trainer and clock: an update's time, as a ratio to TRL's of the same round too."""
    rows = []
    for case in dict.fromkeys(one["case"] for one in raw):
        for clock in ("cpu", "wall") if device == "cpu" else ("wall",):
            of: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for one in raw:
                if one["case"] == case:
                    of[one["trainer"]].append(one)
            base = [one[f"{clock}_s"] for one in of[BASE]]
            for who, turns in of.items():
                spent = [one[f"{clock}_s"] for one in turns]
                q25, ratio, q75 = quartiles([a / b for a, b in zip(spent, base, strict=True)])
                low, median, high = (1e3 * x for x in quartiles(spent))
                parts = [1e3 * statistics.median(one[f"{part}_s"] for one in turns) for part in PARTS]
                iterations = 4 if who == PAPER else 1
                values = [device, torch.get_num_threads(), case, who, clock, ratio, q25, q75]
                values += [median, low, high, cases[case].batch / iterations, *parts, len(turns)]
                rows.append(dict(zip(FIELDS, values, strict=True)))
    return rows


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")
