"""Sequence tasks: every answer right, the same items everywhere, and parsers that guess nothing."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.sequence_tasks import (
    KINDS,
    SeparatorConfig,
    SequenceTask,
    TaskConfig,
    generate,
    minimal_pair,
    to_hf_dataset,
)
from envs.sequence_tasks import items as items_module

COPYING = ("copy_first", "copy_last", "copy_nth")
COUNTING = ("count_ones", "count_bernoulli", "count_word", "sum_ones", "parity")
CHOSEN = (*COPYING, "parity", "kv_recall")  # kinds whose answer can be chosen whatever the length


def by_hand(item):
    """The answer from the elements alone."""
    elements, n = list(item.payload), len(item.payload)
    if item.kind in COPYING:
        place = {"copy_first": 0, "copy_last": n - 1, "copy_nth": int(item.query or 0) - 1}[item.kind]
        return elements[place]
    if item.kind == "kv_recall":
        return dict(pair.split(":") for pair in elements)[item.query]
    counted = {"count_word": "car", "sum_ones": "1"}.get(item.kind, item.config.alphabet[-1])
    number = Counter(elements)[counted]
    return str(number % 2) if item.kind == "parity" else str(number)


def stripped(item):
    """The sequence as its prompt has it, without separators, spaces and plus signs."""
    text = item.prompt[slice(*item.payload_span)]
    marks = item.config.separator.text if item.config.separator else ""
    return re.sub(rf"[\s+{re.escape(marks)}]", "", text)


@st.composite
def configs(draw):
    kind = draw(st.sampled_from(KINDS))
    style = draw(st.sampled_from(["words", "terse"]))
    low = draw(st.integers(1, 40))
    separators = st.builds(
        SeparatorConfig,
        every=st.integers(1, 7),
        text=st.sampled_from([",", "|", ";", "--"]),
        side=st.sampled_from(["left", "right"]),
    )
    return TaskConfig(
        kind,
        lengths=(low, low + draw(st.integers(0, 5))),
        p=draw(st.floats(0, 1)),
        alphabet=draw(st.sampled_from(["01", "ab", "0123456789", "xyz1"])),
        separator=draw(st.none() | separators),
        interleave=kind in COPYING and draw(st.booleans()),
        hint=style == "words" and draw(st.booleans()),
        prompt_order=draw(st.sampled_from(["question_first", "sequence_first"])),
        cot=draw(st.sampled_from(["none", "zero", "few"]))
        if style == "words" and kind in COUNTING
        else "none",
        seed=draw(st.integers(0, 2**62)),
        prompt_style=style,
    )


@given(configs(), st.integers(0, 12))
def test_every_item_is_what_it_says(config, size):
    items = generate(config, size)
    assert len(items) == size
    assert len({item.id for item in items}) == size
    for item in items:
        assert item.answer == by_hand(item) == SequenceTask(config).oracle(item)
        assert stripped(item) == "".join(item.payload)
        assert item.length == len(item.payload) in config.length_values
        assert SequenceTask(config).parse(f"{item.lead}{item.answer}") == item.answer
        assert item.prompt == item.prompt.rstrip() or config.prompt_style == "terse"


@given(configs())
def test_a_minimal_pair_differs_in_one_element_and_in_its_answer(config):
    for item in generate(config, 3):
        same, other = minimal_pair(item)
        assert same is item
        assert other.answer == by_hand(other) != item.answer
        assert (other.query, other.kind, other.seed) == (item.query, item.kind, item.seed)
        if item.kind in ("count_ones", "sum_ones"):
            assert other.payload == (*item.payload, item.payload[-1])
        else:
            places = [i for i in range(item.length) if item.payload[i] != other.payload[i]]
            assert len(places) == 1
            assert item.target in (None, places[0])
        start, end = item.payload_span
        start_of_other, end_of_other = other.payload_span
        assert item.prompt[:start] == other.prompt[:start_of_other]
        assert item.prompt[end:] == other.prompt[end_of_other:]
        assert minimal_pair(item) == (item, other)


def test_the_oracle_catches_a_generator_that_is_wrong(monkeypatch):
    monkeypatch.setattr(items_module, "answer_of", lambda config, payload: "7")
    with pytest.raises(RuntimeError, match="the oracle '5'"):
        generate(TaskConfig("count_ones", lengths=[5]), 1)


def fingerprint(kind):
    items = generate(TaskConfig(kind, lengths=(3, 9), seed=5), 20)
    text = json.dumps([[item.prompt, item.answer, item.id, item.seed] for item in items])
    return hashlib.sha256(text.encode()).hexdigest()


def test_items_are_the_same_in_another_process():
    code = (
        "import hashlib, json; from envs.sequence_tasks import KINDS, TaskConfig, generate\n"
        "for kind in KINDS:\n"
        "    items = generate(TaskConfig(kind, lengths=(3, 9), seed=5), 20)\n"
        "    text = json.dumps([[item.prompt, item.answer, item.id, item.seed] for item in items])\n"
        "    print(hashlib.sha256(text.encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [fingerprint(kind) for kind in KINDS]


def test_these_very_items():
    """Of this version for good: a figure must be made again from its seed."""
    kinds = ("copy_nth", "count_bernoulli", "kv_recall")
    items = [SequenceTask(kind, prompt_style="terse", seed=3).items(5, 1)[0] for kind in kinds]
    assert [item.prompt for item in items] == [
        "1 1 1 0 1 ? 4 = ",
        "0 1 0 1 0 = ",
        "k11:0 k64:0 k88:0 k94:1 k58:0 ? k64 = ",
    ]


def test_more_items_begin_with_the_same():
    config = TaskConfig("count_bernoulli", lengths=(4, 13))
    assert generate(config, 30)[:17] == generate(config, 17)


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_other_items(kind):
    one, other = ([item.seed for item in generate(TaskConfig(kind, seed=s), 20)] for s in (0, 1))
    assert not set(one) & set(other)
    if kind not in ("count_ones", "sum_ones"):
        assert SequenceTask(kind, seed=0).items(40, 5) != SequenceTask(kind, seed=1).items(40, 5)


@pytest.mark.parametrize(
    "change",
    [{"separator": SeparatorConfig()}, {"hint": True}, {"prompt_order": "sequence_first"}, {"cot": "few"}],
    ids=str,
)
def test_how_it_is_put_leaves_the_sequences_alone(change):
    plain, changed = (generate(TaskConfig("count_bernoulli", **c), 40) for c in ({}, change))
    assert [item.payload for item in plain] == [item.payload for item in changed]
    assert all(a.prompt != b.prompt for a, b in zip(plain, changed, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_come_equally_often(kind):
    counts = Counter(item.length for item in generate(TaskConfig(kind, lengths=[2, 3, 5, 8, 13]), 25))
    assert counts == {2: 5, 3: 5, 5: 5, 8: 5, 13: 5}


@pytest.mark.parametrize("alphabet", ["01", "abc"])
@pytest.mark.parametrize("kind", CHOSEN)
def test_answers_come_equally_often_at_every_length(kind, alphabet):
    answers = 2 if kind == "parity" else len(alphabet)
    items = generate(TaskConfig(kind, lengths=(3, 8), alphabet=alphabet), 6 * answers * 4)
    counts = Counter((item.length, item.answer) for item in items)
    assert len(counts) == 6 * answers
    assert set(counts.values()) == {4}
    one_round = Counter(item.answer for item in items[:6])
    assert max(one_round.values()) - min(one_round.values()) <= 1


def test_a_length_does_not_tell_the_answer_of_a_round():
    """Answers that alternate with lengths would let a model answer by the parity of the length."""
    seen = set()
    for seed in range(8):
        items = generate(TaskConfig("copy_last", lengths=(2, 9), seed=seed), 8)
        seen.add("".join(item.answer for item in sorted(items, key=lambda item: item.length)))
    assert len(seen) > 4


@pytest.mark.parametrize(("kind", "p"), [("count_bernoulli", 0.7), ("count_word", 0.2), ("parity", 0.5)])
def test_p_is_the_share_of_what_is_counted(kind, p):
    task = SequenceTask(kind, p=p)
    share = sum(item.payload.count(task.config.counted) for item in task.items(1000, 20)) / 20_000
    assert share == pytest.approx(p, abs=0.015)


def test_a_run_has_one_other_element_and_turns_are_taken():
    run, turns = (SequenceTask("copy_last", interleave=i).items(9, 2) for i in (False, True))
    assert sorted("".join(item.payload) for item in run) == ["111111110", "111111111"]
    for item in turns:
        assert all(a != b for a, b in zip(item.payload[:8], item.payload[1:8], strict=False))
    phases = {item.payload[0] for item in SequenceTask("copy_last", interleave=True).items(9, 20)}
    assert phases == {"0", "1"}


def test_positions_of_copy_nth_are_spread():
    assert {item.target for item in SequenceTask("copy_nth").items(6, 100)} == set(range(6))


@pytest.mark.parametrize(
    ("every", "side", "laid"),
    [
        (3, "left", "111,111,1"),
        (3, "right", "1,111,111"),
        (7, "left", "1111111"),
        (7, "right", "1111111"),
        (1, "left", "1,1,1,1,1,1,1"),
        (9, "right", "1111111"),
    ],
)
def test_separators_from_either_side(every, side, laid):
    task = SequenceTask("count_ones", separator=SeparatorConfig(every, ",", side))
    item = task.items(7, 1)[0]
    assert item.prompt[slice(*item.payload_span)] == laid
    assert item.payload == ("1",) * 7


@pytest.mark.parametrize(
    ("kind", "laid"),
    [
        ("sum_ones", "1+1,+1"),
        ("count_ones", "11,1"),
    ],
)
def test_separators_of_sums(kind, laid):
    item = SequenceTask(kind, separator=SeparatorConfig(2)).items(3, 1)[0]
    assert item.prompt[slice(*item.payload_span)] == laid


def test_terse_prompts_are_the_sequence_and_a_mark():
    def prompt(kind, **fields):
        return SequenceTask(kind, prompt_style="terse", **fields).items(4, 1)[0].prompt

    assert prompt("count_ones") == "1 1 1 1 = "
    assert prompt("sum_ones") == "1 + 1 + 1 + 1 = "
    assert prompt("count_ones", separator=SeparatorConfig()) == "1 1 1 , 1 = "
    assert re.fullmatch(r"([01] ){4}\? [1-4] = ", prompt("copy_nth"))
    assert re.fullmatch(r"(k\d+:[01] ){4}\? k\d+ = ", prompt("kv_recall"))


@pytest.mark.parametrize("order", ["question_first", "sequence_first"])
def test_where_the_sequence_stands(order):
    item = SequenceTask("copy_last", prompt_order=order).items(12, 1)[0]
    assert (item.payload_span[1] == len(item.prompt)) == (order == "question_first")
    assert (item.payload_span[0] < 20) == (order == "sequence_first")


def test_the_prompt_demands_the_lead():
    for kind in KINDS:
        item = SequenceTask(kind).items(5, 1)[0]
        assert f"{item.lead.strip()} xxxx" in item.prompt


def test_worked_examples_are_right_and_in_groups_of_five():
    for kind in COUNTING:
        prompt = SequenceTask(kind, cot="few").items(20, 1)[0].prompt
        examples = re.findall(r"Sequence: (.*)\n(.*)\n.*is: (\d+)\n", prompt)
        assert len(examples) == 2
        counted = TaskConfig(kind).counted
        for sequence, steps, answer in examples:
            number = sequence.count(counted)
            assert answer == str(number % 2 if kind == "parity" else number)
            assert f"makes {number}." in steps
            groups = re.findall(r"(\S.*?) has (\d+), which", steps.replace(". ", ".\n"))
            assert [group.count(counted) for group, _ in groups] == [int(n) for _, n in groups]


def test_a_template_of_ones_own():
    config = TaskConfig("kv_recall", lengths=[5], template="{{Q}} {question} [{payload}] {query}:")
    item = generate(config, 1)[0]
    assert item.prompt.startswith("{Q} The sequence has")
    assert item.prompt.endswith(f"] {item.query}:")
    assert item.prompt[item.payload_span[0] - 1] == "["


def test_held_out_lengths_are_kept_apart():
    config = TaskConfig("parity", lengths=(2, 20), held_out=[5, 19, 300])
    train, test = generate(config, 100), generate(config.evaluation(), 100)
    assert {item.length for item in train} == set(range(2, 21)) - {5, 19}
    assert {item.length for item in test} == {5, 19, 300}


def test_depth_moves_the_needle_and_nothing_else():
    task = SequenceTask("kv_recall")
    by_depth = {depth: task.items(11, 6, depth=depth) for depth in (0, 0.1, 0.5, 1)}
    assert {depth: {item.target for item in items} for depth, items in by_depth.items()} == {
        0: {0},
        0.1: {1},
        0.5: {5},
        1: {10},
    }
    assert Counter(item.answer for item in by_depth[0.5]) == {"0": 3, "1": 3}
    keys = [[[pair.split(":")[0] for pair in item.payload] for item in items] for items in by_depth.values()]
    assert all(one == keys[0] for one in keys)
    assert len({item.target for item in task.items(11, 60)}) == 11


def test_keys_are_different_however_many():
    item = SequenceTask("kv_recall").items(500, 1)[0]
    assert len({pair.split(":")[0] for pair in item.payload}) == 500


def test_a_dataset_for_trl():
    pytest.importorskip("datasets")
    config = TaskConfig("copy_first", lengths=(3, 5))
    data, items = to_hf_dataset(config, 7), generate(config, 7)
    assert data.column_names == ["prompt", "answer", "kind", "length", "payload", "seed"]
    assert data["payload"][2] == list(items[2].payload)
    for name in ("prompt", "answer", "kind", "length", "seed"):
        assert list(data[name]) == [getattr(item, name) for item in items]


def test_tasks_are_those_that_glasses_ask_for():
    """By structure: neither package imports the other."""
    from extensions.glasses import tasks

    task = SequenceTask("copy_last")
    item = task.items(8, 1)[0]
    assert {name for name in dir(tasks.Task) if name[0] != "_"} <= set(dir(task))
    wanted = {name for name in dir(tasks.Item) if name[0] != "_"}
    assert wanted <= {field.name for field in dataclasses.fields(item)}
    question = tasks.Question.of(item)
    assert question.answer == item.answer
    assert question.prompt[slice(*question.payload_span)] == "".join(item.payload)
    assert task.items(8, 3) == task.items(8, 3)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "copy_middle"}, "kind must be one of copy_first, copy_last"),
        ({"lengths": (5, 3)}, "lo <= hi"),
        ({"lengths": (5, 6, 7)}, "take a list otherwise"),
        ({"lengths": []}, "ints of at least 1"),
        ({"lengths": [0]}, "ints of at least 1"),
        ({"lengths": 8}, "ints of at least 1"),
        ({"p": 1.5}, r"p must be a chance in \[0, 1\]"),
        ({"alphabet": "0"}, "two or more"),
        ({"alphabet": "011"}, "two or more different"),
        ({"alphabet": "0,"}, "letters a-z"),
        ({"alphabet": "0\uff11"}, "letters a-z"),
        ({"seed": 0.5}, "seed must be an int"),
        ({"separator": ","}, "None or a SeparatorConfig"),
        ({"interleave": True}, "leave it False for count_ones"),
        ({"kind": "kv_recall", "cot": "zero"}, "leave it 'none' for kv_recall"),
        ({"cot": "many"}, "cot must be one of none, zero, few"),
        ({"prompt_order": "last"}, "prompt_order must be one of"),
        ({"prompt_style": "long"}, "prompt_style must be one of"),
        ({"prompt_style": "terse", "hint": True}, "or take 'words'"),
        ({"template": "no sequence"}, "exactly once"),
        ({"template": "{{payload}}"}, "exactly once"),
        ({"template": "{payload} {payload}"}, "exactly once"),
        ({"template": "{payload} {secret}"}, r"unknown fields \['secret'\]"),
        ({"lengths": [4], "held_out": (1, 9)}, "leaves none of lengths"),
    ],
    ids=str,
)
def test_what_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        TaskConfig(**{"kind": "count_ones", **fields})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"every": 0}, "every must be an int of at least 1"),
        ({"side": "middle"}, "side must be one of left, right"),
        ({"text": ""}, "text must be a mark"),
        ({"text": "a"}, "text must be a mark"),
        ({"text": " "}, "text must be a mark"),
        ({"text": "+"}, "text must be a mark"),
    ],
    ids=str,
)
def test_separators_that_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        SeparatorConfig(**fields)


def test_more_that_is_refused():
    with pytest.raises(ValueError, match="Nothing is held out"):
        TaskConfig("parity").evaluation()
    with pytest.raises(ValueError, match="size must be at least 0"):
        generate(TaskConfig("parity"), -1)
    with pytest.raises(ValueError, match=r"for kv_recall; got 0\.5 for parity"):
        SequenceTask("parity").items(5, 1, depth=0.5)
    with pytest.raises(ValueError, match=r"depth must be in \[0, 1\]"):
        SequenceTask("kv_recall").items(5, 1, depth=1.5)
