"""Train PPO or SAC and keep what it lived through: a dataset whose returns spread from clumsy to good.

    python -m recipes.data.collect_replay env=hopper
    python -m recipes.data.collect_replay env=half_cheetah steps=2_000_000 seed=1 out=runs/other
    python -m recipes.data.collect_replay env=hopper algo=sac hyper.batch_size=256

Every whole training episode is a candidate. Those that are kept are drawn so that their returns spread
evenly. The dataset is the folder ``out/hopper-v5/ppo-replay-v0``.
"""

from __future__ import annotations

import inspect
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from ..run_folder import where_it_ran
from .layout import flatten
from .recorder import EpisodeRecorder
from .spread import spread_evenly
from .store import save

ENVS = {"hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "half_cheetah": "HalfCheetah-v5"}

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "sac": SAC}
N_ENVS = {"ppo": 8, "sac": 4}

# PPO's learning rate falls linearly to zero. SAC is light: small networks, an update every four steps.
HYPER: dict[str, dict[str, Any]] = {
    "ppo": {
        "learning_rate": 3e-4,
        "n_steps": 256,
        "batch_size": 64,
        "n_epochs": 10,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "clip_range": 0.2,
        "policy_kwargs": {"net_arch": [64, 64], "log_std_init": -1.0},
    },
    "sac": {
        "learning_rate": 1e-3,
        "batch_size": 128,
        "gamma": 0.99,
        "learning_starts": 5_000,
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": [128, 128]},
    },
}
# What differs from it where it helps.
HYPER_OF_ENV: dict[tuple[str, str], dict[str, Any]] = {
    ("ppo", "half_cheetah"): {"gamma": 0.98, "gae_lambda": 0.92},
}


@dataclass
class Settings:
    """What the command takes, as ``key=value``."""

    #: hopper, walker2d or half_cheetah
    env: str = MISSING
    #: ppo or sac
    algo: str = "ppo"
    #: of training, in all environments together
    steps: int = 1_000_000
    seed: int = 0
    #: folder of the datasets
    out: str = "runs/data"
    #: what is kept at most
    max_episodes: int = 2_000
    max_transitions: int = 500_000
    #: over which the kept returns are spread
    bins: int = 20
    #: threads of torch; with one, a collection repeats bit for bit on like machines
    threads: int = 1
    #: arguments of SB3's algorithm in place of those tuned here
    hyper: dict[str, Any] = field(default_factory=dict)


def dataset_name(env: str, algo: str = "ppo") -> str:
    """The name of a dataset, which is also its folder below ``out``: ``hopper-v5/ppo-replay-v0``."""
    return f"{ENVS[env].lower()}/{algo}-replay-v0"


def ensure(name: str, out: str | Path = "runs/data") -> Path:
    """The folder of a dataset by its name, collected now, with the standard settings, if it is not there.

    Raises:
        ValueError: no dataset has this name.
    """
    folder = Path(out) / name
    if not folder.exists():
        known = {dataset_name(env, algo): (env, algo) for env in ENVS for algo in ALGORITHMS}
        if name not in known:
            raise ValueError(f"{folder} is not there, and what can be collected is {', '.join(known)}")
        env, algo = known[name]
        collect(Settings(env=env, algo=algo, out=str(out)))
    return folder


def collect(settings: Settings) -> dict[str, Any]:
    """Train, choose, store; returns the dataset's metadata.

    Raises:
        ValueError: a setting makes no sense, or no episode ended.
        FileExistsError: the dataset is there already.
    """
    check(settings)
    folder = Path(settings.out) / dataset_name(settings.env, settings.algo)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or give another out=")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.with_name(f".{folder.name}.partial").exists():
        print("A collection was killed while it wrote; this one begins anew.")

    torch.set_num_threads(settings.threads)
    hyper = hyper_parameters(settings)
    env_id = ENVS[settings.env]
    recorder = EpisodeRecorder(DummyVecEnv([lambda: gym.make(env_id)] * N_ENVS[settings.algo]))
    model = make_model(settings, hyper, recorder)
    print(f"{env_id}: {settings.algo} for {settings.steps:,} steps, seed {settings.seed}, to {folder}")
    wall, cpu = time.perf_counter(), time.process_time()
    model.learn(settings.steps, Progress(recorder, settings.steps))
    if not recorder.episodes:
        raise ValueError(f"no episode ended within steps={settings.steps}: give more")

    returns = np.array([episode.reward.sum(dtype=np.float64) for episode in recorder.episodes])
    lengths = np.array([len(episode.reward) for episode in recorder.episodes])
    limits = settings.bins, settings.max_episodes, settings.max_transitions
    kept = spread_evenly(returns, lengths, *limits, settings.seed)
    if not len(kept):
        raise ValueError(f"max_transitions={settings.max_transitions}: not one episode is that short")
    metadata = {
        "name": dataset_name(settings.env, settings.algo),
        "env_id": env_id,
        "algorithm": f"stable_baselines3.{type(model).__name__}",
        "n_envs": N_ENVS[settings.algo],
        "hyper_parameters": hyper,
        "seed": settings.seed,
        "steps": int(model.num_timesteps),
        "kept": {"of_episodes": len(returns), "of_transitions": int(lengths.sum()), "bins": settings.bins},
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        **where_it_ran(),
    }
    return save(flatten([recorder.episodes[i] for i in kept]), metadata, folder)


def check(settings: Settings) -> None:
    """Refuse what makes no sense."""
    for name, known in (("env", ENVS), ("algo", ALGORITHMS)):
        if getattr(settings, name) not in known:
            raise ValueError(f"{name}={getattr(settings, name)}: one of {', '.join(known)}")
    for name in ("steps", "max_episodes", "max_transitions", "bins", "threads"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name}={getattr(settings, name)}: at least 1")
    algorithm = ALGORITHMS[settings.algo]
    for name in settings.hyper:
        if name not in inspect.signature(algorithm).parameters:
            raise ValueError(f"hyper.{name}: not an argument of {algorithm.__name__}")


def hyper_parameters(settings: Settings) -> dict[str, Any]:
    """Those of SB3's algorithm."""
    tuned = HYPER_OF_ENV.get((settings.algo, settings.env), {})
    return {**HYPER[settings.algo], **tuned, **settings.hyper}


def make_model(settings: Settings, hyper: dict[str, Any], recorder: EpisodeRecorder) -> BaseAlgorithm:
    """The learner. PPO sees normalised observations and rewards; what is recorded is raw."""
    if settings.algo == "sac":
        return SAC("MlpPolicy", recorder, seed=settings.seed, device="cpu", **hyper)
    first = hyper["learning_rate"]
    hyper = {**hyper, "learning_rate": lambda left: first * max(left, 0.0)}  # the last rollout may overshoot
    venv = VecNormalize(recorder, gamma=hyper["gamma"])
    return PPO("MlpPolicy", venv, seed=settings.seed, device="cpu", **hyper)


class Progress(BaseCallback):
    """Says twenty times what the latest episodes returned and how much time is left."""

    def __init__(self, recorder: EpisodeRecorder, total: int) -> None:
        super().__init__()
        self.recorder, self.total, self.next_at = recorder, total, 0
        self.begun = time.perf_counter()

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.next_at and self.recorder.episodes:
            self.next_at = self.num_timesteps + self.total // 20
            latest = [episode.reward.sum() for episode in self.recorder.episodes[-50:]]
            left = (time.perf_counter() - self.begun) * max(self.total / self.num_timesteps - 1, 0)
            print(
                f"{self.num_timesteps:>9,} steps, {len(self.recorder.episodes):,} episodes, the latest "
                f"return {np.mean(latest):.0f} (at most {max(latest):.0f}), {left / 60:.1f} minutes left",
                flush=True,
            )
        return True


def main() -> None:
    """One collection, or an error in a line."""
    try:
        given = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_cli())
        if OmegaConf.is_missing(given, "env"):
            raise ValueError(f"env= is missing: one of {', '.join(ENVS)}")
        made = collect(OmegaConf.to_object(given))  # type: ignore[arg-type]
    except (OmegaConfBaseException, ValueError, FileExistsError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nStopped; nothing is kept, and the next collection begins anew.")
    returns = made["returns"]
    print(
        f"{made['name']}: {made['episodes']:,} episodes, {made['transitions']:,} transitions, returns "
        f"p5 {returns['p5']:.0f}, p50 {returns['p50']:.0f}, p95 {returns['p95']:.0f}; "
        f"{made['wall_s'] / 60:.1f} minutes"
    )


if __name__ == "__main__":
    main()
