"""StochDQN, by its classes for TorchRL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensordict import TensorDictBase
from torchrl.objectives import ValueEstimators

from extensions.optim.row_adam import RowAdam
from extensions.stochmax import (
    AdaptiveUniform,
    Elite,
    LearnedProposals,
    Neighbours,
    RecentExploited,
    ReplayActions,
    Source,
    Uniform,
)
from extensions.torchrl import SoftUpdate, StochDQNLoss, StochQNetwork, StochQValueActor

from .loop import Record, Run, Task
from .networks import trunk

#: what a source of candidates is called in settings
SOURCES: dict[str, type[Source]] = {
    "uniform": Uniform,
    "replay": ReplayActions,
    "recent": RecentExploited,
    "elite": Elite,
    "neighbours": Neighbours,
    "learned": LearnedProposals,
    "adaptive": AdaptiveUniform,
}
#: how many uniform ids, ids of the replay and neighbours; or sources with their arguments; or "all" actions
Candidates = Sequence[int] | Mapping[str, Mapping[str, Any]] | str


def train(
    task: Task,
    seed: int,
    device: Any = "cpu",
    *,
    lr: float = 1e-3,
    tau: float = 0.01,
    candidates: Candidates = (20, 20, 20),
    eval_candidates: int = 1,
    double: bool = False,
    head: str = "feature",
    row_lr_scale: float = 1.0,
) -> list[Record]:
    """Train StochDQN.

    Different from the paper: a target network that moves by ``tau``, a draw for each state, and where digits
    are known a local search, one digit away from the best candidate.

    Args:
        task, seed, device: as of every method here.
        lr: of Adam. tau: how far the target network moves at each update.
        candidates: how many uniform ids, ids of the replay, and neighbours of the best of them (0 where
            nothing is known of the ids); or the arguments of each source in `SOURCES`, by its name; or
            ``"all"`` actions, whose maximum is exact.
        eval_candidates: uniform ids and ids of the replay that the greedy policy looks at, if that is more
            than in training.
        double: the online network chooses the candidate that the target network values.
        head: of the network; with ``"row"`` there are no hidden layers before it.
        row_lr_scale: the learning rate of rows, as a multiple of ``lr``.
    """
    run = Run(task, seed, device)
    sources = sources_of(candidates)
    rows = head == "row"
    network = StochQNetwork(
        None if rows else trunk(run.obs_dim, task.hidden),
        run.n if task.codec is None else run.codec,
        width=run.obs_dim if rows else task.hidden,
        head=head,
        head_kwargs=None if rows else {"hidden": task.hidden},
        device=run.device,
    )
    actor = StochQValueActor(network, spec=run.spec, candidates=sources, eval_candidates=eval_candidates)
    loss = StochDQNLoss(actor, delay_value=True, double_dqn=double)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=task.gamma)
    target = SoftUpdate(loss, tau=tau)
    optimizer = RowAdam(loss.parameters(), lr, row_lr_scale=row_lr_scale)

    def update(batch: TensorDictBase) -> None:
        loss(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        target.step()

    return run.learn(actor, update, [optimizer])


def sources_of(candidates: Candidates) -> list[Source] | str:
    """What the actor is given.

    Raises:
        ValueError: a source of an unknown name, or another word than ``"all"``.
    """
    if isinstance(candidates, str):
        if candidates != "all":
            raise ValueError(f'candidates are numbers, sources by their names, or "all", got {candidates!r}')
        return candidates
    if isinstance(candidates, Mapping):
        unknown = sorted(candidates.keys() - SOURCES.keys())
        if unknown:
            raise ValueError(f"unknown sources {unknown}: choose among {list(SOURCES)}")
        return [SOURCES[name](**arguments) for name, arguments in candidates.items()]
    uniform, replayed, near = candidates
    return [Uniform(uniform), ReplayActions(replayed), *([Neighbours(near)] if near else [])]
