"""The adaptive draw: k follows from beta, on values whose beta has a closed form."""

import copy

import pytest
import torch

from extensions.stochmax import (
    AdaptiveUniform,
    IdCodec,
    LearnedProposals,
    LegalActions,
    ReplayActions,
    SampledMaximum,
    Uniform,
)
from extensions.stochmax.sources import Query

CPU = torch.device("cpu")
N = 4096


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def q(table, ids):
    return table[:, ids] if ids.ndim == 1 else table.gather(1, ids)


def uniform_values(states=64, n=N):
    """Independent and uniform over [0, 1]: beta is 1 / (k + 1) - 1 / (n + 1) for k ids, and the maximum
    about 1."""
    return torch.rand(states, n)


def in_use(source, *others, n=N, legal=None) -> SampledMaximum:
    codec = IdCodec(n)
    maximum = SampledMaximum([source, *others], codec, None if legal is None else LegalActions(legal, codec))
    maximum.build_modules(None)
    return maximum


def sizes(maximum, table, steps):
    """k after each of ``steps`` maxima that are bootstrapped from."""
    found = []
    for _ in range(steps):
        maximum.bootstrap(q, table, Query(len(table), CPU, table))
        found.append(maximum.sources[0].size)
    return found


@pytest.mark.parametrize(
    ("tolerance", "k"),
    [(0.51, 2), (0.17, 8), (0.047, 32), (0.0115, 128)],  # 3/2 of beta at this k, 3/4 of that at half of it
)
def test_k_grows_until_beta_is_small(tolerance, k):
    maximum = in_use(AdaptiveUniform(2, 1024, tolerance, interval=1))
    found = sizes(maximum, uniform_values(), 30)
    assert found[-10:] == [k] * 10
    assert found == sorted(found)
    beta, before = (1 / (m + 1) - 1 / (N + 1) for m in (k, k // 2))
    assert beta < tolerance
    assert before > tolerance or k == 2


def test_k_shrinks_where_less_would_do():
    source = AdaptiveUniform(2, 1024, 0.06, interval=1)
    maximum = in_use(source)
    source.module.k.fill_(1024)
    found = sizes(maximum, uniform_values(), 30)
    assert found[:4] == [512, 256, 128, 64]
    # 16 would do, for beta is 1 / 17 there, but at 32 it is more than a quarter of the tolerance: no going on
    assert found[-10:] == [32] * 10
    assert found == sorted(found, reverse=True)


def test_k_follows_the_values():
    """Values that differ by little need few candidates, whatever their scale."""
    source = AdaptiveUniform(4, 256, 0.05, interval=1)
    maximum = in_use(source)
    table = uniform_values()
    assert sizes(maximum, table, 20)[-1] == 32
    assert sizes(maximum, table * 1000, 20)[-1] == 32
    assert sizes(maximum, table + 100, 20)[-1] == 4
    assert sizes(maximum, table, 20)[-1] == 32


def test_k_stays_within_its_bounds():
    table = uniform_values()
    assert sizes(in_use(AdaptiveUniform(3, 20, 1e-6, interval=1)), table, 10)[-1] == 20
    assert sizes(in_use(AdaptiveUniform(3, 20, 1e6, interval=1)), table, 10)[-1] == 3
    few = in_use(AdaptiveUniform(3, 20, 1e-9, interval=1), n=7)
    assert max(sizes(few, uniform_values(n=7), 10)) == 7


def test_a_memory_that_finds_the_maximum_keeps_k_small():
    table = torch.rand(1, N).expand(64, N)
    best = int(table[0].argmax())
    maximum = in_use(AdaptiveUniform(2, 1024, 0.01, interval=1), ReplayActions(1))
    for _ in range(10):
        maximum.bootstrap(q, table, Query(64, CPU, table, minibatch=torch.tensor([best])))
    assert maximum.sources[0].size == 2


def test_it_measures_once_an_interval(monkeypatch):
    measured = []
    heard = AdaptiveUniform.fell_short

    def listening(self, by):
        measured.append(int(self.module.maxima))
        heard(self, by)

    monkeypatch.setattr(AdaptiveUniform, "fell_short", listening)
    sizes(in_use(AdaptiveUniform(interval=7)), uniform_values(), 30)
    assert measured == [7, 14, 21, 28]


def test_sizes_by_default():
    maximum = in_use(AdaptiveUniform(), n=10**6)
    source = maximum.sources[0]
    assert (source.k_min, source.k_max, source.size) == (20, 1280, 20)
    assert maximum.propose(Query(3, CPU, torch.zeros(3, 1)))[0][0].shape == (3, 20)


def test_a_large_sample_and_the_replay_stand_in_for_a_billion():
    """The replay knows the one action of 10^9 that is worth anything; the candidates miss it."""
    maximum = in_use(AdaptiveUniform(2, 64, 0.1, interval=1), n=10**9)
    best = 123_456_789

    def value(states, ids):
        return (ids == best).float().expand(len(states), -1)

    query = Query(8, CPU, torch.zeros(8, 1), replay=lambda k: torch.full((k,), best))
    for _ in range(3):
        maximum.bootstrap(value, torch.zeros(8, 1), query)
    assert maximum.sources[0].size == 16


def test_legal_actions_are_drawn_as_many():
    legal = list(range(0, N, 2))
    maximum = in_use(AdaptiveUniform(2, 1024, 0.047, interval=1), legal=legal)
    table = uniform_values()
    assert sizes(maximum, table, 20)[-1] == 32
    ids = maximum.propose(Query(64, CPU, table))[0][0]
    assert ids.shape == (64, 32)
    assert bool((ids % 2 == 0).all())


def test_evaluation_looks_at_as_many_and_does_not_adapt():
    maximum = in_use(AdaptiveUniform(2, 64, 1e-9, interval=1))
    table = uniform_values()
    sizes(maximum, table, 10)
    wide = maximum.widened(16)
    assert type(wide.sources[0]) is Uniform
    assert wide.sources[0].k == 64


def test_it_goes_on_where_it_was_saved():
    table = uniform_values()
    whole, first, second = (in_use(AdaptiveUniform(2, 1024, 0.01, interval=3)) for _ in range(3))
    torch.manual_seed(1)
    found = sizes(whole, table, 40)
    torch.manual_seed(1)
    before = sizes(first, table, 10)  # not at the end of an interval
    second.sources[0].module.load_state_dict(first.sources[0].module.state_dict())
    assert before + sizes(second, table, 30) == found
    assert found[0] < found[20]


def test_a_copied_source_begins_anew_and_takes_what_is_given():
    maximum = in_use(AdaptiveUniform(2, 1024, 1e-9, interval=1))
    sizes(maximum, uniform_values(), 3)
    copied = copy.deepcopy(maximum)
    copied.take_modules(torch.nn.ModuleDict({"0": copy.deepcopy(maximum.sources[0].module)}))
    assert copied.sources[0].size == 16
    sizes(copied, uniform_values(), 1)
    assert (copied.sources[0].size, maximum.sources[0].size) == (32, 16)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"k_min": 0}, "at least one id"),
        ({"k_min": 8, "k_max": 7}, "k_max must be at least k_min"),
        ({"k_max": 0}, "k_max must be at least k_min"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"tolerance": float("nan")}, "tolerance must be above 0"),
        ({"interval": 0}, "interval at least 1"),
    ],
)
def test_arguments_that_make_no_sense(kwargs, says):
    with pytest.raises(ValueError, match=says):
        AdaptiveUniform(**kwargs)


@pytest.mark.parametrize("legal", [None, [3, 5]])
def test_compiled_code_is_refused(legal):
    torch._dynamo.reset()
    maximum = in_use(AdaptiveUniform(), legal=legal)
    propose = torch.compile(lambda: maximum.propose(Query(3, CPU, None)), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"use Uniform\(k\) there"):
        propose()


def test_a_cuda_graph_is_refused(monkeypatch):
    monkeypatch.setattr("extensions.stochmax.candidates.capturing", lambda device: True)
    maximum = in_use(LearnedProposals(width=1))
    maximum.propose(Query(3, CPU, torch.zeros(3, 1)))
    with pytest.raises(RuntimeError, match=r"AdaptiveUniform.*CUDA graph"):
        in_use(AdaptiveUniform()).propose(Query(3, CPU, None))
