"""A report of a tiny model: its parts, files and verdicts."""

import json
import math
from functools import partial

import pytest
import torch

from envs.sequence_tasks import SequenceTask
from extensions.glasses import HFCausalLM, representation_gap, sensitivity_profile
from extensions.glasses.encoding import MinimalPairs, split
from extensions.glasses.remedies import Dilute, RepeatQuestion, sliding_window, upcast
from extensions.glasses.report import GlassesReport, ReportConfig
from extensions.glasses.report.gaps import _noise, gap_part
from extensions.glasses.report.parts import _blame, answers_part, sensitivity_part
from extensions.glasses.statistics import CriticalLength

SETTINGS = {
    "lengths": (4, 8),
    "trials": 2,
    "pairs": 2,
    "probes": 4,
    "retrieval_lengths": (3,),
    "retrieval_trials": 1,
}


def task(kind="copy_last"):
    return SequenceTask(kind, prompt_style="terse")


@pytest.fixture
def model(make_llama, char_tokenizer):
    return HFCausalLM(make_llama(len(char_tokenizer)), char_tokenizer)


@pytest.fixture
def report(model):
    config = ReportConfig([task(), task("count_ones")], retrieval=task("kv_recall"), **SETTINGS)
    return GlassesReport(model, config)


def test_files(report, tmp_path):
    report.run().save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == json.loads(json.dumps(report.as_dict()))
    assert list(saved["parts"]) == [
        "gap/copy_last",
        "gap/count_ones",
        "answers/copy_last",
        "answers/count_ones",
        "sensitivity/copy_last",
        "sensitivity/count_ones",
        "retrieval",
    ]
    text = (tmp_path / "report.md").read_text()
    for line in report.verdicts:
        assert line in text
    for name in saved["parts"]:
        picture = f"{name.replace('/', '-')}.png"
        assert picture in text
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"
    assert saved["model"]["parameters"] == sum(p.numel() for p in report.model.module.parameters())


def test_every_verdict_carries_a_number(report):
    verdicts = report.run().verdicts
    assert len(verdicts) >= 9
    assert all(any(c.isdigit() for c in line.partition(":")[2]) or "n* = inf" in line for line in verdicts)


def test_retrieval_is_set_against_chance(report):
    part = report.run().parts["retrieval"]
    over = sum(low > 0.5 for low in part["low"][0])
    assert part["verdicts"][0].endswith(f"; more than chance, 0.5, at {over} of 5 depths by their intervals")


def test_gaps_are_those_of_minimal_pairs(model):
    config = ReportConfig([task()], **SETTINGS)
    part = gap_part(model, task(), config)
    for i, length in enumerate(config.lengths):
        sides = [task().minimal_pair(item) for item in task().items(length, 2)]
        a, b = (
            torch.tensor([ids[:start] for ids, start in (split(model.tokenizer, x) for x in side)])
            for side in zip(*sides, strict=True)
        )
        expected = representation_gap(model, a, b, norms=("l1",))
        assert part["gap"]["float32"][i] == pytest.approx(expected.gap["float32"][:, :, 0].mean(0).tolist())
        assert part["rounding"]["bfloat16"][i] == pytest.approx(
            expected.rounding["bfloat16"][:, :, 0].mean(0).tolist()
        )


def test_sensitivities_are_those_of_the_longest_sequence_that_fits(report):
    report.run()
    part = report.parts["sensitivity/copy_last"]
    ids, start = split(report.model.tokenizer, task().items(8, 1)[0])
    exact = sensitivity_profile(report.model, torch.tensor([ids[:start]]), mode="exact").share[0]
    assert part["length"] == 8
    assert part["tokens"] == start == len(part["full"])
    assert torch.corrcoef(torch.stack((torch.tensor(part["full"]), exact)))[0, 1] > 0.9
    assert sum(part["full"]) == pytest.approx(1, abs=1e-4)
    begin, end = part["bearing"]
    assert report.model.tokenizer.decode(ids[begin:end]) == task().items(8, 1)[0].payload[-1]


@pytest.mark.parametrize("kind", ["count_ones", "sum_ones", "count_bernoulli", "parity"])
@pytest.mark.parametrize("style", ["terse", "words"])
def test_where_all_elements_count_the_whole_sequence_bears_the_answer(model, kind, style):
    asked = SequenceTask(kind, prompt_style=style)
    part = sensitivity_part(model, asked, ReportConfig([asked], **(SETTINGS | {"lengths": (9,)})))
    item = asked.items(9, 1)[0]
    ids, _ = split(model.tokenizer, item)
    begin, end = part["bearing"]
    borne = model.tokenizer.decode(ids[begin:end])
    sequence = item.prompt[slice(*item.payload_span)]
    assert borne.strip() == sequence.strip()


def test_the_element_that_is_asked_for_bears_the_answer(model):
    asked = task("copy_nth")
    part = sensitivity_part(model, asked, ReportConfig([asked], **(SETTINGS | {"lengths": (9,)})))
    item = asked.items(9, 1)[0]
    begin, end = part["bearing"]
    ids, _ = split(model.tokenizer, item)
    assert model.tokenizer.decode(ids[begin:end]) == item.payload[item.target]


def test_gaps_are_measured_where_there_is_but_one_length(model):
    part = answers_part(model, task(), ReportConfig([task()], **(SETTINGS | {"lengths": (8,)})))
    assert part["arms"]["plain"]["gap"]["1"][0] > 0
    assert not any("rounding" in line for line in part["verdicts"])


def test_rounding_may_be_above_the_gap_at_shorter_lengths_alone():
    right = CriticalLength(math.inf, "right")
    assert _noise(right, 0.66, 96) == (
        "rounding is above the gap at a shorter n, but not at n = 96; least SNR 0.66"
    )
    assert _noise(right, 1.5, 96) == "rounding is never above the gap up to n = 96; least SNR 1.5"
    assert "from there on" in _noise(CriticalLength(32, "no"), 0.1, 96)


def test_ceilings_are_those_of_two_answers_to_one_state(model):
    part = gap_part(model, task(), ReportConfig([task()], **SETTINGS))
    assert part["reward_ceiling"] == {"float32": [1.0, 1.0], "bfloat16": [1.0, 1.0]}
    with torch.no_grad():
        model.module.model.norm.weight.zero_()
    part = gap_part(model, task(), ReportConfig([task()], **SETTINGS))
    assert part["reward_ceiling"] == {"float32": [0.5, 0.5], "bfloat16": [0.5, 0.5]}
    assert any("is at most 0.5 in bfloat16" in line for line in part["verdicts"])


def test_pairs_are_a_family(model):
    family = MinimalPairs(model.tokenizer, task("count_ones"), 1)
    assert family.name == "count_ones"
    (a,), (b,) = family.pairs(5)
    assert len(b) > len(a)


def test_it_goes_on_where_it_was_stopped(report, tmp_path):
    class Stop(Exception):
        pass

    def stop(name, done, of):
        assert of == 7
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        report.run(tmp_path, stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "answers-copy_last.json",
        "gap-copy_last.json",
        "gap-count_ones.json",
    ]
    kept = (tmp_path / "gap-copy_last.json").read_text()
    again = GlassesReport(report.model, report.config).run(tmp_path)
    whole = GlassesReport(report.model, report.config).run()
    assert (tmp_path / "gap-copy_last.json").read_text() == kept
    assert json.dumps(again.parts) == json.dumps(whole.parts)


def test_long_sequences_have_fewer_items(model):
    asked = task("count_bernoulli")
    config = ReportConfig([asked], **(SETTINGS | {"lengths": (8, 16), "trials": 8, "trial_tokens": 70}))
    part = GlassesReport(model, config).run().parts["answers/count_bernoulli"]
    lengths = [split(model.tokenizer, asked.items(n, 1)[0])[1] for n in config.lengths]
    assert part["trials"] == [max(2, min(8, 70 // n)) for n in lengths]
    assert part["trials"][0] > part["trials"][1]
    assert [len(x) for x in part["arms"]["plain"]["said"]["bfloat16"]] == part["trials"]
    assert list(part["arms"]["dilute(3, ',')"]["accuracy"]) == ["float32"]


def blamed(wide, low):
    class Plain:
        n50 = {"float32": None, "bfloat16": None}  # noqa: RUF012
        right = {"float32": (tuple(wide),), "bfloat16": (tuple(low),)}  # noqa: RUF012

    return _blame("count", Plain())


def test_precision_is_to_blame_for_what_it_loses_on_the_same_items():
    assert blamed([True] * 9, [True] * 9) == []
    assert blamed([True] * 9, [True] * 8 + [False]) == []
    assert blamed([True] * 9, [False] * 9) == [
        "count: bfloat16 fails where float32 does not: of 9 items bfloat16 loses 9 and wins 0"
    ]
    assert blamed([True] * 6 + [False] * 3, [True] * 6 + [False] * 3) == [
        "count: no sign that the failure is of precision, float32 fails too (3 of 9 items): of 9 items "
        "bfloat16 loses 0 and wins 0"
    ]


def test_answers_that_begin_alike_are_no_ceiling(model):
    """16 and 17 both begin with a 1, in a tokenizer of characters."""
    with torch.no_grad():
        model.module.model.norm.weight.zero_()  # all states are one
    config = ReportConfig([task("count_ones")], **(SETTINGS | {"lengths": (9, 16)}))
    part = gap_part(model, task("count_ones"), config)
    assert part["reward_ceiling"]["float32"] == [0.5, 1.0]
    assert part["greedy_ceiling"]["float32"] == [0.5, 1.0]
    assert any("both answers begin with the same token (float32)" in line for line in part["verdicts"])


def test_separators_come_with_their_controls(report):
    report.run()
    arms = report.parts["answers/count_ones"]["arms"]
    assert len(arms) == 5
    assert any("right" in name for name in arms)
    assert any("filler" in name for name in arms)


def test_nothing_measured_is_not_saved(report, tmp_path):
    with pytest.raises(RuntimeError, match=r"call run\(\) first"):
        report.save(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"remedies": (partial(sliding_window, window=0),)}, "window must be at least 1"),
        ({"remedies": (partial(upcast, layers="foo"),)}, "layers must be"),
        ({"remedies": (Dilute(3), Dilute(3))}, "two remedies are named"),
        ({"remedies": (RepeatQuestion(),)}, "nothing comes before the sequence"),
        ({"lengths": (4, 60)}, "learned positions for 128 tokens"),  # with separators
        ({"retrieval": True, "retrieval_lengths": (3, 30)}, "learned positions for 128 tokens"),
    ],
)
def test_what_would_fail_late_fails_at_once(char_tokenizer, changed, message):
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_embd": 16, "n_layer": 1, "n_head": 1, "n_positions": 128}
    gpt2 = HFCausalLM(
        GPT2LMHeadModel(GPT2Config(vocab_size=len(char_tokenizer), **size)).eval(), char_tokenizer
    )
    if "retrieval" in changed:
        changed = {**changed, "retrieval": task("kv_recall")}
    settings = SETTINGS | {"lengths": (4, 32)} | changed
    with pytest.raises(ValueError, match=message):
        GlassesReport(gpt2, ReportConfig([task()], **settings))


def test_a_reference_that_rounds_more_is_refused():
    with pytest.raises(ValueError, match="must be the finest, float32 here"):
        ReportConfig([task()], **(SETTINGS | {"dtypes": ("bfloat16", "float32")}))


def test_prompts_longer_than_the_model_was_made_for(make_llama, char_tokenizer):
    model = HFCausalLM(make_llama(len(char_tokenizer)), char_tokenizer)
    model.module.config.max_position_embeddings = 24
    part = gap_part(model, task(), ReportConfig([task()], **(SETTINGS | {"lengths": (4, 8, 16)})))
    line = part["verdicts"][0]
    assert line.startswith("copy_last: from n = 16 on prompts have more tokens (")
    assert "than the 24 that the model was made for" in line


def test_few_lengths_are_all_measured_and_half_of_many(model):
    for lengths in ((3, 4, 5, 6), tuple(range(3, 11))):
        part = answers_part(model, task(), ReportConfig([task()], **(SETTINGS | {"lengths": lengths})))
        measured = [math.isfinite(float(gap)) for gap in part["arms"]["plain"]["gap"]["1"]]
        assert measured == ([True] * 4 if len(lengths) == 4 else [True, False] * 4)


def test_retrieval_needs_lengths():
    with pytest.raises(ValueError, match=r"retrieval_lengths must be at least one, all positive; got \[0\]"):
        ReportConfig([task()], **(SETTINGS | {"retrieval": task("kv_recall"), "retrieval_lengths": (0,)}))


def test_models_that_cannot_be_asked(make_llama, char_tokenizer):
    config = ReportConfig([task()], **SETTINGS)
    with pytest.raises(ValueError, match="give the tokenizer"):
        GlassesReport(HFCausalLM(make_llama(128)), config)
    with pytest.raises(ValueError, match="train mode"):
        GlassesReport(HFCausalLM(make_llama(128).train(), char_tokenizer), config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": []}, "tasks must be at least one"),
        ({"tasks": [task(), task()]}, "each with a name of its own"),
        ({"lengths": (8, 4)}, "lengths must be at least 2 and ascending"),
        ({"lengths": (1, 4)}, "lengths must be at least 2 and ascending"),
        ({"dtypes": ()}, "dtypes must be at least one"),
        ({"dtypes": ("int8",)}, "dtype must be one of"),
        ({"trials": 1}, "trials must be at least 2"),
        ({"pairs": 0}, "pairs must be at least 1"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        ReportConfig(**({"tasks": [task()], "remedies": [Dilute(3)]} | SETTINGS | change))


def test_one_dtype_has_no_rounding(model):
    part = gap_part(model, task(), ReportConfig([task()], dtypes=("float32",), **SETTINGS))
    assert part["rounding"] == {}
    assert not math.isnan(part["slope"][0])
