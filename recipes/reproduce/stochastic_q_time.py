"""Time of a step with stochastic and exact maxima: a forward for each candidate, in one batch, and n outputs.

    OMP_NUM_THREADS=1 python -m recipes.reproduce.stochastic_q --part time [--quick | --report]

All cells take turns in one process, a slice of time each a round. Four minutes on a core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.logger import configure

from extensions.sb3 import StochDQN
from extensions.stochmax import BoxBins

from ..bench.action_scaling import Cell, fill_replay, summary
from ..bench.minillm_page import commit_and_machine, write_about, write_rows
from .stochastic_q_control_plan import authors_batch
from .stochastic_q_loops import Agent, Maximum, compared_in_python, compared_in_torch, in_batch
from .stochastic_q_time_page import N_OUTPUTS, NAME, report

MADE_BY = ("extensions", "recipes/reproduce")
ROUNDS = 6
BATCHES = (32, 64)  # beside 2 log2 n
REPLAY = 10_000  # transitions, of the agents of SB3
SIZES = (512, 1_000, 4_096, 10_000, 100_000, 1_000_000)

#: ways to take a maximum, of small agents with the authors' network
LOOPS: dict[str, tuple[Maximum, dict[str, bool]]] = {
    "python loop, all n": (compared_in_python, {"sampled": False}),
    "python loop, sampled": (compared_in_python, {"sampled": True}),
    "python loop, sampled, one action in M": (compared_in_python, {"sampled": True, "same": True}),
    "loop, all n": (compared_in_torch, {"sampled": False}),
    "loop, sampled": (compared_in_torch, {"sampled": True}),
    "batch, all n": (in_batch, {"sampled": False}),
    "batch, sampled": (in_batch, {"sampled": True}),
    "batch, sampled, one action in M": (in_batch, {"sampled": True, "same": True}),
}
STOCH, EXACT = "StochDQN", "StochDQN, all n"
AGENTS = (*LOOPS, N_OUTPUTS, STOCH, EXACT)


def levels(n: int) -> list[int]:
    """Of each control: InvertedPendulum's one, HalfCheetah's six, or one of ten for each zero of n."""
    if n <= 1_000:
        return [n]
    return [4] * 6 if n == 4**6 else [10] * round(math.log10(n))


def obs_dim(n: int) -> int:
    """Width of an observation: InvertedPendulum's or HalfCheetah's."""
    return 4 if n <= 1_000 else 17


def affordable(agent: str, n: int, batch: int) -> bool:
    """Whether a cell is measured; ``batch``: transitions of an update, 1 for an act."""
    if agent.startswith("python loop, all"):
        return n <= 10_000 and n * batch <= 110_000 and (batch not in BATCHES or n == 1_000)
    if agent.startswith("loop, all"):
        return n <= 10_000 and batch not in BATCHES
    if agent in ("batch, all n", EXACT):
        return n * batch <= 3_500_000
    return n <= 100_000 if agent == N_OUTPUTS else True


class OfSize(gym.Env[np.ndarray, Any]):
    """A world that has spaces and nothing else: only the agents are timed."""

    def __init__(self, n: int) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (obs_dim(n),))
        self.action_space = gym.spaces.Discrete(n)


def of_sb3(name: str, n: int) -> DQN:
    """An agent of SB3 or ours, with a full replay, greedy over its candidates."""
    common: dict[str, Any] = {
        "buffer_size": REPLAY,
        "learning_rate": 1e-3,
        "exploration_initial_eps": 0.0,
        "seed": 0,
        "device": "cpu",
    }
    model: DQN
    if name == N_OUTPUTS:
        model = DQN("MlpPolicy", OfSize(n), policy_kwargs={"net_arch": [64, 64]}, **common)
    else:
        cut = levels(n)
        model = StochDQN(
            "MlpPolicy",
            OfSize(n),
            policy_kwargs={"net_arch": [64]},
            head="feature",
            candidates="paper" if name == STOCH else "all",
            action_codec=BoxBins([-1.0] * len(cut), [1.0] * len(cut), cut),
            diagnostics_interval=0,
            **common,
        )
    model.set_logger(configure(None, []))
    model.exploration_rate = 0.0
    fill_replay(model, n)
    return model


def calls(name: str, n: int) -> tuple[Callable[[], Any], Callable[[int], Any]]:
    """To act once, and to update on so many transitions."""
    obs = np.random.default_rng(1).uniform(-1, 1, obs_dim(n)).astype(np.float32)
    if name in LOOPS:
        maximum, kind = LOOPS[name]
        agent = Agent(levels(n), obs_dim(n), maximum, **kind)
        state = torch.as_tensor(obs)
        return lambda: agent.act(state), agent.update
    model = of_sb3(name, n)
    return lambda: model.predict(obs, deterministic=False), lambda batch: model.train(1, batch)


def cells(sizes: tuple[int, ...]) -> Iterator[Cell]:
    """All that is measured."""
    for n in sizes:
        for name in AGENTS:
            batches = [batch for batch in (authors_batch(n), *BATCHES) if affordable(name, n, batch)]
            if not batches and not affordable(name, n, 1):
                continue
            act, update = calls(name, n)
            if affordable(name, n, 1):
                yield Cell(name, n, "act", act)
            for batch in dict.fromkeys(batches):
                yield Cell(name, n, f"update of {batch}", partial(update, batch))


def measure(sizes: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A row a cell and a clock: medians and quartiles, in seconds."""
    torch.manual_seed(0)
    every = list(cells(sizes))
    for _ in range(rounds):
        for cell in every:
            cell.turn(lambda: None)
    return [
        summary("cpu", cell.n, cell.agent, f"{cell.quantity}, {clock} s", times)
        for cell in every
        for clock, times in (("cpu", cell.cpu), ("wall", cell.wall))
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small n, one round: the path, no figures")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page anew")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not options.report:
        sizes, rounds = ((16, 64), 1) if options.quick else (SIZES, ROUNDS)
        rows = measure(sizes, rounds)
        write_rows(options.out / f"{NAME}.csv", rows)
        write_about(options.out / f"{NAME}.json", commit_and_machine(*MADE_BY))
    report(options.out)


if __name__ == "__main__":
    main()
