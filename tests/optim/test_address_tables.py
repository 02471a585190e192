"""The tables of addresses for the CUDA kernel: their bookkeeping, which needs no GPU."""

import pytest
import torch

from extensions.optim._kernels.address_tables import COLUMNS, AddressTables
from extensions.optim.ademamix.moments import Moments


class Pretended(AddressTables):
    """As on a CUDA device on which a graph is captured when ``capturing`` says so."""

    capturing, stream, allocated = False, 0, 0

    def _capturing(self, device):
        return self.capturing

    def _stream(self, device):
        return self.stream

    def _pinned(self, size, device):
        assert not self.capturing, "no pinned memory can be had during a capture"
        self.allocated += 1
        return super()._pinned(size, device)


def moments(*sizes, dtype=torch.float32, gradients=None):
    zeros = lambda: [torch.zeros(n, dtype=dtype) for n in sizes]  # noqa: E731
    counters = lambda: [torch.zeros(()) for _ in sizes]  # noqa: E731
    return Moments(zeros(), gradients or zeros(), zeros(), zeros(), zeros(), counters(), counters())


def test_a_table_has_the_addresses_the_sizes_and_the_first_programs():
    tensors = moments(10, 0, 250, 100)
    table = Pretended(chunk=100).get(tensors)
    rows = table.on_device
    assert rows.shape == (3, COLUMNS)  # nothing is done for a tensor without elements
    assert rows[:, 0].tolist() == [tensors.params[i].data_ptr() for i in (0, 2, 3)]
    assert rows[:, 6].tolist() == [tensors.slow_steps[i].data_ptr() for i in (0, 2, 3)]
    assert rows[:, 7].tolist() == [10, 250, 100]
    assert rows[:, 8].tolist() == [0, 1, 4]
    assert table.programs == 5
    assert table.aligned
    assert not Pretended(100).get(moments(4, gradients=[torch.zeros(5)[1:]])).aligned


def test_without_a_fast_moment_its_column_is_empty():
    table = Pretended(100).get(moments(10)._replace(exp_avgs=[]))
    assert table.on_device[0, 2] == 0


def test_the_same_addresses_are_the_same_table_on_one_stream():
    tables, tensors = Pretended(100), moments(10)
    first = tables.get(tensors)
    assert tables.get(tensors) is first
    tables.stream = 1
    assert tables.get(tensors) is not first


def test_the_oldest_is_let_go_with_its_spare():
    tables = Pretended(100, most=3)
    kept = [moments(10) for _ in range(5)]
    for tensors in kept:
        tables.get(tensors)
    assert len(tables.kept) == len(tables.spares) == 3


def test_a_graph_may_capture_several_groups_after_one_step_and_again():
    tables, groups = Pretended(100), [moments(10, 20, 30), moments(10)]
    for _ in range(2):
        tables.capturing = False
        for group in groups:
            tables.get(group)
        tables.capturing = True
        for group in groups:
            # Gradients of a graph have addresses of their own.
            tables.get(group._replace(grads=[torch.zeros_like(g) for g in group.grads]))
    assert len(tables.in_graphs) == 4


def test_what_a_graph_reads_is_kept_even_if_it_was_there_before():
    tables, tensors = Pretended(100, most=2), moments(10)
    table = tables.get(tensors)
    tables.capturing = True
    assert tables.get(tensors) is table
    tables.capturing = False
    others = [moments(10) for _ in range(5)]
    for other in others:
        tables.get(other)
    assert not any(kept is table for kept in tables.kept.values())
    assert any(kept is table for kept in tables.in_graphs)


def test_a_capture_without_a_step_before_it_is_refused():
    tables = Pretended(100)
    tables.capturing = True
    with pytest.raises(RuntimeError, match="only after a step outside it"):
        tables.get(moments(10))


@pytest.mark.parametrize(
    "wrong",
    [
        {"exp_avg_sqs": [torch.zeros(10, device="meta")]},
        {"exp_avg_slows": [torch.zeros(10, dtype=torch.float64)]},
        {"state_steps": [torch.zeros((), dtype=torch.float64)]},
        {"grads": [torch.zeros(9)]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_a_kernel_would_misread_is_refused(wrong):
    with pytest.raises(RuntimeError, match=r"load_state_dict\(optimizer\.state_dict\(\)\)"):
        Pretended(100).get(moments(10)._replace(**wrong))
