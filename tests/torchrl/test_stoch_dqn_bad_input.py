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
    both = {"action_mask_key": "mask", "legal_actions": [1]}
    for make in (
        lambda: StochQValueActor(network(9), **both),
        lambda: StochEGreedyModule(Categorical(9), **both),
    ):
        with pytest.raises(ValueError, match="not both"):
            make()
    actor = StochQValueActor(network(9), action_mask_key="mask")
    with pytest.raises(KeyError, match="mask"):
        actor(data())
    with pytest.raises(ValueError, match="expected a bool mask"):
        actor(data(mask=torch.ones(2, 8, dtype=torch.bool)))
    with pytest.raises(ValueError, match="at least one legal action"):
        actor(data(mask=torch.zeros(2, 9, dtype=torch.bool)))


def test_networks_with_n_outputs():
    host = QValueActor(nn.Linear(3, 9), spec=Categorical(9))
    with pytest.raises(TypeError, match=r"alone, without exploration.*StochQNetwork"):
        StochDQNLoss(host)
    with pytest.raises(TypeError, match="StochQNetwork"):
        StochQValueActor(nn.Linear(3, 9))


def test_a_spec_in_the_place_of_n():
    assert StochQNetwork(MLP(3, 4), Categorical(9)).codec.n == 9
    with pytest.raises(ValueError, match="categorical_action_encoding=True"):
        StochQNetwork(MLP(3, 4), OneHot(9))


def test_a_missing_entry_is_named_beside_those_there_are():
    actor = StochQValueActor(network(), in_keys=["obs"])
    with pytest.raises(KeyError) as error:
        actor(data())
    assert "no obs in the tensordict; it has action, next.done" in str(error.value)


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


# -- what is read from a tensordict --


def test_a_mask_that_exploration_does_not_find_or_that_does_not_fit():
    explore = StochEGreedyModule(Categorical(9), action_mask_key="mask")
    with pytest.raises(KeyError, match=r"mask.*in the tensordict"):
        explore(data())
    with pytest.raises(ValueError, match=r"expected a bool mask \(2, 9\)"):
        explore(data(mask=torch.ones(2, 8, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"expected a bool mask \(2, 9\)"):
        explore(data(mask=torch.ones(2, 18, dtype=torch.bool)))


def test_an_observation_that_exploration_does_not_find():
    explore = StochEGreedyModule(Categorical(9), legal_actions=lambda obs: torch.ones(len(obs), 1).long())
    with pytest.raises(KeyError, match="observation_key"):
        explore(data().exclude("observation"))


@pytest.mark.parametrize("missing", ["next", ("next", "reward"), ("next", "done")])
def test_a_transition_that_is_not_whole(missing):
    loss = StochDQNLoss(StochQValueActor(network(9)), delay_value=False)
    with pytest.raises(KeyError, match="set_keys"):
        loss(data().exclude(missing))
    assert int(loss.value_network.memory.seen) == 0


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (torch.tensor([1.0, 2.0]), r"action\.long\(\)"),
        (torch.tensor([1, 9]), r"from 1 to 9; they must be in 0\.\.8"),
        (torch.tensor([-1, 3]), "from -1 to 3"),
        (torch.zeros(2, 3, dtype=torch.int64), "expected one id for each"),
        (torch.tensor([True, False]), "one-hot"),
    ],
)
def test_actions_that_are_none(action, says):
    loss = StochDQNLoss(StochQValueActor(network(9)), delay_value=False)
    with pytest.raises(ValueError, match=says):
        loss(data(action=action))


def test_digits_that_are_none():
    actor = StochQValueActor(network(MixedRadix([2, 3])), spec=MultiCategorical([2, 3]))
    loss = StochDQNLoss(actor, delay_value=False)
    assert loss(data(action=torch.tensor([[1, 2], [0, 0]])))["loss"].isfinite()
    for wrong in ([[2, 0], [0, 0]], [[0, -1], [0, 0]]):  # 2 is the id of [0, 1]
        with pytest.raises(ValueError, match="digit is out of range"):
            loss(data(action=torch.tensor(wrong)))
    with pytest.raises(ValueError, match="digits"):
        loss(data(action=torch.tensor([1, 2])))


# -- the shape of an action --


@pytest.mark.parametrize("spec", [Categorical(9, shape=(4,)), MultiCategorical([[3, 3]] * 4)])
def test_a_spec_of_many_actions(spec):
    for make in (lambda: StochQValueActor(network(9), spec=spec), lambda: StochEGreedyModule(spec)):
        with pytest.raises(ValueError, match="action_spec_unbatched"):
            make()


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("batched", [False, True])
def test_an_action_has_the_shape_of_its_spec(shape, batched):
    """As QValueActor's with strict_shape="auto"; without, it refuses (1,)."""
    spec = Categorical(9, shape=shape)
    if batched:
        spec = Composite(action=spec.expand(2, *shape), shape=(2,))
    actor, explore = StochQValueActor(network(9), spec=spec), StochEGreedyModule(spec, 0.5, 0.5)
    out = explore(actor(data().exclude("action")))
    assert out["action"].shape == (2, *shape)
    assert out["chosen_action_value"].shape == (2, 1)
    host = QValueActor(
        nn.Linear(3, 9), spec=Composite(action=Categorical(9, shape=shape)), strict_shape="auto"
    )
    assert host(data().exclude("action"))["action"].shape == (2, *shape)
    assert actor.spec["action"].shape == ((2, *shape) if batched else shape)
    assert StochDQNLoss(actor, delay_value=False)(out.update(data().exclude("action")))["loss"].isfinite()
