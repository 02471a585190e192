"""The runs of :mod:`.glasses_returns`: data, training, what is measured of a policy, and how it is played."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import DTActor, ProbabilisticActor, TanhDelta

from envs.return_dial import flip
from extensions.glasses import DecisionTransformerAdapter, RADTAdapter, return_sensitivity
from extensions.torchrl import (
    Alignment,
    RADTActor,
    RADTConfig,
    RADTLoss,
    RADTPolicy,
    evaluate_targets,
    return_to_go,
)

from ..data.return_dial import behaviour
from ..gym_batch import GymBatch
from ..radt import DIAL
from ..run_folder import where_it_ran
from ..schedules import lr_share
from .glasses_returns_plan import (
    ASKED,
    COLLECTED,
    EPISODES,
    HELD_OUT,
    HORIZON,
    INDEPENDENT,
    MEASURED,
    NOISE,
    SHUFFLED,
    TRAINING,
    TRANSFORMER,
    Arm,
    Job,
)
from .training_runs import alone, as_json, result

KEYS = {"dt": ["observation", "action", "return_to_go"]}
KEYS["radt"] = [*KEYS["dt"], "timestep"]
#: of all runs alike: held-out episodes, and the environment's
HELD_OUT_SEED, EVAL_SEED = 1_000_000, 2_000_000
TARGETS = torch.tensor(ASKED, dtype=torch.float64)

Policy = Callable[[TensorDictBase], TensorDictBase]
#: runs that have ended, with what they came to
Found = list[tuple[Job, dict[str, Any]]]


class NewestReturnDT(DTActor):
    """DT that is told the newest return of a window alone; the others are 0."""

    def forward(self, observation: Tensor, action: Tensor, return_to_go: Tensor) -> Tensor:
        return super().forward(observation, action, newest_alone(return_to_go))


def newest_alone(return_to_go: Tensor) -> Tensor:
    """(*, K, 1), 0 but for the last step."""
    return torch.cat((torch.zeros_like(return_to_go[..., :-1, :]), return_to_go[..., -1:, :]), -2)


def episodes_of(kind: str, count: int, seed: int) -> TensorDict:
    """Episodes of the dial, [E, T], with the return that each step is told, as a share of T.

    Args:
        kind: "as collected". "independent steps": at each time, the pairs of return and action change places
            among episodes, so that the past tells nothing of either; what a step's return says of its action
            stays as it was. "shuffled returns": each episode is told the returns of another one, and its own
            past tells all.
        count, seed: of `recipes.data.return_dial.behaviour`.
    """
    flat = behaviour(count, NOISE, HORIZON, 0, seed)
    told = return_to_go(flat["next", "reward"], flat["episode"]) / HORIZON
    data = TensorDict(
        {
            "observation": flat["observation"],
            "action": flat["action"],
            "return_to_go": told,
            "timestep": torch.arange(HORIZON).repeat(count),
        },
        batch_size=[count * HORIZON],
    ).reshape(count, HORIZON)
    draw = torch.Generator().manual_seed(seed)
    if kind == INDEPENDENT:
        other = torch.rand(count, HORIZON, generator=draw).argsort(0)  # (E, T), a permutation at each time
        for name in ("action", "return_to_go"):
            data[name] = data[name].gather(0, other[..., None])
    elif kind == SHUFFLED:
        data["return_to_go"] = data["return_to_go"][torch.randperm(count, generator=draw)]
    return data


def make_actor(arm: Arm, context: int) -> ProbabilisticActor:
    """An untrained one."""
    config = {**TRANSFORMER, "n_positions": 3 * context}
    net: nn.Module
    if arm.actor == "dt":
        net = (NewestReturnDT if arm.newest_return else DTActor)(1, 1, config)
        net.transformer.transformer.drop.p = 0.0  # its configuration has no place for this one
    else:
        net = RADTActor(1, 1, RADTConfig(**config, **dict(arm.radt), max_ep_len=HORIZON))
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=KEYS[arm.actor], out_keys=["param"]),
        in_keys=["param"],
        distribution_class=TanhDelta,
        distribution_kwargs={"low": -1.0, "high": 1.0},
    )


def train(actor: ProbabilisticActor, job: Job) -> float:
    """Train on windows that lie within their episodes as a whole; the mean loss of the last tenth."""
    data = episodes_of(job.data, EPISODES, job.seed)
    draw = torch.Generator().manual_seed(job.seed)
    steps, size = TRAINING["updates"], TRAINING["batch_size"]
    learned = torch.ones(size, job.context, dtype=torch.bool)
    if job.arm.newest_loss:
        learned[:, :-1] = False
    loss_of = RADTLoss(actor)
    optimizer = torch.optim.AdamW(
        actor.parameters(), lr=TRAINING["lr"], weight_decay=TRAINING["weight_decay"], fused=True
    )
    losses = []
    actor.train()
    for step in range(1, steps + 1):
        share = lr_share(step, steps, TRAINING["warmup"], TRAINING["lr_end"])
        optimizer.param_groups[0]["lr"] = TRAINING["lr"] * share
        episode = torch.randint(EPISODES, (size, 1), generator=draw)
        length = job.context
        if job.arm.newest_loss:  # episodes begin with less in sight
            length = int(torch.randint(1, length + 1, (1,), generator=draw))
        first = torch.randint(HORIZON - length + 1, (size, 1), generator=draw)
        window = data[episode, first + torch.arange(length)]  # [B, K]
        loss = loss_of(window.set("mask", learned[:, -length:]))["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(actor.parameters(), TRAINING["clip_norm"])
        optimizer.step()
        losses.append(loss.item())
    actor.eval()
    return float(np.mean(losses[-max(1, steps // 10) :]))


def measure(actor: ProbabilisticActor, arm: Arm, context: int) -> dict[str, Any]:
    """Sensitivity to returns of the action at step `MEASURED`: means over held-out episodes, as collected."""
    net = actor[0].module
    adapter = DecisionTransformerAdapter(net) if arm.actor == "dt" else RADTAdapter(net)
    batch = episodes_of(COLLECTED, HELD_OUT, HELD_OUT_SEED)[:, : MEASURED + 1][:, -context:]
    if arm.newest_return:
        batch["return_to_go"] = newest_alone(batch["return_to_go"])
    found = return_sensitivity(adapter, batch, output=torch.tanh)
    means = {name: x.mean(0).tolist() for name, x in found.to_tensordict().items() if name != "std"}
    return {name: None if x != x else x for name, x in means.items()}  # NaN where no return does anything


def told_shares(actor: ProbabilisticActor, context: int) -> Policy:
    """An actor as a policy that is told returns in their own units, and tells the actor shares of T."""
    policy = RADTPolicy(actor, context)

    def act(td: TensorDictBase) -> TensorDictBase:
        td["return_to_go"] = td["return_to_go"] / HORIZON
        return policy(td)

    return act


def play(policy: Policy) -> dict[str, Any]:
    """How a policy follows targets that stay, and one that is turned over in the middle of the episode.

    Returns:
        ``slope`` of the return on its target, and ``error``, the mean of |target - return| / T. The same of
        the second half after a turn: ``turned_slope`` of what it brings on what it is asked for, which is the
        complement of what was left to collect, and ``turned_error``, as a share of T / 2.
    """
    env, half = GymBatch(DIAL, len(TARGETS), horizon=HORIZON, distractors=0), HORIZON // 2
    asked = torch.empty(0)  # of the second halves

    def turn(to_go: Tensor, step: int) -> Tensor:
        nonlocal asked
        asked = flip(to_go, HORIZON - step)
        return asked.clone()  # what is returned is counted down

    def played(retarget: Any) -> Alignment:
        env.set_seed(EVAL_SEED)
        return evaluate_targets(env, policy, TARGETS, 1, max_steps=HORIZON, retarget=retarget)

    stay, turned = played(None), played((half, turn))
    env.close()
    missed = turned.returns - turned.goals  # (targets, 1)
    return {
        "slope": stay.slope,
        "error": float(stay.mean_error.mean()) / HORIZON,
        "turned_slope": Alignment(TARGETS, asked + missed, turned.lengths, asked).slope,
        "turned_error": float(missed.abs().mean()) / half,
    }


def made(job: Job) -> dict[str, Any]:
    """One run: what it measured before and after, and how it plays."""
    torch.manual_seed(job.seed)
    actor = make_actor(job.arm, job.context).eval()
    before = measure(actor, job.arm, job.context)
    loss = train(actor, job)
    return {
        "init": before,
        "trained": measure(actor, job.arm, job.context),
        **play(told_shares(actor, job.context)),
        "loss": loss,
        "parameters": sum(p.numel() for p in actor.parameters()),
    }


def run(job: Job) -> None:
    """Make one run, unless that was done or another process is at it."""
    job.file.parent.mkdir(parents=True, exist_ok=True)
    with alone(job.file.with_suffix(".lock")) as mine:
        if not mine or result(job) is not None:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        found = {
            **made(job),
            "settings": as_json(job.settings),
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            **where_it_ran(),
        }
        partial = job.file.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        os.replace(partial, job.file)
    trained = found["trained"]
    print(
        f"{job}: R moves the action by {trained['shift_newest']:.3f}, all by {trained['shift_all']:.3f}; "
        f"error {found['error']:.3f}, turned {found['turned_error']:.3f}; {found['cpu_s']:.0f} s",
        flush=True,
    )


def ended(jobs: Iterable[Job]) -> Found:
    """The jobs that have ended, with what they came to."""
    return [(job, found) for job in jobs if (found := result(job)) is not None]


def by_seed(runs: Found, arm: Arm, data: str, context: int, *names: str) -> dict[int, Any]:
    """A number of each seed's run: ``names`` lead to it."""
    found = {job.seed: run for job, run in runs if (job.arm, job.data, job.context) == (arm, data, context)}
    for name in names:
        found = {seed: x[name] for seed, x in found.items()}
    return found


def values(runs: Found, arm: Arm, data: str, context: int, *names: str) -> list[Any]:
    """The same without the seeds."""
    return list(by_seed(runs, arm, data, context, *names).values())
