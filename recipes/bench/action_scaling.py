"""Time per act and per update, and peak memory, against the number of actions.

    python -m recipes.bench.action_scaling [--quick] [--device cpu|cuda|auto] [--out DIR]

Of Stable-Baselines3's DQN, of StochDQN with each head, and of exact maximisation by an action-in network in
batches. All are timed in turn, a slice of time each a round, so that whatever else the machine does meets all
alike.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.logger import configure

from extensions.sb3.stoch_dqn import StochDQN
from extensions.stochmax import MixedRadix

OBS_DIM, NET_ARCH, BATCH, THREADS = 17, [256, 256], 32, 1
REPLAY = 50_000  # transitions, with actions drawn over all n
WARM_BATCH = 1024
ROUNDS = 10
SLICE, BUDGET, LEAST = 0.05, 20.0, 3  # seconds a cell a round, seconds a cell in all, repetitions at least

#: name: what StochDQN is given besides n; None is SB3's own DQN
AGENTS: dict[str, dict[str, Any] | None] = {
    "sb3_dqn": None,
    "exact_action_in": {"head": "feature", "candidates": "all"},
    "row": {"head": "row"},
    "low_rank": {"head": "low_rank", "head_kwargs": {"rank": 32}},
    "feature": {"head": "feature"},
    "auto": {"head": "auto", "candidates": "auto"},
    "exact_row": {"head": "row", "candidates": "all"},
    "exact_low_rank": {"head": "low_rank", "head_kwargs": {"rank": 32}, "candidates": "all"},
}
OURS = ("row", "low_rank", "feature")
FIELDS = ["device", "n", "agent", "quantity", "median", "q25", "q75", "repetitions", "threads"]


class NActions(gym.Env[np.ndarray, Any]):
    """A world that has spaces and nothing else: only the agents are timed."""

    def __init__(self, n: int) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (OBS_DIM,))
        self.action_space = gym.spaces.Discrete(n)


def make_agent(name: str, n: int, device: str) -> DQN:
    """An agent with a full replay, greedy over its candidates."""
    common: dict[str, Any] = {
        "buffer_size": REPLAY,
        "policy_kwargs": {"net_arch": NET_ARCH},
        "exploration_initial_eps": 0.0,
        "seed": 0,
        "device": device,
    }
    ours = AGENTS[name]
    model: DQN
    if ours is None:
        model = DQN("MlpPolicy", NActions(n), **common)
    else:
        d = round(math.log10(n))
        featured = ours["head"] == "feature"
        codec = MixedRadix([10] * d if n == 10**d else [n]) if featured else None
        model = StochDQN("MlpPolicy", NActions(n), **common, **ours, action_codec=codec)
    model.set_logger(configure(None, []))
    model.exploration_rate = 0.0
    fill_replay(model, n)
    return model


def fill_replay(model: DQN, n: int) -> None:
    """Fill the replay with random transitions, of which one in a hundred ends an episode."""
    rng, replay = np.random.default_rng(0), model.replay_buffer
    assert replay is not None
    replay.observations[:] = rng.uniform(-1, 1, replay.observations.shape)
    replay.next_observations[:] = rng.uniform(-1, 1, replay.next_observations.shape)
    replay.actions[:] = rng.integers(n, size=replay.actions.shape)
    replay.rewards[:] = rng.normal(size=replay.rewards.shape)
    replay.dones[:] = rng.random(replay.dones.shape) < 0.01
    replay.full = True


def warm_up(model: DQN, n: int) -> None:
    """Train most rows that the replay names, so that rows are in use; only where an update is cheap."""
    if isinstance(model, StochDQN) and model.candidates != "all":
        model.train(math.ceil(2 * min(n, REPLAY) / WARM_BATCH), WARM_BATCH)


class Cell:
    """One thing to time: what it is, the call, and the times it took."""

    def __init__(self, agent: str, n: int, quantity: str, call: Callable[[], Any]) -> None:
        self.agent, self.n, self.quantity, self.call = agent, n, quantity, call
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.ends: list[int] = []  # calls that were timed up to the end of each turn

    def turn(self, synchronize: Callable[[], None]) -> None:
        """One call untimed, since others have used the caches meanwhile, then calls for a slice of time."""
        if sum(self.wall) > BUDGET and len(self.wall) >= LEAST:
            return
        if not self.wall or self.wall[-1] < SLICE:
            self.call()
        spent = 0.0
        while spent < SLICE:
            synchronize()
            cpu, wall = time.process_time(), time.perf_counter()
            self.call()
            synchronize()
            self.cpu.append(time.process_time() - cpu)
            self.wall.append(time.perf_counter() - wall)
            spent += self.wall[-1]
        self.ends.append(len(self.wall))


def cells_of(name: str, n: int, device: str) -> list[Cell]:
    model = make_agent(name, n, device)
    warm_up(model, n)
    observation = np.random.default_rng(1).uniform(-1, 1, (OBS_DIM,)).astype(np.float32)
    return [
        Cell(name, n, "act", lambda: model.predict(observation, deterministic=False)),
        Cell(name, n, "update", lambda: model.train(1, BATCH)),
    ]


def measure_times(plan: list[tuple[str, int]], rounds: int, device: str) -> list[Cell]:
    cells = [cell for name, n in plan for cell in cells_of(name, n, device)]
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(rounds):
        for cell in cells:
            cell.turn(synchronize)
    return cells


def measure_memory(name: str, n: int, device: str) -> dict[str, float]:
    """Peak memory of a process of its own, in bytes: the peak of a process never goes down."""
    command = [sys.executable, "-m", "recipes.bench.action_scaling", "--memory-of", name, str(n), "--device"]
    done = subprocess.run([*command, device], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def report_memory(name: str, n: int, device: str) -> None:
    """In that process: act and update on warm rows, then say what it took."""
    imported = peak_rss()
    model = make_agent(name, n, device)
    warm_up(model, n)
    exact_and_large = isinstance(model, StochDQN) and model.candidates == "all" and n > 10_000
    for _ in range(1 if exact_and_large else 5):
        model.predict(np.zeros(OBS_DIM, dtype=np.float32), deterministic=False)
        model.train(1, BATCH)
    result = {"peak_rss": peak_rss(), "peak_rss_over_imports": peak_rss() - imported}
    if device == "cuda":
        result["peak_cuda"] = torch.cuda.max_memory_allocated()
    print(json.dumps(result))


def peak_rss() -> float:
    # Not getrusage's ru_maxrss, which a child takes over from the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) * 1024  # type: ignore[union-attr]


def time_plan(quick: bool) -> list[tuple[str, int]]:
    if quick:
        return [(agent, n) for n in (10, 100) for agent in AGENTS]
    decades = [10**d for d in range(2, 7)]
    main = [(agent, n) for n in decades for agent in ("sb3_dqn", "exact_action_in", *OURS)]
    # Where the exact maximum over all n stops being cheaper.
    near = [(agent, 2**k) for k in range(8, 15) for agent in AGENTS if agent != "auto"]
    near = [(agent, n) for agent, n in near if agent != "exact_action_in" or n <= 2048]
    return [*main, ("auto", 10**3), ("feature", 10**9), *near]


def memory_plan(quick: bool) -> list[tuple[str, int]]:
    if quick:
        return [("feature", 100)]
    agents = ("sb3_dqn", "exact_action_in", *OURS)
    return [(agent, 10**d) for d in range(2, 7) for agent in agents] + [("feature", 10**9)]


def time_rows(cells: list[Cell], device: str) -> list[dict[str, Any]]:
    return [
        summary(device, cell.n, cell.agent, f"{cell.quantity}_{clock}_s", times)
        for cell in cells
        for clock, times in (("cpu", cell.cpu), ("wall", cell.wall))
    ]


def summary(device: str, n: int, agent: str, quantity: str, values: list[float]) -> dict[str, Any]:
    q25, median, q75 = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    row = [device, n, agent, quantity, median, q25, q75, len(values), torch.get_num_threads()]
    return dict(zip(FIELDS, row, strict=True))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small n, few repetitions: the path, no figures")
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "auto"), default="auto", help="auto: all there are"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--memory-of", nargs=2, metavar=("AGENT", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(THREADS)
    if args.memory_of:
        return report_memory(args.memory_of[0], int(args.memory_of[1]), args.device)
    devices = [args.device]
    if args.device == "auto":
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

    rows: list[dict[str, Any]] = []
    for device in devices:
        for agent, n in memory_plan(args.quick):
            measured = measure_memory(agent, n, device)
            rows += [summary(device, n, agent, quantity, [x]) for quantity, x in measured.items()]
        rows += time_rows(measure_times(time_plan(args.quick), 1 if args.quick else ROUNDS, device), device)

    # Imported here, since its pictures would count in the memory of the processes above.
    from recipes.bench.action_scaling_page import claims_table, draw, write_page

    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "action_scaling.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    medians = {
        device: {(r["agent"], r["n"], r["quantity"]): r["median"] for r in rows if r["device"] == device}
        for device in devices
    }
    write_page(args.out / "action_scaling.md", medians)
    for device in devices:
        draw(args.out / f"action_scaling_{device}.png", rows, device)
        print(device, claims_table(medians[device], "cpu" if device == "cpu" else "wall"), sep="\n")


if __name__ == "__main__":
    main()
