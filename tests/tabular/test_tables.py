"""Tables, memories and the map beneath them, against plain dictionaries and lists."""

import pytest
import torch

from extensions.tabular import StochQ
from extensions.tabular.memory import DenseMemory, SparseMemory
from extensions.tabular.slots import Slots
from extensions.tabular.tables import DenseTable, SparseTable

CPU = torch.device("cpu")


def test_slots_number_keys_as_they_come():
    slots, met = Slots(CPU), {}
    torch.manual_seed(0)
    for _ in range(60):
        keys = torch.randint(-(2**62), 2**62, (100,))
        keys[:30] = torch.tensor(list(met)[:30]) if met else keys[:30]
        keys = keys.unique()
        for key in keys.tolist():
            met.setdefault(key, None)
        slots.insert(keys)
    assert slots.count == len(met) == len(set(slots.keys.tolist()))
    assert slots.find(slots.keys).tolist() == list(range(slots.count))
    assert slots.find(torch.tensor([[1, 2], [3, 4]])).tolist() == [[-1, -1], [-1, -1]]


def test_keys_at_one_place_are_told_apart(monkeypatch):
    monkeypatch.setattr(Slots, "_place", lambda self, keys: torch.full_like(keys, 1022))
    slots = Slots(CPU)
    keys = torch.arange(40) * 7
    slots.insert(keys[:25])
    slots.insert(keys)
    assert slots.find(keys).tolist() == list(range(40))
    assert slots.find(torch.tensor([1, 7])).tolist() == [-1, 1]


@pytest.mark.parametrize("width", [1, 4])
def test_a_sparse_table_holds_what_a_dense_one_holds(width):
    runs, states, n = 3, 5, 40
    initial = torch.arange(width) + 0.5
    tables = [kind(width, runs, states, n, initial, CPU) for kind in (DenseTable, SparseTable)]
    torch.manual_seed(width)
    written = set()
    for _ in range(400):
        s, a = torch.randint(states, (runs,)), torch.randint(n, (runs,))
        values, where = torch.randn(width, runs).double(), torch.rand(runs) < 0.7
        written |= {(i, int(s[i]), int(a[i])) for i in range(runs) if where[i]}
        for table in tables:
            table.write(table.rows(s), a, values, where)
        s, ids = torch.randint(states, (runs,)), torch.randint(n, (runs, 6))
        dense, sparse = (table.read(table.rows(s), ids) for table in tables)
        assert torch.equal(dense, sparse)
        assert torch.equal(tables[1].read(tables[1].rows(s), ids, 1), dense[:1])
    assert tables[1].entries == len(written)
    other = SparseTable(width, runs, states, n, initial, CPU)
    other.load_state_dict(tables[1].state_dict())
    rows = torch.arange(runs * states)
    ids = torch.arange(n).expand(len(rows), -1)
    assert torch.equal(other.read(rows, ids), tables[0].read_all(rows))


def test_a_table_without_numbers_for_its_entries_is_refused():
    with pytest.raises(ValueError, match="fewer runs at once"):
        SparseTable(1, 100, 10**9, 10**9, torch.zeros(1), CPU)


@pytest.mark.parametrize("kind", [DenseMemory, SparseMemory])
def test_a_memory_holds_the_last_distinct_actions(kind):
    rows, size = 30, 4
    memory, lists = kind(size, rows, CPU), [[] for _ in range(rows)]
    torch.manual_seed(0)
    for _ in range(500):
        at, actions, where = torch.randperm(rows)[:8], torch.randint(9, (8,)), torch.rand(8) < 0.6
        memory.remember(at, actions, where)
        for row, a, heard in zip(at.tolist(), actions.tolist(), where.tolist(), strict=True):
            if heard:
                lists[row] = [a, *(b for b in lists[row] if b != a)][:size]
    expected = [known + [-1] * (size - len(known)) for known in lists]
    assert memory.recall(torch.arange(rows)).tolist() == expected
    other = kind(size, rows, CPU)
    other.load_state_dict(memory.state_dict())
    assert other.recall(torch.arange(rows)).tolist() == expected


def test_a_sparse_memory_grows():
    memory = SparseMemory(2, 10**12, CPU)
    rows = torch.arange(5000) * 10**8
    memory.remember(rows, torch.arange(5000), torch.ones(5000, dtype=torch.bool))
    assert memory.recall(rows)[:, 0].tolist() == list(range(5000))
    assert memory.recall(torch.tensor([17])).tolist() == [[-1, -1]]


@pytest.mark.parametrize("table", ["dense", "sparse"])
def test_the_first_value_of_all_entries_is_not_rounded(table):
    agent = StochQ("FrozenLake-v1", seed=0, table=table, initial_value=0.1)
    assert agent.q_value([3], [2]).tolist() == [0.1]
