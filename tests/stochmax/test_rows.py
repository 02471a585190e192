"""Tables of rows: sparse gradients, lazy targets against the dense recursion, compact checkpoints."""

import copy
import mmap
import sys
import unittest.mock
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from extensions.lazy_zeros import lazy_zeros
from extensions.optim import RowAdam, clip_grad_norm_
from extensions.stochmax import RowTable, TargetRows

N, WIDTH = 12, 3

# -- memory --


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_lazy_zeros_are_zeros(dtype):
    zeros = lazy_zeros(5, 2, dtype=dtype)
    assert torch.equal(zeros, torch.zeros(5, 2, dtype=dtype))
    zeros[3] = 1.0
    assert zeros.sum() == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory in use from /proc")
def test_lazy_zeros_take_memory_for_rows_written_alone():
    def in_use():
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    zeros = lazy_zeros(10**6, 128)  # 512 MB
    before = in_use()
    zeros[torch.arange(0, 10**6, 10**4)] = 1.0  # 100 rows: of huge pages, 200 MB
    assert float(zeros[::5000].sum()) == 100 * 128  # and rows that are read take none
    assert in_use() - before < 16e6


# -- the online table --


def test_rows_have_a_sparse_gradient_equal_to_the_dense_one():
    table = RowTable(N, WIDTH, torch.float64)
    dense = torch.randn(N, WIDTH, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        table.weight.copy_(dense)
    ids = torch.tensor([[1, 5], [5, 5], [0, 1]])
    weight = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    (table(ids) * weight).sum().backward()
    (dense[ids] * weight).sum().backward()
    assert table.weight.grad.is_sparse
    assert set(table.grad_rows().tolist()) == {0, 1, 5}
    assert torch.allclose(table.weight.grad.to_dense(), dense.grad, rtol=0, atol=1e-15)


def test_grad_rows_of_no_and_of_dense_gradient():
    table = RowTable(N, WIDTH)
    assert table.grad_rows() is None
    table.weight.sum().backward()
    assert table.grad_rows().tolist() == list(range(N))


# -- targets --


def pair(n=N, dtype=torch.float64, online_class=RowTable):
    online, target = online_class(n, WIDTH, dtype), TargetRows(n, WIDTH, dtype)
    target.follow(online)
    return online, target


def change(online, target, ids, generator):
    """What an optimizer step does: announced first, then done."""
    target.before_update(ids)
    with torch.no_grad():
        online.weight[ids] += torch.randn(len(ids), WIDTH, dtype=online.weight.dtype, generator=generator)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.lists(st.integers(0, N - 1), min_size=1, max_size=6)),
        st.tuples(st.just("sync"), st.sampled_from([1.0, 0.5, 0.005, 0.9, 0.0])),
        st.tuples(st.just("read"), st.lists(st.integers(0, N - 1), min_size=1, max_size=4)),
        st.tuples(st.just("save"), st.none()),
        st.tuples(st.just("load"), st.none()),
        st.tuples(st.just("copy"), st.none()),
    ),
    max_size=40,
)


@pytest.mark.parametrize("looks", [True, False], ids=["looking", "without looking"])
@given(EVENTS, st.integers(0, 2**16), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_lazy_target_is_the_dense_recursion(looks, events, seed, compact):
    """Whatever is interleaved: updates with repeats, hard and soft syncs at any tau, reads, checkpoints."""
    with unittest.mock.patch("extensions.stochmax.rows.may_look", return_value=looks):
        assert_it_is_the_dense_recursion(events, seed, compact)


def assert_it_is_the_dense_recursion(events, seed, compact):
    generator = torch.Generator().manual_seed(seed)
    online, target = pair()
    if compact:
        online.DENSE_BELOW = target.DENSE_BELOW = 0
    dense = torch.zeros(N, WIDTH, dtype=torch.float64)
    saved = None
    for event, what in [*events, ("read", list(range(N)))]:
        if event == "change":
            change(online, target, torch.tensor(what).unique(), generator)
        elif event == "sync":
            target.sync(what)
            dense = (1 - what) * dense + what * online.weight.detach()
        elif event == "read":
            ids = torch.tensor(what)
            assert torch.allclose(target(ids).detach(), dense[ids], rtol=1e-14, atol=1e-14)
        elif event == "save":
            saved = copy.deepcopy((online.state_dict(), target.state_dict(), dense))
        elif event == "load" and saved is not None:
            online.load_state_dict(saved[0])
            target.load_state_dict(saved[1])
            dense = saved[2].clone()
        elif event == "copy":
            online, target = copy.deepcopy((online, target))


def test_polyak_over_many_syncs_at_once():
    generator = torch.Generator().manual_seed(0)
    online, target = pair()
    ids = torch.arange(N)
    target.sync(0.005)  # from now on soft
    change(online, target, ids, generator)
    dense = torch.zeros(N, WIDTH, dtype=torch.float64)
    for _ in range(2000):
        dense = 0.995 * dense + 0.005 * online.weight.detach()
        target.sync(0.005)
    assert torch.allclose(target(ids).detach(), dense, rtol=1e-12)


def test_a_soft_sync_writes_nothing():
    online, target = pair()
    target.sync(0.5)
    change(online, target, torch.tensor([2, 3]), torch.Generator())
    before = target.weight.detach().clone()
    for _ in range(10):
        target.sync(0.5)
    assert torch.equal(target.weight, before)
    assert not torch.equal(target(torch.tensor([2])), before[2:3])


def test_a_hard_sync_writes_nothing_and_reads_as_a_copy():
    online, target = pair(n=1000)
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([3, 500])
    change(online, target, ids, generator)
    assert not target(ids).any()  # as before the change
    before = target.weight.detach().clone()
    target.sync(1.0)
    assert torch.equal(target.weight, before)
    assert torch.equal(target(ids), online.weight[ids])
    old = online.weight.detach()[ids].clone()
    change(online, target, torch.tensor([500]), generator)
    assert torch.equal(target(ids), old)  # until the next sync


def test_a_sync_may_be_left_out_by_a_flag_on_the_device():
    online, target = pair()
    ids = torch.tensor([1])
    change(online, target, ids, torch.Generator())
    target.sync(1.0, when=torch.tensor(False))
    assert not target(ids).any()
    target.sync(1.0, when=torch.tensor(True))
    assert torch.equal(target(ids), online.weight[ids])


@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_a_step_of_a_table_has_fixed_shapes_and_reads_nothing_back(tau, monkeypatch):
    """As CUDA graphs want it. Fake tensors raise where a shape or a branch depends on their values."""
    for module in ("extensions.stochmax.rows", "extensions.optim.row_adam"):
        monkeypatch.setattr(f"{module}.lazy_zeros", lambda *shape, **kwargs: torch.zeros(shape, **kwargs))
    monkeypatch.setattr("extensions.stochmax.rows.may_look", lambda x: False)  # as on a GPU
    with FakeTensorMode():
        online, target = pair()
        target.sync(tau)
        optimizer = RowAdam([online.weight], capturable=True)
        for _ in range(2):
            ids = torch.randint(N, (2, 4))
            target.before_update(ids)
            (online(ids) - target(ids).detach()).square().sum().backward()
            clip_grad_norm_([online.weight], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            target.sync(tau, when=torch.rand(()) < 0.5)
        with pytest.raises(DynamicOutputShapeException):
            online.touched_ids()  # as a check that it would have been seen


def test_a_deep_copy_of_a_large_table_takes_memory_for_its_touched_rows_alone():
    online, target = pair(n=RowTable.DENSE_BELOW + 1)
    ids = torch.tensor([5, 60_000])
    target.sync(0.5)
    change(online, target, ids, torch.Generator().manual_seed(0))
    target.sync(0.5)
    online.weight.data[7] = 1.0  # never marked, so not copied: as in a checkpoint
    optimizer = RowAdam(online.parameters())
    ours, theirs, their_optimizer = copy.deepcopy((online, target, optimizer))
    assert their_optimizer.param_groups[0]["params"][0] is ours.weight
    assert theirs._online[0] is ours
    assert torch.equal(ours.touched_ids(), ids)
    assert not ours.weight[7].any()
    assert torch.equal(ours(ids), online(ids))
    assert torch.equal(theirs(ids), target(ids))
    change(ours, theirs, ids, torch.Generator().manual_seed(1))
    assert not torch.equal(ours(ids), online(ids))  # they are apart


def test_float32_targets_stay_close_over_a_long_run():
    generator = torch.Generator().manual_seed(0)
    online, target = pair(dtype=torch.float32)
    target.sync(0.01)
    dense = torch.zeros(N, WIDTH, dtype=torch.float64)
    for _ in range(500):
        change(online, target, torch.randint(N, (2,), generator=generator).unique(), generator)
        target.sync(0.01)
        dense = 0.99 * dense + 0.01 * online.weight.detach().double()
    assert torch.allclose(target(torch.arange(N)).detach().double(), dense, rtol=1e-5, atol=1e-5)


# -- checkpoints --


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_a_loaded_pair_goes_on_as_the_saved_one(monkeypatch, compact, tau):
    if compact:
        monkeypatch.setattr(RowTable, "DENSE_BELOW", 0)
    generator = torch.Generator().manual_seed(0)
    pairs = [pair(), pair()]
    change(*pairs[1], torch.tensor([9, 10]), generator)  # to be forgotten by loading
    target = pairs[0][1]
    for ids in ([1, 2], [2, 3], [3, 4]):
        change(*pairs[0], torch.tensor(ids), generator)
        target.sync(tau)
    change(*pairs[0], torch.tensor([5]), generator)  # changed since the last sync
    for ours, theirs in zip(*pairs, strict=True):
        theirs.load_state_dict(ours.state_dict())
    everything = torch.arange(N)
    for step in range(4):
        for ours, theirs in zip(*pairs, strict=True):
            assert torch.allclose(ours(everything), theirs(everything), rtol=1e-15)
        for p in pairs:
            change(*p, torch.tensor([step]), torch.Generator().manual_seed(step))
            p[1].sync(tau)


def test_a_large_table_is_saved_by_its_touched_rows():
    table = RowTable(10**6, WIDTH)
    table.assign(torch.tensor([5, 999_999]), torch.ones(2, WIDTH))
    state = table.state_dict()
    assert sum(t.numel() for t in state.values()) < 20
    other = RowTable(10**6, WIDTH)
    other.assign(torch.tensor([7]), torch.ones(1, WIDTH))
    other.load_state_dict(state)
    assert other.touched_ids().tolist() == [5, 999_999]
    assert torch.equal(other.weight[[5, 7, 999_999]], table.weight[[5, 7, 999_999]])


@pytest.mark.parametrize("kind", [RowTable, TargetRows])
@pytest.mark.parametrize(
    ("n", "width"), [(2 * 10**6, WIDTH), (10**5, WIDTH), (10**6, WIDTH + 1), (50, WIDTH)]
)
def test_a_table_of_another_shape_is_refused(kind, n, width):
    table = kind(10**6, WIDTH)
    table.assign(torch.tensor([5]), torch.ones(1, WIDTH))
    other = kind(n, width)
    before = other.weight.detach()[:20].clone()
    with pytest.raises(RuntimeError, match=r"in the checkpoint, this table|Missing key|size mismatch"):
        other.load_state_dict(table.state_dict())
    assert torch.equal(other.weight[:20], before)
    assert len(other.touched_ids()) == 0


# -- devices --


def test_a_table_moved_to_another_device_takes_its_flags_along():
    """A policy is built on the CPU, loads its target there, and moves afterwards."""
    online, target = pair()
    online.load_state_dict(online.state_dict())
    target.load_state_dict(online.state_dict())
    target.sync(0.5)
    for table in (online, target):
        table.to("meta")
        assert table.touched.is_meta
    assert target.synced_at.is_meta
    assert target.syncs.is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_targets_work_after_a_move_to_a_gpu(tau):
    online, target = pair()
    target.load_state_dict(online.state_dict())
    target.sync(tau)
    online.cuda(), target.cuda()
    target.before_update(torch.tensor([1], device="cuda"))
    with torch.no_grad():
        online.weight[1] += 1.0
    target.sync(tau)
    assert torch.allclose(target(torch.tensor([1], device="cuda")), tau * online.weight[1:2])
    assert target.state_dict()["weight"].is_cuda


@pytest.mark.parametrize("n", [40, RowTable.DENSE_BELOW + 1])
def test_who_holds_the_rows_too_has_those_of_the_copy(n):
    table = RowTable(n, 2)
    table.assign(torch.tensor([3]), torch.ones(1, 2))
    for held in (lambda t: [t.weight, t], lambda t: [t, t.weight]):
        copied = copy.deepcopy(held(table))
        weight, again = sorted(copied, key=lambda x: isinstance(x, RowTable))
        assert weight is again.weight
        assert weight is not table.weight
        assert torch.equal(weight, table.weight)
