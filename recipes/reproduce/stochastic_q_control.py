"""Stochastic DQN on continuous control cut into levels, beside the same agents with the exact maximum.

    OMP_NUM_THREADS=1 python -m recipes.reproduce.stochastic_q --part control [--tier B] [--report]

Tier A is three quarters of an hour on a core, tier B more steps and SB3's continuous agents too. Runs that
have ended are kept, so it may be stopped at any time; what there is so far is then put on the page.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from envs.control import DiscretizeFlat
from extensions import sb3
from extensions.stochmax import BoxBins

from ..evaluation import EVAL_SEED, play, random_return
from ..run_folder import where_it_ran
from .stochastic_q_control_page import report
from .stochastic_q_control_plan import METHODS, RUNS, WORLDS, Budget, Job, jobs
from .stochastic_q_control_runs import result


class Evaluations(BaseCallback):
    """Plays some episodes greedily at equal intervals, and hears of those that were played while learning.

    Args:
        envs: one episode is played in each. budget: when.
    """

    def __init__(self, envs: gym.vector.VectorEnv, budget: Budget) -> None:
        super().__init__()
        self.envs, self.every = envs, budget.eval_every
        self.found: list[dict[str, Any]] = []
        self._played: list[float] = []  # returns of training episodes since the last evaluation
        self._cpu, self._wall = 0.0, 0.0  # of training

    def _on_training_start(self) -> None:
        self._since = time.process_time(), time.perf_counter()

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= (len(self.found) + 1) * self.every:
            self._evaluate()

    def _on_step(self) -> bool:
        self._played += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_training_end(self) -> None:
        self._evaluate()
        self.envs.close()

    def _evaluate(self) -> None:
        self._cpu += time.process_time() - self._since[0]
        self._wall += time.perf_counter() - self._since[1]
        greedy = play(self.envs, lambda obs: self.model.predict(obs, deterministic=True)[0], EVAL_SEED)
        self.found.append(
            {
                "step": self.num_timesteps,
                "greedy": greedy.mean_return,
                "training": float(np.mean(self._played)) if self._played else None,
                "cpu_s": self._cpu,
                "wall_s": self._wall,
            }
        )
        self._played = []
        self._since = time.process_time(), time.perf_counter()


def make(job: Job) -> BaseAlgorithm:
    """The agent of a run, before its first step."""
    method, world = METHODS[job.method], WORLDS[job.world]
    env_id, kwargs = world.env(method.continuous)
    env = gym.make(env_id, **kwargs)
    assert method.algorithm is not None
    if method.continuous:
        cls = getattr(stable_baselines3, method.algorithm)
        return cls("MlpPolicy", env, seed=job.seed, device="cpu", **job.arguments)
    cut = env.unwrapped
    assert isinstance(cut, DiscretizeFlat)
    codec = BoxBins(cut.low, cut.high, cut.nvec.tolist())
    cls = getattr(sb3, method.algorithm)
    return cls("MlpPolicy", env, seed=job.seed, device="cpu", action_codec=codec, **job.arguments)


def learn(job: Job) -> list[dict[str, Any]]:
    """Train to the end of the budget: what the evaluations found."""
    method, world, budget = METHODS[job.method], WORLDS[job.world], job.budget
    env_id, kwargs = world.env(method.continuous)
    envs = gym.make_vec(env_id, num_envs=budget.episodes, vectorization_mode="sync", **kwargs)
    evaluations = Evaluations(envs, budget)
    make(job).learn(budget.steps, callback=evaluations)
    return evaluations.found


def play_at_random(job: Job) -> list[dict[str, Any]]:
    """What uniform ids bring, over other episodes with each seed."""
    world = WORLDS[job.world]
    mean = random_return(*world.env(continuous=False), world.random_episodes, job.seed)
    return [{"step": 0, "greedy": mean, "training": mean, "cpu_s": 0.0, "wall_s": 0.0}]


def run(job: Job, runs: Path) -> None:
    """Make one run, unless that was done."""
    if result(job, runs) is not None:
        return
    cpu = time.process_time()
    found = {
        "evaluations": play_at_random(job) if METHODS[job.method].algorithm is None else learn(job),
        "seed": job.seed,
        "settings": job.settings,
        "cpu_s": time.process_time() - cpu,  # with the evaluations
        **where_it_ran(),
    }
    file = job.file(runs)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    os.replace(partial, file)
    last = found["evaluations"][-1]
    print(
        f"{job.world}, {METHODS[job.method].title}, seed {job.seed}: greedy {last['greedy']:.1f} after "
        f"{last['step']:,} steps, {found['cpu_s']:.0f} s",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tier", choices=("A", "B"), default="A")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, metavar="'NAME, n'", default=list(WORLDS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--runs", type=Path, default=RUNS, help="where what has ended is kept")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not options.report:
        for job in jobs(options.tier):
            if job.world in options.worlds and job.method in options.methods:
                run(job, options.runs)
    report(options.runs, options.out)


if __name__ == "__main__":
    main()
