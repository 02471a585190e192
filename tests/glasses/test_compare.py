"""Remedies side by side: what is asked, what is reckoned from it, and what is said."""

import json
import math
import warnings
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from extensions.glasses import HFCausalLM, representation_gap
from extensions.glasses.answers import answer_items
from extensions.glasses.compare import compare
from extensions.glasses.comparison import Arm, Comparison, Gain, gains
from extensions.glasses.remedies import Alternate, Dilute, Scattered, adaptive_temperature, sliding_window
from extensions.glasses.statistics import CriticalLength, wilson
from extensions.glasses.tasks import Question

LENGTHS = (4, 8, 16)


@dataclass
class Learned:
    """A task that a model masters to a length: what it says itself is the answer, beyond it another word."""

    model: HFCausalLM
    masters: int
    name: str = "learned"

    def items(self, length, size):
        return [self._item(length, i) for i in range(size)]

    def _item(self, length, seed):
        digits = torch.randint(10, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        text = " ".join(map(str, digits))
        item = Question(
            f"What is the last digit in {text} ?",
            (26, 26 + len(text)),
            tuple(map(str, digits)),
            " answer :",
            "car",
            length,
        )
        said = answer_items(self.model, [item]).said[0]
        return Question.of(item, answer=said if length <= self.masters else "car" if said != "car" else "dog")


@pytest.fixture(scope="module")
def compared(make_llama, word_tokenizer):
    model = HFCausalLM(make_llama(len(word_tokenizer), seed=3), word_tokenizer)
    remedies = [Dilute(3, " ,"), Alternate("-"), adaptive_temperature, partial(sliding_window, window=1)]
    found = compare(
        model, [Learned(model, 8)], remedies, LENGTHS, trials=6, pairs=2, dtypes=["float32", "bfloat16"]
    )
    return model, found


def test_separators_come_with_their_controls(compared):
    _, found = compared
    assert list(found.arms) == [
        "learned/plain",
        "learned/dilute(3, ',')",
        "learned/alternate('-')",
        "learned/adaptive_temperature",
        "learned/sliding_window(window=1)",
        "learned/dilute(3, ',', right)",
        "learned/scattered(3, ',')",
        "learned/filler(3, ',')",
    ]
    assert found.arm("learned", "dilute(3, ',')").controls == (
        "dilute(3, ',', right)",
        "scattered(3, ',')",
        "filler(3, ',')",
    )
    assert all(set(arm.gap) == {1, 3} for arm in found.arms.values())


def test_plain_is_right_as_far_as_the_task_is_mastered(compared):
    _, found = compared
    plain = found.arm("learned")
    assert plain.accuracy["float32"].tolist() == [1, 1, 0]
    half = (1 + found.chance["learned"]) / 2
    assert plain.n50["float32"].length == pytest.approx(8 * 2 ** (1 - half))
    assert plain.gain["float32"] == Gain(1.0, 1.0)
    assert (plain.margin["float32"][:2] > 0).all()
    assert plain.margin["float32"][2] < 0
    assert plain.low["float32"][0] == pytest.approx(0.6097, abs=1e-4)
    assert set(plain.accuracy) == {"float32", "bfloat16"}


def test_tokens_and_budget(compared):
    _, found = compared
    plain, separated, scattered, filler, alternate = (
        found.arm("learned", name).tokens.tolist()
        for name in ("plain", "dilute(3, ',')", "scattered(3, ',')", "filler(3, ',')", "alternate('-')")
    )
    assert plain == [n + 10 for n in LENGTHS]
    assert separated == scattered == filler == [n + 10 + (n - 1) // 3 for n in LENGTHS]
    assert alternate == [n + 10 + n - 1 for n in LENGTHS]


@pytest.mark.parametrize(
    ("remedy", "more"), [("plain", 1), ("plain", 3), ("dilute(3, ',')", 1), ("dilute(3, ',')", 3)]
)
def test_gaps_are_those_of_items_with_their_last_element_repeated(compared, remedy, more):
    model, found = compared
    write = (lambda item: item) if remedy == "plain" else Dilute(3, " ,")
    expected = []
    for item in Learned(model, 8).items(8, 2):
        text = " ".join([*item.payload, *[item.payload[-1]] * more])
        longer = Question(
            f"What is the last digit in {text} ?", (26, 26 + len(text)), tuple(text.split()), "", "", 0
        )
        a, b = (
            torch.tensor([model.tokenizer(write(x).prompt + item.lead)["input_ids"]]) for x in (item, longer)
        )
        expected.append(representation_gap(model, a, b, dtypes=(), norms=["linf"]).gap["float32"][0, -1, 0])
    assert found.arm("learned", remedy).gap[more][1].item() == pytest.approx(
        torch.stack(expected).mean().item(), rel=1e-5
    )


def test_remedies_of_attention_are_on_while_a_model_is_asked(compared):
    model, found = compared
    items = Learned(model, 8).items(8, 6)
    with sliding_window(model, 1):
        expected = answer_items(model, items, chunk=8).margin.mean()
    arm = found.arm("learned", "sliding_window(window=1)")
    assert arm.margin["float32"][1].item() == pytest.approx(expected.item(), abs=1e-5)
    assert arm.gap[1].max() < 0.02 * found.arm("learned").gap[1].min()  # it sees its own token alone
    assert not torch.equal(
        found.arm("learned", "adaptive_temperature").margin["float32"], found.arm("learned").margin["float32"]
    )


def test_a_comparison_is_written(compared):
    _, found = compared
    read = json.loads(found.to_json())
    assert read["arms"]["learned/plain"]["accuracy"]["float32"] == [1, 1, 0]
    assert read["arms"]["learned/plain"]["n50"]["float32"]["censored"] == "no"
    tensors = found.to_tensordict()
    assert torch.equal(tensors["arms", "learned/plain", "gap", "3"], found.arm("learned").gap[3])
    assert len(found.verdicts()) == 8 * 2 + 7 + len(found.faults["learned"])
    with pytest.raises(KeyError, match="no arm 'learned/more'"):
        found.arm("learned", "more")


NO = CriticalLength
TOKENS, PLAIN_TOKENS = torch.tensor([12.0, 22.0, 42.0]), torch.tensor([10.0, 18.0, 34.0])


@pytest.mark.parametrize(
    ("found", "plain", "elements", "tokens"),
    [
        (NO(12, "no"), NO(6, "no"), (2, 2), (32 / 14, 32 / 14)),
        (NO(math.inf, "right"), NO(8, "no"), (2, math.inf), (42 / 18, math.inf)),
        (NO(8, "no"), NO(4, "left"), (2, math.inf), (2.2, math.inf)),
        (NO(8, "no"), NO(math.inf, "right"), (0, 0.5), (0, 22 / 34)),
        (NO(4, "left"), NO(8, "no"), (0, 0.5), (0, 12 / 18)),
        (NO(math.inf, "right"), NO(math.inf, "right"), (0, math.inf), (0, math.inf)),
        (NO(4, "left"), NO(4, "left"), (0, math.inf), (0, math.inf)),
    ],
)
def test_gains_are_as_open_as_what_was_seen(found, plain, elements, tokens):
    by_element, by_token = gains(found, plain, LENGTHS, TOKENS, PLAIN_TOKENS)
    assert (by_element.low, by_element.high) == pytest.approx(elements)
    assert (by_token.low, by_token.high) == pytest.approx(tokens)


def arm(remedy, n50, gain, gap=None, every=None, controls=(), within=(60.0, 120.0)):
    gap = gap or {1: [1.0] * 4, 3: [1.0] * 4}
    return Arm(
        task="count",
        remedy=remedy,
        every=every,
        controls=controls,
        trials=(8,) * 4,
        tokens=torch.tensor([40.0, 70.0, 130.0, 250.0]),
        **{name: {"float32": torch.zeros(4)} for name in ("accuracy", "low", "high", "margin")},
        right={"float32": ((),) * 4},
        said={"float32": ((),) * 4},
        n50={"float32": n50},
        n50_within={"float32": within},
        gain={"float32": gain},
        token_gain={"float32": gain},
        gap={more: torch.tensor(values) for more, values in gap.items()},
    )


def verdicts(*arms, faults=()):
    by_name = {f"count/{a.remedy}": a for a in arms}
    return Comparison((30, 60, 120, 240), 2, "linf", {"count": 0.5}, by_name, {"count": faults}).verdicts()


CONTROLS = ("dilute(3, ',', right)", "scattered(3, ',')", "filler(3, ',')")


def with_controls(right, scattered, filler):
    some = NO(100, "no")
    return verdicts(
        arm("plain", some, Gain(1, 1)),
        arm("dilute(3, ',')", some, Gain(1.25, 1.25), controls=CONTROLS),
        *(arm(name, some, gain) for name, gain in zip(CONTROLS, (right, scattered, filler), strict=True)),
    )


def test_separators_that_gain_from_the_right_too_do_not_gain_by_their_phase():
    lines = with_controls(Gain(1.3, 1.3), Gain(1.2, 1.2), Gain(0.9, 0.9))
    assert (
        lines[0]
        == "count, plain, float32: accuracy is under 0.75 from n = 100 on (by its intervals, n = 60 to 120)"
    )
    assert lines[1] == (
        "count, dilute(3, ','), float32: accuracy is under 0.75 from n = 100 on (by its intervals, n = 60 to "
        "120); "
        "n50 x1.25 in elements, x1.25 in tokens; dilute(3, ',', right) x1.3: not their phase; "
        "scattered(3, ',') x1.2; filler(3, ',') x0.9: not more tokens"
    )


def test_separators_that_gain_from_the_left_alone_may_gain_by_their_phase():
    line = with_controls(Gain(0.8, 1.0), Gain(1, 1), Gain(1.5, math.inf))[1]
    assert "dilute(3, ',', right) at least x0.8, at most x1: perhaps their phase" in line
    assert "filler(3, ',') at least x1.5: more tokens alone help" in line


def test_controls_of_what_does_not_gain_are_numbers_alone():
    some = NO(100, "no")
    lines = verdicts(
        arm("plain", some, Gain(1, 1)),
        arm("dilute(3, ',')", some, Gain(0.5, 0.5), controls=CONTROLS),
        *(arm(name, some, Gain(2, 2)) for name in CONTROLS),
    )
    assert lines[1].endswith("dilute(3, ',', right) x2; scattered(3, ',') x2; filler(3, ',') x2")


@pytest.mark.parametrize(
    ("next_one", "matched", "meaning"),
    [
        ([2.0, 3.0, 2.0, 3.0], [0.5, 0.4, 0.5, 0.4], "the gain is local"),
        ([2.0, 3.0, 2.0, 3.0], [2.0, 3.0, 2.0, 3.0], "the gain is on both"),
        ([0.5, 0.4, 0.5, 0.4], [2.0, 3.0, 2.0, 3.0], "the gain is on the phase-matched pair alone"),
        ([0.2, 6.0, 0.3, 2.0], [0.2, 6.0, 0.3, 2.0], "no gain is seen"),
    ],
)
def test_gaps_gain_if_they_do_so_over_lengths(next_one, matched, meaning):
    some = NO(100, "no")
    line = verdicts(
        arm("plain", some, Gain(1, 1)), arm("commas", some, Gain(1, 1), {1: next_one, 3: matched}, every=3)
    )[-1]
    assert line.startswith("count, commas: L-infinity gap of (n, n+1) x")
    assert "of the phase-matched pair (n, n+3) x" in line
    assert line.endswith(f"mean over 4 lengths: {meaning}")


def test_what_is_right_at_all_lengths_with_and_without():
    right = NO(math.inf, "right")
    both = {"gain": Gain(0, math.inf), "within": (math.inf, math.inf)}
    first, second, _ = verdicts(arm("plain", right, **both), arm("commas", right, **both, controls=CONTROLS))
    assert first == "count, plain, float32: accuracy is at least 0.75 at the longest n, 240"
    assert (
        second
        == "count, commas, float32: accuracy is at least 0.75 at the longest n, 240; so it is without it"
    )


def test_a_run_with_nothing_before_it_has_no_gap_to_gain_on(make_llama, char_tokenizer):
    class Run:
        name = "run"

        def items(self, length, size):
            return [Question("1" * length, (0, length), ("1",) * length, "", str(length), length)] * size

    model = HFCausalLM(make_llama(len(char_tokenizer)), char_tokenizer)
    found = compare(model, [Run()], [Dilute(3)], (4, 8, 16, 32), trials=1)
    assert found.arm("run").gap[1].tolist() == [0, 0, 0, 0]
    assert found.arm("run", "dilute(3, ',')").gap[1].min() > 0
    (line,) = [line for line in found.verdicts() if line.startswith("run, dilute(3, ','): L-infinity gap")]
    assert line.startswith(
        "run, dilute(3, ','): L-infinity gap of (n, n+1) is no more than rounding without it, and with"
    )


def test_gaps_that_are_zero_with_a_remedy():
    some = NO(100, "no")
    zero = {1: [0.0] * 4, 3: [0.0] * 4}
    line = verdicts(arm("plain", some, Gain(1, 1)), arm("window", some, Gain(1, 1), zero))[-1]
    assert line == "count, window: L-infinity gap of (n, n+1) is no more than rounding with it"


def test_gaps_that_were_not_measured_are_not_spoken_of():
    some, none = NO(100, "no"), {1: [math.nan] * 4, 3: [math.nan] * 4}
    lines = verdicts(arm("plain", some, Gain(1, 1), none), arm("commas", some, Gain(1, 1), none, every=3))
    assert not any("gap" in line for line in lines)


@pytest.mark.parametrize(
    ("within", "said"),
    [
        ((60.0, 120.0), " (by its intervals, n = 60 to 120)"),
        ((30.0, 120.0), " (by its intervals, up to n = 120)"),
        ((60.0, math.inf), " (by its intervals, n = 60 to beyond 240)"),
        ((30.0, math.inf), " (by its intervals, at any n)"),
        ((30.0, 30.0), ""),
        ((math.inf, math.inf), ""),
    ],
)
def test_intervals_say_no_more_than_they_know(within, said):
    (line,) = verdicts(arm("plain", NO(100, "no"), Gain(1, 1), within=within))
    assert line == f"count, plain, float32: accuracy is under 0.75 from n = 100 on{said}"


def test_gaps_at_few_lengths_judge_nothing():
    some, gap = NO(100, "no"), {1: [2.0, 3.0, math.nan, math.nan], 3: [2.0, 3.0, math.nan, math.nan]}
    line = verdicts(arm("plain", some, Gain(1, 1)), arm("commas", some, Gain(1, 1), gap, every=3))[-1]
    assert line.endswith("mean over 2 lengths: to tell a gain takes 4 lengths")


def test_gaps_of_what_is_no_separator_have_no_phase():
    some = NO(100, "no")
    line = verdicts(arm("plain", some, Gain(1, 1)), arm("window", some, Gain(1, 1), {1: [2.0] * 4}))[-1]
    assert line == "count, window: L-infinity gap of (n, n+1) x2 [2, 2], mean over 4 lengths"


def test_what_the_tokenizer_undoes_comes_first():
    lines = verdicts(arm("plain", NO(100, "no"), Gain(1, 1)), faults=("'111' is one token of 3",))
    assert lines[0] == "count: '111' is one token of 3"


def test_gaps_that_are_zero_without_separators():
    zero = arm("plain", NO(100, "no"), Gain(1, 1), {1: [0.0] * 4, 3: [0.0] * 4})
    line = verdicts(zero, arm("commas", NO(100, "no"), Gain(1, 1), every=3))[-1]
    assert (
        line == "count, commas: L-infinity gap of (n, n+1) is no more than rounding without it, and with it 1"
    )


def test_items_of_the_same_tokens_are_asked_once(make_llama, char_tokenizer):
    from envs.sequence_tasks import SequenceTask

    model = HFCausalLM(make_llama(len(char_tokenizer)), char_tokenizer)
    found = compare(model, [SequenceTask("count_ones"), SequenceTask("copy_last")], [], (4, 8), trials=8)
    assert found.arm("count_ones").trials == (1, 1)
    assert found.arm("copy_last").trials == (2, 2)
    assert len(found.arm("copy_last").right["float32"][0]) == 2
    assert found.chance == {"count_ones": 0.0, "copy_last": 0.5}


def test_what_is_not_answered_at_all_says_nothing_of_length():
    never = NO(30, "left")
    first, second = verdicts(
        arm("plain", never, Gain(0, math.inf)), arm("commas", never, Gain(0, math.inf), every=3)
    )
    assert first.startswith(
        "count: not answered at n = 30 already, with any remedy or none (accuracy at most"
    )
    assert second.startswith("count, commas: L-infinity gap of (n, n+1) x1")


def test_fewer_trials_of_longer_items(make_llama, char_tokenizer):
    from envs.sequence_tasks import SequenceTask

    model = HFCausalLM(make_llama(len(char_tokenizer)), char_tokenizer)
    task = SequenceTask("count_bernoulli", prompt_style="terse")
    found = compare(model, [task], [], (12, 16), trials=(6, 2), pairs=1)
    plain = found.arm("count_bernoulli")
    assert plain.trials == (6, 2)
    assert [len(said) for said in plain.said["float32"]] == [6, 2]
    right = torch.tensor([sum(x) for x in plain.right["float32"]])
    low, high = wilson(right, torch.tensor([6, 2]))
    assert torch.allclose(plain.low["float32"], low)
    assert torch.allclose(plain.high["float32"], high)
    with pytest.raises(ValueError, match="one for each of 2 lengths; got 3"):
        compare(model, [task], [], (4, 8), trials=(6, 2, 2))
    with pytest.raises(ValueError, match="pairs must be from 1 to trials, 2; got 3"):
        compare(model, [task], [], (4, 8), trials=(6, 2), pairs=3)
    some = (
        compare(model, [task], [], (12, 16), trials=2, pairs=1, gap_lengths=(16,))
        .arm("count_bernoulli")
        .gap[1]
    )
    assert some.isnan().tolist() == [True, False]
    assert some[1] == compare(model, [task], [], (12, 16), trials=2, pairs=1).arm("count_bernoulli").gap[1][1]
    with pytest.raises(ValueError, match="norm must be one of"):
        compare(model, [task], [], (4, 8), norm="l3")


def test_separators_that_merge_are_warned_of(make_llama, merging_tokenizer):
    model = HFCausalLM(make_llama(len(merging_tokenizer)), merging_tokenizer)

    class Ones:
        name = "ones"

        def items(self, length, size):
            return [
                Question("Q " + "1" * length, (2, 2 + length), ("1",) * length, " = ", str(length), length)
            ] * size

    with pytest.warns(UserWarning, match="'111,' is one token"):
        found = compare(model, [Ones()], [Dilute(3)], [6, 9], trials=1, pairs=1)
    groups, merges = found.faults["ones"][:2]
    assert "'111' is one token of 3" in groups
    assert "'111,' is one token" in merges
    assert found.verdicts()[: len(found.faults["ones"])] == [f"ones: {x}" for x in found.faults["ones"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(model, [Ones()], [Scattered(3)], [6, 9], trials=1, pairs=1)


def test_bad_input(llama):
    task = Learned(llama, 8)
    with pytest.raises(ValueError, match="lengths must be"):
        compare(llama, [task], [], [8, 4])
    with pytest.raises(TypeError, match=r"text is put to a HFCausalLM\(model, tokenizer\) alone; got Llama"):
        compare(llama.module, [task], [], [4])
    for tasks in (task, ["copy_last"]):
        with pytest.raises(TypeError, match="tasks must be a list of objects"):
            compare(llama, tasks, [], [4])
    with pytest.raises(ValueError, match="pairs must be"):
        compare(llama, [task], [], [4], trials=2, pairs=3)
    with pytest.raises(TypeError, match=r"such as Dilute\(3\), or functions of a model; got 'dilute:3'"):
        compare(llama, [task], ["dilute:3"], [4])
    with pytest.raises(ValueError, match="two remedies are named"):
        compare(llama, [task], [Dilute(3), Dilute(3)], [4])
    with pytest.raises(ValueError, match="names of their own"):
        compare(llama, [task, task], [], [4])
    with pytest.raises(ValueError, match="give chance=0"):
        compare(llama, [Learned(llama, 0)], [], [4], trials=4)
    with pytest.raises(ValueError, match="give the tokenizer"):
        compare(HFCausalLM(llama.module), [task], [], [4, 8, 16], trials=4)
