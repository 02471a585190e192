"""The offline datasets that `recipes.data.collect_replay` makes: what is in them.

    python -m recipes.bench.replay_data [--data runs/data] [--out DIR]

What is not in the folder of the datasets yet is collected first, ten to fifteen minutes each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..data.collect_replay import ENVS, dataset_name, ensure
from ..data.reading import load_dataset
from .action_scaling_page import table

NOTES = """
Every whole training episode of PPO is a candidate. The range of the returns is cut into twenty equal bins,
which give one episode each in turn until 2,000 episodes or 500,000 transitions are together; bins with few
episodes stay low. States, rewards and actions are the environment's own: what PPO normalises for itself is
not stored. Actions are those of a policy that explores. On another processor the training goes another way
after a while, and the SHA-256 is another.
"""


def page(sets: list[dict[str, Any]]) -> str:
    """The page of the documentation, from the metadata of the datasets."""
    ran = sets[0]
    rows = [
        [
            f"`{made['name']}`",
            f"{made['episodes']:,}",
            f"{made['transitions']:,}",
            *(f"{made['returns'][key]:,.0f}" for key in ("min", "p5", "p50", "p95", "max")),
            f"{made['kept']['of_episodes']:,}",
            f"{made['steps']:,}",
            f"{made['cpu_s'] / 60:.1f}",
            f"`{made['sha256'][:12]}`",
        ]
        for made in sets
    ]
    head = [
        "dataset",
        "episodes",
        "transitions",
        "least return",
        "p5",
        "p50",
        "p95",
        "largest",
        "of episodes",
    ]
    versions = ran["versions"]
    return (
        "# Offline data collected here\n\n"
        f"`python -m recipes.bench.replay_data`; {ran['machine']}, 1 thread; Python {ran['python']}, torch "
        f"{versions['torch']}, Stable-Baselines3 {versions['stable_baselines3']}, gymnasium "
        f"{versions['gymnasium']}, MuJoCo {versions['mujoco']}; seed {ran['seed']}.\n\n"
        + table([*head, "of steps", "CPU minutes", "SHA-256"], rows)
        + "\n\n![How the returns are distributed](replay_data.png)\n"
        + NOTES
    )


def plot(sets: list[dict[str, Any]], path: Path) -> None:
    """A histogram of the episodes' returns for each dataset."""
    figure, axes = plt.subplots(1, len(sets), figsize=(3.6 * len(sets), 2.8), layout="constrained")
    for made, axis in zip(sets, axes, strict=True):
        histogram = made["returns"]["histogram"]
        axis.stairs(histogram["counts"], histogram["edges"], fill=True, color="C0")
        for q in ("p5", "p95"):
            axis.axvline(
                made["returns"][q], color="C1", linestyle="--", label="p5, p95" if q == "p5" else None
            )
        axis.set_title(made["name"], fontsize=10)
        axis.set_xlabel("return of an episode")
    axes[0].set_ylabel("episodes")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Collect what is missing, and write page, picture and the metadata."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/data"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    sets = [load_dataset(ensure(dataset_name(env), arguments.data))[1] for env in ENVS]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "replay_data.json").write_text(json.dumps(sets, indent=1) + "\n")
    (arguments.out / "replay_data.md").write_text(page(sets))
    plot(sets, arguments.out / "replay_data.png")


if __name__ == "__main__":
    main()
