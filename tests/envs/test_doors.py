"""The gymnasium doors, over every registered world: what gymnasium and Stable-Baselines3 expect."""

import json
import pickle
import resource
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode

import envs
from envs.dynamics.actuator_maze import ActuatorMaze
from envs.dynamics.scatter_chain import ScatterChain
from envs.dynamics.world import World
from envs.gymnasium import LargeActionEnv, LargeActionVectorEnv

WORLD_IDS = envs.world_ids()
# Few steps, so that episodes end often; and the arguments that the registered ids leave out.
VARIANTS = [
    ("LargeAction/ScatterChain-v0", {"n": 1000, "horizon": 5}),
    ("LargeAction/ScatterChain-v0", {"n": 997, "horizon": 7, "contexts": 3, "slip": 0.3, "kappa": 20.0}),
    ("LargeAction/ActuatorMaze-v0", {"k": 10, "horizon": 6, "radius": 0.3}),
    ("LargeAction/JointReplenishment-v0", {"products": 3, "horizon": 4}),
    ("LargeAction/BatchSchedule-v0", {"jobs": 4, "families": 2, "horizon": 4}),
    ("LargeAction/Mastermind-v0", {"colours": 3, "pegs": 2, "horizon": 4}),
    ("LargeAction/SlateRec-v0", {"items": 9, "slate": 3, "satiation": True, "horizon": 4}),
]


def play(env, actions):
    """Everything that stepping through ``actions`` shows, with resets where episodes end."""
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append((observation.tolist(), reward, terminated, truncated))
        if terminated or truncated:
            seen.append(env.reset()[0].tolist())
    return seen


def sample(env, number, seed=0):
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(number)]


def test_all_ids_are_there():
    assert len(WORLD_IDS) >= 10
    for name in (
        "ScatterChain",
        "ScatterChain-1K",
        "ScatterChain-1M",
        "ScatterChain-1G",
        "ScatterChainHard-1M",
    ):
        assert f"LargeAction/{name}-v0" in WORLD_IDS
    for name in ("Needle-1M", "ActuatorMaze", "ActuatorMaze-2p10", "ActuatorMaze-2p20", "ActuatorMaze-2p30"):
        assert f"LargeAction/{name}-v0" in WORLD_IDS
    sizes = {id: gym.make(id).action_space.n for id in WORLD_IDS}
    assert sizes["LargeAction/ScatterChain-1K-v0"] == 1_000
    assert sizes["LargeAction/ScatterChain-1M-v0"] == sizes["LargeAction/Needle-1M-v0"] == 1_000_000
    assert sizes["LargeAction/ScatterChain-1G-v0"] == 1_000_000_000
    assert sizes["LargeAction/ActuatorMaze-2p30-v0"] == 2**30


@pytest.mark.parametrize("id", WORLD_IDS)
def test_check_env_without_a_warning(id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(id).unwrapped)


@pytest.mark.parametrize("n", [2, 100, 10**9, 2**62])
def test_check_env_at_any_size(n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("LargeAction/ScatterChain-v0", n=n).unwrapped)


@pytest.mark.parametrize("id", WORLD_IDS)
def test_stable_baselines3_check_env(id):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3.check_env(gym.make(id))


@pytest.mark.parametrize("id", WORLD_IDS)
def test_types_and_spaces(id):
    env = gym.make(id)
    assert isinstance(env.unwrapped.dynamics, World)
    assert env.action_space.dtype == np.int64
    assert env.action_space.start == 0
    assert env.action_space.n == env.unwrapped.dynamics.n
    assert env.observation_space.is_bounded()
    first, info = env.reset(seed=0)
    low, high = env.unwrapped.dynamics.reward_range
    for action in sample(env, 10):
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert observation is not first
        assert type(reward) is float
        assert low <= reward <= high
        assert type(terminated) is type(truncated) is bool
        assert info == {}
        if terminated or truncated:
            break


@pytest.mark.parametrize("id", WORLD_IDS)
def test_same_seed_same_episodes(id):
    one, two, other = gym.make(id), gym.make(id), gym.make(id)
    starts = [env.reset(seed=seed)[0].tolist() for env, seed in ((one, 3), (two, 3), (other, 4))]
    actions = sample(one, 200)
    seen = [play(env, actions) for env in (one, two)]
    assert starts[0] == starts[1]
    assert seen[0] == seen[1]
    if "Maze" in id:  # ScatterChain's first context has one start
        assert starts[0] != starts[2]


@pytest.mark.parametrize("id", WORLD_IDS)
def test_truncated_at_the_horizon_and_reset_needed_after(id):
    env = gym.make(id, horizon=3)
    env.reset(seed=0)
    for step in range(3):
        *_, terminated, truncated, _ = env.step(0)
        assert not terminated
        assert truncated == (step == 2)
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(0)
    env.reset()
    env.step(0)


@pytest.mark.parametrize("id", WORLD_IDS)
def test_pickle_goes_on_where_it_was(id):
    env = gym.make(id)
    env.reset(seed=1)
    actions = sample(env, 80)
    play(env, actions[:30])
    copy = pickle.loads(pickle.dumps(env))
    assert play(env, actions) == play(copy, actions)


@pytest.mark.parametrize(("id", "kwargs"), VARIANTS)
def test_get_state_resumes_exactly(id, kwargs):
    env = gym.make(id, **kwargs)
    env.reset(seed=1)
    actions = sample(env, 100)
    for stop in range(1, 12):  # in the middle of an episode, and before its end
        play(env, actions[:stop])
        state = env.unwrapped.get_state()
        assert all(isinstance(value, np.ndarray) and value.dtype != object for value in state.values())
        fresh = gym.make(id, **kwargs)
        fresh.unwrapped.set_state(state)
        kept = {name: value.copy() for name, value in state.items()}
        assert play(env, actions) == play(fresh, actions)
        assert data_equivalence(kept, state)  # stepping leaves a saved state alone


def test_get_state_keeps_that_an_episode_is_over():
    env = gym.make("LargeAction/ScatterChain-v0", horizon=1)
    env.reset(seed=0)
    env.step(0)
    fresh = gym.make("LargeAction/ScatterChain-v0", horizon=1)
    fresh.unwrapped.set_state(env.unwrapped.get_state())
    with pytest.raises(ResetNeeded):
        fresh.step(0)
    fresh.reset()
    env.reset()
    assert data_equivalence(fresh.unwrapped.get_state(), env.unwrapped.get_state())


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize(("id", "kwargs"), VARIANTS)
def test_vector_get_state_resumes_exactly(id, kwargs, mode):
    def go(vector, steps):
        seen = []
        for actions in steps:
            observations, rewards, terminated, truncated, _ = vector.step(actions)
            seen.append([x.tolist() for x in (observations, rewards, terminated, truncated)])
            done = terminated | truncated
            if mode == AutoresetMode.DISABLED and done.any():
                seen.append(vector.reset(options={"reset_mask": done})[0].tolist())
        return seen

    vector, fresh = (gym.make_vec(id, num_envs=4, autoreset_mode=mode, **kwargs) for _ in range(2))
    vector.reset(seed=0)
    steps = sample(vector, 40)
    for stop in (3, 4, 5, 6):
        go(vector, steps[:stop])
        state, held = vector.get_state(), vector.state
        assert all(isinstance(value, np.ndarray) and value.dtype != object for value in state.values())
        fresh.set_state(state)
        seen = go(vector, steps)
        assert all(
            np.array_equal(state[f"state.{name}"], value) for name, value in held.items()
        )  # pure steps
        for saved in (state, vector.get_state()):
            for value in saved.values():
                value[...] = 0  # what was saved is the caller's
        assert go(fresh, steps) == seen
        assert go(fresh, steps) == go(vector, steps)


@pytest.mark.parametrize(("id", "kwargs"), VARIANTS)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_of_one_equals_the_single_env(id, kwargs, mode):
    env, vector = gym.make(id, **kwargs), gym.make_vec(id, num_envs=1, autoreset_mode=mode, **kwargs)
    first, _ = env.reset(seed=5)
    np.testing.assert_array_equal(first[None], vector.reset(seed=5)[0])
    over = False
    for action in sample(env, 100):
        observations, rewards, terminated, truncated, infos = vector.step(np.array([action]))
        if over and mode == AutoresetMode.NEXT_STEP:
            expected, over = (env.reset()[0], 0.0, False, False), False
        else:
            expected = env.step(action)[:4]
            over = expected[2] or expected[3]
            if over and mode == AutoresetMode.SAME_STEP:
                np.testing.assert_array_equal(infos["final_obs"][0], expected[0])
                expected = (env.reset()[0], *expected[1:])
        np.testing.assert_array_equal(observations, expected[0][None])
        # Python's pow and numpy's may differ in the last bit of a float64
        np.testing.assert_allclose(rewards, [expected[1]], rtol=1e-14)
        assert (terminated.tolist(), truncated.tolist()) == ([expected[2]], [expected[3]])


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_autoreset_is_told_as_gymnasium_tells_it(mode):
    """The same flags, rewards and info keys as gymnasium's own SyncVectorEnv."""
    kwargs = {"horizon": 4, "k": 10}
    ours = gym.make_vec("LargeAction/ActuatorMaze-v0", num_envs=3, autoreset_mode=mode, **kwargs)
    sync = gym.make_vec(
        "LargeAction/ActuatorMaze-v0",
        num_envs=3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        **kwargs,
    )
    ours.reset(seed=0)
    sync.reset(seed=0)
    for step in range(15):
        a, b = (
            vector.step(np.zeros(3, dtype=np.int64)) for vector in (ours, sync)
        )  # nothing moves: no arrivals
        for mine, theirs in zip(a[1:4], b[1:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype
        assert a[4].keys() == b[4].keys(), step
        if "final_obs" in b[4]:
            assert a[4]["final_obs"].dtype == b[4]["final_obs"].dtype == object
            assert a[4]["final_obs"][0].shape == b[4]["final_obs"][0].shape
            np.testing.assert_array_equal(a[4]["_final_obs"], b[4]["_final_obs"])
            np.testing.assert_array_equal(a[4]["_final_info"], b[4]["_final_info"])
            assert a[4]["final_info"] == b[4]["final_info"]


@pytest.mark.parametrize("id", WORLD_IDS)
def test_vector_is_batched_and_fits_its_spaces(id):
    vector = gym.make_vec(f"envs:{id}", num_envs=5)
    assert isinstance(vector, LargeActionVectorEnv)
    assert vector.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    observations, _ = vector.reset(seed=0)
    assert observations in vector.observation_space
    for actions in sample(vector, 60):
        before = observations.copy()
        new, rewards, terminated, truncated, _ = vector.step(actions)
        np.testing.assert_array_equal(before, observations)  # what was returned is not reused
        observations = new
        assert observations in vector.observation_space
        assert observations.dtype == np.float32
        assert rewards.shape == terminated.shape == truncated.shape == (5,)
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)


def test_vector_disabled_autoreset_resets_only_where_told():
    vector = gym.make_vec("LargeAction/ActuatorMaze-v0", num_envs=3, autoreset_mode="Disabled", horizon=2)
    vector.reset(seed=0)
    still = np.zeros(3, dtype=np.int64)
    vector.step(still)
    vector.reset(options={"reset_mask": np.array([False, True, False])})
    *_, truncated, _ = vector.step(still)
    assert truncated.tolist() == [True, False, True]
    with pytest.raises(ResetNeeded, match="reset_mask"):
        vector.step(still)
    before = vector.get_state()["state.x"]
    vector.reset(options={"reset_mask": truncated})
    assert (vector.get_state()["state.x"] != before).tolist() == [True, False, True]
    vector.step(still)
    for mask in ([True] * 3, np.ones(3), np.ones(2, dtype=bool), np.zeros(3, dtype=bool)):
        with pytest.raises(ValueError, match="reset_mask"):
            vector.reset(options={"reset_mask": mask})


@pytest.mark.parametrize("limit", [2, 3, 50])
@pytest.mark.parametrize(("id", "kwargs"), VARIANTS)
def test_max_episode_steps_means_the_same_by_both_doors(id, kwargs, limit):
    env = gym.make(id, max_episode_steps=limit, **kwargs)
    vector = gym.make_vec(id, num_envs=1, max_episode_steps=limit, **kwargs)
    assert env.unwrapped.dynamics == vector.dynamics
    first, _ = env.reset(seed=5)
    np.testing.assert_array_equal(first[None], vector.reset(seed=5)[0])
    for action in sample(env, 20):
        expected = env.step(action)
        observations, _, terminated, truncated, _ = vector.step(np.array([action]))
        np.testing.assert_array_equal(observations, expected[0][None])
        assert (terminated.tolist(), truncated.tolist()) == ([expected[2]], [expected[3]])
        if expected[2] or expected[3]:
            break
    else:
        raise AssertionError("no end")


@pytest.mark.parametrize("id", WORLD_IDS)
def test_pictures(id):
    text, frames = gym.make(id, render_mode="ansi"), gym.make(id, render_mode="rgb_array")
    shapes = set()
    for env in (text, frames):
        with pytest.raises(ResetNeeded, match="render"):
            env.render()
        env.reset(seed=0)
    actions = sample(text, 5)
    pictures = []
    for action in [None, *actions]:
        if action is not None:
            text.step(action)
            frames.step(action)
        words, pixels = text.render(), frames.render()
        assert f"step {np.asarray(text.unwrapped.state['t']).item()}" in words
        assert action is None or f"action {action}:" in words
        assert pixels.dtype == np.uint8
        assert pixels.std() > 5
        shapes.add(pixels.shape)
        pictures.append(pixels)
    assert len(shapes) == 1
    assert any(not np.array_equal(pictures[0], later) for later in pictures[1:])
    vector = gym.make_vec(id, num_envs=2, render_mode="ansi")
    vector.reset(seed=0)
    vector.step(np.array(actions[:2]))
    assert [f"action {a}:" in words for a, words in zip(actions, vector.render(), strict=False)] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    "action", [-1, 1000, 1.0, np.float32(1), np.array([1]), "1", None, True, [1], np.array(1.0)]
)
def test_bad_actions(action):
    env = gym.make("LargeAction/ScatterChain-1K-v0")
    env.reset(seed=0)
    before = env.unwrapped.get_state()
    with pytest.raises(InvalidAction, match=r"one integer in \[0, 1000\)"):
        env.step(action)
    assert data_equivalence(before, env.unwrapped.get_state())
    for good in (1, np.int64(1), np.int32(1), np.uint8(1), np.array(1)):
        env.step(good)


@pytest.mark.parametrize(
    "actions", [[0, 1000], [-1, 0], [0.0, 1.0], [0], [[0, 1]], 0, [True, False], ["a", "b"], [None, None]]
)
def test_bad_vector_actions(actions):
    vector = gym.make_vec("LargeAction/ScatterChain-1K-v0", num_envs=2)
    vector.reset(seed=0)
    before = vector.get_state()
    with pytest.raises(InvalidAction, match="Actions are"):
        vector.step(np.array(actions))
    assert data_equivalence(before, vector.get_state())
    vector.step([0, 1])
    vector.step(np.array([0, 1], dtype=np.uint64))


def test_step_before_reset():
    with pytest.raises(ResetNeeded, match="reset"):
        gym.make("LargeAction/ScatterChain-v0").step(0)
    vector = gym.make_vec("LargeAction/ScatterChain-v0", num_envs=2)
    for call in (lambda: vector.step([0, 0]), vector.get_state):
        with pytest.raises(ResetNeeded, match="reset"):
            call()
    with pytest.raises(ResetNeeded, match="reset"):
        gym.make("LargeAction/ScatterChain-v0").unwrapped.get_state()
    with pytest.raises(ResetNeeded, match="without a reset_mask"):
        vector.reset(options={"reset_mask": np.array([True, False])})


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_bad_arguments(make):
    with pytest.raises(TypeError, match="unexpected keyword argument 'kapa'; it takes n, kappa"):
        make("LargeAction/ScatterChain-v0", kapa=2.0)
    with pytest.raises(ValueError, match="render_mode must be"):
        LargeActionEnv(ScatterChain(), render_mode="rgb")
    with pytest.raises(ValueError, match=r"n must be an int in \[2, 2\^62\], got 0$"):
        make("LargeAction/ScatterChain-v0", n=0)
    with pytest.raises(ValueError, match=r"got 1000000\.0: write 1_000_000"):
        make("LargeAction/ScatterChain-v0", n=1e6)
    for name in ("kappa", "slip", "traps", "advance"):
        for value in ("a", None, float("nan"), True):
            with pytest.raises(ValueError, match=f"{name} must be a number"):
                make("LargeAction/ScatterChain-v0", **{name: value})
    for name in ("step_size", "radius", "noise"):
        with pytest.raises(ValueError, match=f"{name} must be a number"):
            make("LargeAction/ActuatorMaze-v0", **{name: "a"})


def test_numpys_numbers_are_numbers():
    world = gym.make("LargeAction/ScatterChain-v0", n=np.int64(1000), kappa=np.float32(2)).unwrapped.dynamics
    assert world == ScatterChain(n=1000, kappa=2.0)
    assert type(world.n) is int


def test_bad_vector_arguments():
    for num_envs in (0, 2.0):
        with pytest.raises(ValueError, match="num_envs"):
            gym.make_vec("LargeAction/ScatterChain-v0", num_envs=num_envs)
    with pytest.raises(ValueError, match=r"autoreset_mode must be an AutoresetMode or one of \['NextStep'"):
        gym.make_vec("LargeAction/ScatterChain-v0", autoreset_mode="sometimes")
    with pytest.raises(ValueError, match="max_episode_steps must be an int"):
        gym.make_vec("LargeAction/ScatterChain-v0", max_episode_steps=0)
    vector, three = (gym.make_vec("LargeAction/ScatterChain-v0", num_envs=number) for number in (2, 3))
    three.reset()
    with pytest.raises(ValueError, match="state of 3 environments"):
        vector.set_state(three.get_state())


def test_doors_take_a_world_too():
    env = LargeActionEnv(ActuatorMaze(k=10), horizon=9)
    assert (env.dynamics.k, env.dynamics.horizon) == (10, 9)
    assert LargeActionVectorEnv(ScatterChain(n=100), num_envs=2).dynamics.n == 100


def test_a_spec_survives_json():
    env = gym.make("LargeAction/ScatterChain-v0", n=123)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.dynamics == env.unwrapped.dynamics
    assert json.loads(env.spec.to_json())["kwargs"]["n"] == 123


@pytest.mark.parametrize("id", ["LargeAction/ScatterChain-1G-v0", "LargeAction/ActuatorMaze-2p30-v0"])
def test_a_billion_actions_need_no_memory(id):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    env, vector = gym.make(id), gym.make_vec(id, num_envs=64)
    env.reset(seed=0)
    vector.reset(seed=0)
    for actions in sample(vector, 20):
        env.step(int(actions[0]))
        vector.step(actions)
        if env.unwrapped._done:
            env.reset()
        env.unwrapped.dynamics.optimal_action(vector.state)
        env.unwrapped.dynamics.random_return()
        env.unwrapped.dynamics.good_fraction(0.1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB on Linux
    assert grown < 300 * 1024


@pytest.mark.parametrize("id", ["LargeAction/ScatterChain-1K-v0", "LargeAction/ActuatorMaze-2p10-v0"])
def test_an_agent_of_stable_baselines3_runs(id):
    sb3 = pytest.importorskip("stable_baselines3")
    agent = sb3.DQN(
        "MlpPolicy", gym.make(id), learning_starts=50, policy_kwargs={"net_arch": [8]}, device="cpu"
    )
    agent.learn(200)
    assert agent.num_timesteps == 200


def test_gymnasium_wrappers_work_on_both_doors():
    vector = gym.wrappers.vector.RecordEpisodeStatistics(
        gym.make_vec("LargeAction/ScatterChain-v0", num_envs=2, horizon=4)
    )
    vector.reset(seed=0)
    for _ in range(4):
        *_, infos = vector.step(vector.action_space.sample())
    assert infos["episode"]["l"].tolist() == [4, 4]
    env = gym.make("LargeAction/ScatterChain-v0", max_episode_steps=2, disable_env_checker=False)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(2)] == [False, True]
