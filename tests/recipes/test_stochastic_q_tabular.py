"""The closed forms that the reproduction compares with, and its path from end to end."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from extensions.tabular import StochQ, TabularMDP
from recipes.bench.minillm_page import read_rows
from recipes.reproduce import stochastic_q_tabular as reproduction
from recipes.reproduce.fixed_points import (
    best_of,
    best_of_all,
    chances,
    fixed_point,
    greedy,
    stochastic_greedy,
    value_of,
)
from recipes.reproduce.stochastic_q_tabular_claims import difference, filled, of_seeds, verdict
from recipes.reproduce.stochastic_q_tabular_page import NAME, bullets
from recipes.reproduce.stochastic_q_tabular_words import AGREES, LEARNING
from recipes.reproduce.tabular_worlds import generated

PUBLISHED = Path(__file__).parents[2] / "docs" / "benchmarks"


@pytest.mark.parametrize(("n", "k"), [(1, 1), (6, 1), (6, 3), (6, 6)])
def test_the_chance_of_a_rank_is_counted(n, k):
    sets = list(itertools.combinations(range(n), k))
    counts = np.bincount([min(subset) for subset in sets], minlength=n)
    np.testing.assert_allclose(chances(n, k), counts / len(sets))


def test_chances_of_many_sum_to_one():
    for n, k in ((256, 8), (10**5, 17)):
        assert chances(n, k).sum() == pytest.approx(1)
        # iid uniform values: the expected shortfall is that of the closed form
        beta = (np.arange(n) * chances(n, k)).sum() / (n + 1)
        assert beta == pytest.approx(1 / (k + 1) - 1 / (n + 1))


def test_worth_is_the_mean_of_the_maximum_over_all_sets():
    q = np.random.default_rng(0).normal(size=(2, 6))
    sets = list(itertools.combinations(range(6), 3))
    np.testing.assert_allclose(best_of(3)(q), np.mean([q[:, list(c)].max(1) for c in sets], axis=0))
    np.testing.assert_allclose(best_of(6)(q), best_of_all(q))
    np.testing.assert_allclose(best_of(1)(q), q.mean(1))


def test_the_fixed_point_is_one_and_lies_below_the_optimum_within_the_bound():
    mdp, gamma, k = generated(1, n=20), 0.9, 4
    q, optimum = fixed_point(mdp, gamma, best_of(k)), fixed_point(mdp, gamma, best_of_all)
    p, rewards = mdp.transitions.numpy(), mdp.rewards.numpy()[..., 0]
    np.testing.assert_allclose(q, rewards + gamma * p @ best_of(k)(q), rtol=1e-10)
    assert (q < optimum).all()
    beta = (q.max(1) - best_of(k)(q)).max()
    assert (optimum - q).max() <= gamma / (1 - gamma) * beta


def test_the_value_of_a_policy_is_that_of_its_fixed_point():
    mdp = TabularMDP.from_gymnasium("FrozenLake-v1")
    optimum = fixed_point(mdp, 0.95, best_of_all)
    assert value_of(mdp, greedy(optimum), 0.95) == pytest.approx(optimum[0].max())
    q = fixed_point(mdp, 0.95, best_of(2))
    both = np.stack([greedy(optimum), stochastic_greedy(q, 2)])
    values = value_of(mdp, both, 0.95)
    assert values[1] == pytest.approx(best_of(2)(q)[0])
    assert values[1] < values[0]


def test_policies_are_probabilities():
    q = np.round(np.random.default_rng(0).normal(size=(3, 4, 5)))
    for policy in (greedy(q), stochastic_greedy(q, 2)):
        np.testing.assert_allclose(policy.sum(-1), 1)
        assert (policy >= 0).all()


@pytest.mark.parametrize("memory", [None, [2, -1], [0, 4], [1, 3], [-1, -1], [3, 3]])
@pytest.mark.parametrize("values", [[5, 1, 4, 2, 3], [1, 1, 1, 1, 1], [2, 1, 2, 1, 2], [0, 3, 3, 1, 3]])
def test_the_policy_of_candidates_and_memory_is_counted_over_all_sets(values, memory):
    values, expected = np.array(values), np.zeros(5)
    sets = list(itertools.combinations(range(5), 2))
    for drawn in sets:
        pool = sorted({*drawn, *(a for a in memory or [] if a >= 0)})
        top = [a for a in pool if values[a] == values[pool].max()]
        expected[top] += 1 / len(top) / len(sets)
    known = None if memory is None else np.array([memory])
    np.testing.assert_allclose(stochastic_greedy(values[None], 2, known)[0], expected, atol=1e-15)


@pytest.mark.parametrize("memory", [0, 2])
def test_the_policy_is_what_an_agent_does(memory):
    agent = StochQ(generated(2, n=9), 0.5, candidates=3, memory=memory, seed=0).learn(200)
    agent.exploration_rate = 0.0
    agent._table.values.copy_(agent._table.values.round())  # so that some are equal
    policy = reproduction.policy_of(agent, agent.q_values())
    states = np.arange(3).repeat(20_000)[None].repeat(2, 0)
    actions = agent.predict(states, deterministic=False)[0].reshape(2, 3, -1)
    for run, state in np.ndindex(2, 3):
        found = np.bincount(actions[run, state], minlength=9) / 20_000
        np.testing.assert_allclose(found, policy[run, state], atol=0.02)


def test_shortfalls_on_fixed_values_are_those_of_the_closed_forms():
    found = reproduction.on_fixed_values(n=64, rows=2000, rounds=30)
    assert np.mean(found["beta_without"]) == pytest.approx(found["beta_without_exact"], rel=0.02)
    np.testing.assert_allclose(found["beta_with"], found["beta_with_exact"], atol=0.005)
    assert found["beta_with_exact"][0] == pytest.approx(found["beta_without_exact"])
    assert found["omega_with"][-1] > 0.99
    assert (np.diff(found["omega_with"]) >= 0).all()


def test_all_parts_run_are_kept_and_make_a_page(tmp_path, monkeypatch, capsys):
    threads = torch.get_num_threads()
    many = len(list(reproduction.jobs(quick=True)))
    monkeypatch.setattr(reproduction, "made_by", lambda: "commit of a test")
    monkeypatch.setattr("recipes.bench.intervals.REPS", 20)  # of bootstraps, which take most of the time
    arguments = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "docs")]
    reproduction.main(arguments)
    assert capsys.readouterr().out.count(" s\n") == many
    page = (tmp_path / "docs" / "stochastic_q_tabular.md").read_text()
    assert "commit of a test" in page
    assert all(f"| {name} |" in page for name in ("Q", "StochQ", "StochQ, no memory", "random"))
    assert max(map(len, page.splitlines())) < 10_000
    reproduction.main(arguments)  # nothing is left to run
    assert capsys.readouterr().out == ""
    (tmp_path / "runs" / "limits-16_actions-StochSarsa-no_memory.json").unlink()
    with pytest.raises(SystemExit, match="has not been run"):
        reproduction.main([*arguments, "--report"])
    torch.set_num_threads(threads)


def rows_of(**scores):
    return [{"part": "world", "name": name, "score": x} for name, values in scores.items() for x in values]


def test_what_is_said_is_filled_from_the_rows(monkeypatch):
    monkeypatch.setattr("recipes.bench.intervals.REPS", 200)
    low, high, both = [1.0, 2.0, 3.0, 4.0], [11.0, 12.0, 13.0, 14.0], [1.0, 2.0, 13.0, 14.0]
    rows = rows_of(Q=low, StochQ=high, Sarsa=high, StochSarsa=low, DoubleQ=low, StochDoubleQ=both)
    assert filled("{world/?/score}, {world/Q/score/2}", rows) == (
        "StochQ is ahead of Q; StochDoubleQ cannot be told from DoubleQ; StochSarsa is behind Sarsa, 2.50"
    )
    rows = rows_of(Q=low, StochQ=high, Sarsa=low, StochSarsa=high, DoubleQ=low, StochDoubleQ=high)
    said = "StochQ, StochDoubleQ and StochSarsa are ahead of Q, DoubleQ and Sarsa"
    assert filled("{world/?/score}", rows) == said
    assert difference(rows, "world", ("StochQ", "Q"), "score", 1).startswith("10.0 [")
    with pytest.raises(KeyError, match="no world, random"):
        filled("{world/random/score/2}", rows)


def test_seeds_without_a_score_are_told():
    assert of_seeds([1.0, np.nan, 1.0, np.nan, 1.0], 2) == "1.00; 3 of 5 seeds"
    assert of_seeds([1.0, 2.0, np.nan], 1).endswith("]; 2 of 3 seeds")
    assert of_seeds([1.0, 1.0], 1) == "1.0"
    assert of_seeds([np.nan, np.nan], 1) == "no episode ended"
    rows = rows_of(Q=[1.0, 2.0], StochQ=[1.0, np.nan])
    assert verdict(rows, "world", ("StochQ", "Q"), "score") == "cannot be compared with"
    assert difference(rows, "world", ("StochQ", "Q"), "score", 1) == ""


def test_the_published_page_says_what_its_csv_says():
    page, rows = (PUBLISHED / f"{NAME}.md").read_text(), read_rows(PUBLISHED / f"{NAME}.csv")
    assert bullets(AGREES, rows) in page
    assert bullets(LEARNING, rows) in page
