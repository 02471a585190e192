"""Learned proposals: spelling, likelihood, gradient and draws by hand, and what they learn."""

import copy
import math
import pickle

import pytest
import torch

from extensions.stochmax import (
    ActionFeatures,
    BoxBins,
    IdCodec,
    LearnedProposals,
    LegalActions,
    MixedRadix,
    SampledMaximum,
    Uniform,
)
from extensions.stochmax.digit_policy import LARGEST_DIGIT, DigitPolicy, Spelling, split_digit
from extensions.stochmax.sources import Query

CPU = torch.device("cpu")
CODECS = [
    IdCodec(7),
    IdCodec(1000),
    MixedRadix([3, 1, 100, 2]),
    MixedRadix([2] * 20),
    BoxBins([-1.0], [1.0], 1001),
    ActionFeatures(130, lambda ids: ids.unsqueeze(-1) / 130),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def policy(codec, width=3, hidden=5, lr=1e-2, entropy=0.05, explore=0.7, scale=1.0):
    """In float64, with weights as if it had been trained."""
    made = DigitPolicy(width, codec, hidden, lr, entropy, explore).double()
    made.weights.normal_(std=scale)
    return made


def query(obs) -> Query:
    return Query(len(obs), CPU, obs)


def in_use(source, codec, width) -> SampledMaximum:
    """``source`` as a host has it, behind a uniform draw."""
    maximum = SampledMaximum([Uniform(20), source], codec)
    maximum.build_modules(width)
    return maximum


# -- spelling --


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{type(c).__name__}{c.n}")
def test_every_id_is_spelled_and_read_back(codec):
    spelling = Spelling(codec)
    ids = torch.arange(codec.n) if codec.n < 10_000 else torch.randint(codec.n, (2000,))
    digits = spelling.digits(ids)
    assert bool(((digits >= 0) & (digits < spelling.sizes)).all())
    assert torch.equal(spelling.ids(digits.unsqueeze(-1)).squeeze(-1), ids)
    assert len(digits.unique(dim=0)) == len(ids.unique())


@pytest.mark.parametrize("m", [1, 2, 64, 65, 1000, 4096, 4097, 10**6, 10**9, 2**62])
def test_a_digit_is_split_into_few_of_at_most_64_values(m):
    sizes = split_digit(m)
    assert max(sizes) <= LARGEST_DIGIT
    assert math.prod(sizes) >= m
    assert math.prod(sizes[:-1]) * (sizes[-1] - 1) < m  # none of the last digit's values is without use
    assert len(sizes) == max(1, math.ceil(math.log(m, LARGEST_DIGIT) - 1e-12))


def test_digits_are_the_codecs_where_they_are_small():
    codec = MixedRadix([3, 5, 2])
    ids = torch.arange(30)
    assert torch.equal(Spelling(codec).digits(ids), codec.digits(ids))


@pytest.mark.parametrize("n", [65, 1000, 10**9, 2**62])
def test_digits_beyond_the_last_id_wrap_around(n):
    spelling = Spelling(IdCodec(n))
    highest = (spelling.sizes - 1).unsqueeze(-1)
    assert 0 <= spelling.ids(highest).item() < n


# -- likelihood and gradient --


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{type(c).__name__}{c.n}")
def test_at_first_all_digits_are_uniform(codec):
    made = DigitPolicy(3, codec, 8, 1e-3, 0.0, 0.5)
    log_prob = made.log_prob(torch.randn(4, 3), torch.randint(codec.n, (4,)))
    assert torch.allclose(log_prob, -made.spelling.sizes.log().sum().expand(4), atol=1e-5)


def test_the_likelihood_by_hand():
    """Two digits, of 2 and 3 values: softmax by softmax."""
    made = policy(MixedRadix([2, 3]), width=2, hidden=4)
    x = torch.randn(6, 2, dtype=torch.float64)
    w = dict(zip(("w1", "b1", "w2", "b2", "w3", "b3"), made.weights.split([8, 4, 16, 4, 24, 6]), strict=True))
    h = (x @ w["w1"].view(4, 2).T + w["b1"]).clamp(min=0)
    h = (h @ w["w2"].view(4, 4).T + w["b2"]).clamp(min=0)
    logits = h @ w["w3"].view(6, 4).T + w["b3"]  # the first digit has 2 of 3 places
    for a in range(6):
        first, second = logits[:, a % 2], logits[:, 3 + a // 2]
        by_hand = first - logits[:, :2].logsumexp(1) + second - logits[:, 3:].logsumexp(1)
        assert torch.allclose(made.log_prob(x, torch.full((6,), a)), by_hand, rtol=0, atol=1e-12)
    total = sum(made.log_prob(x, torch.full((6,), a)).exp() for a in range(6))
    assert torch.allclose(total, torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("entropy", [0.0, 0.3])
@pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{type(c).__name__}{c.n}")
def test_the_gradient_is_autograds(codec, entropy):
    made = policy(codec, entropy=entropy)
    x, ids = torch.randn(9, 3, dtype=torch.float64), torch.randint(codec.n, (9,))
    made.weights = made.weights.clone().requires_grad_()
    log_p = made(x)
    entropies = -(log_p.exp() * log_p).sum((1, 2))
    objective = -(made.log_prob(x, ids) + entropy * entropies).mean()
    (gradient,) = torch.autograd.grad(objective, made.weights)
    assert torch.allclose(made.gradient(x, ids), gradient, rtol=1e-12, atol=1e-14)
    assert gradient.abs().max() > 1e-3


def test_learning_is_torchs_adam():
    made = policy(MixedRadix([4, 3]))
    weights = made.weights.clone().requires_grad_()
    adam = torch.optim.Adam([weights], lr=made.lr)
    for _ in range(20):
        x, ids = torch.randn(9, 3, dtype=torch.float64), torch.randint(12, (9,))
        weights.grad = made.gradient(x, ids)
        made.learn(x, ids)
        adam.step()
        assert torch.allclose(made.weights, weights, rtol=1e-6, atol=0)  # the count of steps is a float32


def test_every_weight_that_can_matter_moves():
    made = DigitPolicy(3, MixedRadix([2, 3]), 8, 1e-3, 0.01, 0.5)
    before = made.weights.clone()
    for _ in range(200):
        made.learn(5 * torch.randn(256, 3), torch.randint(6, (256,)))
    still = (made.weights == before).sum().item()
    assert still == 8 + 1  # the value that the first digit does not have


# -- draws --


def test_draws_have_the_stated_distribution():
    codec = MixedRadix([2, 3])
    made = policy(codec, explore=0.5)
    x = torch.randn(2, 3, dtype=torch.float64)
    share = 0.5 / 2
    p = made(x).exp()
    each = torch.stack(
        [
            ((1 - share) * p[:, 0, a % 2] + share / 2) * ((1 - share) * p[:, 1, a // 2] + share / 3)
            for a in range(6)
        ],
        1,
    )  # (2, 6)
    k = 200_000
    ids = made.propose(x, k + 1)[:, 1:]
    found = torch.stack([(ids == a).double().mean(1) for a in range(6)], 1)
    assert torch.allclose(found, each, rtol=0, atol=5 * 0.5 / k**0.5)
    assert (each.max(1).values - each.min(1).values).min() > 0.2  # uniform draws would not do


def test_without_exploration_draws_are_the_policys_own():
    made = policy(IdCodec(1000), explore=0.0)
    x = torch.randn(1, 3, dtype=torch.float64)
    ids = made.propose(x, 100_001)[0, 1:]
    log_prob = torch.stack([made.log_prob(x, torch.tensor([a]))[0] for a in range(1000)])
    # 1024 spellings: 24 ids have two
    log_prob[:24] = torch.logaddexp(log_prob[:24], spelled_beyond(made, x))
    assert log_prob.exp().sum() == pytest.approx(1.0)
    found = torch.bincount(ids, minlength=1000).double() / len(ids)
    assert (found - log_prob.exp()).abs().max() < 5 * 0.5 / 100_000**0.5


def spelled_beyond(made, x):
    """log p of the spellings of 1000..1023."""
    log_p = made(x)[0]
    beyond = torch.arange(1000, 1024)
    return log_p[0, beyond % 32] + log_p[1, beyond // 32]


def test_the_first_is_the_likeliest():
    codec = MixedRadix([5, 7])
    made = policy(codec)
    x = torch.randn(10, 3, dtype=torch.float64)
    log_prob = torch.stack([made.log_prob(x, torch.full((10,), a)) for a in range(35)], 1)
    assert torch.equal(made.propose(x, 4)[:, 0], log_prob.argmax(1))
    assert torch.equal(made.propose(x, 1), log_prob.argmax(1, keepdim=True))


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{type(c).__name__}{c.n}")
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_draws_are_ids(codec, scale):
    made = policy(codec, scale=scale).float()  # sums of probabilities round
    ids = made.propose(torch.randn(200, 3), 50)
    assert ids.shape == (200, 50)
    assert ids.dtype == torch.int64
    assert bool(((ids >= 0) & (ids < codec.n)).all())


# -- learning --


def test_it_finds_each_states_best_of_a_million():
    """Q counts the digits that are right. From what chance found it learns to propose what chance would find
    once in 50,000 draws of 20."""
    codec, states = MixedRadix([10] * 6), 8
    best = torch.randint(codec.n, (states,))

    def q(s, ids):
        return (codec.digits(ids) == codec.digits(best)[s].unsqueeze(1)).float().sum(-1)

    source = LearnedProposals(20)
    maximum = in_use(source, codec, states)
    obs = torch.eye(states)
    for _ in range(600):
        s = torch.randint(states, (64,))
        maximum.bootstrap(q, s, query(obs[s]))
    ids = torch.cat([source.propose(query(obs)) for _ in range(20)], 1)  # (S, 20 * 20)
    assert bool((ids.view(states, 20, 20) == best.view(-1, 1, 1)).any(2).all())


def test_plain_ids_are_learned_state_by_state():
    """Told the best of 10^6 plain ids for each state, it proposes it there."""
    n, states = 10**6, 16
    source = LearnedProposals(5, lr=3e-3)
    in_use(source, IdCodec(n), states)
    best, obs = torch.randint(n, (states,)), torch.eye(states)
    for _ in range(300):
        source.module.learn(obs, best)
    assert torch.equal(source.propose(query(obs))[:, 0], best)


def test_what_does_not_learn_of_maxima_acts():
    """Acting and looking leave it as it is; a maximum that is bootstrapped from does not."""
    source = LearnedProposals(5)
    maximum = in_use(source, IdCodec(100), 2)
    before = copy.deepcopy(source.module.state_dict())
    q = lambda s, ids: torch.rand(len(s), ids.shape[-1])  # noqa: E731
    maximum(q, torch.zeros(4, 1), query(torch.randn(4, 2)))
    assert all(torch.equal(x, before[name]) for name, x in source.module.state_dict().items())
    maximum.bootstrap(q, torch.zeros(4, 1), query(torch.randn(4, 2)))
    assert all(not torch.equal(x, before[name]) for name, x in source.module.state_dict().items())
    assert source.module.steps == 1


def test_with_legal_actions_the_others_are_left_out():
    codec = IdCodec(100)
    maximum = SampledMaximum([Uniform(4), LearnedProposals(20)], codec, LegalActions([3, 50], codec))
    maximum.build_modules(2)
    q = lambda s, ids: ids.float()  # noqa: E731
    best = maximum.bootstrap(q, torch.zeros(64, 1), query(torch.randn(64, 2)))
    assert set(best.action.tolist()) <= {3, 50}


def test_observations_may_be_a_dict():
    source = LearnedProposals(5)
    in_use(source, IdCodec(100), 5)
    obs = {"b": torch.randn(4, 2), "a": torch.randint(9, (4, 3, 1))}
    assert source._read(Query(4, CPU, obs)).shape == (4, 5)
    assert torch.equal(source._read(Query(4, CPU, obs))[:, :3], obs["a"].squeeze(2).float())
    assert source.propose(Query(4, CPU, obs)).shape == (4, 5)


# -- cost, copies, bad input --


@pytest.mark.parametrize("n", [10**9, 2**62])
def test_nothing_grows_with_n(n):
    source = LearnedProposals(20)
    in_use(source, IdCodec(n), 4)
    small = LearnedProposals(20)
    in_use(small, IdCodec(10**3), 4)
    assert source.module.weights.numel() < 12 * small.module.weights.numel()
    ids = source.propose(query(torch.randn(3, 4)))
    assert ids.max() > n // 4
    source.module.learn(torch.randn(3, 4), ids[:, 0])


def test_a_copy_goes_on_the_same_and_apart():
    source = LearnedProposals(5)
    maximum = in_use(source, IdCodec(1000), 2)
    module = copy.deepcopy(source.module)
    again = pickle.loads(pickle.dumps(maximum))
    again.take_modules(torch.nn.ModuleDict({"1": module}))
    for _ in range(5):
        x, ids = torch.randn(8, 2), torch.randint(1000, (8,))
        source.module.learn(x, ids)
        module.learn(x, ids)
    assert again.sources[1].module is module
    drawn = []
    for each in (maximum, again):
        torch.manual_seed(3)
        drawn.append(each.sources[1].propose(query(torch.ones(4, 2))))
    assert torch.equal(*drawn)
    module.learn(x, ids)
    assert not torch.equal(module.weights, source.module.weights)


def test_a_state_dict_holds_all_that_it_learned():
    a, b = (DigitPolicy(3, IdCodec(1000), 8, 1e-2, 0.01, 0.5) for _ in range(2))
    data = [(torch.randn(8, 3), torch.randint(1000, (8,))) for _ in range(10)]
    for x, ids in data[:5]:
        a.learn(x, ids)
    b.load_state_dict(a.state_dict())
    for x, ids in data[5:]:
        a.learn(x, ids)
        b.learn(x, ids)
    assert all(torch.equal(x, y) for x, y in zip(a.buffers(), b.buffers(), strict=True))
    assert not list(a.parameters())


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"k": 0}, "at least one id"),
        ({"hidden": 0}, "hidden and width"),
        ({"width": 0}, "hidden and width"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"entropy": -1.0}, "must be >= 0"),
        ({"explore": -0.1}, "must be >= 0"),
        ({"explore": float("nan")}, "must be >= 0"),
    ],
)
def test_arguments_that_make_no_sense(kwargs, says):
    with pytest.raises(ValueError, match=says):
        LearnedProposals(**kwargs)


def test_a_width_that_cannot_be_told_and_one_that_is_wrong():
    with pytest.raises(ValueError, match=r"give LearnedProposals\(width="):
        in_use(LearnedProposals(), IdCodec(100), None)
    maximum = in_use(LearnedProposals(width=3), IdCodec(100), None)
    with pytest.raises(ValueError, match=r"of 3 numbers and got 4: give LearnedProposals\(width=4\)"):
        maximum.propose(query(torch.zeros(2, 4)))


@pytest.mark.parametrize("n", [2, 50, 1000])
def test_with_few_digits_too_most_draws_are_of_what_was_learned(n):
    made = policy(IdCodec(n), lr=1e-2, entropy=0.0, explore=1.0)
    x = torch.randn(8, 3, dtype=torch.float64)
    for _ in range(300):
        made.learn(x, torch.ones(8, dtype=torch.int64))
    assert (made.propose(x, 1001)[:, 1:] == 1).double().mean() > 0.5
