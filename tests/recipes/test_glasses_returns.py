"""The benchmark of sensitivities to returns: its data, how policies are measured and played, runs, page."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from envs.return_dial import best_action
from recipes.bench import (
    glasses_returns,
    glasses_returns_figures,
    glasses_returns_page,
    glasses_returns_plan,
    intervals,
)
from recipes.bench import glasses_returns_runs as runs
from recipes.bench.glasses_returns_plan import (
    COLLECTED,
    CONTEXTS,
    DT,
    HELD_OUT,
    HORIZON,
    INDEPENDENT,
    MEASURED,
    PARTS,
    RADT,
    REMEDIES,
    REMEDIES_CONTEXT,
    SHUFFLED,
    Job,
)

NEWEST_RETURN = REMEDIES[0]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Runs of a few updates on few episodes, in a folder of their own."""
    monkeypatch.setattr(glasses_returns_plan, "RUNS", tmp_path / "runs")
    for name, value in (("EPISODES", 20), ("HELD_OUT", 8)):
        monkeypatch.setattr(glasses_returns_plan, name, value)  # in the settings
        monkeypatch.setattr(runs, name, value)
    monkeypatch.setitem(glasses_returns_plan.TRAINING, "updates", 4)
    monkeypatch.setattr(intervals, "REPS", 10)


def test_as_collected_a_return_is_what_is_left():
    data = runs.episodes_of(COLLECTED, 5, seed=0)
    reward = (data["action"] + 1) / 2 / HORIZON
    told = data["return_to_go"]
    torch.testing.assert_close(told[:, :-1] - told[:, 1:], reward[:, :-1])
    torch.testing.assert_close(told[:, -1], reward[:, -1])


def past_tells(data, step=30):
    """Correlations, over episodes, of an action with its return and with the return of the step before."""
    told = data["return_to_go"]
    rows = torch.stack((data["action"][:, step, 0], told[:, step, 0], told[:, step - 1, 0]))
    return torch.corrcoef(rows)[0, 1:].tolist()


def test_independent_steps_keep_the_pairs_and_lose_the_past():
    collected, independent = (runs.episodes_of(kind, 2_000, seed=0) for kind in (COLLECTED, INDEPENDENT))
    pairs = [torch.cat((data["action"], data["return_to_go"]), -1) for data in (collected, independent)]
    for step in (0, 30, HORIZON - 1):
        first, second = (sorted(pair[:, step].tolist()) for pair in pairs)
        assert first == second
    now, before = past_tells(collected)
    assert now > 0.8
    assert before > 0.8
    now, before = past_tells(independent)
    assert now > 0.8
    assert abs(before) < 0.1


def test_shuffled_returns_are_those_of_another_episode():
    collected, shuffled = (runs.episodes_of(kind, 2_000, seed=0) for kind in (COLLECTED, SHUFFLED))
    assert torch.equal(collected["action"], shuffled["action"])
    assert max(map(abs, past_tells(shuffled))) < 0.1
    first, second = (data["return_to_go"][:, 0, 0].sort().values for data in (collected, shuffled))
    assert torch.equal(first, second)


@pytest.mark.parametrize("arm", [DT, RADT, NEWEST_RETURN], ids=lambda arm: arm.title)
def test_what_is_measured_is_the_action_that_is_played(arm):
    context = 3
    torch.manual_seed(0)
    actor = runs.make_actor(arm, context).eval()
    for parameter in actor.parameters():
        if parameter.ndim > 1:  # large, so that returns do something
            torch.nn.init.normal_(parameter, std=0.3)
    found = runs.measure(actor, arm, context)
    episodes = runs.episodes_of(COLLECTED, HELD_OUT, runs.HELD_OUT_SEED)
    window = episodes[:, MEASURED + 1 - context : MEASURED + 1]
    std = window["return_to_go"].std(0)  # (K, 1)

    def act(returns):
        with torch.no_grad():
            return actor(window.clone().set("return_to_go", returns))["action"][:, -1]

    told = window["return_to_go"]
    by_all = (act(told + std) - act(told - std)).norm(dim=-1).mean() / 2
    newest = runs.newest_alone(std)
    by_newest = (act(told + newest) - act(told - newest)).norm(dim=-1).mean() / 2
    assert by_all > 1e-3
    assert found["shift_all"] == pytest.approx(by_all.item(), rel=1e-4)
    assert found["shift_newest"] == pytest.approx(by_newest.item(), rel=1e-4)
    if arm is NEWEST_RETURN:
        assert found["shift_all"] == found["shift_newest"]


def test_before_training_norms_alone_say_nothing_of_the_return():
    actor = runs.make_actor(REMEDIES[2], 2).eval()  # their scales and shifts begin at 0
    found = runs.measure(actor, REMEDIES[2], 2)
    assert found["newest_of_returns"] is None
    assert found["shift_all"] == 0


def oracle(td):
    """Spreads what is left over the steps that are left."""
    left = HORIZON - (td["observation"][:, :1] * HORIZON).round()
    td["action"] = torch.as_tensor(best_action(td["return_to_go"].numpy(), left.numpy())).float()
    return td


def test_the_best_policy_follows_both_targets():
    found = runs.play(oracle)
    assert found["slope"] == pytest.approx(1, abs=1e-4)
    assert found["turned_slope"] == pytest.approx(1, abs=1e-4)
    assert found["error"] < 1e-5
    assert found["turned_error"] < 1e-5


def test_going_on_as_before_misses_the_turn():
    class GoesOn:
        def __call__(self, td):
            if td["is_init"].all():
                self.action = oracle(td)["action"]
            td["action"] = self.action
            return td

    found = runs.play(GoesOn())
    assert found["error"] < 1e-5
    assert found["turned_slope"] == pytest.approx(-1, abs=1e-4)  # less was asked for, more was brought
    assert found["turned_error"] > 0.4


def test_the_best_action_moves_by_what_is_said():
    spread = 2 * np.sqrt(1 / 12)  # of the levels' actions
    assert 0.8 * spread < glasses_returns_figures.best_shift() < spread


def test_every_run_has_a_file_and_settings_of_its_own():
    jobs = [job for part in PARTS.values() for job in part()]
    assert len({job.file for job in jobs}) == len({str(job.settings) for job in jobs}) == len(jobs) == 220
    assert {job.context for job in jobs if job.arm is DT} == set(CONTEXTS)
    assert max(CONTEXTS) == MEASURED + 1 <= HORIZON


@pytest.mark.parametrize("arm", [DT, RADT, *REMEDIES], ids=lambda arm: arm.title)
def test_a_run_is_made_once(arm, small, monkeypatch, capsys):
    job = Job(arm, INDEPENDENT, 2, 0)
    runs.run(job)
    ((_, found),) = runs.ended([job])
    assert 0 <= found["turned_error"] <= 1
    assert len(found["trained"]["by_return"]) == 2
    assert found["init"] != found["trained"]
    assert str(job) in capsys.readouterr().out
    monkeypatch.setattr(runs, "made", lambda job: pytest.fail("was run again"))
    runs.run(job)
    monkeypatch.setitem(glasses_returns_plan.TRAINING, "updates", 5)
    assert runs.ended([job]) == []  # other settings


def test_a_run_repeats(small):
    job = Job(DT, COLLECTED, 2, 3)
    assert runs.made(job) == runs.made(job)


def made_up(job):
    """A run as if: DT's newest return counts for less the longer the context, and its error grows so."""
    g = np.random.default_rng([job.seed, job.context])
    share = 0.5 / job.context * (1 + 0.01 * g.random())
    measured = {
        "by_return": [share] * job.context, "newest_of_returns": share, "newest_token": share,
        "all_return_tokens": 0.5, "state_token": 0.4, "shift_newest": share, "shift_all": 0.4,
    }  # fmt: skip
    return {
        "init": measured, "trained": measured, "slope": 1.0, "error": 0.01, "turned_slope": 0.5,
        "turned_error": 1 - share, "loss": 0.1, "parameters": 7, "cpu_s": 60.0, "machine": "m", "commit": "c",
        "versions": {},
    }  # fmt: skip


@pytest.fixture
def page(tmp_path, monkeypatch, small):
    """An empty page in a folder of its own."""
    monkeypatch.setattr(glasses_returns_page, "DOCS", tmp_path)
    marks = "".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in ("findings", "results"))
    (tmp_path / "glasses_returns.md").write_text(f"before\n{marks}after\n")
    return tmp_path / "glasses_returns.md"


def test_the_page_says_what_the_runs_say(page, monkeypatch):
    monkeypatch.setattr(glasses_returns_page, "ended", lambda jobs: [(job, made_up(job)) for job in jobs])
    glasses_returns.main(["--report"])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "goes as K to the power of -1.00 [" in " ".join(text.split())
    assert "not run yet" not in text
    predicted = [line for line in text.splitlines() if "| turned over | " in line]
    assert len(predicted) == 8  # two data, two actors, over all and over seeds of one K
    for line in predicted:  # without exception
        assert line.split(" | ")[4] == "-1.00 [-1.00, -1.00]"
    assert "220 runs, 220 minutes" in text
    assert len((page.parent / "glasses_returns.csv").read_text().splitlines()) == 221
    assert (page.parent / "glasses_returns.png").stat().st_size > 10_000


def test_what_was_not_run_is_said(page):
    runs.run(Job(DT, COLLECTED, 2, 0))
    glasses_returns.main(["--report"])
    text = page.read_text()
    assert "1 runs" in text
    rows = [line for line in text.splitlines() if line.startswith("| RADT | 50 |")]
    assert len(rows) == 4
    assert all("not run yet" in row for row in rows)
    assert len((page.parent / "glasses_returns.csv").read_text().splitlines()) == 2


def test_a_page_is_not_made_from_fewer_runs(page):
    (page.parent / "glasses_returns.csv").write_text("data\nas collected\n")
    with pytest.raises(SystemExit, match="has 1 rows, and the runs that are here make 0"):
        glasses_returns.main(["--report"])


def test_the_command_makes_the_part_that_is_named(page, monkeypatch):
    asked = []
    monkeypatch.setattr(glasses_returns, "run", asked.append)
    glasses_returns.main(["--part", "remedies"])
    assert {job.arm for job in asked} == set(REMEDIES)
    assert {job.context for job in asked} == {REMEDIES_CONTEXT}


def test_rank_correlations_are_scipys():
    g = np.random.default_rng(0)
    x = g.integers(0, 6, 40)  # with ties
    y = x + g.normal(size=40)
    point, low, high = intervals.rank_correlation(x, y)
    assert point == pytest.approx(spearmanr(x, y).statistic)
    assert low < point < high


def test_what_differs_between_groups_counts_for_nothing():
    group = np.repeat([0, 1], 20)
    within = np.tile(np.arange(20), 2)
    point, low, high = intervals.rank_correlation(within + 100 * group, -within + 100 * group, group)
    assert (point, low, high) == pytest.approx((-1, -1, -1))
    assert intervals.rank_correlation(within + 100 * group, -within + 100 * group)[0] > 0
    assert np.isnan(intervals.rank_correlation([1, 1, 1], [1, 2, 3])[0])
