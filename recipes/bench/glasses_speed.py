"""What Glasses costs. The figures of glasses_speed.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.glasses_speed [--quick | --report] [--device cuda] [--out DIR]
    python -m recipes.bench.glasses_speed --whole      # a whole report of a model of 100 M parameters

Estimated against exact sensitivities: error and time. Gaps against the forward passes that they are made of.
Memory of gaps at growing lengths. All are ratios of what is measured in turn in one process, warm.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from extensions.glasses import HFCausalLM, SensitivityProfile, representation_gap, sensitivity_profile

from ..random_llama import char_tokenizer, random_llama
from .glasses_speed_page import write_page
from .minillm_page import commit_and_machine, read_about, read_rows, write_about, write_rows

#: width and layers of a random Llama, and tokens of a sequence
CASES = ((64, 6, 96), (64, 6, 512), (128, 6, 96), (128, 6, 512), (256, 6, 96))
PROBES = (4, 16, 64)
REPEATS = 5
MEMORY_LENGTHS = (128, 256, 512, 1024, 2048)
PAIRS = 16
#: of a whole report: 100 M parameters in the layers
WHOLE = {"width": 768, "layers": 12, "heads": 12, "vocabulary": 16_384}

Row = dict[str, Any]


def model_of(width: int, layers: int, device: str = "cpu", seed: int = 0) -> HFCausalLM:
    """A random Llama of attention that is neither flat nor sharp."""
    tokenizer = char_tokenizer()
    model: Any = random_llama(tokenizer, width, layers, max(2, width // 64), std=0.05, seed=seed)
    return HFCausalLM(model.to(device), tokenizer)


def draw(pairs: int, n: int, seed: int = 0) -> Tensor:
    """(pairs, n) token ids"""
    return torch.randint(5, 100, (pairs, n), generator=torch.Generator().manual_seed(seed))


def in_turn(jobs: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each job, one after the other, again and again; CPU time, but on a GPU wall time."""

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            began = now()
            job()
            if turn:  # the first is to warm up
                seconds[name].append(now() - began)
    return seconds


def sensitivities(width: int, layers: int, n: int, repeats: int, device: str) -> list[Row]:
    """Error and time of estimates, against the exact profile."""
    model, ids = model_of(width, layers, device), draw(1, n)
    exact = sensitivity_profile(model, ids, mode="exact").fro

    def estimate(probes: int, seed: int) -> SensitivityProfile:
        generator = torch.Generator().manual_seed(seed)
        return sensitivity_profile(model, ids, mode="hutchinson", probes=probes, generator=generator)

    jobs: dict[str, Callable[[], Any]] = {"exact": lambda: sensitivity_profile(model, ids, mode="exact")}
    jobs |= {str(k): partial(estimate, k, 0) for k in PROBES}
    seconds = in_turn(jobs, repeats, device)
    rows = []
    for k in PROBES:
        errors = torch.cat([(estimate(k, seed).fro - exact).abs() / exact for seed in range(8)])
        rows.append(
            {
                "width": width,
                "layers": layers,
                "n": n,
                "probes": k,
                "mean_error": errors.mean().item(),
                "max_error": errors.max().item(),
                "exact_s": statistics.median(seconds["exact"]),
                "estimate_s": statistics.median(seconds[str(k)]),
                "ratios": " ".join(
                    f"{b / a:.4f}" for a, b in zip(seconds["exact"], seconds[str(k)], strict=True)
                ),
            }
        )
    return rows


def overhead(width: int, layers: int, n: int, repeats: int, device: str) -> Row:
    """A gap of all layers in two dtypes, against the plain forwards of two models of these dtypes."""
    model = model_of(width, layers, device)
    low: Any = model_of(width, layers, device).module.to(torch.bfloat16)
    a, b = (draw(8, length).to(device) for length in (n, n + 1))

    @torch.no_grad()
    def forwards() -> None:
        for module in (model.module, low):
            for ids in (a, b):
                for part in ids.split(max(1, min(8, 4096 // ids.shape[1]))):
                    module(part, use_cache=False, logits_to_keep=1)

    seconds = in_turn({"plain": forwards, "gap": lambda: representation_gap(model, a, b)}, repeats, device)
    return {
        "width": width,
        "layers": layers,
        "n": n,
        "plain_s": statistics.median(seconds["plain"]),
        "gap_s": statistics.median(seconds["gap"]),
        "ratios": " ".join(f"{y / x:.4f}" for x, y in zip(seconds["plain"], seconds["gap"], strict=True)),
    }


def peak(n: int, chunk: int, answer: Any) -> None:
    """What a gap of `PAIRS` pairs adds to this process's memory at its peak, in MB, looked at each
    millisecond."""
    torch.set_num_threads(1)
    model, process = model_of(256, 6), psutil.Process()
    representation_gap(model, draw(1, 16), draw(1, 17))
    before = process.memory_info().rss
    seen, done = [before], threading.Event()

    def look() -> None:
        while not done.wait(0.001):
            seen.append(process.memory_info().rss)

    looking = threading.Thread(target=look)
    looking.start()
    representation_gap(model, draw(PAIRS, n), draw(PAIRS, n + 1), chunk=chunk)
    done.set()
    looking.join()
    answer.put((max(seen) - before) / 2**20)


def memory(n: int, chunk: int) -> Row:
    """Of a process of its own, whose peak is nothing else's."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=peak, args=(n, chunk, answer))
    process.start()
    found = answer.get()
    process.join()
    return {"n": n, "chunk": chunk, "pairs": PAIRS, "peak_mb": found}


def whole(path: Path) -> None:
    """The recipe with its own settings, on a random model of 100 M parameters."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = char_tokenizer(spaced=True)
        model = random_llama(tokenizer, std=0.02, **WHOLE)
        parameters = sum(p.numel() for p in model.parameters())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model
        run = Path(folder) / "run"
        began = time.time()
        command = [sys.executable, "-m", "recipes.glasses", f"model={folder}", "device=cpu"]
        subprocess.run([*command, f"hydra.run.dir={run}"], check=True)
        result = json.loads((run / "result.json").read_text())
        row = {
            "parameters": parameters,
            "wall_s": time.time() - began,
            "report_wall_s": result["wall_s"],
            "report_cpu_s": result["cpu_s"],
            "threads": result["threads"],
        }
    write_rows(path, [row])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models, few repeats: no figures")
    parser.add_argument("--report", action="store_true", help="run nothing, make the page of what there is")
    parser.add_argument("--whole", action="store_true", help="the whole report of a large model, and no more")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args(argv)
    device = options.device
    names = {
        part: options.out / f"glasses_speed_{part}_{device}.csv"
        for part in ("sensitivity", "gap", "memory", "whole")
    }
    about = options.out / f"glasses_speed_{device}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    if options.whole:
        whole(names["whole"])
    elif not options.report:
        torch.set_num_threads(1)
        repeats = 2 if options.quick else REPEATS
        cases = ((64, 6, 32),) if options.quick else CASES
        estimates: list[Row] = []
        gaps: list[Row] = []
        for width, layers, n in cases:
            estimates += sensitivities(width, layers, n, repeats, device)
            gaps.append(overhead(width, layers, n, repeats, device))
            print(f"width {width}, n = {n}", flush=True)
        write_rows(names["sensitivity"], estimates)
        write_rows(names["gap"], gaps)
        if device == "cpu":
            lengths = MEMORY_LENGTHS[:2] if options.quick else MEMORY_LENGTHS
            write_rows(names["memory"], [memory(n, chunk) for chunk in (1, 8) for n in lengths])
        made_by = ("extensions/glasses", "recipes/bench/glasses_speed.py", "recipes/random_llama.py")
        write_about(about, commit_and_machine(*made_by))
    rows = {part: read_rows(path) if path.exists() else [] for part, path in names.items()}
    write_page(options.out / "glasses_speed.md", rows, read_about(about) if about.exists() else "")


if __name__ == "__main__":
    main()
