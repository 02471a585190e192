"""MiniLLM's formulas in plain numbers, each switch against what it is meant to compute."""

import itertools
import math

import pytest
import torch

from extensions.trl import MiniLLMConfig
from extensions.trl.minillm.modes import MODES
from extensions.trl.minillm.objective import (
    Coins,
    Objective,
    Scores,
    advantages,
    effective_sample_size,
    mixture_log_prob,
    policy_gradient,
    prefix_weights,
    rewards_to_go,
    score,
    single_step_weights,
    token_losses,
    tokens_to_come,
)

PLAIN = Objective(length_normalization=False, importance="none", epsilon=None)


def answers(lengths=(4, 2, 3), alpha=0.2, seed=0):
    """Scores of a few answers with padding."""
    g = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths)
    log_q, log_p = (-3 * torch.rand(shape, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(shape)
    for i, n in enumerate(lengths):
        mask[i, :n] = 1
    return score(log_q, log_p, mask, alpha)


def with_objective(**switches):
    return Objective(**{**{name: getattr(PLAIN, name) for name in Objective.names()}, **switches})


def test_a_three_token_answer_by_hand():
    log_q = torch.tensor([[0.5, 0.25, 0.5]]).log()
    log_p = torch.tensor([[0.25, 0.5, 0.125]]).log()
    scores = score(log_q, log_p, torch.ones(1, 3), alpha=0.0)
    two = math.log(2)
    # rewards: -log 2, +log 2, -2 log 2
    torch.testing.assert_close(advantages(PLAIN, scores), torch.tensor([[two - 2 * two, -2 * two, 0.0]]))
    inclusive = with_objective(returns="inclusive")
    torch.testing.assert_close(advantages(inclusive, scores), torch.tensor([[-2 * two, -two, -2 * two]]))
    half = with_objective(gamma=0.5)
    torch.testing.assert_close(advantages(half, scores), torch.tensor([[two - 0.5 * 2 * two, -2 * two, 0.0]]))


def test_equation_6_divides_by_one_less_than_the_rewards_to_come():
    scores = answers((5,), alpha=0.0)
    r = (scores.log_p - scores.old_log_q)[0].tolist()
    # t = 1..5 of the paper: rewards t+1..5, divided by T - t - 1 = 3, 2, 1, and then 0, which is clamped to 1
    expected = [sum(r[1:]) / 3, sum(r[2:]) / 2, sum(r[3:]) / 1, r[4] / 1, 0.0]
    got = advantages(with_objective(length_normalization=True), scores)[0].tolist()
    assert got == pytest.approx(expected, rel=1e-12)
    both = with_objective(length_normalization=True, returns="inclusive")
    assert advantages(both, scores)[0].tolist() == pytest.approx(
        [sum(r[t:]) / (5 - t) for t in range(5)], rel=1e-12
    )


def test_padding_and_tool_tokens_take_no_part():
    scores = answers((4, 2))
    for objective in (
        PLAIN,
        with_objective(length_normalization=True),
        with_objective(baseline="leave_one_out", importance="prefix"),
        with_objective(baseline="position", whiten="masked"),
    ):
        gains = advantages(objective, scores)
        assert (gains[1, 2:] == 0).all()
        wider = Scores(
            *(
                torch.nn.functional.pad(x, (0, 3))
                for x in (scores.old_log_q, scores.log_p, scores.log_mix, scores.mask)
            )
        )
        torch.testing.assert_close(advantages(objective, wider)[:, :4], gains)
    # a tool's two tokens in the middle: as if they were not there
    with_tool = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, 1.0]])
    q, p = -torch.rand(1, 6).double(), -torch.rand(1, 6).double()
    keep = with_tool[0] != 0
    objective = with_objective(length_normalization=True, importance="prefix")
    gains = advantages(objective, score(q, p, with_tool, 0.2))
    torch.testing.assert_close(
        gains[:, keep], advantages(objective, score(q[:, keep], p[:, keep], torch.ones(1, 4), 0.2))
    )
    assert (gains[:, ~keep] == 0).all()


def test_constant_rewards_have_a_closed_form_and_long_answers_stay_finite():
    length, gamma = 4096, 0.95
    scores = score(torch.full((1, length), -2.0), torch.full((1, length), -1.0), torch.ones(1, length), 0.0)
    discounted = advantages(with_objective(gamma=gamma, returns="inclusive"), scores)[0]
    assert discounted[length - 65].item() == pytest.approx((1 - gamma**65) / (1 - gamma), rel=1e-5)
    assert discounted[64].item() == pytest.approx(1 / (1 - gamma), rel=1e-5)
    normed = advantages(with_objective(gamma=gamma, length_normalization=True), scores)
    assert torch.isfinite(normed).all()


def test_the_mixture_and_its_weights():
    scores = answers(alpha=0.2)
    on = scores.mask != 0
    q, p, mix = scores.old_log_q.exp(), scores.log_p.exp(), scores.log_mix.exp()
    torch.testing.assert_close(mix[on], (0.2 * p + 0.8 * q)[on])
    assert ((q / mix)[on] <= 1.25).all()
    assert mixture_log_prob(scores.old_log_q, scores.log_p, 0.0) is scores.old_log_q
    assert mixture_log_prob(scores.old_log_q, scores.log_p, 1.0) is scores.log_p


def test_prefix_weights_give_each_reward_its_own_product():
    scores = answers((4,), alpha=0.3)
    r = (scores.log_p - scores.old_log_q)[0].tolist()
    ratio = (scores.old_log_q - scores.log_mix).exp()[0].tolist()
    product = [math.prod(ratio[: t + 1]) for t in range(4)]
    expected = [sum(product[s] * r[s] for s in range(t + 1, 4)) for t in range(4)]
    objective = with_objective(importance="prefix")
    assert advantages(objective, scores)[0].tolist() == pytest.approx(expected, rel=1e-12)
    cap = with_objective(importance="prefix", importance_cap=0.9)
    expected = [sum(min(product[s], 0.9) * r[s] for s in range(t + 1, 4)) for t in range(4)]
    assert advantages(cap, scores)[0].tolist() == pytest.approx(expected, rel=1e-12)
    kl = torch.ones(1, 4, dtype=torch.float64)
    single, _, _ = token_losses(
        objective, reverse_kl=kl, log_q=scores.old_log_q, scores=scores, advantages=torch.zeros(1, 4)
    )
    assert single[0].tolist() == pytest.approx([1.0, *product[:3]], rel=1e-12)


def test_a_single_reward_is_cut_on_both_sides():
    """After scaling: 2 x (-3, 2, 0.25) within 1; what is left are the returns from t on."""
    log_p = torch.tensor([[-3.0, 2.0, 0.25]], dtype=torch.float64)
    ones = torch.ones_like(log_p)
    scores = Scores(torch.zeros_like(log_p), log_p, torch.zeros_like(log_p), ones)
    plain = {"returns": "inclusive", "length_normalization": False, "reward_scale": 2.0, "importance": "none"}
    found = advantages(Objective(reward_clip=1.0, **plain), scores)
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.5, 0.5]], dtype=torch.float64))


def test_the_cap_bounds_the_weights_of_both_parts():
    """Ratios of 2: products 2, 4, 8; the single-step part has the product before t."""
    log_q = torch.full((1, 3), math.log(2.0), dtype=torch.float64)
    zeros = torch.zeros_like(log_q)
    scores = Scores(log_q, zeros, zeros, torch.ones_like(log_q))
    for cap, single, both in ((None, [1, 2, 4], [2, 4, 8]), (3.0, [1, 2, 3], [2, 3, 3])):
        objective = Objective(importance="prefix", importance_cap=cap)
        expected = torch.tensor([single], dtype=torch.float64)
        torch.testing.assert_close(single_step_weights(objective, log_q, scores), expected)
        expected = torch.tensor([both], dtype=torch.float64)
        torch.testing.assert_close(prefix_weights(log_q, scores, cap), expected)


def test_baselines_are_means_over_those_who_got_there():
    scores = answers((3, 3, 1), alpha=0.0)
    returns = advantages(PLAIN, scores)
    mean = [returns[:, 0].mean(), returns[:2, 1].mean(), returns[:2, 2].mean()]
    got = advantages(with_objective(baseline="position"), scores)
    for t in range(3):
        for i in range(3 if t == 0 else 2):
            assert got[i, t].item() == pytest.approx((returns[i, t] - mean[t]).item(), abs=1e-12)
    got = advantages(with_objective(baseline="leave_one_out"), scores)
    assert got[0, 0].item() == pytest.approx((returns[0, 0] - (returns[1, 0] + returns[2, 0]) / 2).item())
    assert got[1, 1].item() == pytest.approx((returns[1, 1] - returns[0, 1]).item())
    alone = answers((3,), alpha=0.0)
    torch.testing.assert_close(
        advantages(with_objective(baseline="leave_one_out"), alone), advantages(PLAIN, alone)
    )


@pytest.mark.parametrize("kind", ["masked", "padded"])
def test_whitening(kind):
    scores = answers((4, 2, 3))
    values, on = advantages(PLAIN, scores), scores.mask != 0
    seen = values[on] if kind == "masked" else values.flatten()
    expected = (values - seen.mean()) / seen.std(unbiased=False)
    got = advantages(with_objective(whiten=kind), scores)
    torch.testing.assert_close(got[on], expected[on], rtol=1e-6, atol=1e-6)
    assert (got[~on] == 0).all()


@pytest.mark.parametrize(
    "switches", [{"baseline": "leave_one_out"}, {"baseline": "position", "whiten": "masked"}]
)
def test_two_processes_are_one_batch(switches):
    """Sums over processes are all that they exchange: half of the answers, given the sums of all."""
    scores = answers((4, 2, 3, 4))
    objective = with_objective(**switches)
    halves = [Scores(*(x[i : i + 2] for x in vars(scores).values())) for i in (0, 2)]
    # run both halves in step, as processes would: every reduce adds what the other half asks for there
    recorded = [[], []]
    got = [None, None]
    for _ in range(8):  # each round fixes the next reduction's inputs
        asked = [[], []]
        for side in (0, 1):
            others = recorded[1 - side]

            def reduce(value, side=side, asked=asked, others=others):
                asked[side].append(value)
                k = len(asked[side]) - 1
                return value + others[k] if k < len(others) else value

            got[side] = advantages(objective, halves[side], reduce)
        recorded = asked
    torch.testing.assert_close(torch.cat(got), advantages(objective, scores))


def test_the_loss_has_the_gradient_of_equation_7():
    """-w_t A_t grad log q(y_t) + w_t grad KL_t, the weights themselves without a gradient."""
    scores = answers()
    objective = Objective(epsilon=None)
    gains = advantages(objective, scores)
    log_q = scores.old_log_q.clone().requires_grad_()
    kl = torch.rand_like(log_q).requires_grad_()
    single, long, measured = token_losses(
        objective, reverse_kl=kl, log_q=log_q, scores=scores, advantages=gains
    )
    weights = (scores.old_log_q - scores.log_mix).exp()
    (single + long).sum().backward()
    torch.testing.assert_close(log_q.grad, -weights * gains)
    torch.testing.assert_close(kl.grad, weights)
    torch.testing.assert_close(measured["weights"], weights)


@pytest.mark.parametrize(
    ("clip", "ratio", "advantage", "moves"),
    [
        ("reference", 1.21, 1.0, False),
        ("reference", 1.21, -1.0, True),
        ("reference", 0.79, -1.0, False),
        ("reference", 0.79, 1.0, True),
        ("paper", 1.21, 1.0, False),
        ("paper", 1.21, -1.0, False),  # min(rho, clip(rho)) looks at the ratio alone
        ("paper", 0.79, -1.0, True),
        ("paper", 0.79, 1.0, True),
        ("policy", 1.21, 1.0, False),
        ("policy", 1.21, -1.0, True),
        ("policy", 0.79, -1.0, False),
    ],
)
def test_where_each_clip_stops_a_token(clip, ratio, advantage, moves):
    now = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    old = now.detach() - math.log(ratio)
    scores = Scores(old, old, old, torch.ones(1, 1))
    loss, stopped = policy_gradient(
        Objective(clip=clip), now, scores, torch.tensor([[advantage]], dtype=torch.float64)
    )
    loss.sum().backward()
    assert bool(stopped) is not moves
    assert now.grad.item() == pytest.approx(-ratio * advantage if moves else 0.0)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_with_fresh_answers_the_papers_clip_stops_what_the_teacher_gives_a_sixth_of(advantage):
    """At alpha = epsilon = 0.2: q / p~ > 1.2 is p < q / 6. Below 0.8, where the teacher is for it, none."""
    share = torch.tensor([[1e-6, 0.1, 1 / 6 - 1e-3, 1 / 6 + 1e-3, 1.0, 5.0, 1e3]], dtype=torch.float64)
    log_q = torch.full_like(share, math.log(1e-3))
    scores = score(log_q, log_q + share.log(), torch.ones_like(share), 0.2)
    _, stopped = policy_gradient(Objective(), log_q, scores, torch.full_like(share, advantage))
    assert stopped.tolist() == [[True, True, True, False, False, False, False]]


def test_the_policy_clip_leaves_alone_what_the_teacher_mixed_in():
    scores = answers(alpha=0.9)
    weights = (scores.old_log_q - scores.log_mix).exp()
    on = scores.mask != 0
    assert (weights[on] > 1.2).any()
    for clip, stops in (("policy", False), ("paper", True)):
        log_q = scores.old_log_q.clone().requires_grad_()
        _, stopped = policy_gradient(Objective(clip=clip), log_q, scores, torch.ones_like(log_q))
        assert bool(stopped[on].any()) is stops


def test_reference_mode_is_the_arithmetic_of_the_papers_code():
    """In plain numbers: R_t, gamma, rewards / 0.5, / length left, whitened over padding, clip on q / p~."""
    mode = MODES["reference"]
    objective = Objective(
        **{name: mode[name] for name in Objective.names() if name in mode},
        importance=mode["importance_weights"],
    )
    lengths = (4, 2, 3)
    scores = answers(lengths)
    rows = []
    for i, n in enumerate(lengths):
        r = [2.0 * (scores.log_p[i, t] - scores.old_log_q[i, t]).item() for t in range(n)]
        to_go = [sum(0.95 ** (s - t) * r[s] for s in range(t, n)) / (n - t) for t in range(n)]
        rows.append(to_go + [0.0] * (4 - n))
    flat = [x for row in rows for x in row]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat) + 1e-8)
    gains = advantages(objective, scores)
    now = (scores.old_log_q + 0.1 * torch.randn(3, 4, generator=torch.Generator().manual_seed(3))).double()
    kl = torch.rand(3, 4, dtype=torch.float64)
    single, long, _ = token_losses(objective, reverse_kl=kl, log_q=now, scores=scores, advantages=gains)
    for i, n in enumerate(lengths):
        for t in range(n):
            a = (rows[i][t] - mean) / std
            rho = math.exp(now[i, t] - scores.log_mix[i, t])
            expected = -min(rho * a, min(max(rho, 0.8), 1.2) * a)
            assert long[i, t].item() == pytest.approx(expected, rel=1e-9)
            assert single[i, t].item() == kl[i, t].item()


def test_without_scores_only_the_single_step_part_is_there():
    alone = Objective(long_term=False, importance="none")
    assert not alone.needs_scores
    kl = torch.rand(2, 3)
    single, long, _ = token_losses(alone, reverse_kl=kl, log_q=kl, scores=None, advantages=None)
    assert torch.equal(single, kl)
    assert (long == 0).all()
    with pytest.raises(ValueError, match="needs the answers' scores"):
        token_losses(Objective(), reverse_kl=kl, log_q=kl, scores=None, advantages=None)


def test_effective_sample_size():
    assert effective_sample_size(torch.zeros(5)).item() == pytest.approx(5)
    assert effective_sample_size(torch.tensor([0.0, -1e9])).item() == pytest.approx(1)
    w = torch.rand(7, dtype=torch.float64)
    assert effective_sample_size(w.log() + 300).item() == pytest.approx((w.sum() ** 2 / (w**2).sum()).item())


def test_returns_and_counts_on_their_own():
    r = torch.tensor([[1.0, 2.0, 3.0]])
    assert rewards_to_go(r, 1.0).tolist() == [[5.0, 3.0, 0.0]]
    assert rewards_to_go(r, 0.5, "inclusive").tolist() == [[2.75, 3.5, 3.0]]
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]])
    assert tokens_to_come(mask).tolist() == [[2.0, 1.0, 1.0, 1.0, 1.0]]
    assert tokens_to_come(mask, "inclusive").tolist() == [[4.0, 3.0, 2.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"returns": "both"},
        {"importance": "sequence"},
        {"clip": "ppo"},
        {"baseline": "mean"},
        {"whiten": "yes"},
        {"single_step": False, "long_term": False},
        {"gamma": 0.0},
        {"gamma": 1.1},
        {"epsilon": -0.1},
        {"importance_cap": 0.0},
        {"reward_clip": -1.0},
        {"reward_scale": 0.0},
        {"reward_scale": math.inf},
    ],
)
def test_wrong_switches_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be|Nothing is left"):
        Objective(**wrong)


def test_answers_that_share_coins_are_left_out_of_each_others_baseline():
    """All outcomes of three one-token answers, two of which share a coin: the mean gradient stays."""
    q = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    p = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    alpha, law = 0.4, [q, p]

    def mean_gradient(baseline, coins):
        objective = with_objective(baseline=baseline, returns="inclusive", importance="token", epsilon=None)
        logits = q.log().clone().requires_grad_()
        total = torch.zeros(3, dtype=torch.float64)
        for shared, alone in itertools.product((0, 1), repeat=2):
            for y in itertools.product(range(3), repeat=3):
                chance = law[shared][y[0]] * law[shared][y[1]] * law[alone][y[2]]
                chance = chance * math.prod(alpha if c else 1 - alpha for c in (shared, alone))
                log_q = torch.log_softmax(logits, 0)[list(y)][:, None]
                scores = score(log_q, p.log()[list(y)][:, None], torch.ones(3, 1), alpha)
                gains = advantages(objective, scores, coins=coins)
                _, long, _ = token_losses(
                    objective, reverse_kl=log_q, log_q=log_q, scores=scores, advantages=gains
                )
                total += chance * torch.autograd.grad(long.sum() / 3, logits)[0]
        return total

    plain = mean_gradient("none", None)
    together = Coins(torch.tensor([0, 0, 1]), lambda x: x)
    torch.testing.assert_close(mean_gradient("leave_one_out", together), plain, rtol=1e-10, atol=1e-12)
    biased = mean_gradient("leave_one_out", None)  # as if all three were independent
    assert (biased - plain).norm() > 0.01 * plain.norm()


def test_coins_that_processes_share_are_summed_over_all_of_them():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    own = Coins(torch.tensor([0, 0, 1]), lambda x: 2 * x)  # another process with the same answers
    assert own.per_group(values).tolist() == [[8.0, 12.0], [8.0, 12.0], [10.0, 12.0]]


def test_the_reward_at_t_is_not_lost_with_the_single_step_part(tmp_path):
    def made(**switches):
        common = {"bf16": False, "use_cpu": True, "report_to": "none"}
        return MiniLLMConfig(str(tmp_path), **common, **switches).objective()

    assert made().returns == "exclusive"
    assert made(single_step=False).returns == "inclusive"
    assert made(single_step=False, returns="exclusive").returns == "exclusive"
    assert made(mode="reference", single_step=True).returns == "inclusive"
