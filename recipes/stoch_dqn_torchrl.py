"""Train StochDQN by TorchRL's parts on an environment with very many actions, everything on one device.

    python -m recipes.stoch_dqn_torchrl env=scatter_chain_1m seed=0
    python -m recipes.stoch_dqn_torchrl env=actuator_maze_2p20 device=cuda compile=true cudagraphs=true
    python -m recipes.stoch_dqn_torchrl env=scatter_chain_1m collector=multi workers=2
    python -m recipes.stoch_dqn_torchrl resume=runs/stoch_dqn_torchrl/scatter_chain_1m-single/seed0-20260101

It leaves a folder: config.yaml, metrics.csv, TensorBoard events, a checkpoint, result.json and return.png.
With collector=single, a run that was killed goes on from its last checkpoint to the very result it would have
had (with Elite or RecentExploited among its candidates it cannot go on, and says so); with more actors, whose
moments depend on the machine, it goes on from the same weights and replay.
"""

from __future__ import annotations

import json
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from .conf.stoch_dqn_torchrl_schema import check, register
from .evaluation import EVAL_SEED, optimum, random_return
from .pictures import plot_return
from .run_folder import RunFolder, where_it_ran
from .settings import one_run
from .stoch_dqn import describe, report
from .torchrl_run import Run


def train(cfg: DictConfig, folder: RunFolder) -> dict[str, Any]:
    """Train to the end, from the folder's checkpoint if it has one; returns what ``result.json`` holds."""
    check(cfg)
    run = Run(cfg, folder)
    if folder.checkpoint() is None:
        folder.write("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    best = optimum(run.eval_envs, EVAL_SEED)
    bounds = {
        "optimum": None if best is None else best.mean_return,
        "optimum_length": None if best is None else best.mean_length,
        "optimum_exact": best is not None and run.eval_envs.dynamics.exact,  # type: ignore[attr-defined]
        "random": random_return(cfg.env.id, cfg.env.kwargs, cfg.eval_episodes, EVAL_SEED),
    }
    n = run.agent.explore.n
    made = ", ".join([cfg.env.id, *(f"{name}={value}" for name, value in cfg.env.kwargs.items())])
    print(f"{made}: {n:,} actions, {run.n_envs} at once, seed {cfg.seed}, {folder.path}")
    print(f"return of {describe(bounds)}")
    if run.agent.forgets:
        print(f"if it is stopped it cannot go on: what {run.agent.forgets} keeps is in no checkpoint")
    run.to_the_end()
    evaluations = run.progress["evaluations"]
    last = evaluations[-1]["greedy"]
    result = {
        "env": cfg.env.id,
        "n_actions": n,
        "algo": "StochDQNLoss",
        "seed": cfg.seed,
        "steps": run.step,
        "updates": run.progress["updates"],
        "return": last,
        **bounds,
        # Where returns are not positive a share says nothing.
        "fraction_of_optimum": last / best.mean_return if best and best.mean_return > 0 else None,
        "evaluations": [{**row, "training": None} for row in evaluations],
        "wall_s": round(run.progress["wall_s"], 1),
        "cpu_s": round(run.progress["cpu_s"], 1),
        "device": str(run.device),
        "threads": cfg.threads,
        **where_it_ran(),
    }
    plot_return(folder.path / "return.png", result)
    folder.write("result.json", json.dumps(result, indent=2) + "\n")
    return result


def shrink(cfg: DictConfig) -> None:
    """Make it a matter of seconds, for a look at whether all works."""
    cfg.total_timesteps, cfg.eval_every, cfg.eval_episodes = 2_000, 1_000, min(cfg.eval_episodes, 2)
    cfg.n_envs, cfg.agent.learning_starts = min(cfg.n_envs, 8), 100


@hydra.main(version_base="1.3", config_path="conf", config_name="stoch_dqn_torchrl")
def main(cfg: DictConfig) -> float:
    """One run; returns the greedy return, for Hydra's sweepers."""
    return one_run("stoch_dqn_torchrl", cfg, shrink, train, report)["return"]


register()

if __name__ == "__main__":
    main()
