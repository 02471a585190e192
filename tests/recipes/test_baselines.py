"""The peers of StochDQN: their parts against what they must equal, and that they learn."""

import dataclasses
import itertools

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from extensions.stochmax import BoxBins, MixedRadix
from recipes.baselines import branching, cem, exact_dqn, references, stoch_dqn, wolpertinger
from recipes.baselines.loop import Evaluation, Run, Task, td_target, transition
from recipes.baselines.nearest import nearest_id, nearest_ids
from recipes.baselines.networks import Branches, PointCritic, follow

GRIDS = [[2] * 8, [5, 3, 7], [1, 4, 2], [101], [11, 11], [1]]


def brute_force(codec: MixedRadix, points: Tensor) -> Tensor:
    """Squared distances of all actions from each point, (B, n)."""
    features = codec.features(torch.arange(codec.n)).double()
    return (features - points.double().unsqueeze(1)).square().sum(-1)


# Nearest neighbours


@pytest.mark.parametrize("sizes", GRIDS)
@pytest.mark.parametrize("k", [1, 2, 7, 60, 500])
def test_the_nearest_ids_are_those_of_brute_force(sizes, k):
    torch.manual_seed(0)
    codec = MixedRadix(sizes)
    points = torch.rand(40, len(sizes)) * 3 - 1.5  # some outside of the box
    ids = nearest_ids(codec, points, k)
    far = brute_force(codec, points)
    expected = far.sort(dim=1).values[:, :k]
    assert ids.shape == (40, min(k, codec.n))
    torch.testing.assert_close(far.gather(1, ids), expected, rtol=0, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in ids.tolist())


def test_of_ids_that_are_equally_far_enough_are_found():
    codec = MixedRadix([3, 3])
    ids = nearest_ids(codec, torch.zeros(1, 2), 5)  # the middle, and the four beside it in any order
    assert ids[0, 0] == 4
    assert sorted(ids[0].tolist()) == [1, 3, 4, 5, 7]
    between = nearest_ids(MixedRadix([2, 2]), torch.zeros(1, 2), 3)  # all four are equally far
    assert len(set(between[0].tolist())) == 3


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_at_the_edge_of_the_box_all_neighbours_are_inside(end):
    codec = BoxBins([-2.0, -2.0], [2.0, 2.0], [1001, 1001])
    ids = nearest_ids(codec, torch.full((1, 2), end), 6)
    corner = 0 if end < 0 else codec.n - 1
    step = 1 if end < 0 else -1
    assert ids[0, 0] == corner
    expected = {corner + step * (i + 1001 * j) for i, j in [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (0, 2)]}
    assert set(ids[0].tolist()) == expected


def test_more_neighbours_than_actions_are_all_actions():
    ids = nearest_ids(MixedRadix([2, 3]), torch.randn(4, 2), 100)
    assert ids.sort(dim=1).values.tolist() == [list(range(6))] * 4


def test_the_nearest_of_a_huge_grid_is_the_point_itself():
    codec = MixedRadix([2] * 62)
    ids = torch.randint(codec.n, (16,))
    found = nearest_ids(codec, codec.features(ids), 10)
    assert torch.equal(found[:, 0], ids)
    assert torch.equal(nearest_id(codec, codec.features(ids)), ids)


@pytest.mark.parametrize("sizes", GRIDS)
def test_one_nearest_id_is_the_first_of_many(sizes):
    torch.manual_seed(0)
    codec = MixedRadix(sizes)
    points = torch.rand(40, len(sizes)) * 3 - 1.5
    far = brute_force(codec, points.clamp(-1.0, 1.0))
    torch.testing.assert_close(
        far.gather(1, nearest_id(codec, points).unsqueeze(1)).squeeze(1), far.min(1).values, rtol=0, atol=1e-6
    )


# The cross-entropy method


def test_the_cross_entropy_method_finds_the_maximum_of_a_quadratic():
    torch.manual_seed(0)
    codec = BoxBins([-1.0, -1.0], [1.0, 1.0], 1001)
    summit = torch.rand(32, 1, 2) * 1.6 - 0.8
    q = lambda ids: -(codec.features(ids) - summit).square().sum(-1)  # noqa: E731
    best, value = cem.cross_entropy(q, codec, 32, samples=50, rounds=8, elites=8)
    best_of_all = q(nearest_id(codec, summit))
    assert torch.equal(value, q(best.unsqueeze(1)).squeeze(1))
    assert (best_of_all.squeeze(1) - value).max() < 1e-3
    blind = q(torch.randint(codec.n, (32, 400))).max(1).values
    assert (best_of_all.squeeze(1) - value).mean() < (best_of_all.squeeze(1) - blind).mean() / 10


def test_the_cross_entropy_method_finds_bits():
    torch.manual_seed(0)
    codec = MixedRadix([2] * 12)
    wanted = torch.randint(codec.n, (32, 1))
    q = lambda ids: -(codec.digits(ids) - codec.digits(wanted)).abs().sum(-1).float()  # noqa: E731
    best, _ = cem.cross_entropy(q, codec, 32, samples=60, rounds=8, elites=10)
    assert (best.unsqueeze(1) == wanted).float().mean() > 0.8


# Targets and networks


def four_transitions(obs_dim: int) -> TensorDict:
    following = TensorDict(
        {
            "observation": torch.randn(4, obs_dim),
            "reward": torch.tensor([[1.0], [2.0], [3.0], [4.0]]),
            "done": torch.tensor([[False], [True], [True], [False]]),
            "terminated": torch.tensor([[False], [True], [False], [False]]),
        },
        [4],
    )
    return TensorDict({"observation": torch.randn(4, obs_dim), "next": following}, [4])


def test_a_target_stops_where_an_episode_terminated_and_not_where_it_was_cut():
    y = td_target(four_transitions(2), torch.full((4,), 10.0), 0.5)
    assert y.tolist() == [6.0, 2.0, 8.0, 9.0]


class Fixed(torch.nn.Module):
    """Branches that say the same everywhere."""

    def __init__(self, values: list[list[float]]) -> None:
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, observation: Tensor) -> Tensor:
        return self.values.expand(len(observation), -1, -1)


def test_the_branching_target_is_that_computed_by_hand():
    online = Fixed([[1.0, 5.0, 2.0], [7.0, 0.0, -torch.inf]])  # picks 1 and 0
    target = Fixed([[10.0, 20.0, 90.0], [40.0, 80.0, -torch.inf]])  # thinks 20 and 40 of them: 30 on average
    y = branching.branching_target(four_transitions(2), online, target, 0.9)
    torch.testing.assert_close(y, torch.tensor([1.0 + 27.0, 2.0, 3.0 + 27.0, 4.0 + 27.0]))


def test_digits_are_explored_one_by_one():
    torch.manual_seed(0)
    codec = MixedRadix([4, 2, 5])
    ids = torch.full((20_000,), 17)
    assert torch.equal(branching.change_digits(codec, ids, 0.0), ids)
    everywhere = branching.change_digits(codec, ids, 1.0).bincount(minlength=codec.n) / len(ids)
    assert (everywhere - 1 / codec.n).abs().max() < 0.006
    changed = codec.digits(branching.change_digits(codec, ids, 0.2)) != codec.digits(ids)  # (20,000, 3)
    expected = torch.tensor([0.2 * 3 / 4, 0.2 / 2, 0.2 * 4 / 5])
    torch.testing.assert_close(changed.float().mean(0), expected, rtol=0, atol=0.01)
    both = (changed[:, 0] & changed[:, 2]).float().mean()
    torch.testing.assert_close(both, expected[0] * expected[2], rtol=0, atol=0.01)


def test_branches_are_the_value_plus_advantages_of_mean_zero():
    torch.manual_seed(0)
    network = Branches(3, (4, 2, 3), 8)
    torch.nn.init.normal_(network.advantage.weight)
    observation = torch.randn(5, 3)
    values = network(observation)  # (5, 3, 4)
    assert values[:, 0].std(1).min() > 0.1
    value = network.value(network.trunk(observation))
    for d, m in enumerate((4, 2, 3)):
        torch.testing.assert_close(values[:, d, :m].mean(1, keepdim=True), value)
        assert torch.isneginf(values[:, d, m:]).all()


def test_no_action_begins_ahead():
    observation, points = torch.randn(5, 3), torch.randn(5, 7, 2)
    for values in (Branches(3, (4, 4), 8)(observation), PointCritic(3, 2, 8)(observation, points).mT):
        torch.testing.assert_close(values, values[..., :1].expand_as(values), rtol=0, atol=0)
    # What is greedy is then the first action, for DQN too.
    task = Task("ActuatorMaze-2p10-v0", 16, num_envs=8, warm_up=100, eval_every=16, eval_episodes=2)
    heard = []
    learn = Run.learn

    def listen(run, policy, *args):
        heard.append(policy(run.env.reset())["action"])
        return learn(run, policy, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "learn", listen)
        exact_dqn.train(task, 0)
    assert not heard[0].any()


def test_a_critic_has_the_same_value_for_a_point_alone_and_among_others():
    torch.manual_seed(0)
    critic = PointCritic(3, 2, 8)
    torch.nn.init.normal_(critic.out.weight)
    observation, points = torch.randn(5, 3), torch.randn(5, 7, 2)
    together = critic(observation, points)
    assert together.shape == (5, 7, 1)
    torch.testing.assert_close(together[:, 4], critic(observation, points[:, 4]))


def test_following_goes_a_share_of_the_way():
    online, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    expected = target.weight + 0.25 * (online.weight - target.weight)
    follow(target, online, 0.25)
    torch.testing.assert_close(target.weight, expected)


# Wolpertinger's loss


def wolpertinger_loss(codec: MixedRadix, k: int) -> wolpertinger.WolpertingerLoss:
    torch.manual_seed(0)
    actor = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh())
    critic = PointCritic(3, 2, 8)
    torch.nn.init.normal_(critic.out.weight)
    module = wolpertinger.TensorDictModule
    loss = wolpertinger.WolpertingerLoss(
        module(actor, ["observation"], ["point"]),
        module(critic, ["observation", "point"], ["state_action_value"]),
        codec,
        k,
    )
    loss.make_value_estimator(wolpertinger.ValueEstimators.TD0, gamma=0.9)
    return loss


def test_the_critic_chooses_among_the_nearest():
    codec = MixedRadix([5, 5])
    loss = wolpertinger_loss(codec, codec.n)  # from all of them: the exact maximum
    observation = torch.randn(6, 3)
    ids, value = loss.best(observation)
    with torch.no_grad(), loss.value_network_params.to_module(loss.value_network):
        features = codec.features(torch.arange(codec.n)).expand(6, -1, -1)
        everything = loss.value_network.module(observation, features).squeeze(-1)
    assert torch.equal(ids, everything.argmax(1))
    torch.testing.assert_close(value, everything.max(1).values)
    one, _ = wolpertinger_loss(codec, 1).best(observation)
    with torch.no_grad(), loss.actor_network_params.to_module(loss.actor_network):
        point = loss.actor_network.module(observation)
    assert torch.equal(one, nearest_id(codec, point))


def test_wolpertingers_target_is_of_the_whole_policy():
    codec = MixedRadix([5, 5])
    loss = wolpertinger_loss(codec, 4)
    batch = four_transitions(3)
    batch["point"] = torch.rand(4, 2)
    y = td_target(batch, loss.best(batch["next", "observation"], target=True)[1], 0.9)
    with torch.no_grad(), loss.value_network_params.to_module(loss.value_network):
        value = loss.value_network.module(batch["observation"], batch["point"]).squeeze(-1)
    found = loss(batch)
    torch.testing.assert_close(found["loss_value"], (value - y).square().mean())
    found["loss_value"].backward()
    assert all(p.grad is None for p in loss.actor_network_params.values(True, True))
    loss(batch)["loss_actor"].backward()
    assert all(p.grad is not None for p in loss.actor_network_params.values(True, True))


# Learning


#: one step of a regulator whose input is one of 25 points of the plane: what an update teaches shows at once
TINY = Task(
    "DiscreteLQR-v0",
    2_400,
    {"bins": 5, "horizon": 4},
    num_envs=16,
    codec="bins",
    batch=64,
    buffer=4_000,
    warm_up=200,
    eps_steps=1_200,
    hidden=32,
    eval_every=1_200,
    eval_episodes=32,
    updates=2,
)
LEARNERS = {
    "stoch_dqn": (stoch_dqn.train, {"candidates": (5, 5, 5), "lr": 3e-3}),
    "wolpertinger": (wolpertinger.train, {"k": 9, "lr": 3e-3}),
    "cem": (cem.train, {"samples": 8, "rounds": 2, "lr": 3e-3}),
    "branching": (branching.train, {"lr": 3e-3}),
    "exact_dqn": (exact_dqn.train, {"lr": 3e-3}),
}


def curve(records) -> list[tuple]:
    return [(at.steps, at.updates, at.greedy, at.length) for at in records]


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x == "branching" else pytest.mark.slow) for x in LEARNERS]
)
def test_each_method_learns(name):
    train, settings = LEARNERS[name]
    records = train(TINY, 0, **settings)
    random = references.play_random(TINY, 0)[0].greedy
    oracle = references.play_oracle(TINY, 0)[0].greedy
    assert random < oracle
    assert (records[-1].greedy - random) / (oracle - random) > 0.7
    assert [at.steps for at in records] == [0, 1_200, 2_400]
    assert records[-1].updates == 2 * (150 - 12)  # after each step of all, from the thirteenth on
    assert all(a.cpu_s <= b.cpu_s for a, b in itertools.pairwise(records))


SHORT = dataclasses.replace(TINY, steps=480, eval_every=240, eval_episodes=4, updates=1)


@pytest.mark.parametrize("name", LEARNERS)
def test_two_runs_with_a_seed_are_equal_and_with_another_are_not(name):
    train, settings = LEARNERS[name]
    first, again, other = (curve(train(SHORT, seed, **settings)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_an_evaluation_touches_no_draws_of_a_run_and_has_the_same_episodes():
    evaluate = Evaluation(SHORT)
    policy = lambda td: td.set("action", torch.randint(25, td.shape))  # noqa: E731
    before = torch.get_rng_state()
    first = evaluate(policy)
    assert torch.equal(torch.get_rng_state(), before)
    assert evaluate(policy) == first == Evaluation(SHORT)(policy)


def test_references_bring_what_the_world_knows_of_them():
    task = Task("ScatterChain-1K-v0", 100, {"horizon": 10}, eval_episodes=4_000)
    world = task.make(1, 0).dynamics
    assert abs(references.play_random(task, 0)[0].greedy - world.random_return()) < 0.1
    assert references.play_random(task, 0) != references.play_random(task, 1)
    assert references.play_oracle(task, 0)[0].greedy == pytest.approx(world.optimal_return(), abs=1e-4)


def test_what_is_learned_from_has_no_secrets():
    env = SHORT.make(4, 0)
    stepped = transition(env.step(env.rand_action(env.reset())))
    names = {"observation", "action", "next"} | {
        ("next", x) for x in ("observation", "reward", "done", "terminated")
    }
    assert set(stepped.keys(True)) == names


def test_what_cannot_run_says_why():
    with pytest.raises(ValueError, match="1,000,000"):
        exact_dqn.train(Task("ScatterChain-1M-v0", 100), 0)
    with pytest.raises(ValueError, match="nothing is known"):
        cem.train(Task("ScatterChain-1K-v0", 100), 0)
    with pytest.raises(ValueError, match="codec"):
        Task("ScatterChain-1K-v0", 100, codec="radix")
    assert Run(SHORT, 0).codec.n == 25
