"""The TorchRL door, over every registered world: what TorchRL expects, and the same episodes as numpy's."""

import functools
import inspect
import pickle
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs
from envs.dynamics.scatter_chain import ScatterChain
from envs.dynamics.world import World

pytest.importorskip("torchrl")

from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import (
    Compose,
    EnvBase,
    GymEnv,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
    check_env_specs,
    step_mdp,
)

from envs.torchrl import LargeActionEnv

WORLD_IDS = envs.world_ids()
ONE_OF_EACH = list({gym.spec(id).kwargs["world"]: id for id in WORLD_IDS}.values())
STEPS = 12  # enough to see ends of episodes, with the horizons below
SMALL = "LargeAction/ScatterChain-1K-v0"


def make(id, batch_size=(), **kwargs):
    return LargeActionEnv(id, batch_size=batch_size, **{"seed": 0, **kwargs})


@pytest.mark.parametrize("id", WORLD_IDS)
def test_check_env_specs(id):
    check_env_specs(make(id), seed=0, break_when_any_done="both")
    check_env_specs(make(id, (5,), horizon=3), seed=0, break_when_any_done="both")


@pytest.mark.parametrize("id", WORLD_IDS)
def test_check_env_specs_of_digits(id):
    env = make(id, (3,), action_format="factored")
    sizes = env.dynamics.sizes
    check_env_specs(env, seed=0, break_when_any_done="both")
    assert env.action_spec.shape == ((3, len(sizes)) if len(sizes) > 1 else (3,))


@pytest.mark.parametrize("n", [10**6, 10**9, 10**12, 2**62])
def test_check_env_specs_at_any_size(n):
    check_env_specs(make("LargeAction/ScatterChain-v0", (4,), n=n), seed=0, break_when_any_done="both")


@pytest.mark.parametrize("id", WORLD_IDS)
def test_episodes_are_those_of_numpy(id):
    """From the same keys: every state and observation equal, integers to the last bit, rewards to an ulp."""
    env = make(id, (7,), horizon=STEPS)
    world: World = env.dynamics
    td = env.reset()
    state = {name: x.numpy().copy() for name, x in td["world"].items()}
    fresh = world.reset(state["key"])
    for name, x in fresh.items():
        np.testing.assert_array_equal(x, state[name], err_msg=name)
    for _ in range(STEPS):
        td = env.rand_action(td)
        out = env.step(td)["next"]
        state, rewards, terminated = world.step(state, td["action"].numpy())
        for name, x in state.items():
            if x.dtype.kind == "i":
                np.testing.assert_array_equal(x, out["world", name].numpy(), err_msg=name)
            else:
                np.testing.assert_allclose(x, out["world", name].numpy(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            world.observe(state), out["observation"].numpy(), rtol=2e-7, atol=1e-7, strict=True
        )
        np.testing.assert_array_max_ulp(rewards.astype(np.float32)[:, None], out["reward"].numpy(), maxulp=1)
        np.testing.assert_array_equal(terminated[:, None], out["terminated"].numpy())
        td = step_mdp(td)
        if out["done"].any():
            break


@pytest.mark.parametrize("id", WORLD_IDS)
def test_seeds(id):
    one, two, other = make(id, (3,), seed=5), make(id, (3,), seed=6), make(id, (3,), seed=6)
    two.set_seed(5)
    keys = [env.reset()["world", "key"] for env in (one, two, other)]
    assert torch.equal(keys[0], keys[1])
    assert not (keys[0] == keys[2]).any()
    assert len(set(keys[0].tolist())) == 3
    again = [env.reset()["world", "key"] for env in (one, two)]
    assert torch.equal(*again)
    assert not (again[0] == keys[0]).any()  # another episode
    one.set_seed(5)
    assert torch.equal(one.reset()["world", "key"], keys[0])


def test_without_a_seed_torch_decides():
    torch.manual_seed(3)
    one = LargeActionEnv(SMALL).reset()["world", "key"]
    other = LargeActionEnv(SMALL).reset()["world", "key"]
    torch.manual_seed(3)
    assert one == LargeActionEnv(SMALL).reset()["world", "key"] != other


@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3)])
def test_batches_of_any_shape_have_the_same_episodes(shape):
    def play(env):
        torch.manual_seed(0)
        return env.rollout(9, break_when_any_done=False)

    flat = play(make(SMALL, (max(1, int(np.prod(shape))),), horizon=4))
    shaped = play(make(SMALL, shape, horizon=4))
    assert shaped.batch_size == (*shape, 9)
    assert make(SMALL, 6).batch_size == (6,)
    for name in ("observation", "action", ("next", "reward"), ("world", "key")):
        assert torch.equal(shaped[name].reshape(flat[name].shape), flat[name])


def test_partial_reset_leaves_the_others_alone():
    env = make(SMALL, (4,), contexts=50)
    td = env.rollout(3, break_when_any_done=False)[:, -1]
    td = step_mdp(td)
    before = td.clone()
    td["_reset"] = torch.tensor([[True], [False], [False], [True]])
    after = env.reset(td, set_state=False)
    assert after["world", "t"].tolist() == [0, 3, 3, 0]
    for name in ("key", "level", "context"):
        assert torch.equal(after["world", name][1:3], before["world", name][1:3])
    assert (after["world", "key"][[0, 3]] != before["world", "key"][[0, 3]]).all()
    # Its next episode is the same however many the others have begun.
    other = make(SMALL, (4,), contexts=50)
    other.reset()
    assert torch.equal(other.reset()["world", "key"][[0, 3]], after["world", "key"][[0, 3]])


@pytest.mark.filterwarnings(
    "ignore:A reset tensordict carrying state"
)  # TorchRL's own, in Serial and Parallel
@pytest.mark.parametrize("several", [None, SerialEnv, ParallelEnv])
def test_a_reset_without_a_word_begins_an_episode(several):
    """TorchRL 0.14 by itself would take the state in the tensordict for the one to go back to."""
    if several is None:
        env = make(SMALL, (2, 3), horizon=3)
    else:
        env = several(2, functools.partial(LargeActionEnv, SMALL, batch_size=[3], horizon=3, seed=0))
    over = step_mdp(env.rollout(3)[..., -1])
    assert over["done"].all()
    mask = torch.tensor([[True, False, True], [False, False, True]])[..., None]
    again = env.reset(over.clone().set("_reset", mask))
    assert torch.equal(again["world", "t"] == 0, mask.squeeze(-1))
    assert torch.equal(again["done"], ~mask)
    if several is None:
        assert (env.reset(over.clone())["world", "t"] == 0).all()
        assert (env.reset(over.clone(), set_state=True)["world", "t"] == 3).all()
    env.close()


def test_the_hook_that_is_overridden_is_there():
    theirs = inspect.signature(EnvBase._resolve_set_state)
    assert list(theirs.parameters) == ["self", "set_state", "tensordict", "select_reset_only"]


@pytest.mark.parametrize("form", ["flat", "factored"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("id", ONE_OF_EACH)
def test_the_oracle_plays(id, shape, form):
    id = id.replace("Catalogue-1G", "SlateRecSatiation-100x3")
    env = make(id, shape, horizon=2, action_format=form)
    td = env.reset()
    for _ in range(2):
        td["action"] = env.optimal_action(td)
        assert env.action_spec.is_in(td["action"])
        td = step_mdp(env.step(td))
    assert (td["world", "t"] <= 2).all()


def test_reset_to_a_state():
    env = make("LargeAction/ActuatorMaze-2p10-v0", (3,))
    td = step_mdp(env.rollout(4, break_when_any_done=False)[:, -1])
    torch.manual_seed(0)
    first = env.rollout(5, auto_reset=False, tensordict=td.clone(), break_when_any_done=False)
    torch.manual_seed(0)
    back = env.reset(td.clone(), set_state=True)
    again = env.rollout(5, auto_reset=False, tensordict=back, break_when_any_done=False)
    assert (first == again).all()


@pytest.mark.parametrize("id", WORLD_IDS)
def test_ends_and_automatic_resets(id):
    env = make(id, (3,), horizon=4)
    data = env.rollout(9, break_when_any_done=False)
    done = data["next", "done"].squeeze(-1)
    assert torch.equal(done, (data["next", "terminated"] | data["next", "truncated"]).squeeze(-1))
    assert done.any()
    t = data["world", "t"]
    assert (t < 4).all()
    assert torch.equal(t[:, 1:] == 0, done[:, :-1])  # a new episode begins where one was over, only there
    assert torch.equal(data["next", "truncated"].squeeze(-1), data["next", "world", "t"] == 4)


@pytest.mark.parametrize("id", WORLD_IDS)
def test_through_transforms(id):
    env = TransformedEnv(make(id, (3,)), Compose(StepCounter(), RewardSum()))
    check_env_specs(env, seed=0, break_when_any_done="both")
    data = env.rollout(4)
    sums = data["next", "reward"].cumsum(1)
    torch.testing.assert_close(data["next", "episode_reward"], sums)


def test_state_dict_goes_on_with_the_same_episodes():
    env, fresh = make(SMALL, (2,), seed=1), make(SMALL, (2,), seed=2)
    env.reset()
    fresh.load_state_dict(env.state_dict())
    assert torch.equal(env.reset()["world", "key"], fresh.reset()["world", "key"])


def test_pickle():
    env = make(SMALL, (2,))
    env.reset()
    copy = pickle.loads(pickle.dumps(env))
    assert torch.equal(env.reset()["world", "key"], copy.reset()["world", "key"])


def test_in_other_processes_and_side_by_side():
    build = functools.partial(LargeActionEnv, SMALL, batch_size=(3,))
    for several in (SerialEnv(2, build), ParallelEnv(2, build)):
        several.set_seed(0)
        data = several.rollout(3)
        assert data.batch_size == (2, 3, 3)
        assert len(data["world", "key"].unique()) == 6
        several.close()


def test_collector_without_the_state_in_what_it_keeps():
    collector = Collector(
        functools.partial(LargeActionEnv, SMALL, batch_size=(8,), horizon=5),
        policy=None,
        frames_per_batch=80,
        total_frames=160,
        postproc=lambda td: td.exclude("world", ("next", "world")),
    )
    batches = list(collector)
    assert [b.batch_size for b in batches] == [(8, 10)] * 2
    assert ("world", "t") not in batches[0].keys(True)
    assert batches[0]["next", "done"].any()
    collector.shutdown()


def test_the_same_worlds_by_torchrls_own_door():
    env = GymEnv("LargeAction/ScatterChain-1G-v0", categorical_action_encoding=True)
    check_env_specs(env, seed=0)
    assert env.rollout(3)["action"].dtype == torch.int64


def test_worlds_by_id_by_name_and_as_such():
    assert LargeActionEnv(f"envs:{SMALL}", n=10).dynamics.n == 10
    assert LargeActionEnv("ScatterChain-1K-v0", n=np.int64(10)).dynamics.n == 10
    assert LargeActionEnv("scatter_chain:ScatterChain", n=11).dynamics.n == 11
    assert LargeActionEnv(ScatterChain(n=12), horizon=3).dynamics == ScatterChain(n=12, horizon=3)


def test_bad_arguments():
    with pytest.raises(TypeError, match="unexpected keyword argument 'kapa'; it takes n, kappa"):
        LargeActionEnv(SMALL, kapa=1.0)
    with pytest.raises(ValueError, match="action_format must be one of"):
        LargeActionEnv(SMALL, action_format="one-hot")
    for name in ("LargeAction/ScaterChain-v0", "ScaterChain-v0", "CartPole-v1"):
        with pytest.raises(gym.error.NameNotFound, match=name.split("/")[-1].split("-")[0]):
            LargeActionEnv(name)
    with pytest.raises(ValueError, match=r"torchrl\.envs\.GymEnv\('LargeAction/HalfCheetah-1M-v5'"):
        LargeActionEnv("LargeAction/HalfCheetah-1M-v5")


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (torch.tensor([0, 1000]), "below"),
        (torch.tensor([-1, 0]), "below"),
        (torch.tensor([0.0, 1.0]), r"int64 of shape \(2,\), got torch.float32, \(2,\)\.$"),
        (torch.zeros(2, 1000, dtype=torch.int64), "seem to be one-hot"),
    ],
)
def test_bad_actions(action, match):
    env = make(SMALL, (2,))
    td = env.reset()
    td["action"] = action
    with pytest.raises(ValueError, match=match):
        env.step(td)


def test_bad_digits():
    env = make("LargeAction/ActuatorMaze-2p10-v0", (2,), action_format="factored")
    td = env.reset()
    td["action"] = torch.full((2, 10), 2)
    with pytest.raises(ValueError, match="below"):
        env.step(td)
    td["action"] = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"seem to be ids: env\.dynamics\.to_digits"):
        env.step(td)


def test_step_before_reset():
    env = make(SMALL, (2,))
    with pytest.raises(ValueError, match=r"begin with env\.reset"):
        env.step(TensorDict(action=torch.zeros(2, dtype=torch.int64), batch_size=(2,)))
    with pytest.raises(ValueError, match='no "action"'):
        env.step(env.reset())


def test_gymnasiums_door_does_not_load_torchrl():
    code = (
        "import sys, gymnasium; gymnasium.make_vec('envs:LargeAction/ScatterChain-v0').reset();"
        "assert not {'torch', 'torchrl', 'tensordict'} & {name.split('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("id", ONE_OF_EACH)
def test_compiled_steps_are_equal(id):
    torch._dynamo.reset()
    world = LargeActionEnv(id).dynamics  # which steps once: then the tables are there
    keys = torch.randint(2**62, (16,), generator=torch.Generator().manual_seed(0))
    state = world.reset(keys)
    step = torch.compile(world.step, fullgraph=True, dynamic=False)
    reset = torch.compile(world.reset, fullgraph=True, dynamic=False)
    observe = torch.compile(world.observe, fullgraph=True, dynamic=False)
    for name, x in reset(keys).items():
        torch.testing.assert_close(x, state[name], rtol=1e-12, atol=1e-12)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        actions = torch.randint(world.n, (16,), generator=generator)
        (new, reward, ended), (compiled, compiled_reward, compiled_ended) = (
            f(state, actions) for f in (world.step, step)
        )
        for name, x in new.items():
            if x.dtype == torch.int64:
                assert torch.equal(x, compiled[name]), name
            else:
                torch.testing.assert_close(x, compiled[name], rtol=1e-12, atol=1e-12)
        np.testing.assert_array_max_ulp(reward.float().numpy(), compiled_reward.float().numpy(), maxulp=1)
        assert torch.equal(ended, compiled_ended)
        torch.testing.assert_close(observe(new), world.observe(new), rtol=2e-7, atol=1e-7)
        state = new


@pytest.mark.slow
def test_torchrls_own_compilation():
    eager = make(SMALL, (6,), horizon=5)
    compiled = make(SMALL, (6,), horizon=5, compile={"warmup": 3})
    data = []
    for env in (eager, compiled):
        torch.manual_seed(0)
        data.append(env.rollout(20, break_when_any_done=False))
    assert (data[0]["world"] == data[1]["world"]).all()
    torch.testing.assert_close(data[0]["next", "reward"], data[1]["next", "reward"])


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_to_step_and_reset_without_looking_is_the_hosts(batch):
    ours, theirs = (LargeActionEnv("ScatterChain-v0", batch, seed=3, n=1000, horizon=4) for _ in range(2))
    a, b = ours.reset(), theirs.reset()
    torch.manual_seed(0)
    for _ in range(12):
        a["action"] = b["action"] = torch.randint(1000, batch)
        step, a = ours.step_and_maybe_reset(a)
        host_step, b = EnvBase.step_and_maybe_reset(theirs, b)
        assert set(a.keys(True, True)) == set(b.keys(True, True))
        assert (step == host_step).all()
        assert (a == b).all()
