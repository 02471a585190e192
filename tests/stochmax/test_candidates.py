"""Candidates: the uniform draw, the replay's actions, presets, and how sources compose."""

import copy
import math
import pickle

import pytest
import torch

from extensions.stochmax import (
    BoxBins,
    CachedArgmax,
    Elite,
    ExactMaximum,
    IdCodec,
    MixedRadix,
    Neighbours,
    RecentExploited,
    ReplayActions,
    SampledMaximum,
    Source,
    Uniform,
    preset,
    resolve,
)
from extensions.stochmax.candidates import EXACT_UP_TO
from extensions.stochmax.sources import Query, draw_uniform, log_size, some_of

CPU = torch.device("cpu")


def query(batch=1, **kwargs) -> Query:
    return Query(batch, CPU, torch.zeros(batch, 1), **kwargs)


def bound(source, n):
    source.bind(IdCodec(n))
    return source


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / len(counts)
    return (((counts - expected) ** 2) / expected).sum().item()


# -- the uniform draw R --


@pytest.mark.parametrize(("n", "k"), [(2, 1), (7, 3), (256, 8), (256, 255)])
def test_small_n_draws_without_replacement(n, k):
    ids = draw_uniform(n, k, 200)
    assert ids.shape == (200, k)
    assert ids.dtype == torch.int64
    ordered = ids.sort(1).values
    assert bool((ordered[:, 1:] != ordered[:, :-1]).all())
    assert ids.min() >= 0
    assert ids.max() < n


@pytest.mark.parametrize(
    ("n", "k", "degrees_999"), [(50, 7, 85.4), (1000, 10, 1142.8)], ids=["without", "with_replacement"]
)
def test_every_id_is_drawn_equally_often(n, k, degrees_999):
    torch.manual_seed(1)
    counts = torch.bincount(draw_uniform(n, k, 20_000).flatten(), minlength=n).double()
    assert chi_square(counts) < degrees_999  # the 99.9 % quantile with n - 1 degrees of freedom


def test_pairs_are_uniform_too_without_replacement():
    torch.manual_seed(0)
    a, b = draw_uniform(5, 2, 20_000).T
    counts = torch.bincount(a * 5 + b, minlength=25).double()
    assert bool((counts[::6] == 0).all())  # never twice the same
    assert chi_square(counts[counts > 0]) < 43.8  # 19 degrees


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("k", [5, 6, 100])
def test_k_of_n_or_more_is_all_in_order(batch, k):
    ids = draw_uniform(5, k, batch)
    assert ids.tolist() == [0, 1, 2, 3, 4] if batch is None else [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("n", [10**9, 2**62])
def test_a_draw_reaches_far_ids(n):
    ids = draw_uniform(n, 1000, None)
    assert ids.max() > 0.9 * n
    assert ids.min() >= 0


@pytest.mark.parametrize(
    ("n", "size"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (1000, 10), (1024, 10), (1025, 11), (10**6, 20)]
)
def test_sizes_are_ceil_log2(n, size):
    assert log_size(n) == size
    assert bound(Uniform(), n).k == min(size, n)
    assert bound(ReplayActions(), n).k == size


def test_uniform_is_per_state_or_shared():
    assert bound(Uniform(6), 10**6).propose(query(4)).shape == (4, 6)
    assert bound(Uniform(6, shared=True), 10**6).propose(query(4)).shape == (6,)


def test_uniform_once_a_step_holds_until_the_next_step():
    source = bound(Uniform(6, shared=True, once_a_step=True), 10**6)
    ids = source.propose(query(1))
    assert torch.equal(source.propose(query(32)), ids)
    source.new_step()
    assert not torch.equal(source.propose(query(32)), ids)


def test_once_a_step_needs_a_shared_draw():
    with pytest.raises(ValueError, match="shared=True"):
        Uniform(once_a_step=True)


@pytest.mark.parametrize("source", [Uniform, ReplayActions, RecentExploited, Elite, Neighbours])
def test_a_source_of_nothing(source):
    with pytest.raises(ValueError, match="at least one id"):
        source(k=0)


# -- the replay's actions M --


def test_replay_actions_are_the_minibatch_or_a_fresh_sample():
    ask = query(4, minibatch=torch.tensor([1, 2, 3, 4]), replay=lambda k: torch.full((k,), 9))
    assert bound(ReplayActions(3), 100).propose(ask).tolist() == [1, 2, 3]
    assert bound(ReplayActions(6), 100).propose(ask).tolist() == [1, 2, 3, 4]
    assert bound(ReplayActions(3, fresh=True), 100).propose(ask).tolist() == [9, 9, 9]
    ask.minibatch = None  # acting
    assert bound(ReplayActions(3), 100).propose(ask).tolist() == [9, 9, 9]
    ask.replay = None  # no replay at all
    assert bound(ReplayActions(3), 100).propose(ask).shape == (0,)


# -- presets --


@pytest.mark.parametrize("n", [1, 2, 1000, 4096, 10**6, 10**9])
def test_preset_log(n):
    r, m = preset("log", n)
    assert isinstance(r, Uniform)
    assert isinstance(m, ReplayActions)
    assert (bound(r, n).k, r.shared, r.once_a_step) == (min(n, max(1, math.ceil(math.log2(n)))), False, False)
    assert (bound(m, n).k, m.fresh) == (max(1, math.ceil(math.log2(n))), False)


def test_preset_paper_samples_the_replay_anew():
    r, m = preset("paper", 1000)
    assert (bound(r, 1000).k, bound(m, 1000).k, m.fresh) == (10, 10, True)


def test_preset_authors_code_rounds_shares_and_doubles():
    r, m = preset("authors_code", 1400)  # log2 is 10.45: rounds to 10, where the paper has 11
    assert (bound(r, 1400).k, r.shared, r.once_a_step) == (10, True, True)
    assert (bound(m, 1400).k, m.fresh) == (20, False)


def test_names_resolve():
    assert resolve("all", 10**9) is None
    assert resolve("auto", EXACT_UP_TO) is None
    assert [type(s) for s in resolve("auto", EXACT_UP_TO + 1)] == [Uniform, ReplayActions]
    assert [type(s) for s in resolve("log", 10)] == [Uniform, ReplayActions]  # the default at every n
    mine = [Uniform(3)]
    assert resolve(mine, 10) == mine


def test_unknown_names():
    with pytest.raises(ValueError, match=r"unknown candidates 'lgo'.*'log'"):
        resolve("lgo", 10)
    with pytest.raises(ValueError, match="list of sources"):
        resolve(["log"], 10)


def test_candidates_need_a_source_that_proposes():
    for sources in ([], [Neighbours()]):
        with pytest.raises(ValueError, match=r"e.g. Uniform\(\)"):
            SampledMaximum(sources, MixedRadix([3, 3]))


# -- composition --


def table_q(table):
    def q(states, ids):
        if ids is None:
            return table
        return table[:, ids] if ids.ndim == 1 else table.gather(1, ids)

    return q


class Fixed(Source):
    """Proposes what it is told."""

    def __init__(self, ids, memory=False):
        self.ids, self.is_memory = torch.as_tensor(ids), memory

    def propose(self, query):
        return self.ids


def test_sources_compose_in_order_and_ties_go_to_the_first():
    table = torch.zeros(2, 50)
    maximum = SampledMaximum([Fixed([[3, 4], [5, 6]]), Fixed([7, 8], memory=True)], IdCodec(50))
    sets, valid = maximum.propose(query(2))
    assert [tuple(s.shape) for s in sets] == [(2, 2), (2,)]
    assert valid is None
    assert maximum(table_q(table), table, query(2)).action.tolist() == [3, 5]
    table[1, 8] = 1.0
    best = maximum(table_q(table), table, query(2))
    assert best.action.tolist() == [3, 8]
    assert best.column.tolist() == [0, 3]
    assert maximum.from_memory(sets, best).tolist() == [False, True]


def test_an_untrained_network_acts_at_random_not_from_memory():
    torch.manual_seed(0)
    table = torch.zeros(500, 10**4)
    maximum = SampledMaximum(preset("log", 10**4), IdCodec(10**4))
    best = maximum(table_q(table), table, query(500, replay=lambda k: torch.zeros(k, dtype=torch.int64)))
    assert len(best.action.unique()) > 450


@pytest.mark.parametrize(
    "codec", [MixedRadix([10] * 3), BoxBins([-1] * 3, [1] * 3, 10)], ids=["digits", "bins"]
)
@pytest.mark.parametrize("rounds", [1, 4])
def test_neighbours_never_worsen_the_maximum(codec, rounds):
    torch.manual_seed(0)
    table = torch.randn(64, 1000)
    plain = SampledMaximum([Fixed(torch.randint(1000, (64, 5)))], codec)
    refined = SampledMaximum([*plain.sources, Neighbours(8, rounds)], codec)
    before = plain(table_q(table), table, query(64))
    after = refined(table_q(table), table, query(64))
    assert bool((after.value >= before.value).all())
    assert torch.equal(after.value, table.gather(1, after.action.unsqueeze(1)).squeeze(1))
    moved = after.action != before.action
    assert bool(moved.any())
    assert torch.equal(after.column == -1, moved)
    sets, _ = refined.propose(query(64))
    assert not bool(refined.from_memory(sets, after)[moved].any())


def test_neighbours_climb_a_separable_hill():
    torch.manual_seed(0)
    codec = BoxBins([-1.0] * 4, [1.0] * 4, 32)  # 2**20 actions, best at digits (20, 5, 31, 0)

    def q(states, ids):
        distance = (codec.digits(ids) - torch.tensor([20, 5, 31, 0])).abs().sum(-1).float()
        return -(distance.expand(len(states), -1) if ids.ndim == 1 else distance)

    maximum = SampledMaximum([Uniform(), Neighbours(16, rounds=30)], codec)
    assert bool((maximum(q, torch.zeros(8, 1), query(8)).value > -3).all())


def test_neighbours_need_digits():
    with pytest.raises(TypeError, match="MixedRadix or BoxBins"):
        SampledMaximum([Uniform(), Neighbours()], IdCodec(100))


def test_widened_shares_more_of_everything():
    maximum = SampledMaximum([*preset("authors_code", 10**6), CachedArgmax()], IdCodec(10**6)).widened(1024)
    sets, _ = maximum.propose(query(3, replay=lambda k: torch.arange(k)))
    assert [tuple(s.shape) for s in sets] == [(1024,), (1024,), (0,)]
    again, _ = maximum.propose(query(3, replay=lambda k: torch.arange(k)))
    assert not torch.equal(sets[0], again[0])  # once_a_step is for training


@pytest.mark.parametrize("chunk_values", [1, 7, 10**6], ids=["one", "some", "all"])
def test_the_exact_maximum_is_the_maximum(monkeypatch, chunk_values):
    monkeypatch.setattr(ExactMaximum, "CHUNK_VALUES", chunk_values)
    table = torch.randint(-3, 3, (4, 30)).float()
    best = ExactMaximum(IdCodec(30))(table_q(table), table, query(4))
    assert torch.equal(best.value, table.max(1).values)
    assert torch.equal(best.action, table.argmax(1))


def test_memoryless_shortfall_is_the_closed_form():
    """Of n values iid uniform on [0, 1], m distinct fall short by 1/(m+1) - 1/(n+1) on average."""
    torch.manual_seed(0)
    n, m, trials = 1000, 10, 4000
    table = torch.rand(trials, n, dtype=torch.float64)
    distinct = torch.rand(trials, n).topk(m).indices
    best = SampledMaximum([Fixed(distinct)], IdCodec(n))(table_q(table), table, query(trials))
    beta = table.max(1).values - best.value
    z = (beta.mean() - (1 / (m + 1) - 1 / (n + 1))) / (beta.std() / math.sqrt(trials))
    assert abs(z) < 3.5


def test_memoryless_shortfall_with_replacement():
    """Drawn with replacement, E max is d/(d+1) averaged over the number d of distinct ids."""
    torch.manual_seed(1)
    n, trials = 1000, 4000
    table = torch.rand(trials, n, dtype=torch.float64)
    maximum = SampledMaximum([Uniform()], IdCodec(n))
    m = maximum.sources[0].k
    assert m == 10
    best = maximum(table_q(table), table, query(trials))
    # P(d distinct of m draws): a chain that meets a new id with probability (n - d) / n
    p = [1.0] + [0.0] * m
    for _ in range(m):
        p = [0.0] + [p[d] * (d / n) * (d > 0) + p[d - 1] * (n - d + 1) / n for d in range(1, m + 1)]
    expected = sum(p[d] * d / (d + 1) for d in range(1, m + 1))
    z = (best.value.mean() - expected) / (best.value.std() / math.sqrt(trials))
    assert abs(z) < 3.5


def test_sources_are_saved_without_what_they_are_bound_to():
    """They are stored in a model's zip: no codec with buffers on a GPU, which another machine may lack."""
    source = bound(Uniform(3, shared=True, once_a_step=True), 100)
    source.propose(query())
    again = pickle.loads(pickle.dumps(source))
    assert not hasattr(again, "codec")
    assert (again.k, again.shared) == (3, True)


def test_a_copied_maximum_works():
    codec = MixedRadix([10] * 3)
    maximum = copy.deepcopy(SampledMaximum([Uniform(), Elite(), Neighbours()], codec))
    table = torch.randn(4, 1000)
    assert maximum(table_q(table), table, query(4)).action.shape == (4,)
    assert maximum.sources[0].codec is maximum.codec is not codec


def test_actions_of_the_replay_for_each_state_or_for_all():
    drawn = []

    def replay(k):
        drawn.append(k)
        return torch.arange(k)

    query = Query(3, torch.device("cpu"), replay=replay)
    for shared, shape in ((True, (4,)), (False, (3, 4))):
        source = ReplayActions(4, shared=shared)
        source.bind(IdCodec(100))
        assert source.propose(query).shape == shape
        query.minibatch = torch.arange(9)
        assert source.propose(query).tolist() == [0, 1, 2, 3]  # when bootstrapping, the minibatch's own
        query.minibatch = None
    assert drawn == [4, 12]
    few = ReplayActions(4, shared=False)
    few.bind(IdCodec(100))
    assert few.propose(Query(3, torch.device("cpu"), replay=lambda k: torch.arange(2))).tolist() == [0, 1]


def test_of_trajectories_the_minibatchs_actions_lie_spread():
    """Whatever the shape: from most trajectories, and from all their parts."""
    source = bound(ReplayActions(16), 2**16)
    for rows, steps in ((16, 32), (32, 16), (7, 50), (64, 8)):
        ask = query(4)
        ask.minibatch = torch.arange(rows * steps).reshape(rows, steps)
        ids = source.propose(ask)
        assert len(ids.unique()) == 16
        assert len((ids // steps).unique()) >= min(rows, 16) * 0.6
        late = ((ids % steps) >= steps / 2).sum()
        assert 5 <= late <= 11
    few = torch.arange(6).reshape(2, 3)
    assert some_of(few, 6).tolist() == some_of(few, 7).tolist() == list(range(6))


@pytest.mark.parametrize(
    ("sources", "refused"),
    [
        ([Uniform(), ReplayActions()], False),
        ([Uniform(), ReplayActions(fresh=True), Neighbours()], False),
        ([Uniform(2, shared=True, once_a_step=True)], True),
        ([Uniform(), Elite()], True),
        ([Uniform(), RecentExploited()], True),
    ],
)
def test_a_cuda_graph_is_not_captured_of_what_python_remembers(sources, refused, monkeypatch):
    codec = MixedRadix([10] * 3)
    maximum = SampledMaximum(sources, codec)
    table = torch.randn(4, 1000)
    maximum(table_q(table), table, query(4))
    monkeypatch.setattr("extensions.stochmax.candidates.capturing", lambda device: True)
    if not refused:
        maximum(table_q(table), table, query(4))
        return
    with pytest.raises(RuntimeError, match="candidates='log'"):
        maximum(table_q(table), table, query(4))
