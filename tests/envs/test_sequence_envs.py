"""Sequences shown to agents: what the hosts' checkers say, what pays, and what chance brings."""

import pickle
import warnings
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env

import envs
from envs.sequence_tasks.streams import ASK, PAD, WAIT, SequenceStream

IDS = ["Glasses-CopyFirst-v0", "Glasses-CopyLast-v0", "Glasses-Count-v0"]
MODES = [{}, {"one_hot": True}, {"obs_mode": "full"}, {"p": 0.5, "lengths": (1, 3)}]


def remembered_answer(id, tokens):
    """The action that answers, from the tokens that were seen."""
    return 1 + {"CopyFirst": tokens[0], "CopyLast": tokens[-1], "Count": sum(tokens)}[id.split("-")[1]]


def play(env, agent):
    """Return, number of steps, and the tokens of an episode; ``agent(observation, tokens)`` gives actions."""
    observation, tokens, total, steps, done = env.reset()[0], [], 0.0, 0, False
    while not done:
        if observation != ASK:
            tokens.append(int(observation))
        observation, reward, done, truncated, _ = env.step(agent(observation, tokens))
        assert (type(reward), type(done), truncated) == (float, bool, False)
        total, steps = total + reward, steps + 1
        assert reward == 0.0 or done
    return total, steps, tokens


def seen(env, steps, seed):
    """Everything that random play shows, as bytes and numbers."""
    env.action_space.seed(seed)
    trace = [pickle.dumps(env.reset(seed=seed)[0])]
    for _ in range(steps):
        observation, reward, done, _, _ = env.step(env.action_space.sample())
        trace.append((pickle.dumps(observation), reward, done))
        if done:
            trace.append(pickle.dumps(env.reset()[0]))
    return trace


def test_no_worlds_of_many_actions():
    assert not set(IDS) & set(envs.world_ids())


@pytest.mark.parametrize("kwargs", MODES, ids=str)
@pytest.mark.parametrize("id", IDS)
def test_the_checkers_have_nothing_to_say(id, kwargs):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_env(gym.make(f"envs:{id}", render_mode="ansi", **kwargs).unwrapped)
        sb3.check_env(gym.make(id, **kwargs))
    assert [str(warning.message) for warning in said] == []


@pytest.mark.parametrize("kwargs", MODES, ids=str)
@pytest.mark.parametrize("id", IDS)
def test_torchrl_takes_them(id, kwargs):
    torchrl = pytest.importorskip("torchrl.envs")
    env = torchrl.GymEnv(id, categorical_action_encoding=True, **kwargs)
    torchrl.check_env_specs(env, seed=0, break_when_any_done="both")
    assert env.rollout(200, break_when_any_done=True)["next", "terminated"][-1].item()


@pytest.mark.parametrize("kwargs", MODES, ids=str)
@pytest.mark.parametrize("id", IDS)
def test_equal_seeds_equal_episodes(id, kwargs):
    one, other = gym.make(id, **kwargs), gym.make(id, **kwargs)
    assert seen(one, 60, seed=3) == seen(other, 60, seed=3)
    assert seen(one, 60, seed=3) != seen(other, 60, seed=4)


@pytest.mark.parametrize("p", [None, 0.5])
@pytest.mark.parametrize("id", IDS)
def test_who_remembers_is_always_right(id, p):
    env = gym.make(id, p=p)
    env.reset(seed=0)
    lengths = Counter()
    for _ in range(300):
        total, steps, tokens = play(
            env, lambda observation, tokens: remembered_answer(id, tokens) if observation == ASK else WAIT
        )
        assert total == 1.0
        assert steps == len(tokens) + 1
        lengths[len(tokens)] += 1
    assert set(lengths) == set(range(4, 17))


@pytest.mark.parametrize("mode", ["stream", "full"])
@pytest.mark.parametrize("id", IDS)
def test_the_optimal_action(id, mode):
    env = gym.make(id, obs_mode=mode)
    for seed in range(20):
        env.reset(seed=seed)
        done, total = False, 0.0
        while not done:
            _, reward, done, _, _ = env.step(env.unwrapped.optimal_action())
            total += reward
        assert total == 1.0


@pytest.mark.parametrize("id", IDS)
def test_the_whole_sequence_at_once(id):
    env = gym.make(id, obs_mode="full", lengths=(2, 9), p=0.5)
    for seed in range(50):
        observation = env.reset(seed=seed)[0]
        tokens = observation["tokens"][observation["mask"] == 1].tolist()
        assert (observation["tokens"][observation["mask"] == 0] == PAD).all()
        assert 2 <= len(tokens) <= 9
        _, reward, done, _, _ = env.step(remembered_answer(id, tokens))
        assert (reward, done) == (1.0, True)


@pytest.mark.parametrize(("id", "chance"), [(IDS[0], 1 / 3), (IDS[1], 1 / 3), (IDS[2], 1 / 18)])
def test_random_play_brings_what_chance_says(id, chance):
    env = gym.make(id)
    env.reset(seed=0)
    env.action_space.seed(0)
    episodes = 4000
    mean = np.mean([play(env, lambda *_: env.action_space.sample())[0] for _ in range(episodes)])
    assert abs(mean - chance) < 4 * np.sqrt(chance * (1 - chance) / episodes)


@pytest.mark.parametrize("id", IDS)
def test_answers_are_equally_likely(id):
    env = gym.make(id, lengths=(6, 6))
    env.reset(seed=0)
    answers = Counter()
    for _ in range(4000):
        answers[remembered_answer(id, play(env, lambda *_: WAIT)[2])] += 1
    share = 1 / (7 if id == IDS[2] else 2)
    assert len(answers) == round(1 / share)
    assert all(abs(n / 4000 - share) < 4 * np.sqrt(share * (1 - share) / 4000) for n in answers.values())


def test_copying_is_from_a_run_of_ones_unless_p_says_otherwise():
    for id, others in ((IDS[0], slice(1, None)), (IDS[1], slice(None, -1))):
        for p, found in ((None, {1}), (1.0, {1}), (0.0, {0}), (0.5, {0, 1})):
            env = gym.make(id, p=p)
            env.reset(seed=0)
            tokens = [play(env, lambda *_: WAIT)[2] for _ in range(20)]
            assert {token for one in tokens for token in one[others]} == found
            assert {one[0 if id == IDS[0] else -1] for one in tokens} == {0, 1}


@pytest.mark.parametrize("kwargs", MODES, ids=str)
@pytest.mark.parametrize("id", IDS)
def test_going_on_from_a_state(id, kwargs):
    env, other = (gym.make(id, **kwargs).unwrapped for _ in range(2))
    env.reset(seed=1)
    if not kwargs.get("obs_mode"):
        env.step(0)
    other.set_state(env.get_state())

    def go_on(one):
        trace = []
        for action in [0, 1, 0, 2, 1, 0] * 10:
            if one._done:
                trace.append(pickle.dumps(one.reset()[0]))
            trace.append(pickle.dumps(one.step(action)))
        return trace

    assert go_on(env) == go_on(other)
    over = SequenceStream("count", obs_mode="full")
    over.reset(seed=0)
    over.step(1)
    other = SequenceStream("count", obs_mode="full")
    other.set_state(over.get_state())
    with pytest.raises(ResetNeeded):
        other.step(1)


def test_vectors_of_them():
    vector = gym.make_vec(IDS[0], num_envs=3)
    observations, _ = vector.reset(seed=0)
    assert observations.shape == (3,)
    assert vector.step(np.zeros(3, dtype=np.int64))[1].tolist() == [0.0, 0.0, 0.0]


def test_what_is_rendered():
    env = gym.make(IDS[0], lengths=(2, 2), render_mode="ansi")
    first = env.reset(seed=0)[0]
    assert env.render() == f"copy_first: {first}\n"
    env.step(0)
    assert env.render() == f"copy_first: {first} 1\n"
    env.step(0)
    assert env.render() == f"copy_first: {first} 1 ?\n"
    full = gym.make(IDS[0], lengths=(2, 2), obs_mode="full", render_mode="ansi")
    full.reset(seed=0)
    assert full.render() == f"copy_first: {first} 1 ?\n"


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"kind": "sum"}, "kind must be one of copy_first"),
        ({"obs_mode": "half"}, "obs_mode must be one of stream, full"),
        ({"lengths": (0, 3)}, "1 <= lo <= hi"),
        ({"lengths": (5, 3)}, "1 <= lo <= hi"),
        ({"p": -0.1}, "p must be None or a chance"),
        ({"obs_mode": "full", "one_hot": True}, "leave it False"),
        ({"render_mode": "rgb_array"}, "render_mode must be None or 'ansi'"),
    ],
    ids=str,
)
def test_what_is_refused(kwargs, says):
    with pytest.raises(ValueError, match=says):
        SequenceStream(**{"kind": "count", **kwargs})


def test_calls_out_of_turn_and_actions_out_of_range():
    env = SequenceStream("copy_first", obs_mode="full")
    for call in (lambda: env.step(0), env.optimal_action, env.get_state):
        with pytest.raises(ResetNeeded):
            call()
    env.reset(seed=0)
    for action in (3, -1, 0.5, True):
        with pytest.raises(InvalidAction):
            env.step(action)
    env.step(1)
    with pytest.raises(ResetNeeded):
        env.step(1)
