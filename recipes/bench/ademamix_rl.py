"""AdEMAMix in place of Adam in PPO and DQN of Stable-Baselines3: every run behind
docs/benchmarks/ademamix_rl.md.

    python -m recipes.bench.ademamix_rl [--only NAME ...] [--seeds 10] [--report]

For each task, 18 settings of Adam and 18 of AdEMAMix are tried on a seed, the best three of either on two
more. The best of each, and some that were not tuned, are then compared on ten other seeds. Runs that have
ended are kept, so it may be stopped at any time. What there is so far is then put together: ademamix_rl.csv
(every evaluation of every run), ademamix_rl.json (all settings), ademamix_rl.png and the tables in
ademamix_rl.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from ..evaluation import play
from ..run_folder import where_it_ran
from .ademamix_rl_page import report
from .ademamix_rl_plan import ADAM_TRIALS, ADEMAMIX_TRIALS, CHECKPOINTS, TASKS, Setting, Task, make
from .ademamix_rl_runs import (
    EPISODES,
    EVAL_SEED,
    PASSES,
    TUNING_SEEDS,
    area,
    compared,
    file_of,
    final,
    finalists,
    result,
    settings_of,
)


class Evaluations(BaseCallback):
    """Plays some episodes at equal intervals, between two rollouts, and empties the slow average then.

    Args:
        task: what is learned.
        reset: whether the slow average is emptied.
    """

    def __init__(self, task: Task, reset: bool) -> None:
        super().__init__()
        self.task, self.reset = task, reset
        vectorized = gym.spec(task.env).vector_entry_point is not None
        mode = "vector_entry_point" if vectorized else "sync"
        self.envs = gym.make_vec(task.env, num_envs=EPISODES, vectorization_mode=mode)
        self.found: list[dict[str, float]] = []

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= (len(self.found) + 1) * self.task.steps // CHECKPOINTS:
            self._evaluate()
            if self.reset:
                self.model.policy.optimizer.reset_slow()  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._evaluate()
        self.envs.close()

    def _evaluate(self) -> None:
        draw = np.random.default_rng(EVAL_SEED)  # the run's own generators are left as they are

        def act(observations: np.ndarray) -> np.ndarray:
            actions, _ = self.model.predict(observations, deterministic=True)
            if not self.task.epsilon:
                return actions
            random = draw.integers(self.envs.single_action_space.n, size=EPISODES)  # type: ignore[attr-defined]
            return np.where(draw.random(EPISODES) < self.task.epsilon, random, actions)

        score = play(self.envs, act, EVAL_SEED)
        self.found.append({"step": self.num_timesteps, "return": score.mean_return})


def run(task: Task, setting: Setting, seed: int) -> None:
    """Train and evaluate once, unless that was done."""
    if result(task, setting, seed) is not None:
        return
    wall, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        # That there are no warm-ups is what one of the settings is there to show.
        warnings.filterwarnings("ignore", message="AdEMAMix with alpha > 1 and no alpha_warmup")
        model = make(task, setting, seed)
    evaluations = Evaluations(task, setting.reset)
    model.learn(task.steps, callback=evaluations)
    found: dict[str, Any] = {
        "name": task.name,
        "setting": setting.name,
        "seed": seed,
        "settings": settings_of(task, setting),
        "evaluations": evaluations.found,
        "updates": int(max(s["step"] for s in model.policy.optimizer.state.values())),
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        **where_it_ran(),
    }
    file = file_of(task, setting, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    os.replace(partial, file)
    print(
        f"{task.name}, {setting.name}, seed {seed}: {final(found):.1f} at the end, {area(found):.1f} on the "
        f"way, {found['cpu_s']:.1f} s",
        flush=True,
    )


def tune(task: Task) -> None:
    """Every trial on one seed, the best of them on the others."""
    for trials in (ADAM_TRIALS, ADEMAMIX_TRIALS):
        for setting in trials:
            run(task, setting, TUNING_SEEDS[0])
        for seed in TUNING_SEEDS[1:]:
            for setting in finalists(task, trials):
                run(task, setting, seed)


def compare(task: Task, rows: tuple[str, ...], seeds: int) -> None:
    """Some rows of a task. The seeds go round, so that a comparison cut short is still an even one."""
    settings = compared(task)
    for seed in range(seeds):
        for row in rows:
            run(task, settings[row], seed)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="tasks whose name begins so")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of the comparison")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args(argv)
    if not 1 <= options.seeds <= TUNING_SEEDS[0]:
        parser.error(f"--seeds must be from 1 to {TUNING_SEEDS[0]}, where the seeds of the tuning begin")
    if options.only:
        chosen = [task for task in TASKS if any(task.name.startswith(name) for name in options.only)]
    else:
        chosen = [task for task in TASKS if not task.long]
    if not chosen:
        parser.error(f"no task begins so; there are {', '.join(repr(t.name) for t in TASKS)}")
    torch.set_num_threads(1)  # networks this small are slower with more
    if not options.report:
        for task in chosen:
            tune(task)
            compare(task, PASSES[0], options.seeds)
        for rows in PASSES[1:]:
            for task in chosen:
                compare(task, rows, options.seeds)
    report()


if __name__ == "__main__":
    main()
