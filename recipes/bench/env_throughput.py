"""Steps a second of the environments, by door, batch and device, beside gymnasium's own CartPole.

    python -m recipes.bench.env_throughput [--quick] [--device cpu|cuda] [--threads N] [--out DIR]

All that is compared takes turns, a slice of time each a round, in one process after one untimed turn.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import cycle
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from envs.dynamics.scatter_chain import ScatterChain
from envs.dynamics.world import World
from envs.torchrl import LargeActionEnv

from ..run_folder import where_it_ran
from . import env_by_hand
from .env_throughput_page import summary, write_page

FIELDS = ["device", "threads", "door", "world", "mode", "batch", "steps_per_s", "q25", "q75", "rounds"]
CARTPOLE = "gymnasium's CartPole"
WORLDS = {  # one of each, about a million actions
    "ScatterChain": "ScatterChain-1M-v0",
    "DiscreteLQR": "DiscreteLQR-1M-v0",
    "PendulumBins": "PendulumBins-1M-v0",
    "ActuatorMaze": "ActuatorMaze-2p20-v0",
    "ActuatorMaze, walls": "ActuatorMazeWalls-2p20-v0",
    "SlateRec": "SlateRec-100x3-v0",
    "Catalogue": "Catalogue-1M-v0",
    "JointReplenishment": "JointReplenishment-1M-v0",
    "Mastermind": "Mastermind-6x10-v0",
    "BatchSchedule": "BatchSchedule-10-v0",
    "DiagonalGrid": "DiagonalGrid-1M-v0",
}
CONTROL = {"HalfCheetah": "HalfCheetah-1M-v5", "InvertedPendulum": "InvertedPendulum-1M-v5"}
STEPS = 16  # of a rollout


@dataclass
class Contestant:
    """One thing to time: ``go`` makes ``steps`` steps."""

    door: str
    world: str
    mode: str
    batch: int
    steps: int
    go: Callable[[], Any]


def one(name: str, id: str) -> Contestant:
    """A single gymnasium environment, reset when an episode is over."""
    env = gym.make(id)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(500)]
    env.reset(seed=0)

    def go() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return Contestant("gymnasium, one", name, "", 1, len(actions), go)


def vector(name: str, id: str | None, batch: int) -> Contestant:
    """A batched gymnasium environment; CartPole's own without an id."""
    envs = CartPoleVectorEnv(batch) if id is None else gym.make_vec(id, num_envs=batch)
    envs.action_space.seed(0)
    actions = cycle([envs.action_space.sample() for _ in range(8)])
    envs.reset(seed=0)
    return Contestant("gymnasium, vector", name, "", batch, batch, lambda: envs.step(next(actions)))


def bare(name: str, world: World, batch: int, device: str, mode: str) -> Contestant:
    """The dynamics alone in torch: a step and the observation after it."""
    keys = torch.randint(2**62, (batch,), device=device)
    actions = torch.randint(world.n, (batch,), device=device)
    state = world.reset(keys)

    def step(state: Any, actions: torch.Tensor) -> tuple[Any, ...]:
        new, reward, terminated = world.step(state, actions)
        return new, world.observe(new), reward.to(torch.float32), terminated, new["t"] >= world.horizon

    step(state, actions)  # fills the tables
    if mode == "compiled":
        compiled = torch.compile(step, fullgraph=True, dynamic=False)
        return Contestant("torch, bare step", name, mode, batch, batch, lambda: compiled(state, actions))
    if mode == "CUDA graph":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(state, actions)
        return Contestant("torch, bare step", name, mode, batch, batch, graph.replay)
    return Contestant("torch, bare step", name, mode, batch, batch, lambda: step(state, actions))


def by_hand(batch: int, device: str) -> list[Contestant]:
    """ScatterChain's step alone, from the one source and written by hand for torch."""
    world = ScatterChain()
    state = world.reset(torch.randint(2**62, (batch,), device=device))
    actions = torch.randint(world.n, (batch,), device=device)
    level, t = state["level"], state["t"]
    return [
        Contestant("torch, step only", "ScatterChain", mode, batch, batch, go)
        for mode, go in (
            ("one source", lambda: world.step(state, actions)),
            ("by hand", lambda: env_by_hand.step(world, level, t, actions)),
        )
    ]


def rollout(name: str, id: str, batch: int, device: str, mode: str) -> Contestant:
    """TorchRL's rollout with uniform actions, through the ends of episodes."""
    compiling: dict[str, Any] = {"compile": {"warmup": 3}} if mode == "compiled" else {}
    env = LargeActionEnv(f"LargeAction/{id}", batch_size=[batch], device=device, seed=0, **compiling)
    return Contestant(
        "TorchRL, rollout",
        name,
        mode,
        batch,
        batch * STEPS,
        lambda: env.rollout(STEPS, break_when_any_done=False),
    )


def plan(device: str, quick: bool) -> list[Contestant]:
    """All that is timed on a device."""
    torch.manual_seed(0)
    batches = [64] if quick else [64, 4096, 65536]
    top = 64 if quick else 2**20 if device == "cuda" else 65536
    mid = 64 if quick else 65536
    worlds = dict(list(WORLDS.items())[:1]) if quick else WORLDS
    made: list[Contestant] = []
    if device == "cpu":
        made += [one(CARTPOLE, "CartPole-v1")]
        made += [one(name, f"LargeAction/{id}") for name, id in worlds.items()]
        made += [one(name, f"LargeAction/{id}") for name, id in ({} if quick else CONTROL).items()]
        for batch in batches:
            made += [vector(CARTPOLE, None, batch)]
            made += [vector(name, f"LargeAction/{id}", batch) for name, id in worlds.items()]
    made += by_hand(mid, device)
    modes = ["eager"] + ([] if quick else ["compiled"]) + (["CUDA graph"] if device == "cuda" else [])
    for name, id in worlds.items():
        world = gym.make(f"LargeAction/{id}").unwrapped.dynamics  # type: ignore[attr-defined]
        made += [bare(name, world, top, device, mode) for mode in modes]
        for batch in batches:
            made += [rollout(name, id, batch, device, "eager")]
    if not quick:
        made += [rollout("ScatterChain", WORLDS["ScatterChain"], mid, device, "compiled")]
    return made


def measure(made: list[Contestant], device: str, threads: int, rounds: int, slice_s: float) -> list[dict]:
    """A row for each: the median over rounds, with quartiles."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    # Of processor time on one thread: others use the machine too. What waits for a device or for threads
    # is measured by the wall clock.
    clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
    rates: list[list[float]] = [[] for _ in made]
    order = random.Random(0)
    for r in range(-1, rounds):
        turns = list(range(len(made)))
        order.shuffle(turns)
        for i in turns:
            if r < 0:
                for _ in range(3):
                    made[i].go()
                continue
            synchronize()
            done, begun = 0, clock()
            while clock() - begun < slice_s:
                made[i].go()
                if device == "cuda":
                    synchronize()
                done += made[i].steps
            rates[i].append(done / (clock() - begun))
        print(f"round {r + 1} of {rounds}", flush=True)
    rows = []
    for contestant, found in zip(made, rates, strict=True):
        q25, median, q75 = statistics.quantiles(found, n=4, method="inclusive")
        c = contestant
        values = [device, threads, c.door, c.world, c.mode, c.batch, round(median), round(q25), round(q75)]
        rows.append(dict(zip(FIELDS, [*values, rounds], strict=True)))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one world, two short rounds: the path, no figures"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="docs/benchmarks, or a temporary folder if --quick")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    out = args.out or Path(tempfile.mkdtemp() if args.quick else "docs/benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch._dynamo.config.recompile_limit = 10 * len(WORLDS)  # all worlds go through one function

    rounds, slice_s = (2, 0.01) if args.quick else (args.rounds, 0.2)
    rows = measure(plan(args.device, args.quick), args.device, args.threads, rounds, slice_s)
    print(summary(rows))
    stem = f"env_throughput_{args.device}"
    with open(out / f"{stem}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    where = {
        **where_it_ran(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "",
        "day": str(date.today()),
    }
    (out / f"{stem}.json").write_text(json.dumps(where, indent=2) + "\n")
    write_page(out)
    if args.quick:
        print("\nno figures: rounds this short say nothing of speed")
    print(f"see {out / 'env_throughput.md'}")


if __name__ == "__main__":
    main()
