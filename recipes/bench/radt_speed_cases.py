"""What :mod:`.radt_speed` times: updates, steps of a policy, evaluations and windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import DTActor, ProbabilisticActor, TanhDelta
from torchrl.objectives import DTLoss

from extensions.torchrl import RADTActor, RADTLoss, RADTPolicy, TrajectoryWindows, evaluate_targets

from ..gym_batch import GymBatch

#: does the work of one turn, and says of how many units (updates, steps, episodes, batches) it was
Turn = Callable[[], int]

DT, RADT, RADT_RELU = "DTActor", "RADTActor", "RADTActor, relu"
WINDOWS, EXACT, SLIDING = "whole windows", 'cache="exact"', 'cache="sliding"'
BY_HAND, ALONE, AT_ONCE = "a plain loop", "evaluate_targets, one at a time", "evaluate_targets, all at once"
AT_ONCE_CACHED = f"{AT_ONCE}, {SLIDING}"
LOOP, GATHER = "a loop over samples", "TrajectoryWindows"
THREE = ["observation", "action", "return_to_go"]
FIVE = [*THREE, "timestep", "mask"]
STATES, ACTIONS = 17, 6  # HalfCheetah's
DROPOUT = 0.1


@dataclass(frozen=True)
class Size:
    """A model, its context and a batch of windows or environments."""

    width: int
    layers: int
    context: int
    batch: int = 64

    def __str__(self) -> str:
        return f"D {self.width}, {self.layers} layers, K {self.context}, batch {self.batch}"


def dt_actor(size: Size, dropout: float, device: str) -> ProbabilisticActor:
    """TorchRL's Decision Transformer, of the same width, depth and heads."""
    config = DTActor.default_config()
    config.n_embd, config.n_layer, config.n_head, config.n_inner = size.width, size.layers, 1, 4 * size.width
    config.resid_pdrop = config.attn_pdrop = dropout
    net = DTActor(STATES, ACTIONS, config, device=device)
    net.transformer.transformer.drop.p = dropout  # DTConfig has no field for it
    return with_limits(net, THREE)


def radt_actor(
    size: Size, dropout: float, device: str, states: int = STATES, actions: int = ACTIONS, **config: Any
) -> ProbabilisticActor:
    """RADT as the paper has it, but for what ``config`` says."""
    shape = {"n_embd": size.width, "n_layer": size.layers, "n_head": 1}
    dropouts = {"resid_pdrop": dropout, "attn_pdrop": dropout}
    net = RADTActor(states, actions, shape | dropouts | config, device=device)
    return with_limits(net, FIVE)


def with_limits(net: nn.Module, keys: list[str]) -> ProbabilisticActor:
    """An actor with actions in [-1, 1]."""
    return ProbabilisticActor(
        TensorDictModule(net, keys, ["param"]),
        in_keys=["param"],
        distribution_class=TanhDelta,
        distribution_kwargs={"low": -1.0, "high": 1.0},
    )


def episodes(count: int, steps: int, states: int = STATES, actions: int = ACTIONS) -> TensorDict:
    """A flat dataset of noise."""
    draw, n = torch.Generator().manual_seed(0), count * steps
    return TensorDict(
        {
            "observation": torch.randn(n, states, generator=draw),
            "action": torch.rand(n, actions, generator=draw) * 1.8 - 0.9,
            ("next", "reward"): torch.rand(n, 1, generator=draw) / steps,
            "episode": torch.arange(count).repeat_interleave(steps),
        },
        [n],
    )


def updates(size: Size, dropout: float, device: str, turns: int) -> dict[str, Turn]:
    """Updates on the same batches of windows, drawn beforehand from episodes of 200 steps."""
    data = TrajectoryWindows(episodes(50, 200), size.context, device=device)
    batches = [data.sample(size.batch) for _ in range(turns)]
    torch.manual_seed(0)
    losses = {
        DT: DTLoss(dt_actor(size, dropout, device)),
        RADT: RADTLoss(radt_actor(size, dropout, device)),
        RADT_RELU: RADTLoss(radt_actor(size, dropout, device, activation="relu")),
    }
    return {who: training(loss, batches) for who, loss in losses.items()}


def training(loss: DTLoss, batches: list[Any]) -> Turn:
    """An update for each batch: loss, gradients, clipped, and AdamW."""
    parameters = list(loss.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=True)

    def turn() -> int:
        for batch in batches:
            optimizer.zero_grad()
            loss(batch)["loss"].backward()
            nn.utils.clip_grad_norm_(parameters, 0.25)
            optimizer.step()
        return len(batches)

    return turn


def steps_with_full_windows(size: Size, device: str, turns: int) -> dict[str, Turn]:
    """Steps of a policy in the middle of episodes: whole windows, or the two tokens that are new."""
    return acting(size, device, turns, {WINDOWS: "none", SLIDING: "sliding"}, warm_up=size.context)


def first_steps(size: Size, device: str) -> dict[str, Turn]:
    """The first K steps of episodes, while no window slides: whole windows have K / 2 steps on average."""
    return acting(size, device, size.context, {WINDOWS: "none", EXACT: "exact"}, warm_up=0)


def acting(size: Size, device: str, steps: int, caches: dict[str, str], warm_up: int) -> dict[str, Turn]:
    """Policies that go on with their episodes at each turn, or begin anew if there is no ``warm_up``."""
    draw = torch.Generator().manual_seed(0)
    seen = TensorDict(
        {
            "observation": torch.randn(size.batch, STATES, generator=draw),
            "return_to_go": torch.ones(size.batch, 1),
            "is_init": torch.zeros(size.batch, 1, dtype=torch.bool),
        },
        [size.batch],
    ).to(device)

    def make(cache: str) -> Turn:
        window = size.context if cache == "sliding" else None
        actor = radt_actor(size, 0.0, device, attention_window=window, max_ep_len=10**9).eval()
        policy = RADTPolicy(actor, size.context, cache=cache)
        for _ in range(warm_up):
            policy(seen.clone(False))

        def turn() -> int:
            if not warm_up:
                policy.reset()
            for _ in range(steps):
                policy(seen.clone(False))
            return steps

        return turn

    torch.manual_seed(0)
    return {who: make(cache) for who, cache in caches.items()}


@dataclass(frozen=True)
class Evaluation:
    """Targets to be played, each in as many episodes of so many steps."""

    env: str
    steps: int
    targets: int = 7
    episodes: int = 100
    alone: int = 2  # how many of all the episodes are played one at a time, to be timed
    size: Size = Size(64, 2, 10)

    def __str__(self) -> str:
        return f"{self.env}, {self.targets} x {self.episodes} episodes of {self.steps} steps"


def evaluations(case: Evaluation, device: str) -> dict[str, Turn]:
    """Episodes by a plain loop, as one would first write it, and by ``evaluate_targets``."""
    kwargs: dict[str, Any] = {} if case.env.startswith("envs:") else {"max_episode_steps": case.steps}
    all_targets = torch.linspace(0, 10, case.targets)

    def make(cache: str, count: int) -> Turn:
        env = GymBatch(case.env, count, device=device, **kwargs)
        policy = RADTPolicy(actor_for(env, case.size, device, cache), case.size.context, cache=cache)
        targets, episodes = (all_targets, case.episodes) if count > 1 else (all_targets[:1], 1)

        def turn() -> int:
            for _ in range(1 if count > 1 else case.alone):
                policy.reset()
                found = evaluate_targets(env, policy, targets, episodes, max_steps=case.steps)
                assert (found.lengths == case.steps).all()  # all do the same work
            return count if count > 1 else case.alone

        return turn

    def by_hand() -> int:
        for _ in range(case.alone):
            assert play(env, net, float(all_targets[0]), case.size.context, device) == case.steps
        return case.alone

    torch.manual_seed(0)
    env = gym.make(case.env, **kwargs)
    net = actor_for(GymBatch(case.env, 1, device=device, **kwargs), case.size, device, "none")[0].module
    count = case.targets * case.episodes
    return {
        BY_HAND: by_hand,
        ALONE: make("none", 1),
        AT_ONCE: make("none", count),
        AT_ONCE_CACHED: make("sliding", count),
    }


def actor_for(env: GymBatch, size: Size, device: str, cache: str) -> ProbabilisticActor:
    """An actor for an environment and a cache, in eval mode."""
    states, actions = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    window = size.context if cache == "sliding" else None
    return radt_actor(size, 0.0, device, states, actions, attention_window=window).eval()


@torch.no_grad()
def play(env: gym.Env, net: nn.Module, target: float, context: int, device: str) -> int:
    """One episode, of which the length is returned."""
    observation, _ = env.reset()
    seen, done, left = [], [], []
    over = False
    while not over:
        seen.append(torch.as_tensor(observation, dtype=torch.float32, device=device))
        done.append(torch.zeros(*env.action_space.shape, device=device))  # type: ignore[misc]
        left.append(torch.full((1,), target, device=device))
        times = torch.arange(max(0, len(seen) - context), len(seen), device=device)
        window = (torch.stack(x[-context:])[None] for x in (seen, done, left))
        done[-1] = net(*window, times[None])[0, -1].tanh()
        observation, reward, terminated, truncated, _ = env.step(done[-1].cpu().numpy())
        target -= float(reward)
        over = terminated or truncated
    return len(seen)


def windows(size: Size, device: str, turns: int) -> dict[str, Turn]:
    """Batches of windows, from episodes of 200 steps: in one gather, or sample by sample."""
    data = episodes(50, 200)
    ours = TrajectoryWindows(data, size.context, device=device)
    looped = one_by_one(data, ours, size.context, device)

    def make(sample: Callable[[int], Any]) -> Turn:
        def turn() -> int:
            for _ in range(turns):
                sample(size.batch)
            return turns

        return turn

    return {LOOP: make(looped), GATHER: make(ours.sample)}


def one_by_one(
    data: TensorDict, windows: TrajectoryWindows, context: int, device: str
) -> Callable[[int], list[torch.Tensor]]:
    """The same windows as one would first write it: slices, padded and stacked in numpy. Returns-to-go are
    made beforehand, as for the other."""
    draw = np.random.default_rng(0)
    lengths = windows.lengths.numpy()
    ends = lengths.cumsum()
    flat = (data["observation"], data["action"], windows.return_to_go.cpu())
    parts = [np.split(x.numpy(), ends[:-1]) for x in flat]  # of each episode
    share = lengths / lengths.sum()

    def sample(batch: int) -> list[torch.Tensor]:
        rows: list[list[np.ndarray]] = [[] for _ in range(5)]
        for episode in draw.choice(len(lengths), batch, p=share):
            start = draw.integers(lengths[episode])
            taken = [part[episode][start : start + context] for part in parts]
            steps = len(taken[0])
            taken += [np.arange(start, start + steps), np.ones(steps, bool)]
            for row, x in zip(rows, taken, strict=True):
                row.append(np.concatenate([np.zeros((context - steps, *x.shape[1:]), x.dtype), x]))
        return [torch.from_numpy(np.stack(row)).to(device) for row in rows]

    return sample


def plan(device: str, quick: bool) -> list[tuple[str, str, Callable[[], dict[str, Turn]]]]:
    """Part, case and the setup of its contestants, the first of which the others are compared with."""
    if quick:
        small = Size(8, 1, 4, batch=4)
        small_evaluation = Evaluation("envs:Align/ReturnDial-v0", 20, 2, 3, 1, small)
        training, acting, played, drawn = {small: 1}, {small: 2}, [small_evaluation], {small: 2}
    else:
        wide = 1 if device == "cpu" else 20
        training = {Size(64, 2, 10): 8, Size(64, 3, 20): 4, Size(128, 3, 20): 2, Size(256, 3, 20): 1}
        acting = {Size(64, 3, 20): 4, Size(128, 3, 20): 2, Size(256, 3, 20): 1}
        acting |= {Size(128, 3, 20, 1): 20, Size(128, 3, 20, 512): 1}
        training, acting = ({size: wide * n for size, n in of.items()} for of in (training, acting))
        played = [Evaluation("envs:Align/ReturnDial-v0", 20, alone=10), Evaluation("HalfCheetah-v5", 50)]
        drawn = {Size(0, 0, 20): 50, Size(0, 0, 20, 512): 10}
    found: list[tuple[str, str, Callable[[], dict[str, Turn]]]] = []
    for dropout in (DROPOUT, 0.0):
        for size, turns in training.items():
            name = f"{size}, dropout {dropout:g}"
            found.append(("updates", name, partial(updates, size, dropout, device, turns)))
    for size, turns in acting.items():
        found.append(("full windows", str(size), partial(steps_with_full_windows, size, device, turns)))
    for size in acting:
        found.append(("first steps", str(size), partial(first_steps, size, device)))
    for case in played:
        found.append(("evaluation", str(case), partial(evaluations, case, device)))
    for size, turns in drawn.items():
        name = f"K {size.context}, batch {size.batch}"
        found.append(("windows", name, partial(windows, size, device, turns)))
    return found
