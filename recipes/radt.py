"""Train RADT, or TorchRL's Decision Transformer to compare, and see how closely it brings the return asked
for.

    python -m recipes.radt env=hopper
    python -m recipes.radt env=half_cheetah actor=dt seed=1
    python -m recipes.radt env=return_dial steps=1000
    python -m recipes.radt env=hopper dataset=~/.minari/datasets/mujoco/hopper/medium-v0
    python -m recipes.radt resume=runs/radt/hopper-radt/seed0-20260101-120000

The data are collected at the first run, by PPO (recipes.data.collect_replay), or are those of a Minari
dataset or a D4RL file. It leaves a folder: config.yaml, metrics.csv, TensorBoard events, a checkpoint,
result.json and alignment.png. A run that was killed goes on from its last checkpoint to the very result it
would have had.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict

from .conf.radt_schema import register
from .data.collect_replay import ENVS, Settings, collect, dataset_name, ensure
from .data.reading import load_dataset
from .data.return_dial import behaviour
from .pictures import plot_alignment
from .radt_run import Run
from .run_folder import RunFolder, where_it_ran
from .settings import one_run

DIAL = "envs:Align/ReturnDial-v0"
DIAL_EPISODES = 2_000


def read_data(cfg: DictConfig) -> tuple[TensorDict, str]:
    """What to learn from, and its name.

    Raises:
        ValueError: the environment has no data of its own, and none are named.
    """
    if cfg.dataset is None and cfg.env.id == DIAL:
        return behaviour(DIAL_EPISODES, **cfg.env.kwargs), "return dial"
    if cfg.dataset is not None:
        path = Path(cfg.dataset).expanduser()
        data, metadata = load_dataset(path if path.exists() else ensure(cfg.dataset))
        if metadata.get("env_id") not in (None, cfg.env.id):
            raise ValueError(
                f"{cfg.dataset} is from {metadata['env_id']}, not from {cfg.env.id}: give the env that it is "
                "from"
            )
        return data, metadata["name"]
    names = {id: name for name, id in ENVS.items()}
    if cfg.env.id not in names:
        raise ValueError(
            f"there are no data of {cfg.env.id} here: name some by dataset=PATH, a Minari dataset's folder "
            f"or a D4RL file; or take env={', env='.join(ENVS)}"
        )
    name = names[cfg.env.id]
    if cfg.smoke:
        data, metadata = collect_a_little(name)
    else:
        data, metadata = load_dataset(ensure(dataset_name(name)))
    return data, metadata["name"]


def collect_a_little(env: str) -> tuple[TensorDict, dict[str, Any]]:
    """A learner's first steps, in seconds."""
    out = Path("runs/data/smoke")
    folder = out / dataset_name(env)
    if not folder.exists():
        collect(
            Settings(env=env, steps=8_192, out=str(out))
        )  # half cheetah's episodes have 1,000, in 8 environments
    return load_dataset(folder)


def train(cfg: DictConfig, folder: RunFolder) -> dict[str, Any]:
    """Train to the end, from the folder's checkpoint if it has one; returns what ``result.json`` holds."""
    if cfg.actor == "dt" and importlib.util.find_spec("transformers") is None:
        raise ValueError("actor=dt is TorchRL's DTActor, which needs transformers: pip install transformers")
    data, name = read_data(cfg)
    run = Run(cfg, data, folder)
    if folder.checkpoint() is None:
        folder.write("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    n_parameters = sum(p.numel() for p in run.actor.parameters())
    print(
        f"{cfg.actor} on {name}: {len(run.windows.returns):,} episodes, returns from {run.low:.0f} to "
        f"{run.high:.0f} (5th and 95th percentile); {n_parameters:,} parameters, seed {cfg.seed}, "
        f"{folder.path}"
    )
    run.to_the_end()
    run.events.close()
    progress = run.progress
    result = {
        "env": cfg.env.id,
        "dataset": name,
        "actor": cfg.actor,
        "seed": cfg.seed,
        "steps": run.step,
        "parameters": n_parameters,
        "range": [run.low, run.high],
        **run.test(),
        "evaluations": progress["evaluations"],
        **{name: round(progress[name], 2) for name in ("wall_s", "cpu_s", "train_cpu_s")},
        "device": str(run.device),
        "threads": cfg.threads,
        **where_it_ran(),
    }
    plot_alignment(folder.path / "alignment.png", result)
    folder.write("result.json", json.dumps(result, indent=2) + "\n")
    return result


def report(result: dict[str, Any], folder: Path) -> None:
    """Print what the run came to."""
    for name in ("last", "selected"):
        inside = result[name]["normalised"]["in_range"]
        print(
            f"{name:>9} checkpoint: |target - mean return| {shown(inside['error_of_mean'], 3)} of the data's "
            f"range, slope {shown(inside['slope'])}, Spearman {shown(inside['spearman'])}"
        )
    minutes = result["wall_s"] / 60
    print(f"{result['steps']:,} steps in {minutes:.1f} minutes; see {folder / 'alignment.png'}")


def shown(figure: float | None, digits: int = 2) -> str:
    """A figure; a dash where it is undefined, as a correlation is if all returns are equal."""
    return "-" if figure is None else f"{figure:.{digits}f}"


def shrink(cfg: DictConfig) -> None:
    """Make it a matter of seconds, for a look at whether all works."""
    cfg.steps, cfg.eval_every, cfg.transformer.n_embd = 60, 30, 32
    cfg.eval_targets = cfg.eval_episodes = cfg.test_episodes = 2
    cfg.test_targets = 3


@hydra.main(version_base="1.3", config_path="conf", config_name="radt")
def main(cfg: DictConfig) -> float:
    """One run; returns the last checkpoint's error, for Hydra's sweepers."""
    try:
        result = one_run("radt", cfg, shrink, train, report)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    return result["last"]["normalised"]["in_range"]["error_of_mean"]


register()

if __name__ == "__main__":
    main()
