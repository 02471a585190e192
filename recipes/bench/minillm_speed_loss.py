"""The loss alone: hidden states in, gradients of the student's hidden states and head out."""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from extensions.trl.divergence import Head, tiled_divergences

from .minillm_speed_page import FULL_LOGITS, KL, KL_AND_LOG_Q, LOSSES, TRL_LOSS

FIELDS = ["device", "threads", "size", "loss", "clock", "ratio", "q25", "q75", "median_ms", "rounds"]
FIELDS += ["peak_bytes", "gradient_bytes"]
RAW_FIELDS = ["size", "round", "loss", "wall_s", "cpu_s"]


@dataclass(frozen=True)
class Size:
    """Positions, tokens in the vocabulary, and the widths of both hidden states."""

    positions: int
    vocabulary: int
    width: int
    teacher_width: int
    dtype: str = "float32"


CPU = {
    "300 tokens": Size(4096, 300, 128, 256),
    "8,192 tokens": Size(512, 8_192, 128, 256),
    "8,192 tokens, more positions": Size(2048, 8_192, 128, 256),
    "GPT-2's vocabulary": Size(512, 50_257, 128, 256),
    "GPT-2's vocabulary and width": Size(256, 50_257, 768, 1024),
    "Qwen3's vocabulary": Size(256, 151_936, 128, 256),
    "Qwen3's vocabulary and width": Size(256, 151_936, 1024, 1024),
}
CUDA = {
    "8,192 tokens": Size(4096, 8_192, 512, 1024, "bfloat16"),
    "GPT-2's vocabulary": Size(4096, 50_257, 768, 1024, "bfloat16"),
    "GPT-2's vocabulary, float32": Size(4096, 50_257, 768, 1024),
    "Qwen3's vocabulary": Size(4096, 151_936, 1024, 2048, "bfloat16"),
}
QUICK = {"quick": Size(64, 100, 8, 16)}


@dataclass
class Inputs:
    student: Tensor  # (N, H)
    weight: Tensor  # (V, H)
    teacher: Tensor  # (N, H')
    teacher_weight: Tensor  # (V, H')
    targets: Tensor  # (N,)
    gains: Tensor  # (N,), as advantages

    def gradients(self) -> tuple[Any, Any]:
        return self.student.grad, self.weight.grad

    def forget(self) -> None:
        self.student.grad = self.weight.grad = None


def make_inputs(size: Size, device: str) -> Inputs:
    generator = torch.Generator(device).manual_seed(0)
    like = {"generator": generator, "device": device, "dtype": getattr(torch, size.dtype)}

    def drawn(rows: int, columns: int, scale: float) -> Tensor:
        return torch.randn(rows, columns, **like).mul_(scale)

    n, v, h, t = size.positions, size.vocabulary, size.width, size.teacher_width
    return Inputs(
        drawn(n, h, 1.0).requires_grad_(),
        drawn(v, h, h**-0.5).requires_grad_(),
        drawn(n, t, 1.0),
        drawn(v, t, t**-0.5),
        torch.randint(v, (n,), generator=generator, device=device),
        torch.randn(n, generator=generator, device=device),
    )


def reverse_kl(name: str, x: Inputs) -> tuple[Tensor, Tensor]:
    """KL(q || p) by one of LOSSES, (N,), and what its ``backward`` starts from."""
    if name == TRL_LOSS:
        kl, _ = ChunkedDivergenceFunction.apply(
            x.student, x.weight, None, x.teacher, x.teacher_weight, None, 1.0
        )
        return kl, kl.sum()
    if name == FULL_LOGITS:
        log_q = (x.student @ x.weight.t()).float().log_softmax(-1)  # (N, V)
        with torch.no_grad():
            log_p = (x.teacher @ x.teacher_weight.t()).float().log_softmax(-1)
        kl = (log_q.exp() * (log_q - log_p)).sum(-1)
        return kl, kl.sum()
    found = tiled_divergences(x.student, Head(x.weight), x.teacher, Head(x.teacher_weight), x.targets)
    assert found.reverse_kl is not None
    loss = found.reverse_kl.sum()
    return found.reverse_kl, loss if name == KL else loss - (x.gains * found.log_q).sum()


def run(name: str, x: Inputs) -> None:
    x.forget()
    reverse_kl(name, x)[1].backward()


def check(x: Inputs, tolerance: float) -> None:
    """All say the same, and those of one loss have one gradient."""
    found = {}
    for name in LOSSES:
        x.forget()
        kl, loss = reverse_kl(name, x)
        loss.backward()
        found[name] = [kl.detach(), *(gradient.clone() for gradient in x.gradients())]
    for name in LOSSES:
        for i, (mine, theirs) in enumerate(zip(found[name], found[TRL_LOSS], strict=True)):
            if i and name == KL_AND_LOG_Q:
                continue  # the gradient of another loss
            scale = theirs.abs().max()
            assert (mine - theirs).abs().max() <= tolerance * scale, f"{name} is not {TRL_LOSS} ({i})"


def measure(name: str, size: Size, device: str, rounds: int) -> list[dict[str, Any]]:
    """Every time: a row a round and loss, all taking turns after one that is not timed."""
    x = make_inputs(size, device)
    check(x, 1e-3 if size.dtype == "float32" else 5e-2)
    synchronize: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    order = random.Random(0)
    raw: list[dict[str, Any]] = []
    for r in range(rounds):
        losses = list(LOSSES)
        order.shuffle(losses)
        for loss in losses:
            synchronize()
            cpu, wall = time.process_time(), time.perf_counter()
            run(loss, x)
            synchronize()
            spent = [time.perf_counter() - wall, time.process_time() - cpu]
            raw.append(dict(zip(RAW_FIELDS, [name, r, loss, *spent], strict=True)))
    return sorted(raw, key=lambda one: (one["round"], LOSSES.index(one["loss"])))


def measure_memory(name: str, size: Size, device: str) -> dict[str, int]:
    """Peak over the inputs, in a process of its own."""
    command = [sys.executable, "-m", "recipes.bench.minillm_speed", "--memory-of", name]
    asked = json.dumps([size.positions, size.vocabulary, size.width, size.teacher_width, size.dtype])
    command += ["--size", asked, "--device", device, "--threads", str(torch.get_num_threads())]
    # glibc keeps what is freed and grows by the order in which it was: have each tensor given back at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def report_memory(name: str, size: Size, device: str) -> None:
    """In that process: once on little, for what is loaded at the first call, then once on all of it."""
    run(name, make_inputs(Size(8, 8, 8, 8, size.dtype), device))
    x = make_inputs(size, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(name, x)
        peak = torch.cuda.max_memory_allocated() - before
    else:
        before = fresh_peak()
        run(name, x)
        peak = peak_rss() - before
    gradients = sum(g.numel() * g.element_size() for g in x.gradients())
    print(json.dumps({"peak_bytes": peak, "gradient_bytes": gradients}))


def fresh_peak() -> int:
    """The peak of this process from here on; where it cannot be reset, the peak so far."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_rss()


def peak_rss() -> int:
    """Bytes. Not getrusage's ru_maxrss, which a child takes over from the process that started it."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024


def rows_of(
    raw: list[dict[str, Any]], memory: dict[tuple[str, str], dict[str, int]], device: str
) -> list[dict[str, Any]]:
    """A row for each size, loss and clock; the ratio is that of two times of one round."""
    rows = []
    for size in dict.fromkeys(one["size"] for one in raw):
        for clock in ("cpu", "wall") if device == "cpu" else ("wall",):
            times = {
                loss: [one[f"{clock}_s"] for one in raw if (one["size"], one["loss"]) == (size, loss)]
                for loss in LOSSES
            }
            for loss, spent in times.items():
                pairs = [a / b for a, b in zip(spent, times[TRL_LOSS], strict=True)]
                q25, ratio, q75 = statistics.quantiles(pairs, n=4, method="inclusive")
                values = [device, torch.get_num_threads(), size, loss, clock, ratio, q25, q75]
                values += [1e3 * statistics.median(spent), len(spent), *memory[size, loss].values()]
                rows.append(dict(zip(FIELDS, values, strict=True)))
    return rows
