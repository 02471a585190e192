"""The torch trees of the prioritised sampler, against sums written out."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from extensions.torchrl import TorchPrioritizedSampler
from extensions.torchrl.stoch_dqn.prioritized import SegmentTree


@given(st.integers(1, 40), st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=6), max_size=10))
@settings(max_examples=60, deadline=None)
def test_trees_are_sums_and_minima(size, writes):
    total, least = (SegmentTree(size, k, torch.float64, torch.device("cpu")) for k in (False, True))
    leaves = np.zeros(size)
    for number, write in enumerate(writes):
        index = torch.tensor(write) % size
        values = torch.arange(1.0, len(write) + 1) + number
        total[index] = values
        least[index] = values
        for i, v in zip(index.tolist(), values.tolist(), strict=True):  # of repeats the last
            leaves[i] = v
    written = leaves[leaves > 0]
    assert total.query(0, size).item() == pytest.approx(leaves.sum())
    assert least.query(0, size).item() == (written.min() if len(written) else float("inf"))
    assert total[torch.arange(size)].tolist() == leaves.tolist()
    if len(written):
        mass = torch.linspace(0, leaves.sum() * (1 - 1e-12), 50, dtype=torch.float64)
        expected = np.searchsorted(np.cumsum(leaves), mass.numpy(), side="right")
        assert total.scan_lower_bound(mass).tolist() == expected.tolist()


def filled(alpha=0.7, beta=0.5):
    sampler = TorchPrioritizedSampler(10, alpha=alpha, beta=beta)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(10), sampler=sampler, priority_key="td_error", batch_size=4000
    )
    buffer.extend(TensorDict({"x": torch.arange(6)}, [6]))
    priorities = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 10.0])
    buffer.update_priority(torch.arange(6), priorities)
    return sampler, buffer, priorities


def test_items_are_drawn_by_their_priority_and_weighted_against_it():
    torch.manual_seed(0)
    np.random.seed(0)
    sampler, buffer, priorities = filled()
    batch = buffer.sample()
    p = (priorities + sampler._eps) ** 0.7
    shares = torch.bincount(batch["x"], minlength=6) / 4000
    assert torch.allclose(shares, p / p.sum(), atol=0.03)
    assert torch.allclose(batch["priority_weight"].float(), ((p / p.min()) ** -0.5)[batch["x"]], rtol=1e-4)


def test_a_loaded_sampler_draws_the_same():
    sampler, buffer, _ = filled()
    other, other_buffer, _ = filled(alpha=0.1)
    other.load_state_dict(copy.deepcopy(sampler.state_dict()))
    draws = []
    for b in (buffer, other_buffer):
        np.random.seed(3)
        draws.append(b.sample()["x"])
    assert torch.equal(*draws)


def test_it_is_written_and_read_as_the_hosts(tmp_path):
    sampler, _, _ = filled()
    sampler.dumps(tmp_path)
    other = TorchPrioritizedSampler(10, alpha=0.7, beta=0.5)
    other.loads(tmp_path)
    everything = torch.arange(10)
    assert torch.allclose(other._sum_tree[everything], sampler._sum_tree[everything])
    assert torch.allclose(other._sum_tree.query(0, 10), sampler._sum_tree.query(0, 10))
