"""Time of the TorchRL agent's act and update in CUDA graphs, and environment steps a second in training.

    python -m recipes.bench.torchrl_gpu [--repetitions 200]

The agent is the recipe's, with its default settings: a network of 256 and 256 hidden units, 2 ceil(log2 n)
candidates, batches of 256; 4,096 environments of ScatterChain-1M on the device, one update for each step of
all of them. It needs a GPU. What it measures is put into torchrl_gpu.md and torchrl_gpu.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tensordict.nn import CudaGraphModule

from .. import stoch_dqn_torchrl  # noqa: F401 (registers the settings' types)
from ..run_folder import RunFolder, where_it_ran
from ..torchrl_collectors import collector_of
from ..torchrl_run import Run
from .published import write_results

DOCS = Path("docs/benchmarks")
ENVS = 4096
WARM_UP = 20  # calls or vector steps, of which the first few are captured
#: vector steps between two looks at the clock
WINDOW = 100
#: quantity: what it says, its unit, and what is asked of it
ASKED = {
    "act": ("act of 4,096 states", "us", None),
    "update": ("sampling and update of 256 transitions", "us", None),
    "act and update": ("act of 4,096 states and one update", "us", ("<=", 300.0)),
    "training": ("environment steps a second in training", "1/s", (">=", 1e6)),
}


def settings(*overrides: str) -> DictConfig:
    """The recipe's defaults in ScatterChain-1M, without what was tuned there, in CUDA graphs."""
    given = ["env=scatter_chain_1m", "~tuned", f"n_envs={ENVS}", "total_timesteps=1_000_000_000"]
    with initialize_config_module("recipes.conf", version_base="1.3"):
        cfg = compose("stoch_dqn_torchrl", overrides=[*given, "device=cuda", "cudagraphs=true", *overrides])
    return cfg


def parts(run: Run) -> dict[str, Callable[[], Any]]:
    """What is timed, each to be called without arguments; in CUDA graphs where the run's settings say so."""

    def act() -> Any:
        with torch.no_grad():
            return run.agent.policy(run.state.clone(False))["action"]

    def update() -> Any:
        return run.agent.update(run.replay.sample(run.cfg.agent.batch_size))

    def act_and_update() -> Any:
        return act(), update()

    calls = {"act": act, "update": update, "act and update": act_and_update}
    if run.cfg.cudagraphs:
        return {name: CudaGraphModule(call) for name, call in calls.items()}
    return calls


def microseconds(call: Callable[[], Any], repetitions: int) -> list[float]:
    """What calls take on the GPU, each, after some that are not counted."""
    for _ in range(WARM_UP):
        call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(repetitions):
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return times


def training_rates(run: Run, windows: int, vector_steps: int, synchronize: Callable[[], None]) -> list[float]:
    """Environment steps a second of the recipe's own loop, a figure a window of ``vector_steps``."""
    rates = []
    with collector_of(run.cfg, run.agent, run) as steps:
        run.train_until(run.step + WARM_UP * run.n_envs, steps)
        for _ in range(windows):
            synchronize()
            began, before = time.perf_counter(), run.step
            run.train_until(run.step + vector_steps * run.n_envs, steps)
            synchronize()
            rates.append((run.step - before) / (time.perf_counter() - began))
    return rates


def measure(cfg: DictConfig, repetitions: int) -> dict[str, list[float]]:
    """Everything of ``ASKED``."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(cfg, RunFolder(Path(folder)))
        rates = training_rates(run, max(3, repetitions // WINDOW), WINDOW, torch.cuda.synchronize)
        times = {name: microseconds(call, repetitions) for name, call in parts(run).items()}
    return {**times, "training": rates}


def table(measured: dict[str, list[float]]) -> str:
    """A row a quantity: the median, the quartiles, and whether it is what was asked; or that it is not
    known."""
    lines = ["| figure | unit | median | quartiles | asked | |", "|---|---|---|---|---|---|"]
    for name, (what, unit, bound) in ASKED.items():
        asked, verdict, figures = "", "", "not run yet | "
        if bound is not None:
            asked = f"{bound[0]} {bound[1]:,.0f}"
        if name in measured:
            low, median, high = statistics.quantiles(measured[name], n=4, method="inclusive")
            figures = f"{median:,.0f} | {low:,.0f} to {high:,.0f}"
            if bound is not None:
                holds = median <= bound[1] if bound[0] == "<=" else median >= bound[1]
                verdict = "pass" if holds else "**falls short**"
        lines.append(f"| {what} | {unit} | {figures} | {asked} | {verdict} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=200)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit(
            "recipes.bench.torchrl_gpu times CUDA graphs, and torch finds no GPU here. Times on a CPU: "
            "python -m recipes.bench.torchrl_scaling --device cpu"
        )
    measured = measure(settings(), options.repetitions)
    with open(DOCS / "torchrl_gpu.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["quantity", "unit", "repetition", "value"])
        for name, values in measured.items():
            writer.writerows([name, ASKED[name][1], i, f"{x:.6g}"] for i, x in enumerate(values))
    where = where_it_ran()
    versions = where["versions"]
    device = torch.cuda.get_device_name()
    ran = f"{device}; torch {versions['torch']}, torchrl {versions['torchrl']}; commit {where['commit']}."
    write_results(DOCS / "torchrl_gpu.md", f"{table(measured)}\n\n{ran}")
    print(table(measured))


if __name__ == "__main__":
    main()
