"""Train StochDQN, or an SB3 algorithm to compare it with, on an environment with very many actions.

    python -m recipes.stoch_dqn env=scatter_chain_1m seed=0
    python -m recipes.stoch_dqn -m env=actuator_maze_2p20 seed=0,1,2,3,4
    python -m recipes.stoch_dqn env=inverted_pendulum algo=sac
    python -m recipes.stoch_dqn resume=runs/stoch_dqn/scatter_chain_1m-stoch_dqn/seed0-20260101-120000

It leaves a folder: config.yaml, metrics.csv, TensorBoard events, a checkpoint, result.json and return.png. A
run that was killed goes on from its last checkpoint to the very result it would have had.
"""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from .conf.schema import register
from .evaluation import EVAL_SEED, optimum, random_return
from .pictures import plot_return
from .run_folder import RunFolder, where_it_ran
from .sb3_run import Checkpoints, load_checkpoint
from .settings import one_run


def make_env(cfg: DictConfig) -> DummyVecEnv:
    """The environments to learn in."""
    make = lambda: Monitor(gym.make(cfg.env.id, **cfg.env.kwargs))  # noqa: E731
    return DummyVecEnv([make] * cfg.n_envs)


def make_model(cfg: DictConfig, env: DummyVecEnv) -> BaseAlgorithm:
    """The algorithm, as configured."""
    algorithm = hydra.utils.get_class(cfg.algo._target_)
    arguments = hydra.utils.instantiate(cfg.algo, _target_="builtins.dict", _convert_="all")
    if cfg.env.codec is not None and "action_codec" in inspect.signature(algorithm).parameters:
        arguments["action_codec"] = hydra.utils.instantiate(cfg.env.codec, _convert_="all")
    return algorithm(env=env, **arguments)


def train(cfg: DictConfig, folder: RunFolder) -> dict[str, Any]:
    """Train to the end, from the folder's checkpoint if it has one; returns what ``result.json`` holds."""
    torch.set_num_threads(cfg.threads)
    # Early on beta is large for anyone; it is in metrics.csv, where one can see it fall.
    warnings.filterwarnings("ignore", message="The stochastic maximum falls short")
    env, checkpoint = make_env(cfg), folder.checkpoint()
    if checkpoint is None:
        folder.write("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        model = make_model(cfg, env)
    else:
        model = load_checkpoint(checkpoint, hydra.utils.get_class(cfg.algo._target_), env, cfg.device)

    eval_envs = gym.make_vec(cfg.env.id, num_envs=cfg.eval_episodes, **cfg.env.kwargs)
    best = optimum(eval_envs, EVAL_SEED)
    bounds = {
        "optimum": None if best is None else best.mean_return,
        "optimum_length": None if best is None else best.mean_length,
        "optimum_exact": best is not None and eval_envs.dynamics.exact,  # type: ignore[attr-defined]
        "random": random_return(cfg.env.id, cfg.env.kwargs, cfg.eval_episodes, EVAL_SEED),
    }
    n = getattr(env.action_space, "n", None)
    made = ", ".join([cfg.env.id, *(f"{name}={value}" for name, value in cfg.env.kwargs.items())])
    print(f"{made}: {'continuous' if n is None else f'{n:,}'} actions, seed {cfg.seed}, {folder.path}")
    print(f"return of {describe(bounds)}")

    callback = Checkpoints(folder, eval_envs, EVAL_SEED, cfg.eval_every, cfg.total_timesteps, checkpoint)
    model.set_logger(callback.make_logger())
    left = cfg.total_timesteps - model.num_timesteps
    if left > 0:
        model.learn(left, callback, log_interval=None, reset_num_timesteps=checkpoint is None)  # type: ignore

    last = callback.evaluations[-1]
    result = {
        "env": cfg.env.id,
        "n_actions": None if n is None else int(n),
        "algo": type(model).__name__,
        "seed": cfg.seed,
        "steps": model.num_timesteps,
        "return": last["greedy"],
        **bounds,
        # Where returns are not positive a share says nothing.
        "fraction_of_optimum": last["greedy"] / best.mean_return if best and best.mean_return > 0 else None,
        "evaluations": callback.evaluations,
        "wall_s": round(callback.wall_s, 1),
        "cpu_s": round(callback.cpu_s, 1),
        "device": str(model.device),
        "threads": cfg.threads,
        **where_it_ran(),
    }
    plot_return(folder.path / "return.png", result)
    folder.write("result.json", json.dumps(result, indent=2) + "\n")
    return result


def describe(result: dict[str, Any]) -> str:
    """The optimum, or the best policy that is known, and random play in words."""
    best = "the optimum" if result["optimum_exact"] else "the oracle, a good policy,"
    known = "" if result["optimum"] is None else f"{best} {result['optimum']:.2f}, "
    return f"{known}random play {result['random']:.2f}"


def report(result: dict[str, Any], folder: Path) -> None:
    """Print what the run came to."""
    share = result["fraction_of_optimum"] if result["random"] >= 0 else None
    print(
        f"\nreturn of the greedy policy {result['return']:.2f}, of {describe(result)}"
        + (
            ""
            if share is None
            else f": {share:.1%} of the {'optimum' if result['optimum_exact'] else 'oracle'}"
        )
        + f"\n{result['steps']:,} steps in {result['wall_s'] / 60:.1f} minutes; see {folder / 'return.png'}"
    )


def shrink(cfg: DictConfig) -> None:
    """Make it a matter of seconds, for a look at whether all works."""
    cfg.total_timesteps, cfg.eval_every, cfg.eval_episodes = 2_000, 1_000, min(cfg.eval_episodes, 2)
    if "learning_starts" in cfg.algo:
        cfg.algo.learning_starts = 100


@hydra.main(version_base="1.3", config_path="conf", config_name="stoch_dqn")
def main(cfg: DictConfig) -> float:
    """One run; returns the greedy return, for Hydra's sweepers."""
    return one_run("stoch_dqn", cfg, shrink, train, report)["return"]


register()

if __name__ == "__main__":
    main()
