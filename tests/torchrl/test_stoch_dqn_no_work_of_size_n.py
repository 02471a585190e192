"""An update and an act do no work of size n."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Categorical
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss

from extensions.optim import RowAdam
from extensions.stochmax import (
    AdaptiveUniform,
    LearnedProposals,
    MixedRadix,
    Neighbours,
    ReplayActions,
    Uniform,
    diagnostics,
)
from extensions.torchrl import StochEGreedyModule

N = 10**6


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("double_dqn", [True, False])
@pytest.mark.parametrize("head", ["row", "low_rank", "feature"])
def test_no_operation_sees_more_than_a_few_rows(
    make, batch, update, updaters, double_dqn, head, monkeypatch, watching_work_of
):
    monkeypatch.setattr(diagnostics, "LARGE_SAMPLE", 16)  # of fixed size, but large beside n / 10
    ours, _, kwargs = updaters
    learning = [AdaptiveUniform(4, 8, interval=2), LearnedProposals()]
    sources = [Uniform(), ReplayActions(), ReplayActions(fresh=True), *learning, Neighbours()]
    loss = make(head=head, double_dqn=double_dqn, candidates=sources, codec=MixedRadix([10] * 6))
    actor, explore = loss.value_network, StochEGreedyModule(Categorical(N))
    optimizer, updater = RowAdam(loss.parameters()), ours(loss, **kwargs)
    update(loss, optimizer, updater, batch(16, N))  # moments are allocated once
    with watching_work_of(N // 10) as watching:
        for _ in range(5):
            update(loss, optimizer, updater, batch(16, N))
        explore.step(1)
        explore(actor(TensorDict({"observation": torch.randn(4, 3)}, [4])))
    assert "randint" in watching.seen
    assert watching.large == set()


def test_the_watch_sees_the_hosts_work_of_size_n(watching_work_of):
    explore = EGreedyModule(Categorical(N, mask=torch.ones(N, dtype=torch.bool)))
    with watching_work_of(N // 10) as watching:
        explore(TensorDict({"action": torch.zeros((), dtype=torch.int64)}, []))
    assert watching.large


def test_dqn_loss_at_n_is_what_we_do_without(batch, watching_work_of):
    """The host's loss does work of size n in the same update: what the watch above would see."""
    actor = QValueActor(torch.nn.Linear(3, N), spec=Categorical(N))
    loss = DQNLoss(actor, delay_value=False)
    with watching_work_of(N // 10) as watching:
        loss(batch(2, N))
    assert {"addmm", "argmax"} <= watching.large
