"""The batched tabular environment: what it says it does, and what it refuses."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from extensions.tabular import TabularMDP
from extensions.tabular.environments import with_index


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"])
def test_a_toy_text_is_read_as_gymnasium_lists_it(name):
    listed, mdp = gym.make(name).unwrapped.P, TabularMDP.from_gymnasium(name)
    assert mdp.max_episode_steps == gym.spec(name).max_episode_steps
    todo, live = set(np.flatnonzero(mdp.initial)), set()
    while todo - live:
        live |= todo
        todo = {o[1] for s in live for outcomes in listed[s].values() for o in outcomes if not o[3]}
    assert len(live) > 10
    for s in live:
        for a, outcomes in listed[s].items():
            expected = np.zeros(mdp.n_states)
            for p, reached, reward, ended in outcomes:
                expected[reached] += p
                assert mdp.rewards[s, a, reached].item() == pytest.approx(reward)
                assert bool(mdp.terminal[reached]) == ended
            np.testing.assert_allclose(mdp.transitions[s, a], expected)


def test_it_reaches_states_pays_and_begins_as_its_tables_say(mdp):
    env = mdp(4000, states=3, n=2, initial=torch.tensor([0.25, 0.75, 0.0]), max_episode_steps=None)
    state = env.reset(seed=0)
    counts, first = torch.zeros(3, 2, 3), torch.bincount(state, minlength=3).double()
    sums = torch.zeros(3, 2)
    torch.manual_seed(0)
    for _ in range(30):
        actions = torch.randint(2, (4000,))
        step = env.step(actions)
        counts.index_put_((state, actions, step.next_state), torch.ones(4000), accumulate=True)
        sums.index_put_((state, actions), step.reward.float(), accumulate=True)
        assert torch.equal(step.terminated, step.next_state == 2)
        first += torch.bincount(step.state[step.terminated], minlength=3)
        state = step.state
    live = counts[:2].sum(-1)
    np.testing.assert_allclose(counts[:2] / live[..., None], env.transitions[:2], atol=0.02)
    np.testing.assert_allclose(sums[:2] / live, env.rewards[:2, :, 0], atol=0.03)
    np.testing.assert_allclose(first / first.sum(), env.initial, atol=0.02)


@pytest.mark.parametrize("std", [0.0, 0.5, 3.0])
def test_rewards_have_the_standard_deviation_it_is_given(std, mdp):
    env = mdp(2000, reward_std=std)
    noise = []
    state = env.reset(seed=0)
    for _ in range(10):
        step = env.step(torch.zeros(2000, dtype=torch.int64))
        noise.append(step.reward - env.rewards[state, 0, step.next_state])
        state = step.state
    assert float(torch.stack(noise).std()) == pytest.approx(std, rel=0.03)
    assert abs(float(torch.stack(noise).mean())) <= 4 * std / 20_000**0.5


def test_it_steps_on_the_gpu_that_cuda_names(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert with_index("cuda") == torch.device("cuda", 3)
    assert with_index(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert with_index("cpu") == torch.device("cpu")


def test_an_episode_is_cut_short_and_begins_anew(mdp):
    env = mdp(5, max_episode_steps=3, terminal=None, initial=torch.eye(5)[2])
    env.reset(seed=0)
    for t in range(1, 10):
        step = env.step(torch.zeros(5, dtype=torch.int64))
        assert bool((step.truncated == (t % 3 == 0)).all())
        assert bool((step.state == (2 if t % 3 == 0 else step.next_state)).all())
        assert not bool(step.terminated.any())


def test_its_state_can_be_put_back(mdp):
    env, other = mdp(3), mdp(3)
    env.reset(seed=4)
    for t in range(200):
        if t == 64 or t == 130:  # at the beginning of a block of numbers, and within one
            other.set_state(env.get_state())
        a = torch.full((3,), t % 12)
        step = env.step(a)
        if t >= 64:
            assert all(torch.equal(x, y) for x, y in zip(step, other.step(a), strict=True))


def test_a_reset_without_a_seed_goes_on(mdp):
    a, b = mdp(50), mdp(50)
    a.reset(seed=1)
    first = b.reset(seed=1)
    assert torch.equal(a.reset(), b.reset())
    assert not torch.equal(b.reset(), first)


def test_a_state_without_probability_is_never_reached():
    p = torch.zeros(4, 1, 4, dtype=torch.float64)
    p[..., 1], p[..., 2] = 0.1, 0.9
    env = TabularMDP(p, torch.zeros(4, 1), n_runs=10_000)
    env.reset(seed=0)
    for _ in range(10):
        assert set(env.step(torch.zeros(10_000, dtype=torch.int64)).next_state.tolist()) == {1, 2}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"transitions": torch.ones(2, 3, 4)}, r"must be \(S, n, S\)"),
        ({"transitions": torch.ones(2, 3, 2)}, "must be probabilities"),
        ({"transitions": torch.tensor([1.5, -0.5]).expand(2, 3, 2)}, "must be probabilities"),
        ({"transitions": torch.full((2, 3, 2), float("nan"))}, "must be probabilities"),
        ({"rewards": torch.zeros(3, 2)}, r"rewards must be \(S, n\)"),
        ({"rewards": torch.full((2, 3), float("nan"))}, "must be finite"),
        ({"reward_std": -1.0}, "not negative"),
        ({"initial": torch.ones(3)}, r"must be \(S,\)"),
        ({"initial": torch.ones(2)}, "initial must be probabilities"),
        ({"n_runs": 0}, "at least 1"),
        ({"max_episode_steps": 0}, "at least 1, or None"),
    ],
)
def test_what_is_no_mdp_is_refused(changed, message):
    arguments = {"transitions": torch.full((2, 3, 2), 0.5), "rewards": torch.zeros(2, 3), **changed}
    with pytest.raises(ValueError, match=message):
        TabularMDP(**arguments)


def test_an_environment_without_a_list_of_its_transitions_is_refused():
    with pytest.raises(ValueError, match="no dict P"):
        TabularMDP.from_gymnasium("Blackjack-v1")
