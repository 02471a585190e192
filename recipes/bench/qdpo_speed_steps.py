"""Updates of QDPOTrainer and of TRL's DPOTrainer on the same models and pairs, taking turns; generation."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from extensions.trl import QDPOConfig, QDPOTrainer
from extensions.trl.evaluation import sample_completions
from extensions.trl.qdpo.layers import cached_weights, full_precision, quantize_model, quantized_layers
from extensions.trl.qdpo.quantizers import WeightScheme

from . import minillm_speed_steps as models
from .minillm_speed_steps import Stopwatch, Turns, quartiles

DPO = "TRL's DPOTrainer"
#: what is set beside it: settings of QDPOConfig
OURS: dict[str, dict[str, Any]] = {
    "QDPO, a scale per channel": {"bits": 4},
    "QDPO, a scale per 32 inputs": {"bits": 4, "group_size": 32},
    "QDPO, zero points, a scale per 32 inputs": {"bits": 4, "group_size": 32, "symmetric": False},
}
UPDATES = 2  # of a turn
PLAIN, CACHED, FULL = "weights rounded at each token", "weights rounded once", "full precision"


@dataclass(frozen=True)
class Case:
    """A model, and the work of one update: pairs of replies, all of one length."""

    layers: int = 4
    width: int = 192
    vocabulary: int = 300
    pairs: int = 8
    prompt: int = 96
    reply: int = 32


CASES = {
    "small, 2,048 tokens": Case(),
    "small, 512 tokens": Case(pairs=4, prompt=32),
    "wide, 1,024 tokens": Case(2, 512, 8_192, pairs=4),
    "wide, 256 tokens": Case(2, 512, 8_192, pairs=2, prompt=32),
}
QUICK = {"quick": Case(1, 64, 64, 2, 4, 4)}


def model(case: Case) -> Any:
    """A Qwen3 with random weights, and answers that do not end."""
    size = models.Case(vocabulary=case.vocabulary, prompt=case.prompt, new=case.reply + 1)
    return models.model((case.layers, case.width), size, seed=0)


def make_trainer(name: str, case: Case, folder: str) -> Any:
    """DPO or one of OURS, set up alike: same weights, same pairs, the reference's scores made beforehand."""
    settings: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": case.pairs,
        "precompute_ref_log_probs": True,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "max_length": None,
        "max_steps": UPDATES,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    words = [f"w{i}" for i in range(case.vocabulary - 3)]
    draw = random.Random(0)
    lengths = {"prompt": case.prompt, "chosen": case.reply, "rejected": case.reply}
    rows = [
        {column: " " + " ".join(draw.choices(words, k=length)) for column, length in lengths.items()}
        for _ in range(4 * case.pairs)
    ]
    made: Any = DPOTrainer if name == DPO else QDPOTrainer
    trainer = made(
        model=model(case),
        args=DPOConfig(**settings) if name == DPO else QDPOConfig(**settings, **OURS[name]),
        train_dataset=Dataset.from_list(rows),
        processing_class=models.tokenizer(words),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Contestant:
    """A trainer that trains for one turn at a time, and goes on with the next where it was."""

    def __init__(self, name: str, case: Case, folder: str) -> None:
        self.trainer = make_trainer(name, case, folder)
        self.turns = Turns(Stopwatch(lambda: None, time.process_time))
        self.trainer.add_callback(self.turns)

    def turn(self) -> dict[str, float]:
        """Seconds of an update, by either clock."""
        self.trainer.train()
        wall, cpu = (b - a for a, b in zip(self.turns.begin, self.turns.end, strict=True))
        return {"cpu_s": cpu / UPDATES, "wall_s": wall / UPDATES}

    def memory(self) -> dict[str, int]:
        """Bytes: of parameters and buffers, of the weights that are rounded, of what a turn adds at most."""
        kept = [*self.trainer.model.parameters(), *self.trainer.model.buffers()]
        layers = quantized_layers(self.trainer.model).values()
        return {
            "model_bytes": sum(x.numel() * x.element_size() for x in kept),
            "rounded_bytes": sum(layer.latent.numel() * layer.latent.element_size() for layer in layers),
            "peak_bytes": peak_bytes(self.trainer),
        }


def peak_bytes(trainer: Any) -> int:
    """What a turn allocates at most beyond what was there, gradients and the optimizer's state included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        trainer.train()
    events = record.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def measure(name: str, case: Case, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Times of a case, a row a round and trainer after a round that warms all up; and memory, a row each."""
    order = random.Random(0)
    raw: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainers = {who: Contestant(who, case, folder) for who in (DPO, *OURS)}
        for r in range(-1, rounds):
            names = list(trainers)
            order.shuffle(names)
            for who in names:
                times = trainers[who].turn()
                if r >= 0:
                    raw.append({"case": name, "round": r, "trainer": who, **times})
        memory = [{"case": name, "trainer": who, **made.memory()} for who, made in trainers.items()]
    return sorted(raw, key=lambda one: (one["round"], list(trainers).index(one["trainer"]))), memory


def rows_of(raw: list[dict[str, Any]], memory: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each case and trainer: an update's CPU time, as a ratio to TRL's of the same round too."""
    rows = []
    for peaks in memory:
        turns = [x for x in raw if (x["case"], x["trainer"]) == (peaks["case"], peaks["trainer"])]
        base = [x for x in raw if (x["case"], x["trainer"]) == (peaks["case"], DPO)]
        row: dict[str, Any] = {"case": peaks["case"], "trainer": peaks["trainer"]}
        for clock in ("cpu", "wall"):
            spent, theirs = ([x[f"{clock}_s"] for x in of] for of in (turns, base))
            low, middle, high = quartiles([a / b for a, b in zip(spent, theirs, strict=True)])
            row |= {f"{clock}_ms": 1e3 * statistics.median(spent)}
            row |= {f"{clock}_ratio": middle, f"{clock}_q25": low, f"{clock}_q75": high}
        rows.append({**row, **{k: v for k, v in peaks.items() if k.endswith("bytes")}})
    return rows


def measure_generation(name: str, case: Case, rounds: int) -> list[dict[str, Any]]:
    """CPU seconds of greedy replies to a batch of prompts, by how the weights are read, in turn."""
    policy = model(case)
    quantize_model(policy, WeightScheme(4, 32))
    draw = random.Random(0)
    prompts = [[draw.randrange(3, case.vocabulary) for _ in range(case.prompt)] for _ in range(case.pairs)]

    def replies() -> float:
        began = time.process_time()
        sample_completions(policy, prompts, case.reply, seed=0, temperature=0.0, batch_size=case.pairs)
        return time.process_time() - began

    rows = []
    for r in range(-1, rounds):
        spent = {PLAIN: replies()}
        began = time.process_time()
        with cached_weights(policy):
            replies()
        spent[CACHED] = time.process_time() - began  # with what it takes to round them
        with full_precision(policy):
            spent[FULL] = replies()
        if r >= 0:
            rows += [{"case": name, "round": r, "weights": who, "cpu_s": t} for who, t in spent.items()]
    return rows
