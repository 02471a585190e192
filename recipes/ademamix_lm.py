"""Train a small language model from scratch with AdEMAMix, or with AdamW to compare.

    python -m recipes.ademamix_lm seed=0
    python -m recipes.ademamix_lm optimizer=adamw steps=5000
    python -m recipes.ademamix_lm switch_at=1250 optimizer.alpha_warmup=1250 optimizer.beta3_warmup=1250
    python -m recipes.ademamix_lm resume=runs/ademamix_lm/ademamix/seed0-20260101-120000

The text is that of `recipes.corpus`: endless, and of known entropy. It leaves a folder: config.yaml,
metrics.csv, TensorBoard events, a checkpoint, result.json and loss.png. A run that was killed goes on from
its last checkpoint to the very result it would have had.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from .conf.ademamix_lm_schema import register
from .lm_run import Run
from .pictures import plot_loss
from .run_folder import RunFolder, where_it_ran
from .settings import one_run


def train(cfg: DictConfig, folder: RunFolder) -> dict[str, Any]:
    """Train to the end, from the folder's checkpoint if it has one; returns what ``result.json`` holds."""
    run = Run(cfg, folder)
    if folder.checkpoint() is None:
        folder.write("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    n_parameters = sum(p.numel() for p in run.model.parameters())
    print(f"{n_parameters:,} parameters, {cfg.optimizer.name}, seed {cfg.seed}, {folder.path}")
    run.to_the_end()
    run.events.close()
    progress = run.progress
    loss = progress["evaluations"][-1]["loss"]
    result = {
        "optimizer": cfg.optimizer.name,
        "seed": cfg.seed,
        "steps": run.step,
        "tokens": run.step * cfg.batch_size * cfg.context,
        "parameters": n_parameters,
        "loss": loss,
        "floor": run.floor,
        "excess": None if loss is None else loss - run.floor,
        "diverged_at": run.step if run.diverged else None,
        "evaluations": progress["evaluations"],
        "probe": progress["probe"],
        **{name: round(progress[name], 2) for name in ("wall_s", "cpu_s", "train_cpu_s")},
        "device": str(run.device),
        "threads": cfg.threads,
        **where_it_ran(),
    }
    plot_loss(folder.path / "loss.png", result)
    folder.write("result.json", json.dumps(result, indent=2) + "\n")
    return result


def report(result: dict[str, Any], folder: Path) -> None:
    """Print what the run came to."""
    if result["diverged_at"] is not None:
        print(f"\ndiverged: by step {result['diverged_at']:,} the loss was no number; see {folder}")
        return
    print(
        f"\nloss held out {result['loss']:.4f} nats a token, {result['excess']:.4f} above the least possible"
        f"\n{result['tokens']:,} tokens in {result['wall_s'] / 60:.1f} minutes; see {folder / 'loss.png'}"
    )


def shrink(cfg: DictConfig) -> None:
    """Make it a matter of seconds, for a look at whether all works."""
    for name in ("switch_at", "inject_at"):
        if cfg[name] is not None:
            cfg[name] = max(2, round(cfg[name] * 200 / cfg.steps))
    cfg.steps, cfg.eval_every, cfg.eval_sequences = 200, 50, 128


@hydra.main(version_base="1.3", config_path="conf", config_name="ademamix_lm")
def main(cfg: DictConfig) -> float | None:
    """One run; returns the loss, for Hydra's sweepers."""
    try:
        return one_run("ademamix_lm", cfg, shrink, train, report)["loss"]
    except ValueError as error:
        raise SystemExit(str(error)) from None


register()

if __name__ == "__main__":
    main()
