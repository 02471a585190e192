"""Stochastic Q-learning in tables: FrozenLake, CliffWalking and an MDP of 256 actions; its limits, computed.

    OMP_NUM_THREADS=1 python -m recipes.reproduce.stochastic_q_tabular [--quick | --report] [--out DIR]

All seeds of a method learn at once. What has ended is kept in runs/stochastic_q_tabular and not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extensions.tabular import (
    DoubleQLearning,
    QLearning,
    Sarsa,
    StochDoubleQ,
    StochQ,
    StochSarsa,
    VisitCount,
)
from extensions.tabular.draws import Draws
from extensions.tabular.memory import DenseMemory

from ..bench.minillm_page import commit_and_machine
from .fixed_points import (
    best_of,
    best_of_all,
    chances,
    fixed_point,
    greedy,
    stochastic_greedy,
    value_of,
)
from .stochastic_q_tabular_claims import mean_of_seeds
from .stochastic_q_tabular_page import write_all
from .tabular_worlds import WORLDS, generated, make

MADE_BY = ("extensions/tabular", "recipes/reproduce")
RUNS = Path("runs/stochastic_q_tabular")
SEEDS, POINTS = 50, 100
RANDOM = "random"
NO_MEMORY = {"memory": 0}
METHODS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "Q": (QLearning, {}),
    "DoubleQ": (DoubleQLearning, {}),
    "Sarsa": (Sarsa, {}),
    "StochQ": (StochQ, {}),
    "StochDoubleQ": (StochDoubleQ, {}),
    "StochSarsa": (StochSarsa, {}),
    "StochQ, no memory": (StochQ, NO_MEMORY),
    "StochDoubleQ, no memory": (StochDoubleQ, NO_MEMORY),
    "StochSarsa, no memory": (StochSarsa, NO_MEMORY),
    RANDOM: (QLearning, {}),
}
#: of the comparison with fixed points: number of actions, steps, exploration rate, method
GAMMA = 0.8
LIMITS = {
    "256 actions, StochQ, no memory": (256, 100_000, 1.0, "StochQ, no memory"),
    "16 actions, StochQ, no memory": (16, 60_000, 1.0, "StochQ, no memory"),
    "16 actions, StochDoubleQ, no memory": (16, 60_000, 1.0, "StochDoubleQ, no memory"),
    "16 actions, StochSarsa, no memory": (16, 60_000, 0.5, "StochSarsa, no memory"),
    "16 actions, StochQ": (16, 60_000, 0.5, "StochQ"),
}

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A run of all seeds: its part, its name, what it is made with and what makes it."""

    part: str
    name: str
    settings: dict[str, Any]
    make: Callable[[], Result]


def learn(world: str, method: str, steps: int, seeds: int) -> Result:
    """What the seeds of a method come to in a world: (seeds,) or (points, seeds) each."""
    cls, options = METHODS[method]
    chosen = WORLDS[world]
    settings = chosen.options()
    if method == RANDOM:
        settings["exploration_final_eps"] = 1.0
    env = make(world, seeds)
    agent = cls(env, VisitCount(chosen.power), seed=0, record_interval=steps // POINTS, **settings, **options)
    agent.learn(steps)
    rows = agent.records.rows
    curves = {
        name: [row[name].tolist() for row in rows if name in row]
        for name in (chosen.measure, "train/omega", "train/beta")
    }
    score = np.array(curves[chosen.measure])
    rewards = np.array([row["rollout/rew_mean"].tolist() for row in rows])
    q = agent.q_values()
    policy = policy_of(agent, q) if method != RANDOM else np.full_like(q, 1 / q.shape[-1])
    met = agent._table.values[agent.n_tables :].sum(0).reshape(seeds, -1) > 0
    return {
        "last": mean_of_seeds(score[-POINTS // 10 :].T).tolist(),
        "first_half": mean_of_seeds(score[: POINTS // 2].T).tolist(),
        "reward": mean_of_seeds(rewards[-POINTS // 10 :].T).tolist(),
        "value": value_of(env, policy, chosen.gamma).tolist(),
        "greedy_value": value_of(env, greedy(q) if method != RANDOM else policy, chosen.gamma).tolist(),
        "optimum": float(value_of(env, greedy(fixed_point(env, chosen.gamma, best_of_all)), chosen.gamma)),
        "curve": curves[chosen.measure],
        "omega": curves["train/omega"],
        "beta": curves["train/beta"],
        "beta_of_tables": expected_beta(q, agent).tolist() if "no memory" in method else None,
        "met": met.double().mean(1).tolist(),
    }


def policy_of(agent: Any, q: np.ndarray) -> np.ndarray:
    """What an agent with the tables q (R, S, n) and its present memory does when it does not explore."""
    if agent._looks_at_all:
        return greedy(q)
    if agent._memory is None:
        return stochastic_greedy(q, agent._draws.k)
    every = torch.arange(q.shape[0] * q.shape[1])
    return stochastic_greedy(q, agent._draws.k, agent._memory.recall(every).numpy())


def expected_beta(q: np.ndarray, agent: Any) -> np.ndarray:
    """E[max - stochastic max] of tables (R, S, n) without a memory, mean over states: (R,)."""
    return (q.max(-1) - best_of(agent._draws.k)(q)).mean(-1)


def approach(n: int, steps: int, eps: float, method: str, seeds: int) -> Result:
    """How far from Q* and from the fixed point of Phi tables are on their way: (points, seeds)."""
    cls, options = METHODS[method]
    env = generated(seeds, n=n)
    agent = cls(env, VisitCount(0.6), GAMMA, 0.0, eps, eps, seed=0, schedule_timesteps=steps, **options)
    k = agent._draws.k
    worth = best_of(k)
    if "Sarsa" in method:  # which bootstraps from the action that it takes, explored ones too

        def worth(q: np.ndarray) -> np.ndarray:
            return (1 - eps) * best_of(k)(q) + eps * q.mean(-1)

    limits = {"phi": fixed_point(env, GAMMA, worth), "optimum": fixed_point(env, GAMMA, best_of_all)}
    found: Result = {"steps": [], **{f"{kind}_{to}": [] for kind in ("rms", "bias") for to in limits}}
    while agent.num_timesteps < steps:
        agent.learn(steps // 50, reset_num_timesteps=False)
        q = agent.q_values()
        found["steps"].append(agent.num_timesteps)
        for to, limit in limits.items():
            found[f"rms_{to}"].append(np.sqrt(((q - limit) ** 2).mean((1, 2))).tolist())
            found[f"bias_{to}"].append((q - limit).mean((1, 2)).tolist())
    gap = limits["optimum"] - limits["phi"]
    found["gap"], found["largest_gap"] = float(gap.mean()), float(gap.max())
    beta = limits["phi"].max(-1) - worth(limits["phi"])
    found["bound"] = float(GAMMA / (1 - GAMMA) * beta.max())
    found["size"] = float(limits["optimum"].mean())
    return found


def on_fixed_values(n: int, rows: int, rounds: int) -> Result:
    """omega and beta when fixed values, iid and uniform, are exploited, with the agents' draws and memory."""
    values = torch.rand(rows, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = Draws(torch.arange(rows), n, StochQ(generated(1, n=n))._draws.k, torch.device("cpu"))
    memory = DenseMemory(draws.k, rows, torch.device("cpu"))
    every, top = torch.arange(rows), values.amax(1)
    found: Result = {"n": n, "k": draws.k, "rounds": list(range(1, rounds + 1))}
    found |= {f"{what}_{which}": [] for what in ("omega", "beta") for which in ("without", "with")}
    for _ in range(rounds):
        ids = draws.next().act.ids
        known = memory.recall(every)
        of_drawn = values.gather(1, ids)
        of_known = values.gather(1, known.clamp(min=0)).masked_fill(known < 0, float("-inf"))
        best, column = torch.cat([of_drawn, of_known], 1).max(1)
        memory.remember(
            every,
            torch.cat([ids, known], 1).gather(1, column[:, None])[:, 0],
            torch.ones(rows, dtype=torch.bool),
        )
        for which, reached in (("without", of_drawn.amax(1)), ("with", best)):
            found[f"omega_{which}"].append(float((reached / top).mean()))
            found[f"beta_{which}"].append(float((top - reached).mean()))
    # the best of t independent sets has a rank of at least j if all t miss the j best ids
    k = draws.k
    missed = 1 - chances(n, k).cumsum()[: n - k]
    found["beta_with_exact"] = [float((missed**t).sum() / (n + 1)) for t in found["rounds"]]
    found["beta_without_exact"] = 1 / (k + 1) - 1 / (n + 1)
    return found


def jobs(quick: bool) -> Iterator[Job]:
    """All that is run."""
    seeds, share = (3, 0.02) if quick else (SEEDS, 1.0)
    for world, chosen in WORLDS.items():
        steps = int(chosen.steps * share)
        for method in METHODS:
            settings = {"seeds": seeds, "steps": steps, "world": repr(chosen)}
            yield Job(world, method, settings, partial(learn, world, method, steps, seeds))
    seeds = min(seeds, 20)
    for name, (n, whole, eps, method) in LIMITS.items():
        steps = int(whole * share)
        settings = {"seeds": seeds, "steps": steps, "gamma": GAMMA, "eps": eps}
        yield Job("limits", name, settings, partial(approach, n, steps, eps, method, seeds))
    rows, rounds = (200, 20) if quick else (2000, 400)
    for n in (256, 4096):
        settings = {"n": n, "rows": rows, "rounds": rounds}
        yield Job("fixed values", str(n), settings, partial(on_fixed_values, n, rows, rounds))


def file_of(job: Job, folder: Path) -> Path:
    return folder / (f"{job.part}, {job.name}".replace(", ", "-").replace(" ", "_") + ".json")


def run(job: Job, folder: Path) -> None:
    """Make a job's result, unless it is there with these settings."""
    file = file_of(job, folder)
    if file.exists() and json.loads(file.read_text())["settings"] == job.settings:
        return
    before = time.process_time()
    result = job.make()
    whole = {
        "settings": job.settings,
        "cpu_s": time.process_time() - before,
        "made_by": made_by(),
        "result": result,
    }
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(whole))
    partial.rename(file)
    print(f"{job.part}: {job.name}, {whole['cpu_s']:.0f} s", flush=True)


def made_by() -> str:
    """The commit, whether something is not in it, and the machine."""
    origin = commit_and_machine(*MADE_BY)
    new = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "--", *MADE_BY], capture_output=True, text=True
    )
    return origin if not new.stdout else origin.replace(";", ", and files not in it;", 1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few seeds and steps: the path, no figures")
    parser.add_argument("--report", action="store_true", help="run nothing, make the page of what there is")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--runs", type=Path, default=RUNS, help="where what has ended is kept")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    options.runs.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    every = list(jobs(options.quick))
    if not options.report:
        for job in every:
            run(job, options.runs)
    found: dict[str, dict[str, Any]] = {}
    for job in every:
        file = file_of(job, options.runs)
        if not file.exists():
            raise SystemExit(f"{job.part}, {job.name} has not been run: run without --report first")
        found.setdefault(job.part, {})[job.name] = json.loads(file.read_text())
    write_all(options.out, found)


if __name__ == "__main__":
    main()
