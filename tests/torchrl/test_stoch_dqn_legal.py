"""Legal actions of TorchRL's environments: lists and masks, in acting, exploring and bootstrapping."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.data import Categorical
from torchrl.envs import ExplorationType, TicTacToeEnv, set_exploration_type

from extensions.torchrl import StochDQNLoss, StochEGreedyModule, StochQNetwork, StochQValueActor

N = 10**6


def test_legal_actions_bind_actor_and_exploration():
    legal = lambda obs: torch.where(obs[:, :1] > 0, torch.tensor([[3, 5]]), torch.tensor([[8, -1]]))  # noqa: E731
    torch.manual_seed(0)
    actor = StochQValueActor(StochQNetwork(torch.nn.Linear(1, 4), N), legal_actions=legal)
    explore = StochEGreedyModule(Categorical(N), 0.5, 0.5, legal_actions=legal)
    data = TensorDict({"observation": torch.randn(200, 1)}, [200])
    for way in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC):
        with set_exploration_type(way):
            out = explore(actor(data.clone()))
        positive = data["observation"].squeeze(1) > 0
        assert set(out["action"][positive].tolist()) <= {3, 5}
        assert set(out["action"][~positive].tolist()) == {8}


@pytest.mark.parametrize("keys", [["observation"], ["observation", ("agents", "seen")]], ids=["one", "two"])
def test_actor_and_exploration_ask_for_legal_actions_alike(keys):
    asked = []

    def legal(obs):
        asked.append(obs)
        first = obs["observation"] if isinstance(obs, dict) else obs
        return torch.where(first[:, :1] > 0, torch.tensor([[3, 5]]), torch.tensor([[8, -1]]))

    trunk = TakesAll(torch.nn.Linear(len(keys), 4))
    actor = StochQValueActor(StochQNetwork(trunk, N), in_keys=keys, legal_actions=legal)
    explore = StochEGreedyModule(Categorical(N), 1.0, 1.0, legal_actions=legal, observation_key=keys)
    data = TensorDict({"observation": torch.randn(6, 2, 1), "agents": {"seen": torch.randn(6, 2, 1)}}, [6, 2])
    out = explore(actor(data.clone()))
    for_actor, for_exploration = asked[0], asked[-1]
    assert type(for_actor) is type(for_exploration) is (dict if len(keys) > 1 else torch.Tensor)
    if len(keys) == 1:
        assert torch.equal(for_actor, data["observation"].reshape(12, 1))
        assert torch.equal(for_actor, for_exploration)
    else:
        assert list(for_actor) == list(for_exploration) == ["observation", "agents.seen"]
        for name, key in zip(for_actor, keys, strict=True):
            assert torch.equal(for_actor[name], data[key].reshape(12, 1))
            assert torch.equal(for_actor[name], for_exploration[name])
    positive = data["observation"].squeeze(-1) > 0
    assert set(out["action"][positive].tolist()) <= {3, 5}
    assert set(out["action"][~positive].tolist()) == {8}


class TakesAll(torch.nn.Sequential):
    """Layers that are given all observations side by side."""

    def forward(self, *observations):
        return super().forward(torch.cat(observations, -1))


@pytest.mark.parametrize("candidates", ["log", "all"])
def test_masks_of_few_actions_are_taken(candidates):
    torch.manual_seed(0)
    actor = StochQValueActor(
        StochQNetwork(torch.nn.Linear(1, 4), 50, head="row"), action_mask_key="mask", candidates=candidates
    )
    explore = StochEGreedyModule(Categorical(50), 0.5, 0.5, action_mask_key="mask")
    mask = torch.rand(100, 50) < 0.1
    mask[:, 0] |= ~mask.any(1)
    data = TensorDict({"observation": torch.randn(100, 1), "mask": mask}, [100])
    out = explore(actor(data))
    assert mask.gather(1, out["action"].unsqueeze(1)).all()
    assert actor.in_keys == ["observation", "mask"]


class Board(torch.nn.Linear):
    """Reads a board of whole numbers (*B, 3, 3)."""

    def forward(self, board):
        return super().forward(board.flatten(-2).float())


def free_squares(obs):
    """The ids of the free squares of boards (B, 3, 3), padded with -1; none of a full board."""
    return torch.where(obs.flatten(1) == -1, torch.arange(9), -1)


@pytest.mark.parametrize("double_dqn", [True, False])
@pytest.mark.parametrize("candidates", ["log", "all"])
@pytest.mark.parametrize("legal", ["mask", "function"])
def test_a_game_ends_without_legal_actions(legal, candidates, double_dqn):
    """A draw of tic-tac-toe leaves a full board, which is a next state like all others."""
    torch.manual_seed(0)
    env = TicTacToeEnv()
    kwargs = {"action_mask_key": "mask"} if legal == "mask" else {"legal_actions": free_squares}
    network = StochQNetwork(Board(9, 8), 9)
    actor = StochQValueActor(
        network, in_keys=["board"], spec=env.action_spec, candidates=candidates, **kwargs
    )
    explore = StochEGreedyModule(env.action_spec, 1.0, 1.0, observation_key="board", **kwargs)
    policy = TensorDictSequential(actor, explore)
    start = env.reset(TensorDict(batch_size=[64]))
    data = env.rollout(40, policy, auto_reset=False, tensordict=start, break_when_any_done=False)
    drawn = ~data["next", "mask"].any(-1)
    assert drawn.sum() > 10
    assert data["next", "terminated"][drawn].all()
    loss = StochDQNLoss(actor, delay_value=double_dqn, double_dqn=double_dqn)
    loss.set_keys(reward=("player0", "reward"))
    data = data.reshape(-1)
    loss(data)["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())
    if double_dqn:
        return
    value = actor.values(data, data["action"])  # where the game ended nothing but the reward is learned
    over = data["next", "terminated"].squeeze(1)
    expected = (value - data["next", "player0", "reward"].squeeze(1)).square()
    assert torch.allclose(data["td_error"].squeeze(1)[over], expected[over])
    # A state that is not the end must have a legal action, and so must one in which to act.
    data["next", "terminated"] = torch.zeros_like(data["next", "terminated"])
    with pytest.raises(ValueError, match="needs at least one legal"):
        loss(data)
    with pytest.raises(ValueError, match="needs at least one legal"):
        actor(data["next"][drawn.reshape(-1)])
