"""An agent without a memory levels off where the closed form says: the method's known limit, learned.

    python -m recipes.bench.memoryless [--seeds 5] [--steps 100000]

At the top of ScatterChain the best of m random actions pays m / (m + kappa) on average. So an agent that
knows every value, but looks at m actions a step drawn anew and remembers none, must earn that there and no
more. Few actions, 1000, so that it can come to know them all. Writes docs/benchmarks/memoryless.csv.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from extensions.sb3 import StochDQN
from extensions.stochmax import Uniform

N, M = 1000, 10  # M = ceil(log2 N)
KAPPAS = (1.0, 20.0)
OUT = Path("docs/benchmarks/memoryless.csv")


def learn(kappa: float, seed: int, steps: int) -> StochDQN:
    """Train on M candidates a step, all of them new."""
    model = StochDQN(
        "MlpPolicy",
        gym.make("envs:LargeAction/ScatterChain-v0", n=N, kappa=kappa),
        candidates=[Uniform(M)],
        head="row",
        policy_kwargs={"net_arch": []},  # one-hot levels: a table
        learning_rate=1e-3,
        gamma=0.95,
        buffer_size=steps,
        learning_starts=1_000,
        target_update_interval=500,
        exploration_fraction=0.5,
        exploration_final_eps=0.1,
        diagnostics_interval=0,
        seed=seed,
        device="cpu",
    )
    return model.learn(steps)


def reward_at_the_top(model: StochDQN, kappa: float, episodes: int = 500) -> float:
    """Mean reward of a step at the top level, acting on the same M candidates without any exploration."""
    envs = gym.make_vec("envs:LargeAction/ScatterChain-v0", num_envs=episodes, n=N, kappa=kappa)
    world = envs.dynamics  # type: ignore[attr-defined]
    model.exploration_rate = 0.0
    observations, _ = envs.reset(seed=0)
    total = count = 0.0
    for _ in range(world.horizon):
        at_top = envs.state["level"] == world.levels - 1  # type: ignore[attr-defined]
        actions, _ = model.predict(observations, deterministic=False)
        observations, rewards, *_ = envs.step(actions)
        total, count = total + rewards[at_top].sum(), count + at_top.sum()
    return float(total / count)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with open(options.out, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kappa", "seed", "reward_at_the_top", "best_of_m", "m_over_m_plus_kappa"])
        for kappa in KAPPAS:
            world = gym.make("envs:LargeAction/ScatterChain-v0", n=N, kappa=kappa).unwrapped.dynamics  # type: ignore
            rewards = []
            for seed in range(options.seeds):
                rewards.append(reward_at_the_top(learn(kappa, seed, options.steps), kappa))
                exact, approximate = world.best_of(M), M / (M + kappa)
                writer.writerow([kappa, seed, *(f"{x:.4f}" for x in (rewards[-1], exact, approximate))])
                file.flush()
            print(
                f"kappa {kappa:g}: learned {np.mean(rewards):.4f} +- {np.std(rewards):.4f} over "
                f"{options.seeds} seeds; best of {M} of {N} {exact:.4f}, m / (m + kappa) {approximate:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
