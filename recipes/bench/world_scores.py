"""Reference scores of every world: the oracle, the best that is possible, and uniformly random ids.

    python -m recipes.bench.world_scores [--only NAME] [--episodes N] [--out DIR]

A row an id, in ``world_scores.csv``. What is there already is kept: remove a row to have it measured again.
Then ``python -m recipes.bench.world_pages`` makes the pages of the documentation.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from envs import world_ids
from envs.dynamics.rollout import rollout, uniform_policy
from envs.dynamics.world import World

FIELDS = [
    "id",
    "n",
    "structure",
    "exact",
    "optimum",
    "bound",
    "bound_se",
    "oracle",
    "oracle_se",
    "oracle_steps",
    "oracle_episodes",
    "gap",
    "gap_se",
    "random",
    "random_se",
    "random_episodes",
    "random_exact",
    "cpu_s",
]
EPISODES = 10_000
CHUNK = 500  # episodes side by side
CONTROL_EPISODES = 100
SEED = 0
# Oracles that search, and how many episodes they are given.
SLOW = {
    "Mastermind": 500,
    "Mastermind-4x6": 2_000,
    "Mastermind-6x10": 500,
    "Mastermind-9x10": 100,
    "SlateRec": 1_000,
    "SlateRec-100x3": 1_000,
    "SlateRec-1000x3": 1_000,
    "SlateRecSatiation-100x3": 1_000,
    "Catalogue-1M": 100,
    "Catalogue-1G": 0,
    "BatchScheduleSetup-10": 100,
}


def control_ids() -> list[str]:
    """All ids of continuous control, cut up: no oracle is known."""
    return [
        id
        for id, spec in gym.registry.items()
        if spec.entry_point == "envs.control:DiscretizeFlat" and "env_id" in spec.kwargs
    ]


def name_of(id: str) -> str:
    return id.removeprefix("LargeAction/").removesuffix("-v0")


def in_chunks(
    world: World, policy: Callable[[Any], Any], episodes: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Returns and lengths of ``episodes`` episodes, some at a time, and the seed of each lot."""
    for seed in range(SEED, SEED + -(-episodes // CHUNK)):
        number = min(CHUNK, episodes - (seed - SEED) * CHUNK)
        yield *rollout(world, policy, number, seed), seed


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def scores(id: str, episodes: int) -> dict[str, Any]:
    """The row of an id."""
    world: World = gym.make(id).unwrapped.dynamics  # type: ignore[attr-defined]
    row: dict[str, Any] = {"id": id, "n": world.n, "structure": world.structure, "exact": world.exact}
    begun = time.process_time()
    row["optimum"] = world.optimal_return()
    played = min(episodes, SLOW.get(name_of(id), EPISODES))
    if played:
        returns, lengths, values = [], [], []
        for some, steps, seed in in_chunks(world, world.optimal_action, played):
            # the starts that rollout takes
            keys = np.random.default_rng(seed).integers(2**62, size=len(some))
            values.append(world.optimal_value(world.reset(keys)))
            returns.append(some)
            lengths.append(steps)
        row["oracle"], row["oracle_se"] = mean_and_error(np.concatenate(returns))
        row["bound"], row["bound_se"] = mean_and_error(np.concatenate(values))
        row["gap"], row["gap_se"] = mean_and_error(np.concatenate(values) - np.concatenate(returns))
        row["oracle_steps"], row["oracle_episodes"] = float(np.concatenate(lengths).mean()), played
    played = min(episodes, EPISODES)
    returns = [some for some, _, _ in in_chunks(world, uniform_policy(world, SEED), played)]
    row["random"], row["random_se"] = mean_and_error(np.concatenate(returns))
    row["random_episodes"], row["random_exact"] = played, world.random_return()
    row["cpu_s"] = round(time.process_time() - begun, 1)
    return row


def control_scores(id: str, episodes: int) -> dict[str, Any]:
    """The row of an id of `control_ids`."""
    env: Any = gym.make(id)
    begun, returns = time.process_time(), []
    env.action_space.seed(SEED)
    for episode in range(min(episodes, CONTROL_EPISODES)):
        env.reset(seed=SEED + episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + reward, terminated or truncated
        returns.append(total)
    mean, error = mean_and_error(np.array(returns))
    row = {"id": id, "n": env.unwrapped.n, "structure": "factored", "exact": False}
    row |= {"random": mean, "random_se": error, "random_episodes": len(returns)}
    return row | {"cpu_s": round(time.process_time() - begun, 1)}


def read(path: Path) -> dict[str, dict[str, str]]:
    """The rows that there are, by id."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="ids that have this in their name")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="at most so many an id")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "world_scores.csv"
    ids = [*world_ids(), *control_ids()]
    for id in ids:
        rows: dict[str, Any] = read(path)
        if id in rows or args.only not in id:
            continue
        score = scores if id in world_ids() else control_scores
        rows[id] = score(id, args.episodes)
        print(f"{id}: oracle {rows[id].get('oracle')}, random {rows[id]['random']}", flush=True)
        partial = path.with_suffix(".partial")
        with open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows[other] for other in ids if other in rows)
        os.replace(partial, path)
    print(f"see {path}")


if __name__ == "__main__":
    main()
