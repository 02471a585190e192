"""What is learned with a million actions: every run behind docs/benchmarks/learning.md.

    python -m recipes.bench.learning [--only NAME ...] [--seeds 5] [--jobs N] [--report]

Runs that have ended are kept and those that were killed go on, so it may be stopped at any time. What there
is so far is then put together: learning.csv (every checkpoint of every run), learning.png and the table in
learning.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rliable import library, metrics

from .. import stoch_dqn  # noqa: F401 (registers the settings' types)
from .published import refuse_to_lose_rows, write_results

RUNS = Path("runs/learning")
DOCS = Path("docs/benchmarks")


@dataclass(frozen=True)
class Experiment:
    """One configuration of the recipe, for all seeds.

    Attributes:
        name: its folder and its row.
        overrides: what the recipe is given.
        unit: what is reported: a share of the optimum's return, the steps of an episode as a multiple of the
            oracle's, or the plain return.
        asked: the score to reach, if there is one.
        resumable: whether its environment can be put back into the middle of an episode.
    """

    name: str
    overrides: tuple[str, ...]
    unit: str = "share"
    asked: float | None = None
    resumable: bool = True

    @property
    def folder(self) -> Path:
        """Where its runs are."""
        return RUNS / self.name.replace(", ", "-").replace(" ", "_")

    def reaches(self, score: float) -> bool:
        """Whether a score is as good as asked."""
        if self.asked is None:
            return False
        return score <= self.asked if self.unit == "steps" else score >= self.asked

    def score(self, evaluation: dict[str, float], result: dict[str, Any]) -> float:
        """A checkpoint's greedy policy in ``unit``."""
        if self.unit == "steps":
            return evaluation["greedy_length"] / result["optimum_length"]
        return evaluation["greedy"] / (result["optimum"] if self.unit == "share" else 1.0)


_NO_MEMORY = "algo.candidates=[{_target_:extensions.stochmax.Uniform,k:40}]"
EXPERIMENTS = [
    Experiment("ScatterChain-1M, kappa 20", ("env=scatter_chain_1m",), asked=0.97),
    Experiment("ScatterChain-1M, kappa 1", ("env=scatter_chain_1m", "env.kwargs.kappa=1.0"), asked=0.97),
    Experiment("ActuatorMaze-2p20", ("env=actuator_maze_2p20",), "steps", asked=1.2),
    Experiment("InvertedPendulum-1M", ("env=inverted_pendulum_1m",), "return", asked=900),
    Experiment("HalfCheetah-1M", ("env=half_cheetah_1m",), "return"),
    Experiment("Needle-1M", ("env=needle_1m",)),
    Experiment("ScatterChainHard-1M", ("env=scatter_chain_hard_1m",)),
    Experiment("No memory, ScatterChain-1M, kappa 20", ("env=scatter_chain_1m", _NO_MEMORY)),
    Experiment("DQN of SB3, ScatterChain-1K, kappa 20", ("env=scatter_chain_1k", "algo=dqn")),
    *(
        Experiment(
            f"{algo} of SB3, {name}", (f"env={env}", f"algo={algo.lower()}"), "return", resumable=False
        )
        for name, env in (("InvertedPendulum", "inverted_pendulum"), ("HalfCheetah", "half_cheetah"))
        for algo in ("PPO", "SAC")
    ),
]


def run(experiment: Experiment, seed: int) -> None:
    """Run the recipe to its end, in a process of its own, going on with what there is."""
    folder = experiment.folder / f"seed{seed}"
    if (folder / "result.json").exists():
        return
    begun = experiment.resumable and any(folder.glob("checkpoint-*"))
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    arguments = (
        [f"resume={folder}"] if begun else [*experiment.overrides, f"seed={seed}", f"hydra.run.dir={folder}"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    print(
        f"{'going on with' if begun else 'running'} {experiment.name}, seed {seed}: {folder}/log", flush=True
    )
    with open(folder / "log", "a") as log:
        ended = subprocess.run(
            [sys.executable, "-m", "recipes.stoch_dqn", *arguments], stdout=log, stderr=log
        )
    if ended.returncode:
        print(f"{experiment.name}, seed {seed} ended with {ended.returncode}: see {folder}/log", flush=True)


def results(experiment: Experiment) -> list[dict[str, Any]]:
    """What the seeds that have ended came to. Runs with other settings than today's are left out."""
    found = []
    for file in sorted(experiment.folder.glob("seed*/result.json")):
        result = json.loads(file.read_text())
        if _settings(file.parent / "config.yaml") == settings_of(experiment, result["seed"]):
            found.append(result)
        else:
            print(f"{file.parent} was run with other settings, and is left out: delete it to run it anew")
    return found


def settings_of(experiment: Experiment, seed: int) -> Any:
    """The settings that the recipe would run with."""
    with initialize_config_module("recipes.conf", version_base="1.3"):
        cfg = compose("stoch_dqn", overrides=[*experiment.overrides, f"seed={seed}"])
    return OmegaConf.to_container(cfg, resolve=True)


def _settings(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file), resolve=True)


def iqm(scores: np.ndarray) -> tuple[float, float, float]:
    """Interquartile mean over seeds, and its 95% stratified bootstrap interval."""
    point, interval = library.get_interval_estimates(
        {"": scores.reshape(-1, 1)}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000
    )
    return float(point[""][0]), float(interval[""][0, 0]), float(interval[""][1, 0])


def table() -> str:
    """A row an experiment."""
    lines = [
        "| run | seeds | steps | greedy at the end: IQM [95% interval] | worst seed | asked | reached by "
        "all at | worst after that | worst of the last third | while learning | random | oracle "
        "| minutes a run |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for experiment in EXPERIMENTS:
        found = results(experiment)
        if not found:
            lines.append(f"| {experiment.name} | not run yet |" + " |" * 11)
            continue
        curves = [[experiment.score(e, r) for e in r["evaluations"]] for r in found]
        worst = max if experiment.unit == "steps" else min
        last = np.array([curve[-1] for curve in curves])
        point, low, high = iqm(last)
        training = np.mean([r["evaluations"][-1]["training"] for r in found])
        late = worst(worst(curve[-(len(curve) // 3) :]) for curve in curves)
        best = found[0]["optimum"]
        lines.append(
            f"| {experiment.name} | {len(found)} | {found[0]['steps']:,} "
            f"| {point:.3f} [{low:.3f}, {high:.3f}] | {worst(last):.3f} "
            f"| {reached(experiment, found, curves)} | {late:.3f} "
            f"| {training:.2f} | {found[0]['random']:.2f} | {'' if best is None else f'{best:.2f}'} "
            f"| {np.median([r['wall_s'] for r in found]) / 60:.1f} |"
        )
    return "\n".join(lines)


def reached(experiment: Experiment, found: list[dict[str, Any]], curves: list[list[float]]) -> str:
    """Three cells: what is asked, the steps at which the last seed first had it, the worst score after."""
    if experiment.asked is None:
        return "| |"
    sign = "<=" if experiment.unit == "steps" else ">="
    first = [next((i for i, s in enumerate(curve) if experiment.reaches(s)), None) for curve in curves]
    if None in first:
        missed = first.count(None)
        return f"{sign} {experiment.asked:g} | {missed} of {len(first)} seeds never |"
    steps = max(r["evaluations"][i]["step"] for r, i in zip(found, first, strict=True))
    worst = max if experiment.unit == "steps" else min
    after = worst(experiment.score(e, r) for r in found for e in r["evaluations"] if e["step"] >= steps)
    return f"{sign} {experiment.asked:g} | {steps:,} | {after:.3f}"


def write_csv() -> None:
    """Every checkpoint of every run.

    Raises:
        SystemExit: fewer are here than the page was made of.
    """
    looks = sum(len(r["evaluations"]) for experiment in EXPERIMENTS for r in results(experiment))
    refuse_to_lose_rows(DOCS / "learning.csv", looks)
    with open(DOCS / "learning.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "seed", "step", "greedy", "greedy_length", "training", "optimum", "random"])
        for experiment in EXPERIMENTS:
            for r in results(experiment):
                for e in r["evaluations"]:
                    measured = [e["greedy"], e["greedy_length"], e["training"], r["optimum"], r["random"]]
                    cells = ["" if x is None else f"{x:.6g}" for x in measured]
                    writer.writerow([experiment.name, r["seed"], e["step"], *cells])


def plot() -> None:
    """A panel an experiment: every seed's greedy return, and their interquartile mean."""
    shown = [e for e in EXPERIMENTS if results(e)]
    rows = (len(shown) + 2) // 3
    figure, grid = plt.subplots(rows, 3, figsize=(13, 3.2 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.axis("off")
    for axes, experiment in zip(grid.flat, shown, strict=False):
        found = results(experiment)
        curves = np.array([[experiment.score(e, r) for e in r["evaluations"]] for r in found])
        steps = [e["step"] for e in found[0]["evaluations"]]
        axes.plot(steps, curves.T, color="C0", alpha=0.3, linewidth=1)
        middle = [metrics.aggregate_iqm(curves[:, [i]]) for i in range(len(steps))]
        axes.plot(steps, middle, color="C0", linewidth=2)
        if experiment.unit == "steps":
            axes.set_yscale("log")
        if experiment.unit != "return":
            axes.axhline(1.0, color="C2", linestyle="--")
        label = {"share": "share of the optimum", "steps": "steps / oracle's", "return": "return"}
        axes.set_ylabel(label[experiment.unit])
        axes.set_title(experiment.name, fontsize=10)
        axes.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1000:g}k")
        axes.grid(alpha=0.3)
    figure.supxlabel("environment steps")
    figure.savefig(DOCS / "learning.png", dpi=100)


def report() -> None:
    """Put together what there is."""
    write_csv()
    write_results(DOCS / "learning.md", table())
    if any(results(experiment) for experiment in EXPERIMENTS):
        plot()
    print(table())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="experiments whose name begins so")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args()
    chosen = [e for e in EXPERIMENTS if not options.only or any(e.name.startswith(o) for o in options.only)]
    if not chosen:
        parser.error(f"no experiment begins so; there are {', '.join(repr(e.name) for e in EXPERIMENTS)}")
    if not options.report:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda pair: run(*pair), [(e, s) for e in chosen for s in range(options.seeds)]))
    report()


if __name__ == "__main__":
    main()
