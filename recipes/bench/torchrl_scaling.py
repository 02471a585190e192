"""Time per act and per update of TorchRL's DQN and of StochDQN, and bytes of a replay row, against n.

    python -m recipes.bench.torchrl_scaling [--quick] [--device cpu|cuda|auto] [--out DIR]

All cells take turns, a slice of time each a round, as in recipes.bench.action_scaling. An update is sampling
excluded: loss, backward, clipping, optimizer and target updater on one batch.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss
from torchrl.objectives import HardUpdate as HostHardUpdate

from extensions.optim import RowAdam, clip_grad_norm_
from extensions.stochmax import MixedRadix, ReplayActions, Uniform
from extensions.torchrl import HardUpdate, StochDQNLoss, StochEGreedyModule, StochQNetwork, StochQValueActor
from recipes.bench.action_scaling import Cell, time_rows

OBS_DIM, WIDTH, BATCH, ENVS, THREADS = 17, 256, 256, 64, 1
REPLAY = 50_000  # transitions, with actions drawn over all n
ROUNDS = 40
INTERVAL = 200  # updates between two copies of the target

#: name: head, and candidates
AGENTS: dict[str, tuple[str, Any]] = {
    "torchrl_dqn": ("", None),
    "row": ("row", "log"),
    "low_rank": ("low_rank", "log"),
    "feature": ("feature", "log"),
    "low_rank_40": ("low_rank", [Uniform(20), ReplayActions(20)]),
}
FIELDS = ["device", "n", "agent", "quantity", "median", "q25", "q75", "repetitions", "threads", "turns"]


def make(name: str, n: int, device: str) -> tuple[nn.Module, nn.Module, Any, Any]:
    """Policy, loss, optimizer and updater."""
    head, candidates = AGENTS[name]
    shape = {"in_features": OBS_DIM, "num_cells": [WIDTH], "activation_class": nn.ReLU, "device": device}
    if not head:
        spec = Categorical(n, device=device)
        network = MLP(**{**shape, "num_cells": [WIDTH, WIDTH]}, out_features=n)
        actor: Any = QValueActor(TensorDictModule(network, ["observation"], ["action_value"]), spec=spec)
        loss: Any = DQNLoss(actor, loss_function="smooth_l1")
        explore: Any = EGreedyModule(spec, eps_init=0.1, eps_end=0.1, device=device)
        optimizer: Any = torch.optim.Adam(loss.parameters(), lr=1e-4)
        updater: Any = HostHardUpdate(loss, value_network_update_interval=INTERVAL)
        return TensorDictSequential(actor, explore), loss, optimizer, updater
    trunk = MLP(**shape, out_features=WIDTH, activate_last_layer=True)
    d = round(math.log10(n))
    codec: Any = MixedRadix([10] * d) if head == "feature" else n
    actor = StochQValueActor(StochQNetwork(trunk, codec, head=head, device=device), candidates=candidates).to(
        device
    )
    loss = StochDQNLoss(actor, loss_function="smooth_l1")
    explore = StochEGreedyModule(Categorical(n, device=device), 0.1, 0.1, device=device)
    optimizer = RowAdam(loss.parameters(), lr=1e-4)
    return (
        TensorDictSequential(actor, explore),
        loss,
        optimizer,
        HardUpdate(loss, value_network_update_interval=INTERVAL),
    )


def transitions(actions: torch.Tensor, device: str) -> TensorDict:
    """A transition with each of ``actions``."""
    count = len(actions)
    data = TensorDict({}, [count], device=device)
    data["observation"] = torch.rand(count, OBS_DIM, device=device) * 2 - 1
    data["action"] = actions
    data["next", "observation"] = torch.rand(count, OBS_DIM, device=device) * 2 - 1
    data["next", "reward"] = torch.randn(count, 1, device=device)
    data["next", "terminated"] = data["next", "done"] = torch.rand(count, 1, device=device) < 0.01
    return data


def cells_of(name: str, n: int, device: str) -> list[Cell]:
    """What is timed of an agent, its rows trained before: those of all replayed actions."""
    torch.manual_seed(0)
    policy, loss, optimizer, updater = make(name, n, device)
    replayed = torch.randint(n, (REPLAY,), device=device)

    def learn(batch: TensorDict) -> None:
        value = loss(batch)["loss"]
        optimizer.zero_grad()
        value.backward()
        clip_grad_norm_(loss.parameters(), 10.0)
        optimizer.step()
        updater.step()

    if name != "torchrl_dqn":
        for actions in replayed.split(1024):
            learn(transitions(actions, device))
    draws = torch.randint(REPLAY, (20, BATCH), device=device)
    batches = itertools.cycle([transitions(replayed[draw], device) for draw in draws])
    states = torch.rand(ENVS, OBS_DIM, device=device) * 2 - 1

    def act() -> None:
        with torch.no_grad():
            policy(TensorDict({"observation": states}, [ENVS]))

    return [
        Cell(name, n, "act", act),
        Cell(name, n, "update", lambda: learn(next(batches).clone(False))),
    ]


def replay_row_bytes(name: str, n: int) -> int:
    """Bytes of what a policy writes for one state, as a collector keeps it."""
    policy, *_ = make(name, n, "cpu")
    with torch.no_grad():
        out = policy(TensorDict({"observation": torch.zeros(1, OBS_DIM)}, [1]))
    return sum(x.numel() * x.element_size() for x in out.values(True, True))


def plan(quick: bool) -> list[tuple[str, int]]:
    """Agents and numbers of actions."""
    return [(name, 10**d) for d in ((1, 2) if quick else range(2, 7)) for name in AGENTS]


def turns_of(cell: Cell) -> tuple[list[float], list[float]]:
    """The median of each of a cell's turns, of CPU and of wall times."""
    starts = [0, *cell.ends[:-1]]
    cpu, wall = (
        [float(np.median(times[i:j])) for i, j in zip(starts, cell.ends, strict=True)]
        for times in (cell.cpu, cell.wall)
    )
    return cpu, wall


def measure(cells: list[Cell], rounds: int, synchronize: Callable[[], None]) -> None:
    """Let the cells take turns."""
    for _ in range(rounds):
        for cell in cells:
            cell.turn(synchronize)


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small n, few repetitions: the path, no figures")
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args(argv)
    torch.set_num_threads(THREADS)
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cells = [cell for name, n in plan(args.quick) for cell in cells_of(name, n, device)]
    measure(cells, 1 if args.quick else ROUNDS, torch.cuda.synchronize if device == "cuda" else lambda: None)
    rows = time_rows(cells, device)
    for row, turns in zip(rows, (turns for cell in cells for turns in turns_of(cell)), strict=True):
        row["turns"] = " ".join(f"{x:.4g}" for x in turns)
    for name, n in plan(args.quick):
        size = replay_row_bytes(name, n)
        rows.append(
            dict(
                zip(
                    FIELDS,
                    (device, n, name, "replay_row_bytes", size, size, size, 1, THREADS, size),
                    strict=True,
                )
            )
        )

    from recipes.bench.torchrl_scaling_page import write_page

    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / f"torchrl_scaling_{device}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    write_page(args.out, rows, device)


if __name__ == "__main__":
    main()
