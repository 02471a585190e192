"""Nothing in a step, in a table or in a file is of size n."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from extensions.tabular import StochDoubleQ, StochQ, StochSarsa, VisitCount

STOCHASTIC = [StochQ, StochDoubleQ, StochSarsa]


class Largest(TorchDispatchMode):
    """Counts operations, and keeps the size of the largest tensor that one made."""

    def __init__(self):
        super().__init__()
        self.operations = self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and not x._is_view():
                self.numel = max(self.numel, x.numel())
        return out


def work(cls, n, many_actions, table="sparse"):
    """What 100 steps, a construction and a prediction do: operations, the largest tensor, bytes, entries."""
    options = {"candidates": 10, "memory": 10, "eval_candidates": 64, "table": table, "seed": 0}
    with Largest() as seen:
        agent = cls(many_actions(n), VisitCount(), **options).learn(100)
        agent.predict(3)
    return seen.operations, seen.numel, agent._table.nbytes + agent._memory.nbytes, agent._table.entries


@pytest.mark.parametrize("cls", STOCHASTIC)
def test_work_and_memory_do_not_depend_on_n(cls, many_actions):
    few, many, very_many = (work(cls, n, many_actions) for n in (10**3, 10**6, 10**9))
    for more in (many, very_many):
        # rounds of the hash map differ with luck, and entries where there are few actions
        assert more[0] < 1.2 * few[0]
        assert more[1] == few[1]
        assert more[2] == few[2]
    assert very_many[3] <= 100
    assert very_many[2] < 100_000


def test_a_dense_table_is_seen_by_this_test(many_actions):
    assert work(StochQ, 10**4, many_actions, "dense")[1] >= 10**5


@pytest.mark.parametrize("cls", STOCHASTIC)
def test_memory_grows_with_what_was_written_only(cls, many_actions):
    agent = cls(many_actions(10**9, states=10**9), seed=0).learn(300)
    before = agent._table.nbytes + agent._memory.nbytes
    agent.learn(900)
    assert agent._table.entries <= 1200
    assert agent._table.nbytes + agent._memory.nbytes < 12 * before


def test_a_billion_actions_are_learned_from_if_what_was_explored_is_remembered(many_actions):
    reward = {}
    for remembered in (False, True):
        options = {"exploration_final_eps": 0.2, "seed": 0, "remember_explored": remembered}
        agent = StochQ(many_actions(10**9), 0.5, 0.0, record_interval=500, **options).learn(2000)
        reward[remembered] = agent.records.rows[-1]["rollout/rew_mean"].item()
    assert reward[True] > 0.65  # at best 0.8 * 6/7 + 0.2 * 3/7 = 0.77
    assert reward[False] < 0.6
