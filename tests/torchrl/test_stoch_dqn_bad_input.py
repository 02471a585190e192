"""What is refused, and what the messages say to do."""

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot
from torchrl.modules import MLP, QValueActor
from torchrl.objectives import DQNLoss

from extensions.stochmax import CachedArgmax, MixedRadix
from extensions.torchrl import (
    HardUpdate,
    SoftUpdate,
    StochDQNLoss,
    StochEGreedyModule,
    StochQNetwork,
    StochQValueActor,
)

N = 10**6


def network(n=N, **kwargs):
    return StochQNetwork(nn.Linear(3, 4), n, **kwargs)


def data(**changes):
    flag = torch.zeros(2, 1, dtype=torch.bool)
    then = {"observation": torch.randn(2, 3), "reward": torch.randn(2, 1), "done": flag, "terminated": flag}
    return TensorDict(
        {"observation": torch.randn(2, 3), "action": torch.tensor([1, 2]), "next": then, **changes}, [2]
    )


@pytest.mark.parametrize("spec", [OneHot(9), MultiOneHot([3, 3]), Binary(3)])
def test_one_hot_specs(spec):
    for make in (lambda: StochQValueActor(network(9), spec=spec), lambda: StochEGreedyModule(spec)):
        with pytest.raises(ValueError, match="categorical_action_encoding=True"):
            make()


def test_continuous_specs():
    with pytest.raises(TypeError, match="BoxBins"):
        StochEGreedyModule(Bounded(-1, 1, (2,)))


def test_another_number_of_actions():
    with pytest.raises(ValueError, match=r"StochQNetwork\(trunk, 9\)"):
        StochQValueActor(network(10), spec=Categorical(9))


def test_masks_of_many_actions():
    masked = Categorical(N, mask=torch.ones(N, dtype=torch.bool))
    for make in (
        lambda: StochQValueActor(network(), action_mask_key="mask"),
        lambda: StochEGreedyModule(Categorical(N), action_mask_key="mask"),
        lambda: StochEGreedyModule(masked),
        lambda: StochQValueActor(network(), spec=masked),
    ):
        with pytest.raises(ValueError, match="legal_actions"):
            make()


def test_masks_of_digits():
    masked = MultiCategorical([3, 3], mask=torch.ones(6, dtype=torch.bool))
    with pytest.raises(ValueError, match="legal_actions"):
        StochEGreedyModule(masked)


def test_masks_that_nobody_reads_or_that_do_not_fit():
    with pytest.raises(ValueError, match="action_mask_key"):
        StochEGreedyModule(Categorical(9, mask=torch.ones(9, dtype=torch.bool)))
    with pytest.raises(ValueError, match="not both"):
        StochQValueActor(network(9), action_mask_key="mask", legal_actions=[1])
    actor = StochQValueActor(network(9), action_mask_key="mask")
    with pytest.raises(KeyError, match="mask"):
        actor(data())
    with pytest.raises(ValueError, match="expected a bool mask"):
        actor(data(mask=torch.ones(2, 8, dtype=torch.bool)))
    with pytest.raises(ValueError, match="at least one legal action"):
        actor(data(mask=torch.zeros(2, 9, dtype=torch.bool)))


def test_networks_with_n_outputs():
    host = QValueActor(nn.Linear(3, 9), spec=Categorical(9))
    with pytest.raises(TypeError, match="StochQNetwork"):
        StochDQNLoss(host)
    with pytest.raises(TypeError, match="StochQNetwork"):
        StochQValueActor(nn.Linear(3, 9))


def test_a_trunk_whose_width_cannot_be_told():
    with pytest.raises(ValueError, match=r"StochQNetwork\(width=...\)"):
        StochQNetwork(nn.Flatten(), N)
    with pytest.raises(ValueError, match=r"StochQNetwork\(width=...\)"):
        StochQNetwork(None, N)


def test_a_head_that_does_not_fit_names_one_that_does():
    with pytest.raises(MemoryError, match="feature"):
        StochQNetwork(nn.Linear(3, 512), MixedRadix([10] * 9), head="row")
    with pytest.raises(ValueError, match="unknown head"):
        network(head="rows")


def test_no_target_network():
    with pytest.raises(ValueError, match="delay_value=True"):
        StochDQNLoss(StochQValueActor(network()), delay_value=False, double_dqn=True)
    loss = StochDQNLoss(StochQValueActor(network()), delay_value=False)
    for updater, kwargs in ((HardUpdate, {}), (SoftUpdate, {"tau": 0.1})):
        with pytest.raises(RuntimeError, match="delay_value=True"):
            updater(loss, **kwargs)


def test_updaters_of_other_losses():
    loss = DQNLoss(QValueActor(nn.Linear(3, 9), spec=Categorical(9)))
    with pytest.raises(TypeError, match=r"torchrl\.objectives"):
        HardUpdate(loss)
    with pytest.raises(ValueError, match="tau or eps"):
        SoftUpdate(StochDQNLoss(StochQValueActor(network())), eps=0.9, tau=0.1)


def test_keys_that_are_not_there():
    loss = StochDQNLoss(StochQValueActor(network()), delay_value=False)
    with pytest.raises(KeyError, match="set_keys"):
        loss(data().exclude("action"))
    with pytest.raises(KeyError, match="observation"):
        loss(data().exclude("observation"))
    with pytest.raises(KeyError, match="observation"):
        loss(data().exclude(("next", "observation")))
    with pytest.raises(KeyError, match="'actions'"):
        StochQValueActor(network(9), spec=Composite(action=Categorical(9)), action_key="actions")
    with pytest.raises(KeyError, match="behind the actor"):
        StochEGreedyModule(Categorical(9))(TensorDict({}, [2]))


def test_one_hot_actions():
    loss = StochDQNLoss(StochQValueActor(network(5)), delay_value=False)
    with pytest.raises(ValueError, match="one-hot"):
        loss(data(action=torch.eye(5, dtype=torch.int64)[[1, 2]]))
    with pytest.raises(ValueError, match="'categorical'"):
        StochDQNLoss(network(5), action_space="one-hot")


def test_candidates_and_epsilons():
    with pytest.raises(ValueError, match="unknown candidates"):
        StochQValueActor(network(), candidates="some")
    with pytest.raises(ValueError, match="CachedArgmax"):
        StochQValueActor(network(), candidates=[CachedArgmax()])
    for wrong in ("many", 0, True):
        with pytest.raises(ValueError, match="eval_candidates"):
            StochQValueActor(network(), eval_candidates=wrong)
    for init, end in ((0.1, 0.5), (1.5, 0.1), (1.0, -0.1)):
        with pytest.raises(ValueError, match="eps_end <= eps_init"):
            StochEGreedyModule(Categorical(9), init, end)
    with pytest.raises(ValueError, match="annealing_num_steps"):
        StochEGreedyModule(Categorical(9), annealing_num_steps=0)


def test_a_network_alone_is_made_an_actor():
    assert StochDQNLoss(StochQNetwork(MLP(3, 4), 9), delay_value=False)(data())["loss"].isfinite()
