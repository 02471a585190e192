"""Time of teacher-mixed sampling: a coin a token against both models a token, and one model alone.

    python -m recipes.bench.minillm_sampling [--quick] [--device cpu|cuda] [--threads N] [--out DIR]

Models have random weights, and nothing ends early: only time is measured. All that is compared takes turns,
in another order each round, in one process after an untimed turn; a factor is that of two times of one round.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from extensions.trl.minillm.sampling import sample_mixture

from ..run_folder import where_it_ran
from .minillm_sampling_page import BOTH, COIN, STUDENT, STUDENT_GENERATE, TEACHER, summary, write_page

FIELDS = ["device", "threads", "case", "contestant", "clock", "median_s", "q25_s", "q75_s"]
FIELDS += ["mixture_over_it", "q25", "q75", "rounds"]
RAW_FIELDS = ["case", "round", "contestant", "wall_s", "cpu_s"]


@dataclass(frozen=True)
class Case:
    """A pair of models as (layers, width), and the work."""

    student: tuple[int, int]
    teacher: tuple[int, int]
    vocabulary: int = 8_192
    rows: int = 16
    prompt: int = 32
    new: int = 64
    alpha: float = 0.2
    dtype: str = "float32"


CPU = {
    "same size": Case((2, 128), (2, 128)),
    "4 x layers": Case((2, 128), (8, 128)),
    "3 x layers, 3 x width": Case((2, 128), (6, 384)),
    "3 x layers, 3 x width, alpha .5": Case((2, 128), (6, 384), alpha=0.5),
    "3 x layers, 3 x width, one row": Case((2, 128), (6, 384), rows=1),
    "3 x layers, 3 x width, 64 rows": Case((2, 128), (6, 384), rows=64),
    "GPT-2 small's shape": Case((4, 256), (12, 768), vocabulary=50_257),
}
# The paper's smallest and largest of GPT-2's family, and what is between; in the dtype of training.
CUDA = {
    "same size": Case((12, 768), (12, 768), 50_257, 64, 128, 256, dtype="bfloat16"),
    "GPT-2 medium's shape": Case((12, 768), (24, 1024), 50_257, 64, 128, 256, dtype="bfloat16"),
    "GPT-2 XL's shape": Case((12, 768), (48, 1600), 50_257, 64, 128, 256, dtype="bfloat16"),
    "GPT-2 XL's shape, alpha .5": Case(
        (12, 768), (48, 1600), 50_257, 64, 128, 256, alpha=0.5, dtype="bfloat16"
    ),
}
QUICK = {"quick": Case((1, 16), (2, 32), 64, 2, 3, 6)}


def model(shape: tuple[int, int], case: Case, device: str) -> Any:
    """A GPT-2 with random weights that is ready to sample."""
    layers, width = shape
    config = GPT2Config(
        vocab_size=case.vocabulary,
        n_layer=layers,
        n_embd=width,
        n_head=max(1, width // 64),
        n_positions=case.prompt + case.new,
        bos_token_id=None,
        eos_token_id=None,
    )
    made: Any = GPT2LMHeadModel(config)
    return made.to(device, getattr(torch, case.dtype)).eval()


def contestants(case: Case, device: str) -> dict[str, Callable[[int], Any]]:
    """Name -> a whole rollout of the batch, given the round, whose coins are of its own seed."""
    torch.manual_seed(0)
    student, teacher = model(case.student, case, device), model(case.teacher, case, device)
    ids = torch.randint(case.vocabulary, (case.rows, case.prompt), device=device)
    lengths = torch.linspace(case.prompt // 2, case.prompt, case.rows, device=device).long()
    mask = (torch.arange(case.prompt, device=device) >= case.prompt - lengths[:, None]).long()

    def ours(alpha: float, method: str, r: int) -> Any:
        return sample_mixture(
            student,
            teacher,
            ids,
            mask,
            alpha=alpha,
            max_new_tokens=case.new,
            eos_token_ids=[],
            pad_token_id=0,
            method=method,
            coins=torch.Generator().manual_seed(r),
        )

    def generate(r: int) -> Any:
        out = student.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=case.new,
            pad_token_id=0,
        )
        return out[:, case.prompt :]

    return {
        COIN: partial(ours, case.alpha, "coin_flip"),
        BOTH: partial(ours, case.alpha, "mixture"),
        STUDENT: partial(ours, 0.0, "coin_flip"),
        TEACHER: partial(ours, 1.0, "coin_flip"),
        STUDENT_GENERATE: generate,
    }


def measure(name: str, case: Case, device: str, rounds: int) -> list[dict[str, Any]]:
    """Every time of a case: a row a round and contestant."""
    made = contestants(case, device)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    order = random.Random(0)
    raw: list[dict[str, Any]] = []
    for r in range(-1, rounds):
        names = list(made)
        order.shuffle(names)
        for contestant in names:
            synchronize()
            cpu, wall = time.process_time(), time.perf_counter()
            out = made[contestant](r + 1)
            synchronize()
            spent = [time.perf_counter() - wall, time.process_time() - cpu]
            assert out.shape == (case.rows, case.new)
            if r >= 0:
                raw.append(dict(zip(RAW_FIELDS, [name, r, contestant, *spent], strict=True)))
    return sorted(raw, key=lambda one: (one["round"], list(made).index(one["contestant"])))


def rows_of(raw: list[dict[str, Any]], device: str, threads: int) -> list[dict[str, Any]]:
    """A row for each contestant and clock: its times, and how many times as long the mixture took."""
    rows = []
    for case in dict.fromkeys(one["case"] for one in raw):
        for clock in ("cpu", "wall") if device == "cpu" else ("wall",):
            times: dict[str, dict[int, float]] = {}
            for one in raw:
                if one["case"] == case:
                    times.setdefault(one["contestant"], {})[one["round"]] = one[f"{clock}_s"]
            for name, of in times.items():
                q25_s, median_s, q75_s = statistics.quantiles(of.values(), n=4, method="inclusive")
                factors = [times[BOTH][r] / of[r] for r in of]
                q25, factor, q75 = statistics.quantiles(factors, n=4, method="inclusive")
                values = [device, threads, case, name, clock, median_s, q25_s, q75_s]
                rows.append(dict(zip(FIELDS, [*values, factor, q25, q75, len(of)], strict=True)))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models, two rounds: the path, no figures")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="docs/benchmarks, or a temporary folder if --quick")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    out = args.out or Path(tempfile.mkdtemp() if args.quick else "docs/benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)

    cases = QUICK if args.quick else CPU if args.device == "cpu" else CUDA
    raw: list[dict[str, Any]] = []
    for name, case in cases.items():
        new = measure(name, case, args.device, 2 if args.quick else args.rounds)
        print(summary(rows_of(new, args.device, args.threads)), flush=True)
        raw += new
    rows = rows_of(raw, args.device, args.threads)
    stem = f"minillm_sampling_{args.device}"
    for path, fields, what in (
        (out / f"{stem}.csv", FIELDS, rows),
        (out / f"{stem}_raw.csv", RAW_FIELDS, raw),
    ):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(what)
    where = {
        **where_it_ran(),
        "transformers": version("transformers"),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "",
        "day": str(date.today()),
        "cases": {name: asdict(case) for name, case in cases.items()},
    }
    (out / f"{stem}.json").write_text(json.dumps(where, indent=2) + "\n")
    write_page(out)
    if args.quick:
        print("\nno figures: models this small and so few rounds say nothing of speed")
    print(f"see {out / 'minillm_sampling.md'}")


if __name__ == "__main__":
    main()
