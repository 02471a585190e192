"""Memories: what was good before, bounded, told apart by the bits of an observation."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from extensions.stochmax import CachedArgmax, Elite, IdCodec, Maximum, RecentExploited
from extensions.stochmax.hashing import hash_observations
from extensions.stochmax.memories import MostExploited
from extensions.stochmax.sources import Query

CPU = torch.device("cpu")


def about(obs, **kwargs) -> Query:
    batch = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
    return Query(batch, CPU, obs, **kwargs)


# -- telling observations apart --


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_all_binary_observations_differ(dtype):
    # a hash that is linear in the words confuses 1001 with 0110
    obs = torch.tensor(list(itertools.product([0, 1], repeat=12)), dtype=dtype)
    assert len(hash_observations(obs).unique()) == 2**12


def test_permuted_and_shifted_observations_differ():
    rows = [*itertools.permutations([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]
    rows += [tuple(x + 1.0 for x in r) for r in rows]
    assert len(hash_observations(torch.tensor(rows)).unique()) == len(set(rows))


def test_random_observations_differ():
    obs = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    assert len(hash_observations(obs).unique()) == len(obs)


def test_a_single_pixel_tells_images_apart():
    images = torch.zeros(50, 3, 8, 8, dtype=torch.uint8)
    images.reshape(50, -1)[torch.arange(1, 50), torch.arange(1, 50)] = 1
    assert len(hash_observations(images).unique()) == 50


def test_equal_observations_have_equal_keys_in_any_process():
    obs = torch.tensor([[1.5, -2.0], [0.0, 3.0], [-0.0, 3.0]])
    keys = hash_observations(obs)
    assert keys.dtype == torch.int64
    assert keys[1] == keys[2]  # -0.0 is 0.0
    assert keys.tolist() == [
        -9128273852049678294,
        -6499130995834370089,
        -6499130995834370089,
    ]  # splitmix64 by hand
    assert torch.equal(hash_observations(obs.clone().reshape(3, 1, 2)), keys)


def test_dict_observations_do_not_depend_on_the_order_of_keys():
    a, b = torch.rand(4, 3), torch.randint(5, (4,))
    keys = hash_observations({"a": a, "b": b})
    assert torch.equal(keys, hash_observations({"b": b, "a": a}))
    assert len(keys.unique()) == 4
    assert not torch.equal(keys, hash_observations({"a": a, "b": b + 1}))


# -- RecentExploited --


def recent(n=10**6, **kwargs) -> RecentExploited:
    memory = RecentExploited(**kwargs)
    memory.bind(IdCodec(n))
    return memory


def test_recent_exploited_recalls_what_was_exploited_in_this_state():
    memory = recent(k=3)
    obs = torch.tensor([[0.0], [1.0]])
    memory.executed(obs, torch.tensor([10, 20]))
    memory.executed(obs, torch.tensor([11, 20]))
    ids = memory.propose(about(obs))
    assert ids.shape == (2, 3)
    assert ids.dtype == torch.int64
    assert ids[0, :2].tolist() == [11, 10]  # the latest first
    assert ids[1, 0].item() == 20  # once, though exploited twice


def test_recent_exploited_keeps_k_actions_a_state():
    memory = recent(k=2)
    obs = torch.zeros(1, 1)
    for action in (1, 2, 3, 2):
        memory.executed(obs, torch.tensor([action]))
    assert memory.propose(about(obs)).tolist() == [[2, 3]]


def test_recent_exploited_fills_up_with_uniform_ids():
    memory = recent(n=50, k=40)
    ids = memory.propose(about(torch.zeros(20, 1)))
    assert ids.min() >= 0
    assert ids.max() < 50
    assert len(ids.unique()) > 40


def test_recent_exploited_forgets_the_state_exploited_longest_ago():
    memory = recent(k=1, capacity=2)
    obs = torch.tensor([[0.0], [1.0], [2.0]])
    memory.executed(obs[:2], torch.tensor([10, 11]))
    memory.executed(obs[:1], torch.tensor([10]))  # state 0 is now the more recent
    memory.executed(obs[2:], torch.tensor([12]))
    assert len(memory._states) == 2
    ids = memory.propose(about(obs)).flatten().tolist()
    assert (ids[0], ids[2]) == (10, 12)
    assert ids[1] != 11


def test_recent_exploited_takes_dict_observations():
    memory = recent(k=1)
    obs = {"x": torch.tensor([[0.0], [1.0]]), "goal": torch.tensor([3, 3])}
    memory.executed(obs, torch.tensor([10, 11]))
    assert memory.propose(about(obs)).flatten().tolist() == [10, 11]


def test_recent_exploited_size_follows_n():
    assert recent(n=10**6).k == 20


# -- CachedArgmax --


def test_cached_argmax_proposes_what_the_replay_carries():
    memory = CachedArgmax()
    memory.bind(IdCodec(9))
    obs = torch.zeros(3, 1)
    assert memory.propose(about(obs, cached=torch.tensor([4, 5, 6]))).tolist() == [[4], [5], [6]]
    assert memory.propose(about(obs)).shape[-1] == 0  # acting: there is no transition yet


# -- Elite --


def maxima(actions, values):
    """What a source hears of maxima: the query and the best."""
    return about(torch.zeros(len(actions), 1)), Maximum(values, actions, torch.zeros_like(actions))


def test_elite_proposes_the_best_of_the_window():
    memory = Elite(k=2, window=4)
    memory.bind(IdCodec(100))
    memory.maximised(*maxima(torch.tensor([1, 2, 3]), torch.tensor([9.0, 5.0, 7.0])))
    assert set(memory.propose(about(torch.zeros(1, 1))).tolist()) == {1, 3}
    memory.maximised(*maxima(torch.tensor([4, 5]), torch.tensor([6.0, 6.5])))  # 1 falls out of the window
    assert set(memory.propose(about(torch.zeros(1, 1))).tolist()) == {3, 5}


def test_elite_at_first_draws():
    memory = Elite(k=7)
    memory.bind(IdCodec(100))
    ids = memory.propose(about(torch.zeros(2, 1)))
    assert ids.shape == (7,)
    assert len(ids.unique()) == 7


# -- MostExploited --


def test_most_exploited_ranks_by_how_often():
    memory = MostExploited(2)
    assert memory.ids().tolist() == []
    memory.add(np.array([1, 2, 1, 9]))
    assert memory.ids().tolist() == [1, 2]  # of equals the lowest
    memory.add(np.array([9, 9]))
    assert memory.ids().tolist() == [9, 1]


def test_most_exploited_forgets_what_leaves_the_window():
    memory = MostExploited(5, window=4)
    memory.add(np.array([1, 1, 1, 2]))
    memory.add(np.array([3, 3]))
    assert memory.ids().tolist() == [3, 1, 2]
    memory.add(np.array([3]))
    assert memory.ids().tolist() == [3, 2]


def test_most_exploited_is_saved_with_a_network_and_goes_on_the_same():
    memory, other = MostExploited(3, window=50), MostExploited(3, window=50)
    rng = np.random.default_rng(0)
    memory.add(rng.integers(20, size=77))
    other.add(np.array([5]))
    other.load_state_dict(memory.state_dict())
    for _ in range(30):
        assert other.ids().tolist() == memory.ids().tolist()
        ids = rng.integers(20, size=3)
        memory.add(ids)
        other.add(ids)


# -- all --


@pytest.mark.parametrize(
    "make",
    [
        lambda: RecentExploited(k=0),
        lambda: RecentExploited(capacity=0),
        lambda: Elite(k=0),
        lambda: Elite(k=9, window=8),
    ],
)
def test_sizes_that_make_no_sense(make):
    with pytest.raises(ValueError, match=r"at least one|must hold"):
        make()


def test_memories_survive_pickling():
    recents, elite = recent(k=1), Elite(k=1)
    elite.bind(IdCodec(10))
    obs = torch.zeros(1, 2)
    recents.executed(obs, torch.tensor([7]))
    elite.maximised(*maxima(torch.tensor([3]), torch.tensor([1.0])))
    again = pickle.loads(pickle.dumps([recents, elite]))
    for memory in again:  # binding belongs to a model's setting up, and comes before use
        memory.bind(IdCodec(10))
    assert [m.propose(about(obs)).flatten().tolist() for m in again] == [[7], [3]]
