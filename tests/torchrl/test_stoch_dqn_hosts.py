"""The agent among TorchRL's own parts: collectors, replay, exploration, trainers."""

import copy
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import (
    Categorical,
    LazyMemmapStorage,
    LazyTensorStorage,
    MultiCategorical,
    TensorDictReplayBuffer,
)
from torchrl.data.postprocs import MultiStep
from torchrl.envs import EnvBase, ExplorationType, GymEnv, RewardSum, TransformedEnv, set_exploration_type
from torchrl.modules import MLP, EGreedyModule
from torchrl.trainers import ReplayBufferTrainer, TargetNetUpdaterHook, Trainer

from envs.torchrl import LargeActionEnv
from extensions.optim import RowAdam, clip_grad_norm_
from extensions.stochmax import MixedRadix
from extensions.torchrl import (
    HardUpdate,
    StochDQNLoss,
    StochEGreedyModule,
    StochQNetwork,
    StochQValueActor,
    TorchPrioritizedSampler,
)

N = 10**6


def scatter_chain(batch=4, seed=0, **kwargs):
    return LargeActionEnv("ScatterChain-v0", batch, seed=seed, n=N, horizon=10, **kwargs)


def agent(env: EnvBase, n=N, eps=0.5, **kwargs):
    """Actor, policy that explores, loss."""
    torch.manual_seed(0)
    width = env.observation_spec["observation"].shape[-1]
    network = StochQNetwork(MLP(in_features=width, out_features=16, num_cells=[16]), n)
    spec = env.action_spec_unbatched
    actor = StochQValueActor(network, spec=spec, **kwargs)
    policy = TensorDictSequential(actor, StochEGreedyModule(spec, eps_init=eps, eps_end=eps))
    return actor, policy, StochDQNLoss(actor)


def test_a_rollout_holds_no_entry_of_size_n():
    env = scatter_chain()
    _, policy, _ = agent(env)
    data = env.rollout(20, policy, break_when_any_done=False)
    assert data["action"].shape == (4, 20)
    assert data["chosen_action_value"].shape == (4, 20, 1)
    assert "action_value" not in data.keys(True)
    row = data.exclude("world", ("next", "world"))[0, 0]
    assert sum(x.numel() * x.element_size() for x in row.values(True, True)) < 200


def test_a_replay_row_is_as_large_at_a_million_actions_as_at_ten():
    sizes = []
    for n in (10, N):
        env = LargeActionEnv("ScatterChain-v0", 4, seed=0, n=n, horizon=10)
        _, policy, _ = agent(env, n=n)
        row = env.rollout(2, policy)[0, 0]
        sizes.append(sum(x.numel() * x.element_size() for x in row.values(True, True)))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("storage", [LazyTensorStorage, LazyMemmapStorage])
@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_collector_a_replay_and_the_loss(storage, prioritised, n_steps):
    env = scatter_chain()
    actor, policy, loss = agent(env)
    several = MultiStep(gamma=0.9, n_steps=n_steps) if n_steps > 1 else None
    sampler = TorchPrioritizedSampler(500, alpha=0.7, beta=0.5) if prioritised else None
    buffer = TensorDictReplayBuffer(
        storage=storage(500), sampler=sampler, batch_size=16, priority_key="td_error"
    )
    optimizer, updater = (
        RowAdam(loss.parameters(), lr=0.01),
        HardUpdate(loss, value_network_update_interval=5),
    )
    collector = Collector(env, policy, frames_per_batch=40, total_frames=400, postproc=several)
    before = {k: v.clone() for k, v in loss.named_parameters()}
    for data in collector:
        data = data.exclude("world", ("next", "world"))
        buffer.extend(data.reshape(-1))
        for _ in range(4):
            batch = buffer.sample()
            value = loss(batch)["loss"]
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            updater.step()
            buffer.update_tensordict_priority(batch)
    collector.shutdown()
    assert all(not torch.equal(v, before[k]) for k, v in loss.named_parameters())
    assert int(actor.memory.seen) == 10 * 4 * 16
    if prioritised:
        assert "priority_weight" in batch
        assert len(sampler._sum_tree[torch.arange(len(buffer))].unique()) > 20


@pytest.mark.slow
def test_collectors_in_other_processes():
    env = partial(scatter_chain, batch=2)
    actor, policy, loss = agent(scatter_chain(batch=2), eps=0.0)
    # A copy, since processes of one machine share the memory of what they are given. It must be sent to.
    theirs = copy.deepcopy(policy)
    collector = MultiSyncCollector([env, env], theirs, frames_per_batch=40, total_frames=200)
    optimizer = RowAdam(loss.parameters(), lr=0.1)
    before = None
    try:
        for data in collector:
            assert data["action"].shape == (2, 2, 10)
            # They act by the weights that they were sent last.
            here = value_of(loss, data)
            assert torch.allclose(data["chosen_action_value"], here, rtol=1e-5, atol=1e-6)
            if before is not None:
                assert (here - value_of(before, data)).abs().max() > 1e-2
            before = copy.deepcopy(loss)
            loss(data.reshape(-1))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            collector.update_policy_weights_(policy)
    finally:
        collector.shutdown()
    assert int(actor.memory.seen) == 200


def value_of(loss, data):
    """What the online network of a loss says of the actions of ``data``."""
    with loss.in_place(), torch.no_grad():
        return loss.value_network.values(data, data["action"]).unsqueeze(-1)


def test_gym_environments():
    env = GymEnv("CartPole-v1", categorical_action_encoding=True)
    _, policy, loss = agent(env, n=2)
    data = env.rollout(20, policy, break_when_any_done=False)
    assert loss(data)["loss"].isfinite()


# -- exploration --


def test_epsilon_falls_as_the_hosts():
    ours, theirs = (cls(Categorical(9), 0.9, 0.1, 50) for cls in (StochEGreedyModule, EGreedyModule))
    for frames in (1, 10, 30, 20):
        ours.step(frames)
        theirs.step(frames)
        assert ours.eps.item() == pytest.approx(theirs.eps.item(), abs=1e-6)
    assert ours.eps.item() == pytest.approx(0.1)


def test_uniform_actions_take_the_place_of_some():
    torch.manual_seed(0)
    explore = StochEGreedyModule(Categorical(N), 0.3, 0.3)
    data = TensorDict({"action": torch.full((20_000,), 7)}, [20_000])
    out = explore(data)["action"]
    drawn = out[out != 7]
    assert len(drawn) / 20_000 == pytest.approx(0.3, abs=0.02)
    assert drawn.double().mean().item() / N == pytest.approx(0.5, abs=0.02)
    assert drawn.max() < N
    assert drawn.min() >= 0
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert (explore(TensorDict({"action": torch.full((99,), 7)}, [99]))["action"] == 7).all()


def test_each_environment_has_a_coin_of_its_own():
    torch.manual_seed(0)
    explore = StochEGreedyModule(MultiCategorical([10, 10]), 0.5, 0.5)
    out = explore(TensorDict({"action": torch.zeros(1000, 2, dtype=torch.int64)}, [1000]))["action"]
    stayed = (out == 0).all(1).double().mean().item()
    assert stayed == pytest.approx(0.505, abs=0.05)
    assert (out < 10).all()


def test_a_deterministic_actor_looks_further_and_draws_nothing_from_the_run():
    torch.manual_seed(0)
    network = StochQNetwork(None, N, width=1, head="row", head_kwargs={"dueling": False})
    with torch.no_grad():
        network.head.rows.weight[:, 0] = torch.arange(N)
    actor = StochQValueActor(network, eval_candidates=500)
    data = TensorDict({"observation": torch.ones(1, 1)}, [1])
    state = torch.get_rng_state()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first, again = actor(data.clone())["action"], actor(data.clone())["action"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert first.item() > N * 0.99
    actor.memory.add(torch.tensor([N - 1]))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert actor(data.clone())["action"].item() == N - 1  # remembered


def test_what_was_replayed_most_is_remembered_longest():
    actor = StochQValueActor(StochQNetwork(torch.nn.Linear(1, 4), N))
    memory = actor.memory
    memory.add(torch.tensor([5, 9, 9, 3, 3, 3]))
    assert memory.most(2).tolist() == [3, 9]
    assert memory.most(9).tolist() == [3, 9, 5]
    torch.manual_seed(0)
    assert set(memory.draw(200).tolist()) == {3, 5, 9}
    other = StochQValueActor(StochQNetwork(torch.nn.Linear(1, 4), N)).memory
    other.add(torch.tensor([7, 7, 7, 7, 7, 7]))
    assert other.most(1).tolist() == [7]
    other.load_state_dict(memory.state_dict())
    assert other.most(1).tolist() == [3]
    for _ in range(3):
        memory.add(torch.full((40_000,), 6))
    assert memory.most(9).tolist() == [6]
    assert int(memory.seen) == 120_006


def test_the_same_seed_gives_the_same_run():
    losses = []
    for _ in range(2):
        env = scatter_chain()
        _, policy, loss = agent(env)
        data = env.rollout(20, policy, break_when_any_done=False)
        losses.append(loss(data.exclude("world", ("next", "world")).reshape(-1))["loss"])
    assert torch.equal(*losses)


def test_a_codec_of_digits_serves_a_factored_world():
    env = LargeActionEnv("JointReplenishment-1M-v0", 3, seed=0, action_format="factored")
    torch.manual_seed(0)
    spec = env.action_spec_unbatched
    width = env.observation_spec["observation"].shape[-1]
    network = StochQNetwork(
        MLP(in_features=width, out_features=16, num_cells=[16]), MixedRadix(spec.nvec.tolist())
    )
    actor = StochQValueActor(network, spec=spec)
    data = env.rollout(5, TensorDictSequential(actor, StochEGreedyModule(spec)))
    assert data["action"].shape == (3, 5, 6)
    assert StochDQNLoss(actor)(data)["loss"].isfinite()


def trainer_of(path, frames, seed=0, **kwargs):
    """TorchRL's Trainer with its hooks, around our parts."""
    # TorchRL 0.14 saves the state of a transformed environment only, and loads that of any.
    env = TransformedEnv(scatter_chain(seed=seed), RewardSum())
    _, policy, loss = agent(env)
    updater = HardUpdate(loss, value_network_update_interval=3)
    collector = Collector(env, policy, frames_per_batch=40, total_frames=frames)
    trainer = Trainer(
        collector=collector,
        total_frames=frames,
        frame_skip=1,
        loss_module=loss,
        optimizer=RowAdam(loss.parameters(), lr=0.01),
        optim_steps_per_batch=3,
        progress_bar=False,
        save_trainer_file=path,
        save_trainer_interval=1,
        **kwargs,
    )
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(200), batch_size=16, priority_key="td_error")
    replay = ReplayBufferTrainer(buffer, flatten_tensordicts=True)
    trainer.register_op("batch_process", lambda data: data.exclude("world", ("next", "world")))
    replay.register(trainer)
    trainer.register_op("post_optim", TargetNetUpdaterHook(updater))
    return trainer, loss


def test_a_trainer_trains_saves_and_loads(tmp_path):
    trainer, loss = trainer_of(tmp_path / "trainer.pt", 200)
    before = {k: v.clone() for k, v in loss.named_parameters()}
    trainer.train()
    assert any(not torch.equal(v, before[k]) for k, v in loss.named_parameters())
    again, loaded = trainer_of(tmp_path / "trainer.pt", 400)
    again.load_from_file(tmp_path / "trainer.pt", weights_only=False)
    at = again.collected_frames
    assert 0 < at <= 200
    assert int(loaded.value_network.memory.seen) == at // 40 * 3 * 16
    again.train()
    assert int(loaded.value_network.memory.seen) > at // 40 * 3 * 16


def test_gradients_of_a_trainer_are_clipped_before_the_optimizers_step(tmp_path):
    trainer, loss = trainer_of(tmp_path / "trainer.pt", 80)
    norms = []

    def clip(optimizer, args, kwargs):
        clip_grad_norm_(loss.parameters(), 1e-3)
        norms.append(clip_grad_norm_(loss.parameters(), 1e9).item())

    trainer.optimizer.register_step_pre_hook(clip)
    trainer.train()
    assert norms
    assert all(norm == pytest.approx(1e-3, rel=1e-2) for norm in norms)
    # The trainer's own is torch's, which does not take the sparse gradients of rows.
    trainer, _ = trainer_of(tmp_path / "trainer.pt", 80, clip_norm=1e-3)
    with pytest.raises(NotImplementedError, match="Sparse"):
        trainer.train()
