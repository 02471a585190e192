"""Tiny decoders asked about long sequences: their questions, the runs of the benchmark, and its page."""

import csv
import math

import numpy as np
import pytest
import torch

from extensions.glasses import Lens
from extensions.glasses.attention import looking_through
from recipes.bench import glasses_trained, glasses_trained_page, glasses_trained_runs, intervals
from recipes.bench import glasses_trained_plan as plan
from recipes.bench.glasses_decoder import POSITIONS, Decoders
from recipes.bench.glasses_questions import LAYOUTS, TASKS, VOCABULARY, ask, ones, tokens_of
from recipes.bench.glasses_trained_claims import claims, separator_gaps, verdict
from recipes.bench.glasses_trained_measures import gaps, measured, pairs, questions, share
from recipes.bench.glasses_trained_plan import ARMS, Arm, Job
from recipes.bench.glasses_trained_rows import COLUMNS, all_cases, gain, n50s, ratio_of_means, rows_of
from recipes.bench.glasses_trained_runs import run
from recipes.bench.training_runs import result

QUICK = plan.Training(steps=20, batch=4, rate=2e-3)


@pytest.fixture
def in_a_second(tmp_path, monkeypatch):
    """Short training, short tests, and no file of a real run."""
    monkeypatch.setattr(plan, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(plan, "TRAINING", dict.fromkeys(TASKS, QUICK))
    monkeypatch.setattr(plan, "LENGTHS", dict.fromkeys(TASKS, (8, 32, 40)))
    monkeypatch.setattr(plan, "GAP_LENGTHS", (16, 32, 40))
    monkeypatch.setattr(plan, "SENSITIVITY_LENGTHS", (8, 16))
    monkeypatch.setattr(plan, "SEEDS", (0, 1))
    monkeypatch.setattr(plan, "COUNTED", 4)


@pytest.fixture
def quick_intervals(monkeypatch):
    monkeypatch.setattr(intervals, "REPS", 10)


def written(ids):
    """Tokens as text: ^ before the sequence, ? behind it."""
    return "".join("^01,?"[i] for i in ids.tolist())


def grouped(digits, layout):
    """Commas every three, written without the arithmetic that is tested."""
    if layout == "plain":
        return digits
    if layout == "right":
        return grouped(digits[::-1], "left")[::-1]
    return ",".join(digits[i : i + 3] for i in range(0, len(digits), 3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("task", TASKS)
def test_questions_are_laid_out_and_answered_right(task, layout):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.arange(2, 40)
    most = lengths if task == "count" else torch.ones_like(lengths)
    answers = (torch.rand(len(lengths), generator=generator) * (most + 1)).long()
    batch = ask(task, layout, lengths, answers, generator)
    for ids, n, answer, question, bearer in zip(
        batch.ids, lengths, answers, batch.question, batch.bearer, strict=True
    ):
        text = written(ids[: question + 1])
        assert text[0] == "^"
        assert text[-1] == "?"
        inside = text[1:-1]
        digits = inside.replace(",", "")
        assert len(digits) == n
        assert len(text) == tokens_of(layout, int(n))
        if layout == "filler":
            assert inside.count(",") == (n - 1) // 3
            assert ",," not in f",{inside},"
        else:
            assert inside == grouped(digits, layout)
        if task == "count":
            assert digits.count("1") == answer
        else:
            at = 0 if task == "copy_first" else -1
            assert digits[at] == str(int(answer))
            assert digits.count("0") == 1 - answer
            assert text[bearer] == str(int(answer))
            assert set(inside[: bearer - 1] if at else inside[bearer:]) <= set("1,")


def test_filler_is_anywhere():
    batch = ask(
        "copy_last", "filler", torch.full((400,), 7), torch.ones(400).long(), torch.Generator().manual_seed(0)
    )
    commas = (batch.ids == 3).sum(0)  # two of them in the six gaps between seven ones
    assert len({written(ids) for ids in batch.ids}) == math.comb(6, 2)
    assert commas.sum() == 800


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["next", "matched"])
def test_pairs_of_ones_differ_by_ones(layout, kind):
    for a, b in zip(*pairs(kind, "count", layout, 10), strict=True):
        more = {"next": 1, "matched": 3}[kind]
        a, b = written(a)[1:-1], written(b)[1:-1]
        assert b.count("1") - a.count("1") == more
        if layout == "filler":
            assert b == a + "1" * more
        if kind == "matched" and layout in ("left", "right"):  # what is at hand is alike
            assert a.split(",")[-1] == b.split(",")[-1]
    if layout == "left":
        tails = [
            [len(written(x).split(",")[-1]) for x in side] for side in pairs("next", "count", "left", 10)
        ]
        assert tails[0] != tails[1]  # the confound: they differ behind the last comma


def test_pairs_of_answers_differ_in_one_digit():
    for task in ("copy_first", "copy_last"):
        for layout in LAYOUTS:
            for a, b in zip(*pairs("answer", task, layout, 10), strict=True):
                assert (a != b).sum() == 1


def test_the_test_asks_each_answer_and_no_unknown_count():
    batch = questions("copy_last", "left", 64)
    assert batch.answer.tolist() == [0, 1] * plan.PHASES
    assert set(batch.question.tolist()) == {tokens_of("left", n) - 1 for n in (64, 65, 66)}
    counted = questions("count", "plain", 256)
    assert counted.answer.max() <= plan.LONGEST
    assert (counted.ids == 2).sum(1).tolist() == counted.answer.tolist()


def test_ones_without_a_remedy():
    a, b = ones("plain", 5, 1, torch.Generator())
    assert (written(a), written(b)) == ("^11111?", "^111111?")


# --- decoders


def random_ids(rows, n, seed=0):
    return torch.randint(VOCABULARY, (rows, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("positions", POSITIONS)
def test_decoders_side_by_side_are_decoders_alone(positions):
    both = Decoders(positions, VOCABULARY, 3, seeds=(3, 8), places=20).eval()
    ids = random_ids(4, 9)
    first = torch.tensor([0, 5, 2, 7])
    logits = both.readout(both(both.embed(ids, first))[:, -1])
    for i, seed in enumerate((3, 8)):
        mine = slice(2 * i, 2 * i + 2)
        for alone in (both.of_seed(i), Decoders(positions, VOCABULARY, 3, seeds=(seed,), places=20)):
            own = alone.readout(alone(alone.embed(ids[mine], first[mine]))[:, -1])
            torch.testing.assert_close(own, logits[mine], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_decoders_are_causal_and_tell_orders_apart_by_positions(positions):
    model = Decoders(positions, VOCABULARY, 3, seeds=(0,), layers=1, places=20)
    ids = random_ids(1, 9)
    later = ids.clone()
    later[:, 6:] = (later[:, 6:] + 1) % VOCABULARY
    states, others = model(model.embed(ids)), model(model.embed(later))
    torch.testing.assert_close(states[:, :6], others[:, :6])
    # the last token of one layer sees a set, unless positions are told
    turned = torch.cat((ids[:, :8].flip(1), ids[:, 8:]), 1)
    assert not torch.equal(turned, ids)
    same = torch.allclose(model(model.embed(turned))[:, -1], states[:, -1], atol=1e-5)
    assert same == (positions == "nope")


def test_learned_places_begin_anywhere():
    model = Decoders("learned", VOCABULARY, 3, seeds=(0,), places=20)
    ids = random_ids(2, 4)
    moved = model.embed(ids, torch.tensor([0, 7])) - model.embed(ids)
    assert not moved[0].any()
    torch.testing.assert_close(moved[1], model.places[0, 7:11] - model.places[0, :4])


def test_unknown_positions_are_refused():
    with pytest.raises(ValueError, match="positions must be one of rope, nope, learned"):
        Decoders("alibi", VOCABULARY, 3, seeds=(0,))


def test_what_a_window_hides_does_nothing(in_a_second):
    model = Decoders("rope", VOCABULARY, 2, seeds=(0,)).eval().adapter()
    reach = 3 * (4 - 1)  # of three layers
    with looking_through(model.module, Lens(window=4)):
        near, far = (share(model, "copy_first", "plain", n) for n in (reach, reach + 1))
        assert gaps(model, "copy_first", "plain", reach + 1)["answer"]["gap"] == 0.0
    assert near > 0.0
    assert far == 0.0
    assert share(model, "copy_first", "plain", reach + 1) > 0.0


# --- runs


def test_the_plan_has_every_case_once_and_room_for_it():
    jobs = [job for tier in "ab" for job in plan.jobs(tier)]
    tested = [(job.task, job.positions, arm) for job in jobs for arm in job.tested]
    assert sorted(tested) == sorted((t, p, a) for t in TASKS for p in POSITIONS for a in ARMS)
    assert sorted(tested) == sorted(all_cases())
    assert len({job.file for job in jobs}) == len(jobs)
    longest = max(n for lengths in plan.LENGTHS.values() for n in lengths) + plan.PHASES
    assert max(tokens_of(layout, longest) for layout in LAYOUTS) <= plan.PLACES
    for job in jobs:  # equal steps for all arms of a task
        assert job.training["steps"] == plan.TRAINING[job.task].steps


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_a_seed_is_trained_as_if_it_were_alone(positions, in_a_second):
    job = Job("count", positions, "left")
    both, losses = glasses_trained_runs.train(job, (4, 5))
    for i, seed in enumerate((4, 5)):
        alone, own = glasses_trained_runs.train(job, (seed,))
        np.testing.assert_allclose([row[i] for row in losses], [row[0] for row in own], rtol=1e-3)
        for name, p in alone.state_dict().items():
            torch.testing.assert_close(p[0], both.state_dict()[name][i], rtol=1e-2, atol=1e-3)


def test_every_parameter_moves(in_a_second):
    job = Job("count", "learned", "left")
    model, losses = glasses_trained_runs.train(job, (0,))
    for name, before in glasses_trained_runs.decoders(job, (0,)).state_dict().items():
        assert not torch.equal(before, model.state_dict()[name]), name
    assert len(losses) == QUICK.steps


def test_a_window_is_trained_with(in_a_second, monkeypatch):
    monkeypatch.setitem(ARMS, "window", Arm("window", lens=Lens(window=2)))
    plain, windowed = (
        glasses_trained_runs.train(Job("copy_first", "nope", arm), (0,))[1] for arm in ("plain", "window")
    )
    assert plain != windowed


def test_a_run_is_kept_and_made_anew_from_its_weights(in_a_second, monkeypatch):
    job = Job("copy_last", "rope", "plain")
    run(job)
    found = result(job)
    assert set(found["tested"]) == {"plain", "adaptive"}
    assert len(found["tested"]["plain"]) == len(plan.SEEDS)
    with monkeypatch.context() as patched:
        patched.setattr(glasses_trained_runs, "measured", lambda *args: pytest.fail("was run again"))
        run(job)
    monkeypatch.setattr(glasses_trained_runs, "train", lambda *args: pytest.fail("was trained again"))
    job.file.unlink()  # the weights are still there
    run(job)
    assert result(job)["tested"] == found["tested"]
    monkeypatch.setattr(plan, "COUNTED", 5)
    assert result(job) is None  # other settings
    monkeypatch.setattr(plan, "TRAINING", dict.fromkeys(TASKS, plan.Training(21, 4, 2e-3)))
    with pytest.raises(pytest.fail.Exception, match="was trained again"):
        run(job)


def test_temperature_changes_the_answers_of_the_same_models(in_a_second):
    model, _ = glasses_trained_runs.train(Job("copy_first", "nope", "plain"), (0,))
    adapter = model.adapter()
    plain, sharp = (measured(adapter, "copy_first", ARMS[arm]) for arm in ("plain", "adaptive"))
    assert plain["answers"][-1]["margin"] != sharp["answers"][-1]["margin"]


# --- the page


def fake(case, values, n=(32, 64, 128), **more):
    """Rows of seeds whose share of right answers is ``values``, (seeds, lengths)."""
    about = dict(zip(("task", "positions", "arm"), case, strict=True))
    return [
        dict.fromkeys(COLUMNS)
        | about
        | {"seed": seed, "loss": 0.0, "n": length, "tokens": tokens_of(ARMS[case[2]].layout, length)}
        | {f"right_{dtype}": right for dtype in plan.DTYPES}
        | {key: value[seed] for key, value in more.items()}
        for seed, row in enumerate(values)
        for length, right in zip(n, row, strict=True)
    ]


def test_n50_and_gain_by_hand():
    plain, left = ("copy_last", "rope", "plain"), ("copy_last", "rope", "left")
    rows = fake(plain, [[1, 0.5, 0.5]] * 3) + fake(left, [[1, 1, 0.5]] * 2 + [[1, 1, 1]])
    # 3/4 is halfway from 1 to 1/2, in the log of the length
    assert n50s(rows, plain) == pytest.approx([32 * math.sqrt(2)] * 3)
    assert n50s(rows, left) == pytest.approx([64 * math.sqrt(2)] * 2 + [math.inf])
    assert gain(rows, left, plain)[0] == pytest.approx(2)
    in_tokens = gain(rows, left, plain, tokens=True)[0]  # 91 digits, 30 commas, two more; 45 and two more
    assert in_tokens == pytest.approx((91 + 30 + 2) / (45 + 2))


def test_what_is_beyond_all_tests_counts_as_the_longest():
    plain, beyond = ("copy_last", "rope", "plain"), ("copy_last", "nope", "plain")
    rows = fake(plain, [[1, 0.5, 0.5]] * 3) + fake(beyond, [[1, 1, 1]] * 3)
    longest = plan.LENGTHS["copy_last"][-1]
    assert gain(rows, beyond, plain)[0] == pytest.approx(longest / (32 * math.sqrt(2)))
    assert gain(rows, beyond, beyond) == (1.0, 1.0, 1.0)


def test_ratios_of_means():
    assert ratio_of_means(np.array([2.0, 8.0]), np.array([1.0, 1.0]))[0] == pytest.approx(4)
    assert ratio_of_means(np.array([0.0]), np.array([1.0])) is None
    assert ratio_of_means(np.empty(0), np.array([1.0])) is None


def test_verdicts_are_only_given_beyond_the_interval():
    assert verdict((2.0, 1.5, 3.0), above=True) == "agrees"
    assert verdict((2.0, 1.5, 3.0), above=False) == "**disagrees**"
    assert verdict((2.0, 0.9, 3.0), above=True) == "undecided"


def test_the_confound_of_separators_is_seen():
    right, seeds = [[1.0, 1.0, 0.0]] * 3, [1.0, 1.1, 1.2]
    apart, nearer = [10.0, 11.0, 12.0], [0.1, 0.11, 0.12]
    rows = fake(("count", "rope", "plain"), right, gap_next=seeds, gap_matched=seeds)
    rows += fake(("count", "rope", "left"), right, gap_next=apart, gap_matched=nearer)
    (line,) = [line for line in separator_gaps(rows).splitlines() if line.startswith("| count | RoPE")]
    naive, matched, right, _ = line.strip("| ").split(" | ")[2:]
    assert naive.startswith("**x 10.00 [")
    assert matched.startswith("**x 0.10 [")
    assert right == "not run yet"


def test_a_collapse_is_where_rounding_is_larger():
    right, n = [[1.0] * 3] * 3, (32, 64, 128)
    rows = [
        row | {"snr_next": {32: 9.0, 64: 1.1, 128: last}[row["n"]]}
        for positions, last in (("rope", 0.5), ("learned", 1.5))
        for row in fake(("count", positions, "plain"), right, n)
    ]
    rope, learned = [line for line in claims(rows).splitlines() if "bfloat16 can tell" in line]
    assert "9 at n = 32, 0.5 at n = 128; below 1 from n = 128 | agrees" in rope
    assert "**disagrees**" in learned


def test_a_page_is_not_made_from_fewer_runs(tmp_path, monkeypatch, in_a_second):
    monkeypatch.setattr(glasses_trained_page, "DOCS", tmp_path)
    (tmp_path / "glasses_trained.csv").write_text("task\ncount\n")
    with pytest.raises(SystemExit, match="has 1 rows, and the runs that are here make 0"):
        glasses_trained.main(["--report"])


def test_the_page_has_what_there_is(tmp_path, monkeypatch, in_a_second, quick_intervals):
    monkeypatch.setattr(glasses_trained_page, "DOCS", tmp_path)
    monkeypatch.setattr(glasses_trained_page, "SHOWN", (8, 32))
    page = tmp_path / "glasses_trained.md"
    page.write_text("before\n<!-- results -->\n<!-- end of results -->\nafter\n")
    for job in (
        Job("copy_last", "rope", "plain"),
        Job("copy_last", "rope", "left"),
        Job("count", "rope", "plain"),
    ):
        run(job)
    glasses_trained.main(["--report"])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "3 runs" in text
    assert "not run yet" in text
    with open(tmp_path / "glasses_trained.csv", newline="") as file:
        kept = list(csv.DictReader(file))
    rows = list(rows_of(job for tier in "ab" for job in plan.jobs(tier)))
    # copies: 8, 16, 32 and 40 digits, two arms of one and one of the other; counting: not at 8 for gaps
    assert len(kept) == len(rows) == 5 * 2 * 4
    assert {row["arm"] for row in kept} == {"plain", "adaptive", "left"}
    assert float(kept[0]["right_float32"]) == pytest.approx(rows[0]["right_float32"])
    assert (tmp_path / "glasses_trained.png").stat().st_size > 10_000
