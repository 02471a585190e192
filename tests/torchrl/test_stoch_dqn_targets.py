"""Targets and losses computed by hand, which TorchRL's own tests of DQN do not do."""

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs.transforms import MultiStepTransform
from torchrl.objectives import ValueEstimators

from extensions.stochmax import Uniform
from extensions.stochmax.sources import Source
from extensions.torchrl import StochDQNLoss, StochQNetwork, StochQValueActor

GAMMA = 0.9
#: Q(s, .) of four actions in states 0, 1, 2
ONLINE = torch.tensor([[1.0, 2.0, 3.0, 4.0], [8.0, 5.0, 6.0, 7.0], [0.0, 9.0, 1.0, 2.0]])
TARGET = torch.tensor([[10.0, 20.0, 30.0, 40.0], [50.0, 80.0, 70.0, 60.0], [90.0, 11.0, 12.0, 13.0]])


class Given(Source):
    """Always the same candidates."""

    def __init__(self, *ids):
        self.ids = torch.tensor(ids)

    def propose(self, query):
        return self.ids


def loss_of(candidates="all", head="linear", legal=None, **kwargs):
    """A loss whose networks are the two tables above: observations are one-hot states."""
    network = StochQNetwork(
        None, 4, width=3, head=head, head_kwargs={"dueling": False} if head == "row" else {}
    )
    loss = StochDQNLoss(StochQValueActor(network, candidates=candidates, **(legal or {})), **kwargs)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    networks = [(loss.value_network_params, ONLINE), (loss.target_value_network_params, TARGET)]
    for params, table in networks if loss.delay_value else networks[:1]:
        weights = params["network", "head"]
        if head == "row":
            weights["rows", "weight"].data.copy_(torch.cat([table.T, torch.zeros(4, 1)], 1))
        else:
            weights["weight"].data.copy_(table.T)
            weights["bias"].data.zero_()
    return loss


def step(state, action, reward, then, done=False, terminated=None):
    """One transition."""
    flag = lambda x: torch.tensor([[x]])  # noqa: E731
    data = TensorDict({}, [1])
    data["observation"], data["action"] = torch.eye(3)[[state]], torch.tensor([action])
    data["next", "observation"] = torch.eye(3)[[then]]
    data["next", "reward"] = torch.tensor([[reward]])
    data["next", "done"] = flag(done)
    data["next", "terminated"] = flag(done if terminated is None else terminated)
    return data


CASES = {
    # state 0, action 1 is worth 2; the next state is 1
    "bootstraps": ({"done": False}, {}, 1.0 + GAMMA * 80.0),
    "terminated": ({"done": True}, {}, 1.0),
    "truncated": ({"done": True, "terminated": False}, {}, 1.0 + GAMMA * 80.0),
    "double": ({}, {"double_dqn": True}, 1.0 + GAMMA * 50.0),  # online prefers 0, worth 50
    "double, terminated": ({"done": True}, {"double_dqn": True}, 1.0),
    "no target network": ({}, {"delay_value": False}, 1.0 + GAMMA * 8.0),
    "candidates": ({}, {"candidates": [Given(2, 3)]}, 1.0 + GAMMA * 70.0),
    "one candidate": ({}, {"candidates": [Given(3)]}, 1.0 + GAMMA * 60.0),
    "double, candidates": ({}, {"candidates": [Given(2, 3)], "double_dqn": True}, 1.0 + GAMMA * 60.0),
}


@pytest.mark.parametrize("head", ["linear", "row"])
@pytest.mark.parametrize("case", CASES)
def test_one_transition(case, head):
    about, kwargs, target = CASES[case]
    data = step(0, 1, 1.0, 1, **about)
    loss = loss_of(head=head, **kwargs)
    if head == "row":  # both tables count as touched, as after training
        with loss.in_place():
            for rows, online in loss.row_tables():
                online.mark(torch.arange(4))
                rows.mark(torch.arange(4))
    error = (2.0 - target) ** 2
    assert loss(data)["loss"].item() == pytest.approx(error, rel=1e-6)
    assert data["td_error"].item() == pytest.approx(error, rel=1e-6)


def test_the_gradient_is_of_the_action_taken_alone():
    loss = loss_of()
    loss(step(0, 1, 1.0, 1))["loss"].backward()
    grad = loss.value_network_params["network", "head", "weight"].grad  # (4, 3)
    expected = torch.zeros(4, 3)
    expected[1, 0] = 2 * (2.0 - (1.0 + GAMMA * 80.0))
    assert torch.allclose(grad, expected)
    assert all(x.grad is None for x in loss.target_value_network_params.values(True, True))


def test_n_steps():
    """Rewards 1, 2, 4 and then state 1: two steps of TorchRL's MultiStepTransform."""
    transform = MultiStepTransform(n_steps=2, gamma=GAMMA)
    steps = torch.cat([step(0, 1, 1.0, 2), step(2, 0, 2.0, 1), step(1, 0, 4.0, 1)]).unsqueeze(0)  # (1, 3)
    data = transform._inv_call(steps)
    first = data.reshape(-1)[:1]
    assert first["next", "observation"].argmax().item() == 1
    target = 1.0 + GAMMA * 2.0 + GAMMA**2 * 80.0
    assert loss_of()(first)["loss"].item() == pytest.approx((2.0 - target) ** 2, rel=1e-5)


def test_td_lambda():
    """Two steps to a truncation, by the recursion."""
    lmbda = 0.5
    steps = torch.cat([step(0, 1, 1.0, 2), step(2, 0, 2.0, 1, done=True, terminated=False)]).unsqueeze(0)
    loss = loss_of(reduction="none")
    loss.make_value_estimator(ValueEstimators.TDLambda, gamma=GAMMA, lmbda=lmbda)
    last = 2.0 + GAMMA * 80.0
    first = 1.0 + GAMMA * ((1 - lmbda) * 90.0 + lmbda * last)
    expected = [(2.0 - first) ** 2, (0.0 - last) ** 2]
    assert loss(steps)["loss"].reshape(-1).tolist() == pytest.approx(expected, rel=1e-5)


def test_loss_functions():
    for name, expected in (("l1", 71.0), ("l2", 71.0**2), ("smooth_l1", 70.5)):
        assert loss_of(loss_function=name)(step(0, 1, 1.0, 1))["loss"].item() == pytest.approx(expected)


def test_each_state_has_candidates_of_its_own():
    """A million actions with values equal to their ids: maxima differ from state to state."""
    torch.manual_seed(0)
    n = 10**6
    network = StochQNetwork(None, n, width=1, head="row", head_kwargs={"dueling": False})
    with torch.no_grad():
        network.head.rows.weight[:, 0] = torch.arange(n)
    actor = StochQValueActor(network, candidates=[Uniform(20)])
    out = actor(TensorDict({"observation": torch.ones(50, 1)}, [50]))
    assert len(out["action"].unique()) == 50
    assert torch.equal(out["chosen_action_value"].squeeze(1), out["action"].float())
    # The best of 20 of a uniform range is 20/21 of it on average.
    assert out["action"].double().mean().item() / n == pytest.approx(20 / 21, abs=0.03)


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_rows_learn_through_the_loss_alone(tau):
    """Nobody announces what an update changes, and the target's values stay as they were until it moves."""
    torch.manual_seed(0)
    network = StochQNetwork(nn.Linear(3, 5), 1000, head="low_rank", head_kwargs={"rank": 3})
    loss = StochDQNLoss(StochQValueActor(network))
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    table = network.head.rows
    target = next(rows for rows, _ in loss.row_tables())
    expected = torch.zeros(1000, 3)
    for _ in range(3):
        target.sync(tau)
        with loss.in_place():
            expected += tau * (table.weight - expected)
        before = expected.clone()
        loss(step(0, 7, 1.0, 1))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        with loss.in_place():
            assert (table.weight[7] - before[7]).norm() > 1e-3
            assert torch.allclose(target(torch.arange(1000)), before, atol=1e-7)


# -- legal actions: those of the next state bind the target --

LEGAL = {
    # the target network's values in state 1 are 50, 80, 70, 60; the online network's 8, 5, 6, 7
    "list": ({"legal_actions": [2, 3]}, 70.0, 60.0),
    "function": ({"legal_actions": lambda obs: torch.where(obs[:, 1:2] > 0, 3, 0)}, 60.0, 60.0),
    "several": ({"legal_actions": lambda obs: torch.tensor([[2, 0, -1]]).expand(len(obs), 3)}, 70.0, 50.0),
    "mask": ({"action_mask_key": "mask"}, 70.0, 60.0),
}


@pytest.mark.parametrize("candidates", ["all", [Uniform(64)]], ids=["all", "sampled"])
@pytest.mark.parametrize("double_dqn", [False, True])
@pytest.mark.parametrize("case", LEGAL)
def test_the_target_is_over_what_is_legal_in_the_next_state(case, double_dqn, candidates):
    torch.manual_seed(0)
    kwargs, single, double = LEGAL[case]
    loss = loss_of(candidates, legal=kwargs, double_dqn=double_dqn)
    data = step(0, 1, 1.0, 1)
    if case == "mask":
        data["mask"] = torch.tensor(
            [[True, True, False, False]]
        )  # of this state, which the target is not about
        data["next", "mask"] = torch.tensor([[False, False, True, True]])
    target = 1.0 + GAMMA * (double if double_dqn else single)
    assert loss(data)["loss"].item() == pytest.approx((2.0 - target) ** 2, rel=1e-6)


# -- the draw that acting and an update share --


def test_one_draw_serves_an_act_and_an_update():
    """As in the authors' code. Where the learner does not act, each update has one of its own."""
    actor = StochQValueActor(StochQNetwork(nn.Linear(3, 4), 10**6), candidates="authors_code")
    loss = StochDQNLoss(actor, delay_value=False)
    uniform, drawn = actor.maximum.sources[0], []
    propose = uniform.propose
    uniform.propose = lambda query: drawn.append(propose(query)) or drawn[-1]
    act = lambda: actor(TensorDict({"observation": torch.randn(2, 3)}, [2]))  # noqa: E731
    update = lambda: loss(step(0, 1, 1.0, 1))  # noqa: E731
    for do in (act, update, update, update, act, act, update):
        do()
    at = [next(i for i, ids in enumerate(drawn) if torch.equal(ids, mine)) for mine in drawn]
    assert at == [0, 0, 2, 3, 4, 5, 5]
