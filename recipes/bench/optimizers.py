"""Time of an optimizer's step, of AdEMAMix's paths and its peers', as a ratio to torch's fused AdamW.

    python -m recipes.bench.optimizers [--quick] [--device cpu|cuda] [--rounds N] [--out DIR]

All step over the same parameters and gradients, in turn within each round, in one process; a ratio is the
median over rounds of the two times of one round. Peers that are not installed are left out, and the page says
so: ``pip install -e '.[bench]'`` brings them.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from extensions.optim import AdEMAMix, AdEMAMix8bit

from ..run_folder import where_it_ran
from .optimizers_page import summary, write_page

BASE = "torch AdamW, fused"
WIDTH, LAYERS, VOCABULARY = 512, 9, 8_192  # of the decoder whose parameters these are: 32.5 million on a CPU
FIELDS = ["device", "threads", "optimizer", "clock", "ratio", "q25", "q75", "median_ms", "rounds", "bytes"]
RAW_FIELDS = ["threads", "round", "optimizer", "wall_s", "cpu_s"]
SETTINGS: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.01}
OURS: dict[str, Any] = {"alpha": 5.0, "alpha_warmup": 10_000, "beta3_warmup": 10_000, **SETTINGS}


class PlainLoop(Optimizer):
    """Algorithm 1 of the paper as one would first write it: one tensor and one operation at a time."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.t = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.t += 1
        beta1, beta2, beta3 = 0.9, 0.999, 0.9999
        for p in self.param_groups[0]["params"]:
            g, state = p.grad, self.state[p]
            if not state:
                state.update(m1=torch.zeros_like(p), m2=torch.zeros_like(p), v=torch.zeros_like(p))
            state["m1"] = beta1 * state["m1"] + (1 - beta1) * g
            state["m2"] = beta3 * state["m2"] + (1 - beta3) * g
            state["v"] = beta2 * state["v"] + (1 - beta2) * g**2
            fast, square = state["m1"] / (1 - beta1**self.t), state["v"] / (1 - beta2**self.t)
            update = (fast + 5.0 * state["m2"]) / (square.sqrt() + 1e-8) + 0.01 * p
            p -= 1e-4 * update


def contestants(params: list[Tensor]) -> dict[str, Optimizer]:
    """Every optimizer of the comparison, over the same parameters."""
    made: dict[str, Callable[[], Optimizer]] = {
        BASE: lambda: AdamW(params, fused=True, **SETTINGS),
        "torch AdamW, foreach": lambda: AdamW(params, foreach=True, **SETTINGS),
        "torch AdamW, for-loop": lambda: AdamW(params, foreach=False, **SETTINGS),
        "AdEMAMix, fused": lambda: AdEMAMix(params, fused=True, **OURS),
        "AdEMAMix, fused, beta1=0": lambda: AdEMAMix(params, betas=(0.0, 0.999, 0.9999), fused=True, **OURS),
        "AdEMAMix, foreach": lambda: AdEMAMix(params, foreach=True, **OURS),
        "AdEMAMix, for-loop": lambda: AdEMAMix(params, foreach=False, **OURS),
        "AdEMAMix8bit": lambda: AdEMAMix8bit(params, **OURS),
        "plain loop": lambda: PlainLoop(params),
        "bitsandbytes AdEMAMix": lambda: _bitsandbytes("AdEMAMix", params),
        "bitsandbytes AdEMAMix8bit": lambda: _bitsandbytes("AdEMAMix8bit", params),
        "pytorch_optimizer AdEMAMix, foreach": lambda: _pytorch_optimizer(params, foreach=True),
        "pytorch_optimizer AdEMAMix, for-loop": lambda: _pytorch_optimizer(params, foreach=False),
    }
    optimizers = {}
    for name, make in made.items():
        try:
            optimizers[name] = make()
        except ImportError as error:
            print(f"left out: {name} ({error})")
    return optimizers


def _bitsandbytes(name: str, params: list[Tensor]) -> Optimizer:
    import bitsandbytes

    return getattr(bitsandbytes.optim, name)(params, t_alpha=10_000, t_beta3=10_000, **SETTINGS)


def _pytorch_optimizer(params: list[Tensor], foreach: bool) -> Optimizer:
    import pytorch_optimizer

    # Its default decay is coupled, which the paper's is not.
    return pytorch_optimizer.AdEMAMix(
        params, weight_decouple=True, t_alpha_beta3=10_000, foreach=foreach, **SETTINGS
    )


def decoder_parameters(device: str, quick: bool) -> list[Tensor]:
    """Parameters with gradients, shaped as a decoder's: (VOCABULARY, WIDTH) and six a layer."""
    layers = LAYERS if device == "cpu" else 4 * LAYERS
    width = 32 if quick else WIDTH
    shapes: list[tuple[int, ...]] = [(VOCABULARY, width)]
    for _ in range(layers):
        shapes += [
            (3 * width, width),
            (width, width),
            (4 * width, width),
            (width, 4 * width),
            (width,),
            (width,),
        ]
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in shapes:
        p = (0.02 * torch.randn(shape, generator=generator)).to(device).requires_grad_()
        p.grad = (1e-3 * torch.randn(shape, generator=generator)).to(device)
        params.append(p)
    return params


def measure(
    params: list[Tensor], device: str, threads: int, rounds: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each optimizer and clock, and every time that was taken."""
    torch.set_num_threads(threads)
    optimizers = contestants(params)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in optimizers}
    order = random.Random(0)
    for r in range(-2, rounds):  # two rounds to make states and kernels, and to meet every page
        names = list(optimizers)
        order.shuffle(names)
        for name in names:
            synchronize()
            cpu, wall = time.process_time(), time.perf_counter()
            optimizers[name].step()
            synchronize()
            if r >= 0:
                times[name]["wall"].append(time.perf_counter() - wall)
                times[name]["cpu"].append(time.process_time() - cpu)
    elements = sum(p.numel() for p in params)
    rows = []
    for name, clocks in times.items():
        for clock, spent in clocks.items():
            if clock == "cpu" and device == "cuda":
                continue
            pairs = [a / b for a, b in zip(spent, times[BASE][clock], strict=True)]
            q25, ratio, q75 = statistics.quantiles(pairs, n=4, method="inclusive")
            values = [device, threads, name, clock, ratio, q25, q75, 1e3 * statistics.median(spent), rounds]
            rows.append(dict(zip(FIELDS, [*values, state_bytes(optimizers[name]) / elements], strict=True)))
    raw = [
        dict(zip(RAW_FIELDS, [threads, r, name, clocks["wall"][r], clocks["cpu"][r]], strict=True))
        for r in range(rounds)
        for name, clocks in times.items()
    ]
    return rows, raw


def state_bytes(optimizer: Optimizer) -> int:
    """What the optimizer keeps, in bytes."""
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    # bitsandbytes shares its code maps between parameters.
    unique = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
    return sum(unique.values())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="small tensors, two rounds: the path, no figures"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, help="docs/benchmarks, or a temporary folder if --quick")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    warnings.filterwarnings("error", message="fused=True")  # what falls back is not what is to be timed
    out = args.out or Path(tempfile.mkdtemp() if args.quick else "docs/benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    rounds = 2 if args.quick else args.rounds

    params = decoder_parameters(args.device, args.quick)
    rows: list[dict[str, Any]] = []
    raw: list[dict[str, Any]] = []
    for threads in (1, 2) if args.device == "cpu" else (1,):
        new_rows, new_raw = measure(params, args.device, threads, rounds)
        rows, raw = rows + new_rows, raw + new_raw
        print(f"\n{args.device}, {threads} thread{'s' if threads > 1 else ''}")
        print(summary(rows, args.device, threads))
    write_csv(out / f"optimizers_{args.device}.csv", FIELDS, rows)
    write_csv(out / f"optimizers_{args.device}_raw.csv", RAW_FIELDS, raw)
    where = {
        **where_it_ran(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "",
        "day": str(date.today()),
        "parameters": sum(p.numel() for p in params),
        "tensors": len(params),
        "peers": {name: version_of(name) for name in ("bitsandbytes", "pytorch_optimizer")},
    }
    (out / f"optimizers_{args.device}.json").write_text(json.dumps(where, indent=2) + "\n")
    write_page(out)
    if args.quick:
        print("\nno figures: tensors this small and so few rounds say nothing of speed")
    print(f"see {out / 'optimizers.md'}")


def write_csv(path: Path, fields: list[str], rows: list[dict[str, Any]]) -> None:
    """One file, whole."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def version_of(package: str) -> str:
    """Its version, or that it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed, left out"


if __name__ == "__main__":
    main()
