"""How far 8-bit moments lead the weights astray: AdEMAMix8bit and bitsandbytes' against float64.

    python -m recipes.bench.eight_bit [--steps N] [--out DIR]

Gradients are given, not computed from the weights: a mean of its own for each weight plus noise, of sizes
that are lognormal over the weights. The error is the root mean square of what a weight is off, as a share of
the root mean square of what the weights have moved in float64.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from extensions.optim import AdEMAMix, AdEMAMix8bit

WEIGHTS = 16_384
LR, ALPHA = 1e-3, 5.0
#: name: (mean of gradients in units of the noise, spread of sizes, every 256th gradient times, warm-ups)
CASES: dict[str, tuple[float, float, float, bool]] = {
    "mean 0.3": (0.3, 0.3, 1.0, False),
    "mean 0.1, warm-ups": (0.1, 0.3, 1.0, True),
    "noise alone, warm-ups": (0.0, 0.3, 1.0, True),
    "mean 0.3, sizes spread wide, warm-ups": (0.3, 1.0, 1.0, True),
    "mean 0.3, one in 256 is 10,000 times larger, warm-ups": (0.3, 0.3, 1e4, True),
}
FIELDS = ["case", "optimizer", "steps", "seed", "relative_error"]


def optimizers(steps: int, warms: bool) -> dict[str, tuple[torch.dtype, Callable[[Any], Optimizer]]]:
    """float64 is the measure of the others."""
    warmup = steps if warms else None
    ours: dict[str, Any] = {"lr": LR, "alpha": ALPHA, "alpha_warmup": warmup, "beta3_warmup": warmup}
    made: dict[str, tuple[torch.dtype, Callable[[Any], Optimizer]]] = {
        "float64": (torch.float64, lambda params: AdEMAMix(params, **ours)),
        "AdEMAMix": (torch.float32, lambda params: AdEMAMix(params, **ours)),
        "AdEMAMix8bit": (torch.float32, lambda params: AdEMAMix8bit(params, **ours)),
    }
    try:
        import bitsandbytes
    except ImportError:
        print("left out: bitsandbytes AdEMAMix8bit (not installed)")
        return made
    theirs: dict[str, Any] = {
        "lr": LR,
        "alpha": ALPHA,
        "t_alpha": warmup,
        "t_beta3": warmup,
        "weight_decay": 0.0,
    }
    made["bitsandbytes AdEMAMix8bit"] = (
        torch.float32,
        lambda params: bitsandbytes.optim.AdEMAMix8bit(params, **theirs),
    )
    return made


def errors(case: str, steps: int, seed: int) -> dict[str, float]:
    """The relative error of each optimizer's weights after ``steps`` steps."""
    mean, spread, huge, warms = CASES[case]
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(WEIGHTS, generator=generator, dtype=torch.float64)

    sizes = (spread * normal()).exp()
    sizes[::256] *= huge
    means, start = mean * normal(), normal()
    runs = {}
    for name, (dtype, make) in optimizers(steps, warms).items():
        p = start.to(dtype, copy=True).requires_grad_()
        runs[name] = (p, make([p]))
    for _ in range(steps):
        gradient = ((means + normal()) * sizes).float()
        for p, optimizer in runs.values():
            p.grad = gradient.to(p.dtype)
            optimizer.step()
    exact = runs.pop("float64")[0].detach()
    moved = (exact - start.float().double()).square().mean().sqrt()
    off = {name: (p.detach().double() - exact).square().mean().sqrt() for name, (p, _) in runs.items()}
    return {name: (value / moved).item() for name, value in off.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 2_000])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [
        dict(zip(FIELDS, [case, name, steps, seed, error], strict=True))
        for case in CASES
        for steps in args.steps
        for seed in range(args.seeds)
        for name, error in errors(case, steps, seed).items()
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "eight_bit.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['case']:55s} {row['steps']:6d} steps {row['optimizer']:27s} {row['relative_error']:.2e}")


if __name__ == "__main__":
    main()
