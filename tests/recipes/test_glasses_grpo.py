"""GRPO on counting: its questions, one tiny run of it, and what is made of runs."""

import csv
import dataclasses
import json
import os
import random

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
pytest.importorskip("trl")

from recipes.bench import glasses_grpo_model as model
from recipes.bench import glasses_grpo_page as page
from recipes.bench import glasses_grpo_plan as plan
from recipes.bench import glasses_grpo_questions as questions
from recipes.bench import glasses_grpo_runs as runs
from recipes.bench import glasses_grpo_tables as tables

FRAMED, BARE = plan.SETTINGS["framed"], plan.SETTINGS["bare"]
PLACES = ("about", "ceilings", "above", "ranks", "precision", "bins", "log", "gaps", "far")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Runs of seconds, in a folder of their own."""
    small = plan.Training(hidden=16, layers=1, heads=2, updates=6, prompts=2, generations=4)
    monkeypatch.setattr(plan, "RUNS", tmp_path)
    for module in (plan, model, runs):
        monkeypatch.setattr(module, "TRAINING", small)
    for name, setting in plan.SETTINGS.items():
        monkeypatch.setitem(plan.SETTINGS, name, dataclasses.replace(setting, longest=8, warm_up=10))
    monkeypatch.setattr(runs, "FAR", (8,))
    monkeypatch.setattr(runs, "NEIGHBOURS", 2)


def ids(setting, arm, ones):
    text = questions.question(setting, arm, ones, random.Random(0)).prompt
    return questions.make_tokenizer(setting).convert_ids_to_tokens(
        questions.make_tokenizer(setting)(text)["input_ids"]
    )


def test_every_setting_has_all_arms_and_both_precisions_on_every_seed():
    jobs = list(plan.jobs())
    assert len({job.file for job in jobs}) == len(jobs) == 2 * 4 * 2 * 5
    first = jobs[: 2 * 4 * 2]
    assert {job.seed for job in first} == {0}
    assert len({(job.setting, job.arm, job.dtype) for job in first}) == len(first)


def test_how_arms_put_seven_ones():
    one, mark = "1", ","
    assert ids(FRAMED, "plain", 7) == ["<bos>", *[one] * 7, "="]
    assert ids(BARE, "plain", 7) == [one] * 7
    assert ids(BARE, "sep_left", 7) == [one, one, one, mark, one, one, one, mark, one]
    assert ids(BARE, "sep_right", 7) == [one, mark, one, one, one, mark, one, one, one]


@pytest.mark.parametrize("ones", [1, 2, 3, 4, 6, 7, 16])
def test_arms_have_the_same_ones_and_the_same_number_of_separators(ones):
    for arm in plan.ARMS:
        tokens = ids(BARE, arm, ones)
        assert tokens.count("1") == ones
        assert tokens.count(",") == len(tokens) - ones == (0 if arm == "plain" else (ones - 1) // plan.EVERY)
        assert tokens[0] == tokens[-1] == "1"


def test_filler_is_not_always_at_the_same_places_and_the_pool_is_the_seeds():
    pool = questions.pool(FRAMED, "filler", seed=0)
    assert [item.answer for item in pool] == [str(n) for n in range(1, 49)]
    other = questions.pool(FRAMED, "filler", seed=1)
    assert [item.prompt for item in pool] != [item.prompt for item in other]
    assert [item.prompt for item in pool] == [item.prompt for item in questions.pool(FRAMED, "filler", 0)]


def test_short_questions_are_commoner_in_the_uneven_pool():
    answers = [item.answer for item in questions.pool(BARE, "plain", 0)]
    assert [answers.count(str(n)) for n in (1, 2, 3, 8, 16)] == [16, 8, 5, 2, 1]


def test_an_answer_is_one_token():
    tokenizer = questions.make_tokenizer(FRAMED)
    for item in questions.pool(FRAMED, "plain", 0):
        assert tokenizer.unk_token_id not in tokenizer(item.prompt)["input_ids"]
        assert len(tokenizer(item.answer, add_special_tokens=False)["input_ids"]) == 1


def test_pairs_are_so_many_ones_apart():
    tokenizer = questions.make_tokenizer(BARE)
    for more in (1, 3):
        first, second = questions.ArmPairs(BARE, "sep_right", tokenizer, more).pairs(7)
        one = tokenizer.convert_tokens_to_ids("1")
        assert ((first == one).sum().item(), (second == one).sum().item()) == (7, 7 + more)


def test_without_positions_order_alone_is_not_seen():
    """Two keys in another order give the last token the same sum, if angles are all 0."""
    setting = plan.SETTINGS["no_positions"]
    tokenizer = questions.make_tokenizer(setting)
    torch.manual_seed(0)
    for positions, same in ((False, True), (True, False)):
        made = model.new_model(dataclasses.replace(setting, positions=positions), tokenizer, 0)
        made.model.layers = made.model.layers[:1]  # deeper, the causal mask tells of order
        made.config.num_hidden_layers = 1
        one, two = (made(torch.tensor([row])).logits[0, -1] for row in ([1, 5, 4, 5], [1, 4, 5, 5]))
        assert torch.allclose(one, two, atol=1e-5) == same


def test_a_run_is_kept_and_shares_its_warmed_up_model(tiny, capsys):
    jobs = [plan.Job("bare", "plain", dtype, 0) for dtype in plan.DTYPES]
    assert runs.run(jobs[0])
    warmed_up = (jobs[0].folder / "warmed_up.pt").stat().st_mtime_ns
    assert "reward" in capsys.readouterr().out
    assert runs.run(jobs[1])
    assert (jobs[0].folder / "warmed_up.pt").stat().st_mtime_ns == warmed_up
    assert not runs.run(jobs[0])  # what has ended stays
    one, two = runs.ended(jobs)
    assert one["before"]["expected_reward"] == pytest.approx(two["before"]["expected_reward"], abs=1e-2)
    # 8 + 4 + 2 + 2 + 1 + 1 + 1 + 1 questions in one state, of which 8 have one answer
    assert two["before"]["ceilings"] == dict.fromkeys(("bitwise", "snr", "argmax"), pytest.approx(8 / 20))
    assert one["before"]["ceilings"]["snr"] == pytest.approx(8 / 20)
    for run in (one, two):
        for when in ("before", "after"):
            assert 0 <= run[when]["expected_reward"] <= 8 / 20 + 1e-6
            assert run[when]["greedy"] <= run[when]["ceilings"]["argmax"]
        assert [e["step"] for e in run["history"] if "glasses/plus_1/gap_l1/4" in e] == [0, 2, 4, 6]
        assert {name for e in run["history"] for name in e} >= set(plan.LOGGED)
    jobs[0].file.write_text(json.dumps(one | {"settings": {}}))
    assert runs.run(jobs[0])  # with other settings it is another run
    again = runs.ended(jobs[:1])[0]
    assert again["after"] == one["after"]
    assert again["history"] == one["history"]


@pytest.mark.parametrize(("dtype", "computed"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_run_computes_in_its_precision(dtype, computed, tiny):
    setting = plan.SETTINGS["framed"]
    tokenizer, pool = questions.make_tokenizer(setting), questions.pool(setting, "plain", 0)
    made, seen = model.new_model(setting, tokenizer, 0), {True: set(), False: set()}

    def look(module, args, output):
        if len(output) == 8:  # answers in one batch; what the callback measures is by itself
            seen[torch.is_grad_enabled()].add(output.dtype)

    made.model.layers[0].mlp.down_proj.register_forward_hook(look)
    runs.grpo(made, tokenizer, pool, plan.Job("framed", "plain", dtype, 0))
    assert seen == {True: {computed}, False: {computed}}  # while it learns, and while it answers
    assert {p.dtype for p in made.parameters()} == {torch.float32}


def test_ceilings_of_longer_questions(tiny):
    job = plan.Far("framed", 0)
    assert runs.run(job)
    (found,) = runs.ended([job])
    assert found["ceilings"].keys() == {"8"}
    assert found["ceilings"]["8"].keys() == set(plan.DTYPES)
    assert all(0.5 <= x <= 1 for told in found["ceilings"]["8"].values() for x in told.values())


def fake(setting, arm, dtype, seed, ceiling, reward):
    state = {
        "expected_reward": reward / 2,
        "greedy": reward,
        "greedy_by_bin": [1.0, 0.5, 0.25, 0.0],
        "reward_by_bin": [1.0, 0.5, 0.25, 0.0],
        "round_numbers": 0.1,
        "ceilings": {"bitwise": 1.0, "snr": ceiling, "argmax": ceiling},
    }
    watched = plan.SETTINGS[setting].watched
    gaps = {f"glasses/plus_{more}/snr_bfloat16/{n}": 2.0 for more in (1, plan.EVERY) for n in watched}
    history = [{"step": 0.0, **gaps}, *({"step": s, **dict.fromkeys(plan.LOGGED, 0.5)} for s in (10.0, 20.0))]
    about = {"cpu_s": 60.0, "machine": "M", "versions": {"torch": "2"}, "commit": "c"}
    names = {"setting": setting, "arm": arm, "dtype": dtype, "seed": seed}
    return {
        **names,
        "before": state,
        "after": state | {"expected_reward": reward},
        "history": history,
        **about,
    }


def cells(text, *first):
    """The row of a table that begins with these cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return next(row for row in rows if row[: len(first)] == list(first))


def test_what_was_told_stands_beside_what_came():
    found = [fake("bare", "plain", "bfloat16", seed, 0.3, 0.2 + seed / 25) for seed in range(3)]
    row = cells(tables.ceilings_table(found), "rotary, bare", "plain", "bf16")
    assert row[3:7] == ["3", "1.000", "0.300", "0.300"]
    assert row[8].startswith("0.240 [")
    assert cells(tables.above_table(found), "rotary, bare", "SNR below 1")[2:] == ["3", "3", "0", "0"]
    found.append(fake("bare", "plain", "bfloat16", 3, 0.3, 0.31))
    assert cells(tables.above_table(found), "rotary, bare", "SNR below 1")[2:] == ["4", "4", "1", "1"]
    assert cells(tables.above_table(found), "rotary, bare", "same bits")[2:] == ["4", "0", "0", "0"]


def test_ranks_agree_or_do_not():
    def made(sign):
        return [
            fake("bare", arm, "float32", seed, 0.2 + i / 10, 0.5 + sign * i / 10)
            for i, arm in enumerate(plan.ARMS)
            for seed in range(3)
        ]

    assert tables.ranks(made(1), "snr") == "1.00 [1.00, 1.00]"
    assert tables.ranks(made(-1), "snr") == "-1.00 [-1.00, -1.00]"
    assert tables.ranks(made(1), "bitwise") == "all 1"
    assert cells(tables.ranks_table(made(1)), "rotary, bare", "fp32")[2:4] == ["12", "all 1"]


def test_precisions_are_compared_seed_by_seed():
    found = [fake("bare", "plain", "float32", seed, 0.3, seed / 10) for seed in range(3)]
    found += [fake("bare", "plain", "bfloat16", seed, 0.3, seed / 10 + 0.05) for seed in range(4)]
    row = cells(tables.precision_table(found), "rotary, bare", "plain")
    assert row[2] == "3"
    assert row[3].startswith("0.050")


def test_the_report_of_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "DOCS", tmp_path)
    file = tmp_path / "glasses_grpo.md"
    file.write_text("".join(f"<!-- {x} -->\n<!-- end of {x} -->\n" for x in PLACES))
    found = [fake("bare", arm, d, s, 0.3, 0.2) for arm in plan.ARMS for d in plan.DTYPES for s in range(3)]
    found.append(fake("framed", "plain", "float32", 0, 1.0, 0.9))
    told = {name: {"bitwise": 1.0, "snr": 0.5, "argmax": 0.25} for name in plan.DTYPES}
    page.report(found, [{"setting": "framed", "seed": 0, "ceilings": {"64": told}}])
    text = file.read_text()
    assert "| rotary, framed | 64 to 79 | 1 | 1.000 | 0.500 | 0.250 |" in text
    assert "25 runs, 25 minutes of CPU time" in text
    assert (tmp_path / "glasses_grpo.png").exists()
    with open(tmp_path / "glasses_grpo.csv", newline="") as raw:
        rows = list(csv.DictReader(raw))
    assert len(rows) == 25
    assert rows[0]["ceiling_snr_before"] == "0.3"
    assert rows[0]["snr_plus_3_long_last"] == "2.0"
    with pytest.raises(SystemExit, match="25 rows"):
        page.report(found[:3], [])
    with pytest.raises(SystemExit, match="nothing was run"):
        page.report([], [])
